"""`paramd-server --shards N`: real servers, kept running by a real supervisor."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest

from paramd.errors import ServerUnavailable
from paramd.transport.embedded import EmbeddedServer
from paramd.v1 import parameter_service_pb2
from tests.support.raw_calls import RawClient
from tests.support.server_process import ServerProcess, run_server, serve
from tests.support.waiting import wait_until

_STARTED = re.compile(r"shard (\d+)/\d+: started as process (\d+)$", re.MULTILINE)
_SERVING = re.compile(r"shard (\d+)/(\d+) \S+: serving on (\S+?)(?:,.*)?$", re.MULTILINE)


def _processes(log: str) -> dict[int, list[int]]:
    """The processes of each shard: those that were, and at last the present one."""
    found: dict[int, list[int]] = {}
    for shard, pid in _STARTED.findall(log):
        found.setdefault(int(shard), []).append(int(pid))
    return found


def _lives(pid: int) -> bool:
    try:
        # The third field of stat, behind the name in parentheses; Z waits to be reaped.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _serves(address: str) -> bool:
    with RawClient(address) as client:
        try:
            return client.health() == 1
        except grpc.RpcError as err:
            if err.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False


def _await_service(addresses: Sequence[str]) -> None:
    wait_until(lambda: all(map(_serves, addresses)), f"{addresses} serve")


def _await_end(pids: Sequence[int]) -> None:
    wait_until(lambda: not any(map(_lives, pids)), f"{pids} have ended")


def _present(server: ServerProcess) -> list[int]:
    return [pids[-1] for _, pids in sorted(_processes(server.log).items())]


def test_shards_serve_in_their_order_and_end_cleanly(tmp_path: Path) -> None:
    options = ("--shards", "3", "--memory-limit", "96M", "--stall-timeout", "7")
    with serve(tmp_path, *options) as server:
        assert len(set(server.addresses)) == 3
        _await_service(server.addresses)
        # Each says in its own log which one it is.
        said = {(int(i), int(n)): address for i, n, address in _SERVING.findall(server.log)}
        assert said == {(index, 3): address for index, address in enumerate(server.addresses)}
        for address in server.addresses:
            with RawClient(address) as client:
                assert client.status().memory_limit_bytes == 32 << 20
        pids = _present(server)
        assert len({os.getpgid(pid) for pid in [*pids, server.process.pid]}) == 4
        server.terminate()
        assert server.await_end() == 0
        assert not any(map(_lives, pids))
        assert not server.port_file.exists()
        assert server.trouble() == []


def test_options_come_from_the_environment(tmp_path: Path) -> None:
    environment = {
        "PARAMD_SHARDS": "2",
        "PARAMD_LISTEN": f"unix:{tmp_path}/s 127.0.0.1:0",
        "PARAMD_MEMORY_LIMIT": "64M",
    }
    with serve(tmp_path, listen=None, environment=environment) as server:
        assert server.addresses == [f"unix:{tmp_path}/s.{index}" for index in range(2)]
        _await_service(server.addresses)
        with RawClient(server.addresses[1]) as client:
            assert client.status().memory_limit_bytes == 32 << 20
        server.process.send_signal(signal.SIGINT)
        assert server.await_end() == 0


@pytest.mark.parametrize("shard", [0, 1])
def test_killed_shard_is_back_at_its_address(tmp_path: Path, shard: int) -> None:
    with serve(tmp_path, "--shards", "2") as server:
        pids = _present(server)
        os.kill(pids[shard], signal.SIGKILL)
        wait_until(lambda: len(_processes(server.log)[shard]) == 2, "it is started again")
        _await_service(server.addresses)
        before, after = pids, _present(server)
        assert [old == new for old, new in zip(before, after, strict=True)] == [
            index != shard for index in range(2)
        ]
        assert json.loads(server.port_file.read_text())["addresses"] == server.addresses
        assert f"shard {shard}/2: was ended by signal 9" in server.log
        server.terminate()
        assert server.await_end() == 0
        assert server.trouble() == []


def test_shards_save_to_one_directory_and_take_it_up(tmp_path: Path) -> None:
    options = ("--shards", "2", "--snapshot-dir", str(tmp_path / "state"))
    with serve(tmp_path, *options) as server:
        for shard, address in enumerate(server.addresses):
            wait_until(partial(_answers, address), f"{address} answers")
            with RawClient(address) as client:
                client.create("w", (3,))
                client.set("w", np.full(3, shard, "f4"))
        server.terminate()
        assert server.await_end() == 0
        assert server.trouble() == []
    with serve(tmp_path, *options) as server:
        for shard, address in enumerate(server.addresses):
            # They answer when all of them are there.
            wait_until(partial(_answers, address), f"{address} answers")
            with RawClient(address) as client:
                np.testing.assert_array_equal(client.get("w"), np.full(3, shard, "f4"))


def _answers(address: str) -> bool:
    with RawClient(address) as client:
        return client.start("List", parameter_service_pb2.ListRequest()).code() is (
            grpc.StatusCode.OK
        )


def test_shards_end_with_their_supervisor(tmp_path: Path) -> None:
    with serve(tmp_path, "--shards", "2") as server:
        pids = _present(server)
        server.process.kill()
        server.process.wait()
        _await_end(pids)


def test_embedded_shards_end_with_their_owner() -> None:
    """The owner is killed, so that it can clean up nothing."""
    script = (
        "import os, pathlib\n"
        "from paramd.transport.embedded import EmbeddedServer\n"
        "server = EmbeddedServer({}, timeout=60.0, num_shards=2)\n"
        "log = pathlib.Path(server.targets[0].removeprefix('unix:')).parent / 'log'\n"
        "print(server.pid, log.read_text(), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    shards = [pid for pids in _processes(done.stdout).values() for pid in pids]
    assert len(shards) == 2
    _await_end([int(done.stdout.split()[0]), *shards])


def _ports_in_a_row(number: int) -> int:
    """The first of that many ports that are free."""
    for _ in range(100):
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            try:
                for other in range(port + 1, port + number):
                    socket.create_server(("127.0.0.1", other)).close()
            except (OSError, OverflowError):
                continue
            return port
    raise AssertionError("no ports in a row are free")


def test_shards_take_the_ports_that_follow(tmp_path: Path) -> None:
    port = _ports_in_a_row(2)
    with serve(tmp_path, "--shards", "2", listen=(f"127.0.0.1:{port}",)) as server:
        assert server.addresses == [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]
        _await_service(server.addresses)


@pytest.mark.parametrize("taken", [0, 1])
def test_port_in_use_ends_all(tmp_path: Path, taken: int) -> None:
    port = _ports_in_a_row(2)
    port_file = tmp_path / "ports.json"
    with socket.create_server(("127.0.0.1", port + taken)):
        ended = run_server(
            *("--shards", "2", "--listen", f"127.0.0.1:{port}", "--port-file", str(port_file))
        )
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port + taken}" in ended.stderr
    assert f"shard {taken}/2: ended with status 1 before it served" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not port_file.exists()
    assert not any(_lives(pid) for pids in _processes(ended.stderr).values() for pid in pids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shards", "0"), "--shards"),
        (("--shards", "2", "--shard", "0/2"), "--shards runs all shards of a cluster"),
        (("--shards", "2", "--listen", "127.0.0.1:65535"), "65535 is the last"),
        (("--shards", "2", "--listen", "0.0.0.0:0"), "--insecure"),
        (("--shards", "2", "--listen", f"unix:/{'x' * 110}"), "107 at most"),
        (("--shards", "2", "--listen", "127.0.0.1:0", "--restore", "9" * 20), "--restore"),
        (("--shards", "9", "--listen", "127.0.0.1:0", "--memory-limit", "8"), "--memory-limit 8"),
        (("--shards", "2", "--listen", "127.0.0.1:0", "--snapshot-dir", "/dev/null"), "/dev/null"),
        (("--shards", "2", "--listen", "127.0.0.1:0", "--snapshot-every", "9"), "--snapshot-dir"),
    ],
)
def test_settings_that_make_no_sense_start_nothing(options: tuple[str, ...], message: str) -> None:
    ended = run_server(*options)
    assert ended.returncode not in (0, None)
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not _processes(ended.stderr)


def test_shard_that_cannot_start_says_why(tmp_path: Path) -> None:
    """Only the shard sees that it has no such snapshot."""
    ended = run_server(
        *("--shards", "2", "--listen", "127.0.0.1:0"),
        *("--snapshot-dir", str(tmp_path / "state"), "--restore", "7"),
    )
    assert ended.returncode == 1
    assert "has no snapshot 7" in ended.stderr
    assert "shard 0/2: ended with status 1 before it served" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_embedded_shards_come_and_go_with_their_owner() -> None:
    server = EmbeddedServer({"--split-elements": "8"}, timeout=60.0, num_shards=2)
    try:
        assert len(server.targets) == 2
        assert server.target == ",".join(server.targets)
        _await_service(server.targets)
        directory = Path(server.targets[0].removeprefix("unix:")).parent
        pids = [
            pid for pids in _processes((directory / "log").read_text()).values() for pid in pids
        ]
        assert len(pids) == 2
        assert server.end_of_server() is None
    finally:
        server.close()
    assert not directory.exists()
    assert not any(map(_lives, [server.pid, *pids]))


def test_embedded_shards_that_do_not_start_say_why(tmp_path: Path) -> None:
    options = {"--snapshot-dir": str(tmp_path / "state"), "--restore": "7"}
    with pytest.raises(ServerUnavailable, match=r"ended with status 1(.|\n)*has no snapshot 7"):
        EmbeddedServer(options, timeout=60.0, num_shards=2)
    with pytest.raises(ValueError, match="num_shards"):
        EmbeddedServer({}, timeout=60.0, num_shards=0)
