"""Several shards on one host: what each is started with, and what happens when one dies.

The shards here are small scripts, so that they start at once and fail in every way.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import pytest

from paramd_server.__main__ import main
from paramd_server.port_file import read_port_file
from paramd_server.shard_options import (
    address_to_reach,
    environment_without,
    newest_snapshot,
    options_given,
    shard_addresses,
)
from paramd_server.supervisor import RestartLimits, ShardsConfig, Supervisor
from tests.support.waiting import wait_until

# Says with what it was started, writes its port file (port 0 becomes 4000 and its number), and
# ends with SIGTERM. BEHAVIOUR_I says what shard I does instead.
_SHARD: Final = r"""
import json, os, signal, sys, time
home = os.environ["HOME_OF_TEST"]
words = sys.argv[1:]
given = {}
for option, value in zip(words[::2], words[1::2]):
    given.setdefault(option, []).append(value)
index = int(given["--shard"][0].split("/")[0])
record = os.path.join(home, f"starts-{index}")
started_before = os.path.exists(record)
with open(record, "a") as file:
    file.write(json.dumps({"pid": os.getpid(), **given}) + "\n")
behaviour = os.environ.get(f"BEHAVIOUR_{index}", "")
def serve():
    path = given["--port-file"][0]
    listen = [a[:-1] + f"400{index}" if a.endswith(":0") else a for a in given["--listen"]]
    with open(path + ".new", "w") as file:
        json.dump({"addresses": listen}, file)
    os.replace(path + ".new", path)
if behaviour.startswith("end "):
    sys.exit(int(behaviour[4:]))
if behaviour == "die once" and not started_before:
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif behaviour.startswith("fail "):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(int(behaviour[5:])))
elif behaviour != "unready":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
serve()
if behaviour == "anew" and "ANEW" not in os.environ:
    os.environ["ANEW"] = "1"
    os.execv(sys.executable, [sys.executable, "-SE", __file__, *words])
if behaviour == "die again and again" or behaviour == "die later" and started_before:
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    time.sleep(60)
"""

QUICK: Final = RestartLimits(
    max_deaths=4, first_pause_s=0.01, longest_pause_s=0.02, steady_s=3600.0
)


@dataclass
class Running:
    """A supervisor in a thread, and its shards."""

    home: Path
    end: Callable[[], None]
    thread: threading.Thread
    statuses: list[int] = field(default_factory=list)

    def starts(self, shard: int) -> list[dict[str, Any]]:
        path = self.home / f"starts-{shard}"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def await_starts(self, shard: int, number: int) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.starts(shard)) >= number, f"{number} starts of {shard}")
        return self.starts(shard)

    def await_all(self) -> tuple[str, ...]:
        """Waits until all shards serve, and gives their addresses."""
        wait_until((self.home / "ports.json").exists, "all shards serve")
        addresses = read_port_file(self.home / "ports.json")
        assert addresses is not None
        return addresses

    def await_status(self) -> int:
        self.thread.join(20)
        assert not self.thread.is_alive(), "the supervisor goes on"
        (status,) = self.statuses
        return status


@pytest.fixture
def shards(tmp_path: Path) -> Callable[..., Any]:
    """Runs a supervisor while a block runs."""
    script = tmp_path / "shard.py"
    script.write_text(_SHARD)

    @contextmanager
    def run(
        behaviours: dict[int, str] | None = None,
        *,
        limits: RestartLimits = QUICK,
        **changes: Any,
    ) -> Iterator[Running]:
        environment = {"HOME_OF_TEST": str(tmp_path)}
        for index, behaviour in (behaviours or {}).items():
            environment[f"BEHAVIOUR_{index}"] = behaviour
        config = ShardsConfig(
            **{
                "num_shards": 3,
                "listen": ("127.0.0.1:0",),
                "memory_limit": 3000,
                "options": (),
                "environment": environment,
                "port_file": tmp_path / "ports.json",
                **changes,
            }
        )
        command = (sys.executable, "-SE", str(script))
        supervisor = Supervisor(config, limits=limits, command=command)
        ended, ending = os.pipe()
        statuses: list[int] = []
        thread = threading.Thread(target=lambda: statuses.append(supervisor.run(ended)))
        running = Running(tmp_path, lambda: void(os.write(ending, b"\0")), thread, statuses)
        thread.start()
        try:
            yield running
        finally:
            running.end()
            thread.join(30)
            os.close(ending)
            os.close(ended)
        assert not thread.is_alive()
        assert not (tmp_path / "ports.json").exists()
        for index in range(3):
            for start in running.starts(index):
                assert not os.path.exists(f"/proc/{start['pid']}"), "a shard is left"

    return run


def void(_: object) -> None:
    """Nothing of it."""


def test_shards_listen_on_ports_that_follow() -> None:
    assert shard_addresses(("127.0.0.1:5000",), 3) == (
        ("127.0.0.1:5000",),
        ("127.0.0.1:5001",),
        ("127.0.0.1:5002",),
    )
    assert shard_addresses(("[::1]:65534", "unix:/run/p", "localhost:0"), 2) == (
        ("[::1]:65534", "unix:/run/p.0", "localhost:0"),
        ("[::1]:65535", "unix:/run/p.1", "localhost:0"),
    )
    assert shard_addresses(("a:1",), 1) == (("a:1",),)
    # Two interfaces, each with free ports.
    assert shard_addresses(("a:0", "a:0"), 1) == (("a:0", "a:0"),)


@pytest.mark.parametrize(
    ("listen", "message"),
    [
        (("127.0.0.1:65534",), r"127\.0\.0\.1:65534 needs the ports 65534 to 65536 for 3 shards"),
        (("a:5000", "a:5002"), "a:5002 to two of 3"),
        (("a:5000", "a:5000"), "a:5000 to two"),
        (("unix:/x", "unix:/x"), "unix:/x.0 to two"),
        (("unix:/" + "x" * 105,), "has 108 bytes, and .* 107 at most"),
        (("unix:/" + "ä" * 53,), "has 109 bytes"),
    ],
)
def test_addresses_that_do_not_fit(listen: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shard_addresses(listen, 3)


def test_longest_path_of_a_socket_fits() -> None:
    path = "/" + "x" * 104
    (_, (last,)) = shard_addresses((f"unix:{path}",), 2)
    assert len(last.removeprefix("unix:")) == 107


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("0.0.0.0:50051", "127.0.0.1:50051"),
        ("[::]:50051", "[::1]:50051"),
        ("10.0.0.1:1", "10.0.0.1:1"),
        ("[fe80::1]:2", "[fe80::1]:2"),
        ("unix:/run/p.0", "unix:/run/p.0"),
        ("unix:/run/0.0.0.0:1", "unix:/run/0.0.0.0:1"),
    ],
)
def test_coordinator_of_every_interface_is_reached_by_loopback(address: str, reached: str) -> None:
    assert address_to_reach(address) == reached


def test_options_are_passed_on_as_they_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAMD_THREADS", "12")
    monkeypatch.setenv("PARAMD_SHARDS", "3")
    given = ["--insecure", "--stall-timeout=5", "--listen", "a:1", "--listen", "b:2"]
    given += ["--split-elements", "8", "--memory-limit", "1G", "--snapshot-dir", "/a b"]
    context = main.make_context("paramd-server", list(given))
    assert context.params["shards"] == 3
    options = options_given(context, without=("listen", "memory_limit"))
    again = main.make_context("paramd-server", list(options)).params
    expected = {**context.params, "listen": ("127.0.0.1:50051",), "memory_limit": None}
    assert again == expected
    # Those of the environment are inherited: a secret would be seen in a list of processes.
    assert "--threads" not in options
    assert "--shards" not in options


def test_flags_and_repeated_options_are_passed_on() -> None:
    @click.command()
    @click.option("--colour/--no-colour", default=True)
    @click.option("--loud", is_flag=True)
    @click.option("--name", multiple=True)
    def command() -> None: ...

    words = ["--no-colour", "--name", "a", "--name", "-b", "--loud"]
    context = command.make_context("command", words.copy())
    assert options_given(context, without=()) == (
        *("--no-colour", "--loud", "--name", "a", "--name", "-b"),
    )


def test_environment_loses_what_only_the_supervisor_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAMD_SHARDS", "3")
    monkeypatch.setenv("PARAMD_SPLIT_ELEMENTS", "8")
    environment = environment_without(main.make_context("paramd-server", []), ("shards",))
    assert {**environment, "PARAMD_SHARDS": "3"} == dict(os.environ)


def test_newest_snapshot_is_whole(tmp_path: Path) -> None:
    assert newest_snapshot(None) == 0
    assert newest_snapshot(tmp_path / "missing") == 0
    _snapshot(tmp_path, 9)
    _snapshot(tmp_path, 11)
    (tmp_path / "snapshots" / "00000012").mkdir()
    (tmp_path / "snapshots" / "mine").mkdir()
    (tmp_path / "snapshots" / "mine" / "COMMITTED").touch()
    assert newest_snapshot(tmp_path) == 11


def _snapshot(directory: Path, number: int) -> None:
    folder = directory / "snapshots" / f"{number:08d}"
    folder.mkdir(parents=True)
    (folder / "COMMITTED").touch()


def test_pauses_double_up_to_the_longest() -> None:
    limits = RestartLimits(first_pause_s=0.1, longest_pause_s=5.0)
    pauses = [limits.pause_s(deaths) for deaths in range(1, 9)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert limits.pause_s(2000 // 2) == 5.0


def test_shards_are_started_with_their_places(shards: Any) -> None:
    options = ("--split-elements", "8")
    with shards(options=options, snapshot_every_s=30.0, listen=("0.0.0.0:0", "b:70")) as running:
        assert running.await_all() == ("0.0.0.0:4000", "0.0.0.0:4001", "0.0.0.0:4002")
        starts = [running.starts(shard) for shard in range(3)]
        assert [len(each) for each in starts] == [1, 1, 1]
        for index, (start,) in enumerate(starts):
            assert start["--shard"] == [f"{index}/3"]
            assert start["--listen"] == ["0.0.0.0:0", f"b:{70 + index}"]
            assert start["--memory-limit"] == ["1000"]
            assert start["--parent-pid"] == [str(os.getpid())]
            assert start["--split-elements"] == ["8"]
            assert start["--restore"] == ["latest"]
            # Shard 0 serves before the others are started: they are told where.
            assert start.get("--coordinator") == (["127.0.0.1:4000"] if index else None)
            assert start.get("--snapshot-every") == (None if index else ["30.0"])
        running.end()
        assert running.await_status() == 0


def test_coordinator_can_have_another_name(shards: Any) -> None:
    with shards(coordinator="params.example:4000") as running:
        running.await_all()
        assert running.starts(0)[0].get("--coordinator") is None
        assert running.starts(2)[0]["--coordinator"] == ["params.example:4000"]


@pytest.mark.parametrize("index", [0, 2])
def test_shard_that_dies_comes_back_at_its_address(shards: Any, index: int) -> None:
    with shards() as running:
        running.await_all()
        for death in range(1, 3):
            os.kill(running.starts(index)[-1]["pid"], signal.SIGKILL)
            start = running.await_starts(index, death + 1)[-1]
            assert start["--listen"] == [f"127.0.0.1:400{index}"]
        assert [len(running.starts(other)) for other in range(3) if other != index] == [1, 1]
        running.end()
        assert running.await_status() == 0


def test_shard_that_ends_by_itself_comes_back(shards: Any) -> None:
    with shards() as running:
        running.await_all()
        os.kill(running.starts(1)[0]["pid"], signal.SIGTERM)
        running.await_starts(1, 2)


def test_shard_that_executes_itself_anew_is_not_started_again(shards: Any) -> None:
    with shards({1: "anew"}) as running:
        running.await_all()
        first, second = running.await_starts(1, 2)
        assert first["pid"] == second["pid"]
        # The supervisor still has it: its death is seen.
        os.kill(first["pid"], signal.SIGKILL)
        assert running.await_starts(1, 3)[2]["pid"] != first["pid"]


def test_restore_is_as_given_until_there_is_a_later_snapshot(shards: Any, tmp_path: Path) -> None:
    _snapshot(tmp_path, 4)
    with shards(snapshot_dir=tmp_path, restore="3") as running:
        running.await_all()
        os.kill(running.starts(0)[0]["pid"], signal.SIGKILL)
        running.await_starts(0, 2)
        _snapshot(tmp_path, 5)
        os.kill(running.starts(0)[1]["pid"], signal.SIGKILL)
        restored = [start["--restore"] for start in running.await_starts(0, 3)]
        assert restored == [["3"], ["3"], ["latest"]]


def test_shard_that_saved_its_state_at_its_end_takes_it_up(shards: Any, tmp_path: Path) -> None:
    with shards(snapshot_dir=tmp_path, restore="none") as running:
        running.await_all()
        for number, end in ((2, signal.SIGTERM), (3, signal.SIGKILL)):
            _await_service(running, 1)
            os.kill(running.starts(1)[-1]["pid"], end)
            running.await_starts(1, number)
        restored = [start["--restore"] for start in running.starts(1)]
        assert restored == [["none"], ["latest"], ["none"]]


def _await_service(running: Running, shard: int) -> None:
    # From then on it takes signals as it should.
    port_file = Path(running.starts(shard)[-1]["--port-file"][0])
    wait_until(port_file.exists, f"shard {shard} serves")


def test_shard_killed_before_it_ever_served_comes_back(shards: Any) -> None:
    with shards({2: "die once"}) as running:
        running.await_all()
        assert len(running.starts(2)) == 2


@pytest.mark.parametrize(("behaviour", "status"), [("end 2", 2), ("end 0", 1)])
def test_shard_that_does_not_start_ends_all(
    shards: Any, behaviour: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with shards({1: behaviour}) as running:
        assert running.await_status() == status
        assert [len(running.starts(shard)) for shard in (0, 1)] == [1, 1]
    assert f"shard 1/3: ended with {behaviour.replace('end', 'status')} before" in caplog.text


def test_shard_that_dies_again_and_again_ends_all(
    shards: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with shards({1: "die later"}) as running:
        running.await_all()
        os.kill(running.starts(1)[0]["pid"], signal.SIGKILL)
        assert running.await_status() == 1
        assert len(running.starts(1)) == QUICK.max_deaths
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert messages == [
        f"shard 1/3: was ended by signal 9: it is started again in {pause} s"
        for pause in ("0.01", "0.02", "0.02")
    ]
    assert "shard 1/3: was ended by signal 9: 4 deaths in a row" in caplog.text


def test_deaths_after_steady_service_are_not_in_a_row(
    shards: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "paramd_server.supervisor")
    steady = RestartLimits(max_deaths=2, first_pause_s=0.01, longest_pause_s=0.01, steady_s=0.05)

    def has_served(times: int) -> bool:
        seen = [r.created for r in caplog.records if r.getMessage() == "shard 1/3: serves"]
        return len(seen) == times and time.time() - seen[-1] > 2 * steady.steady_s

    with shards(limits=steady) as running:
        for times in range(1, 5):
            wait_until(partial(has_served, times), "the shard serves steadily")
            os.kill(running.starts(1)[-1]["pid"], signal.SIGKILL)
        running.await_starts(1, 5)
    assert caplog.text.count("shard 1/3: was ended by signal 9: it is started again") == 4


def test_status_is_that_of_the_shard_that_fails_at_the_end(
    shards: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with shards({1: "fail 7"}) as running:
        running.await_all()
        running.end()
        assert running.await_status() == 7
    assert "shard 1/3: ended with status 7" in caplog.text


def test_shard_that_takes_no_notice_is_killed_in_the_end(
    shards: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with shards({2: "deaf"}, stop_s=0.2) as running:
        running.await_all()
        running.end()
        assert running.await_status() == 1
    assert "1 shards have not ended and are killed" in caplog.text


def test_shard_that_is_not_ready_for_the_signal_is_no_failure(shards: Any) -> None:
    with shards({1: "unready"}) as running:
        running.await_all()
        running.end()
        assert running.await_status() == 0


@pytest.mark.parametrize(("limit", "given"), [(3001, ["1000"]), (0, None)])
def test_shards_share_the_memory_of_gpus(
    shards: Any, limit: int, given: Sequence[str] | None
) -> None:
    with shards(gpu_memory_limit=limit) as running:
        running.await_all()
        assert [running.starts(shard)[0].get("--gpu-memory-limit") for shard in range(3)] == [
            given
        ] * 3
        running.end()
        assert running.await_status() == 0


def test_port_file_that_cannot_be_written_ends_all(shards: Any, tmp_path: Path) -> None:
    with shards(port_file=tmp_path / "missing" / "ports.json") as running:
        assert running.await_status() == 1


def test_memory_for_each_shard() -> None:
    with pytest.raises(ValueError, match=r"--memory-limit 2 .* 3 shards"):
        ShardsConfig(3, ("a:0",), 2, (), {})
    with pytest.raises(ValueError, match=r"--gpu-memory-limit 2 .* 3 shards"):
        ShardsConfig(3, ("a:0",), 3, (), {}, gpu_memory_limit=2)
