"""Snapshots of a server that goes on serving, and starts from them."""

from __future__ import annotations

import json
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import paramd
from paramd import gluon
from paramd.cli import main
from paramd.errors import PathNotAllowedError, SnapshotFailedError
from paramd.v1 import snapshot_service_pb2 as pb
from tests.support.raw_calls import SHAPE, RawClient, refused
from tests.support.server_process import ServerProcess, serve

WAIT_S = 30.0
BIG = (40, 1 << 18)  # 40 MiB of values and as much of states.
ROWS, WIDTH = 20_000, 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


def start(folder: Path, *arguments: str, **more: Any) -> Any:
    return serve(folder.parent, "--snapshot-dir", str(folder), *arguments, **more)


def kill(server: ServerProcess) -> None:
    server.process.kill()
    server.process.wait(WAIT_S)


def committed(folder: Path) -> list[int]:
    return sorted(int(each.parent.name) for each in folder.glob("snapshots/*/COMMITTED"))


def await_true(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.005)


class Training:
    """A loop that steps a large value, a small one and a table, each by the same number.

    Attributes:
        seen: the small value after each step.
    """

    def __init__(self, session: paramd.Session) -> None:
        self.session = session
        params = gluon.ParameterDict(session=session)
        self.big = params.get("big", shape=BIG, init="zeros")
        self.small = params.get("small", shape=(3,), init="zeros")
        self.table = params.get(
            "table", shape=(ROWS, WIDTH), stype="row_sparse", grad_stype="row_sparse", init="zeros"
        )
        params.initialize()
        self.trainer = gluon.Trainer(
            params, "sgd", {"learning_rate": 1.0, "momentum": 0.0}, kvstore="local"
        )
        self.seen: list[float] = []
        self.failures: list[BaseException] = []
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._rows = np.arange(0, ROWS, 7)
        self._big = np.ones(BIG, "f4")

    def step(self, *, big: bool = True) -> None:
        grads = {
            "small": np.ones(3, "f4"),
            "table": (self._rows, np.ones((len(self._rows), WIDTH), "f4")),
        }
        if big:
            grads["big"] = self._big
        values = self.trainer.step(1, ignore_stale_grad=not big, grads=grads, pull=["small"])
        assert values is not None
        self.seen.append(float(values["small"][0]))

    def _run(self, big: bool) -> None:
        try:
            while not self._end.is_set():
                self.step(big=big)
        except BaseException as err:
            self.failures.append(err)

    @contextmanager
    def running(self, *, big: bool = True) -> Iterator[None]:
        self._thread = threading.Thread(target=self._run, args=(big,), daemon=True)
        self._thread.start()
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Ends the steps after the one under way."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(WAIT_S)
            assert not self._thread.is_alive()
        assert self.failures == []

    def await_steps(self, more: int) -> None:
        until = len(self.seen) + more
        await_true(lambda: len(self.seen) >= until or bool(self.failures))


def check_consistent(session: paramd.Session, *, big: bool = True) -> int:
    """The number of steps, which every value has."""
    params = session.parameters()
    small = params["small"].data().asnumpy()
    count = -int(small[0])
    assert (small == -count).all()
    if big:
        assert (params["big"].data().asnumpy() == -count).all()
    rows = params["table"].row_sparse_data(np.arange(0, ROWS, 7)).asnumpy()[::7]
    assert (rows == -count).all()
    (trainer,) = session.trainers()
    assert trainer.num_steps == count
    return count


def test_steps_go_on_during_a_snapshot_and_what_is_taken_up_is_one_moment(folder: Path) -> None:
    with start(folder) as server, paramd.connect(server.address) as session:
        training = Training(session)
        with training.running():
            training.await_steps(3)
            before = len(training.seen)
            saved = session.save_snapshot()
            during = len(training.seen) - before
            training.await_steps(2)
        assert during >= 1
        assert saved.number == 1
        assert saved.size_bytes > 4 * BIG[0] * BIG[1]
        assert abs(saved.created - time.time()) < 2 * WAIT_S
        assert session.snapshots() == [saved]
        status = session.status()
        assert (status.num_snapshots, status.num_failed_snapshots) == (1, 0)
        assert (status.last_snapshot, status.last_snapshot_created) == (1, saved.created)
        kill(server)
    with start(folder) as server, paramd.connect(server.address) as session:
        count = check_consistent(session)
        assert before <= count <= before + during + 1


def test_killed_server_goes_on_from_its_snapshot_and_every_step_counts_once(folder: Path) -> None:
    """The session lives through it: a step that is sent again is in the snapshot, or made anew."""
    address = f"unix:{folder.parent}/socket"
    with start(folder, listen=[address]) as server:
        session = paramd.connect(address)
        training = Training(session)
        with training.running(big=False):
            training.await_steps(20)
            session.save_snapshot()
            training.await_steps(5)
            kill(server)
            at = len(training.seen)
            with start(folder, listen=[address]) as again:
                training.await_steps(20)
                training.stop()
                # Once gone back, each step is one more: none is lost, none counts twice.
                later = training.seen[at + 1 :]
                assert later == [later[0] - index for index in range(len(later))]
                assert check_consistent(session, big=False) == -int(training.seen[-1])
                assert again.trouble() == []
        session.close()


def test_operation_of_before_the_snapshot_is_answered_and_not_carried_out_again(
    folder: Path,
) -> None:
    with start(folder) as server, RawClient(server.address) as client:
        client.create("w", SHAPE)
        operation = client.operation()
        number = save(client, operation)
        assert save(client, operation) == number, "a repeated order is one"
        await_snapshot(client, number)
        kill(server)
    with start(folder) as server, RawClient(server.address) as again:
        # Its answer is in the snapshot that it ordered.
        assert save(again, operation) == number
        assert await_snapshot(again, number).number == number
        assert committed(folder) == [number]
        with refused("SNAPSHOT_FAILED"):
            await_snapshot(again, 77)


def save(client: RawClient, operation: Any) -> int:
    answer = client.call("SaveSnapshot", pb.SaveSnapshotRequest(operation=operation))
    return int(answer.number)


def await_snapshot(client: RawClient, number: int) -> pb.Snapshot:
    while True:
        request = pb.AwaitSnapshotRequest(number=number, wait_ms=1000)
        answer = client.call("AwaitSnapshot", request)
        if answer.HasField("snapshot"):
            return answer.snapshot  # type: ignore[no-any-return]


def test_killed_in_the_middle_of_a_snapshot_the_one_before_counts(folder: Path) -> None:
    with start(folder) as server, paramd.connect(server.address) as session:
        training = Training(session)
        training.step()
        session.save_snapshot()
        training.step()
        with RawClient(server.address) as client:
            assert save(client, client.operation()) == 2
            await_true(lambda: any((folder / "snapshots/00000002").glob(".*.tmp")))
            kill(server)
    assert committed(folder) == [1]
    with start(folder) as server, paramd.connect(server.address) as session:
        assert check_consistent(session) == 1
        assert session.save_snapshot().number == 3
    # What the crash left is gone.
    assert not (folder / "snapshots/00000002").exists()
    assert not list(folder.rglob("*.tmp"))


def test_full_disk_keeps_the_old_one_and_the_server_goes_on(folder: Path) -> None:
    with start(folder) as server, paramd.connect(server.address) as session:
        training = Training(session)
        training.step()
        first = session.save_snapshot()
        limit = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        # No file of more than 1 MiB can be written, as if the disk were full.
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
        with pytest.raises(SnapshotFailedError, match="cannot be saved"):
            session.save_snapshot()
        training.step()
        with pytest.raises(SnapshotFailedError, match="File too large"):
            session.save_snapshot("named")
        assert session.snapshots() == [first]
        assert session.status().num_failed_snapshots == 2
        assert list((folder / "snapshots").iterdir()) != []
        assert sorted(each.name for each in (folder / "snapshots").iterdir()) == [
            "00000001",
            "lock-0-of-1",
        ]
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limit)
        training.step()
        assert session.save_snapshot().number == 4
        kill(server)
    with start(folder) as server, paramd.connect(server.address) as session:
        assert check_consistent(session) == 3


def test_named_snapshots_are_kept_and_taken_up_by_their_names(folder: Path) -> None:
    with start(folder) as server, paramd.connect(server.address) as session:
        weight = gluon.Parameter("w", shape=SHAPE, init="zeros", session=session)
        weight.initialize()
        named = session.save_snapshot("runs/before finetuning")
        assert (named.number, named.directory) == (1, "runs/before finetuning")
        for value in (1, 2, 3):
            weight.set_data(np.full(SHAPE, value, "f4"))
            session.save_snapshot()
        assert [(each.number, each.directory) for each in session.snapshots()] == [
            (1, "runs/before finetuning"),
            (3, ""),
            (4, ""),
        ]
        with pytest.raises(SnapshotFailedError, match="exists already"):
            session.save_snapshot("runs/before finetuning")
        for outside in ("../x", "/tmp/x", "snapshots/x"):
            with pytest.raises(PathNotAllowedError):
                session.save_snapshot(outside)
        kill(server)
    for wanted, value in (("runs/before finetuning", 0), ("1", 0), ("3", 2), ("latest", 3)):
        with (
            start(folder, "--restore", wanted) as server,
            paramd.connect(server.address) as session,
        ):
            data = session.parameters()["w"].data().asnumpy()
            assert (data == value).all()
            kill(server)


def test_snapshots_come_by_themselves(folder: Path) -> None:
    with (
        start(folder, "--snapshot-every", "0.2") as server,
        paramd.connect(server.address) as session,
    ):
        gluon.Parameter("w", shape=SHAPE, init="ones", session=session).initialize()
        await_true(lambda: session.status().num_snapshots >= 3)
        assert len(session.snapshots()) == 2
        kill(server)
    with start(folder) as server, paramd.connect(server.address) as session:
        assert session.exists("w")


def test_stop_gives_up_the_snapshot_under_way_and_saves_the_last_state(folder: Path) -> None:
    with start(folder) as server, paramd.connect(server.address) as session:
        training = Training(session)
        training.step()
        with RawClient(server.address) as client:
            save(client, client.operation())
            training.step()
        server.process.send_signal(signal.SIGTERM)
        assert server.await_end() == 0
        assert server.trouble() == []
    with start(folder) as server, paramd.connect(server.address) as session:
        assert check_consistent(session) == 2


def test_without_a_directory_there_are_no_snapshots(tmp_path: Path) -> None:
    with serve(tmp_path) as server, paramd.connect(server.address) as session:
        assert session.snapshots() == []
        with pytest.raises(SnapshotFailedError, match="--snapshot-dir"):
            session.save_snapshot()
        assert session.status().num_failed_snapshots == 0


def test_commands(folder: Path) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, [*arguments, "--target", server.address])
        assert result.exit_code == 0, result.output
        return result.output

    with start(folder) as server:
        assert "saved snapshot 1:" in run("snapshot")
        assert json.loads(run("snapshot", "kept", "--json"))["directory"] == "kept"
        listed = json.loads(run("snapshots", "--json"))
        assert [each["number"] for each in listed] == [1, 2]
        lines = run("snapshots").splitlines()
        assert lines[0].split() == ["NUMBER", "DIRECTORY", "CREATED", "SIZE", "SHARDS"]
        assert lines[2].split()[:2] == ["2", "kept"]
        result = CliRunner().invoke(main, ["snapshot", "kept", "--target", server.address])
        assert result.exit_code == 1
        assert "exists already" in result.output
