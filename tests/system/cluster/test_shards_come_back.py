"""Shards that stop in order, are cut off, or die, while workers go on: what is lost, and what not.

Gradients are all -1 and the rate is 1: a value is the number of pushes in it.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import paramd
from paramd import Parameter, Session, Trainer
from paramd.errors import RolledBackError, SnapshotFailedError
from tests.support.cluster_process import ClusterProcess, cluster_of_processes
from tests.support.faults.lines import line_to
from tests.support.raw_calls import refused
from tests.support.raw_workers import COMMITTED, RawWorker
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KINDS: dict[str, dict[str, Any]] = {
    "sync": {"kvstore": "dist_sync", "num_workers": 2},
    "bounded": {"kvstore": "dist_async", "staleness": 3},
    "async": {"kvstore": "dist_async"},
    "local": {"kvstore": "device"},
}
SHAPE = (10, 3)


def _trainer(session: Session, kind: str, name: str = "") -> Trainer:
    parameter = Parameter(name or kind, shape=SHAPE, session=session)
    parameter.initialize("zeros")
    rate = {"learning_rate": 1.0}
    return Trainer([parameter], "sgd", rate, name=name or kind, session=session, **KINDS[kind])


def _step(trainer: Trainer) -> float:
    """A step that brings back one number: of a half step there would be two."""
    values = trainer.step(1, grads={trainer.name: -paramd.nd.ones(SHAPE)}, pull=True)
    assert values is not None
    (value,) = set(values[trainer.name].ravel())
    return float(value)


class Stepping:
    """Workers that step on and on, each on a thread of its own.

    Args:
        cluster: that they are connected to.
        kinds: of the trainers; of a synchronous one there are two workers.
    """

    def __init__(self, cluster: ClusterProcess, kinds: Sequence[str]) -> None:
        self._ends = threading.Event()
        self._stack = ExitStack()
        self.num_steps: dict[tuple[str, int], int] = {}
        self.errors: list[BaseException] = []
        self._threads = []
        for kind in kinds:
            for number in range(2 if kind == "sync" else 1):
                session = self._stack.enter_context(
                    paramd.connect(cluster.target, timeout=60.0, worker=f"{kind}{number}")
                )
                trainer = _trainer(session, kind)
                if kind != "local":
                    trainer.join()
                self.num_steps[kind, number] = 0
                self._threads.append(
                    threading.Thread(target=self._work, args=(session, trainer, kind, number))
                )

    def _work(self, session: Session, trainer: Trainer, kind: str, number: int) -> None:
        try:
            parameter = Parameter(kind, session=session)
            while not self._ends.is_set():
                if kind == "local":
                    parameter.grad()[:] = -1
                    trainer.step(1)
                else:
                    trainer.step(1, grads={kind: -paramd.nd.ones(SHAPE)})
                self.num_steps[kind, number] += 1
            if kind != "local":
                # Who waits for this one in a round need not.
                trainer.leave()
        except BaseException as err:
            self.errors.append(err)

    def await_more(self, count: int = 3) -> None:
        """Waits until every worker has made some more steps."""
        before = dict(self.num_steps)
        wait_until(
            lambda: (
                bool(self.errors)
                or all(n >= before[each] + count for each, n in self.num_steps.items())
            ),
            "all workers step",
            timeout_s=60.0,
        )
        assert self.errors == []

    def __enter__(self) -> Stepping:
        for thread in self._threads:
            thread.start()
        return self

    def end(self) -> None:
        """Ends the steps, and waits."""
        self._ends.set()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive()

    def __exit__(self, *_exc: object) -> None:
        self.end()
        self._stack.close()

    def check(self, cluster: ClusterProcess) -> None:
        """Every step that a worker made is there once, on every shard."""
        assert self.errors == []
        with RawWorker(cluster.addresses, "raw") as raw:
            for kind in {kind for kind, _ in self.num_steps}:
                made = sum(n for (each, _), n in self.num_steps.items() if each == kind)
                wait_until(lambda k=kind: len(set(raw.num_steps(k))) == 1, "all are as far")  # type: ignore[misc]
                values = raw.values(kind)
                assert values == [{float(made)}] * cluster.num_shards
                assert set(raw.num_lost_steps(kind)) == {0}


def test_stops_and_starts_lose_nothing(tmp_path: Path) -> None:
    """One shard, the coordinator, all of them in both orders, while workers step."""
    with cluster_of_processes(tmp_path, 3) as cluster:
        generation = cluster.await_formed()
        with Stepping(cluster, list(KINDS)) as stepping:
            for stopped, started in (
                ([1], [1]),
                ([0], [0]),
                ([0, 1, 2], [2, 1, 0]),
                ([2, 1, 0], [0, 2, 1]),
            ):
                stepping.await_more()
                cluster.terminate(*stopped)
                cluster.await_end(*stopped)
                cluster.start(*started)
                assert cluster.await_formed() == generation
            stepping.await_more()
            stepping.end()
            stepping.check(cluster)
        for shard in range(3):
            assert cluster.said(shard, "going back", "lost", "without a word", "ERROR") == []


def test_an_end_of_all_is_quiet(tmp_path: Path) -> None:
    with cluster_of_processes(tmp_path, 3) as cluster:
        generation = cluster.await_formed()
        for _ in range(2):
            cluster.terminate()
            cluster.await_end()
            for shard in range(3):
                # That the coordinator is not there yet is said at a start.
                stopping = cluster.log(shard).partition("draining")[2].partition("stopped")[0]
                assert "WARNING" not in stopping
                assert cluster.said(shard, "without a word", "ERROR") == []
            cluster.start()
            assert cluster.await_formed() == generation


def test_a_shard_that_is_cut_off_comes_back(tmp_path: Path) -> None:
    """Its way to the coordinator is gone for a while, and then that of the workers to it, too."""
    cluster = ClusterProcess(tmp_path)
    with ExitStack() as stack:
        stack.callback(cluster.close)
        to_coordinator = stack.enter_context(line_to(cluster.addresses[0]))
        to_shard = stack.enter_context(line_to(cluster.addresses[1]))
        cluster.coordinator = to_coordinator.address
        cluster.start()
        generation = cluster.await_formed()
        shard, cluster.addresses[1] = cluster.addresses[1], to_shard.address
        with Stepping(cluster, list(KINDS)) as stepping:
            stepping.await_more()
            to_coordinator.cut()
            wait_until(
                lambda: cluster.said(1, "the coordinator is not there") != [], "it has noticed"
            )
            to_coordinator.mend()
            stepping.await_more()
            to_shard.cut()
            to_coordinator.cut()
            wait_until(
                lambda: len(cluster.said(1, "the coordinator is not there")) > 1, "it has noticed"
            )
            to_shard.mend()
            to_coordinator.mend()
            stepping.await_more()
            stepping.end()
            stepping.check(cluster)
        cluster.addresses[1] = shard
        assert cluster.await_formed() == generation
        for number in range(2):
            assert cluster.said(number, "going back", "lost", "ERROR") == []


@pytest.mark.parametrize("dying", [0, 1])
def test_asynchronous_trainers_go_on_with_a_gap(tmp_path: Path, dying: int) -> None:
    with (
        cluster_of_processes(tmp_path) as cluster,
        paramd.connect(cluster.target, timeout=60.0, worker="w") as session,
        RawWorker(cluster.addresses, "raw") as raw,
    ):
        trainer = _trainer(session, "async")
        for _ in range(2):
            _step(trainer)
        session.save_snapshot()
        for _ in range(3):
            _step(trainer)
        wait_until(lambda: raw.num_steps("async") == [5, 5], "both are as far")
        generation = cluster.await_formed()
        cluster.kill(dying)
        cluster.start(dying)
        cluster.await_formed(other_than=0 if dying else generation)
        wait_until(lambda: raw.num_steps("async")[dying] == 2, "it has what the snapshot has")
        assert raw.num_steps("async")[1 - dying] == 5, "the other one keeps what it has"
        grads = {"async": -paramd.nd.ones(SHAPE)}
        if dying == 0:
            # Clocks are the coordinator's.
            with pytest.raises(RolledBackError, match=r"trainer\.join\(\)"):
                trainer.step(1, grads=grads)
            assert trainer.join() == 2
        trainer.step(1, grads=grads)
        assert trainer.clock == (3 if dying == 0 else 6)
        wait_until(lambda: len(set(raw.num_steps("async"))) == 1, "both count alike")
        expected = [{6.0}, {6.0}]
        expected[dying] = {3.0}
        assert raw.values("async") == expected
        assert trainer.info().num_lost_steps == 3
        _step_is_exactly_one(raw, trainer)


def _step_is_exactly_one(raw: RawWorker, trainer: Trainer) -> None:
    before = raw.values("async")
    trainer.step(1, grads={"async": -paramd.nd.ones(SHAPE)})
    wait_until(lambda: len(set(raw.num_steps("async"))) == 1, "both count alike")
    assert raw.values("async") == [{value + 1} for (value,) in before]


def test_the_newest_snapshot_that_all_have(tmp_path: Path) -> None:
    with cluster_of_processes(tmp_path) as cluster:
        with paramd.connect(cluster.target, timeout=60.0) as session:
            trainer = _trainer(session, "bounded")
            for _ in range(3):
                _step(trainer)
                session.save_snapshot()
            assert [each.number for each in session.snapshots()] == [2, 3]
        wait_until(lambda: _numbers(cluster, 1) == [2, 3], "shard 1 has them, too")
        cluster.kill(0, 1)
        _remove(cluster, 1, 3)
        cluster.start()
        cluster.await_formed()
        with paramd.connect(cluster.target, timeout=60.0) as session:
            assert session.trainers()[0].num_steps == 2
            assert _step(_trainer(session, "bounded")) == 3.0
        cluster.kill(0, 1)
        for number in _numbers(cluster, 1):
            _remove(cluster, 1, number)
        cluster.start()
        wait_until(
            lambda: cluster.said(0, "no snapshot in common") != [], "it says so", timeout_s=60.0
        )
        (line, *_) = cluster.said(0, "no snapshot in common")
        assert "ERROR" in line
        assert "--restore none" in line
        assert "shard 1: none" in line
        assert [cluster.hello(shard) for shard in range(2)] == [None, None], "nothing is served"
        cluster.terminate()
        cluster.await_end()
        # Refusing has removed nothing: with what was missing it starts.
        assert _numbers(cluster, 0) != []
        cluster.start(options=["--restore", "none"])
        cluster.await_formed()
        with paramd.connect(cluster.target, timeout=60.0) as session:
            assert session.trainers() == []


def test_a_shard_whose_snapshots_are_lost_is_not_taken_in(tmp_path: Path) -> None:
    """With nothing it would be a shard that has made none of the steps."""
    away = tmp_path / "away"
    with cluster_of_processes(tmp_path) as cluster:
        generation = cluster.await_formed()
        with paramd.connect(cluster.target, timeout=60.0) as session:
            trainer = _trainer(session, "bounded")
            for _ in range(2):
                _step(trainer)
            session.save_snapshot()
            _step(trainer)
        wait_until(lambda: _numbers(cluster, 1) != [], "shard 1 has it, too")
        cluster.kill(1)
        cluster.snapshot_dir(1).rename(away)
        cluster.start(1)
        wait_until(
            lambda: cluster.said(0, "no snapshot in common") != [], "it says so", timeout_s=60.0
        )
        assert "shard 1: none" in cluster.said(0, "no snapshot in common")[0]
        assert cluster.hello(1) is None, "it serves nobody"
        with RawWorker(cluster.addresses[:1], "raw") as raw:
            assert raw.num_steps("bounded") == [3], "the others keep what they have"
        cluster.terminate(1)
        cluster.await_end(1)
        shutil.rmtree(cluster.snapshot_dir(1))
        away.rename(cluster.snapshot_dir(1))
        cluster.start(1)
        cluster.await_formed(other_than=generation)
        with paramd.connect(cluster.target, timeout=60.0) as session:
            assert _step(_trainer(session, "bounded")) == 3.0


def _numbers(cluster: ClusterProcess, shard: int) -> list[int]:
    folder = cluster.snapshot_dir(shard) / "snapshots"
    return sorted(int(each.parent.name) for each in folder.glob("[0-9]*/COMMITTED"))


def _remove(cluster: ClusterProcess, shard: int, number: int) -> None:
    shutil.rmtree(cluster.snapshot_dir(shard) / "snapshots" / f"{number:08d}")


def test_a_snapshot_while_stepping_is_of_whole_steps(tmp_path: Path) -> None:
    with (
        cluster_of_processes(tmp_path) as cluster,
        paramd.connect(cluster.target, timeout=60.0) as session,
        RawWorker(cluster.addresses, "raw") as raw,
    ):
        generation = cluster.await_formed()
        other = _trainer(session, "bounded", "of-raw")
        raw.join("of-raw")
        with Stepping(cluster, ["sync", "bounded", "local"]) as stepping:
            stepping.await_more()
            operation = raw.operation()
            assert raw.step("of-raw", 0, operation).state == COMMITTED
            saved = [session.save_snapshot() for _ in range(3)]
            stepping.await_more()
        assert stepping.errors == []
        later = raw.operation()
        assert raw.step("of-raw", 1, later).state == COMMITTED
        cluster.kill(0, 1)
        cluster.start()
        cluster.await_formed(other_than=generation)
        assert saved[-1].number == 3
        for kind in ("sync", "bounded", "local"):
            (one, two), (first, second) = raw.values(kind), raw.num_steps(kind)
            assert one == two
            assert len(one) == 1
            assert first == second > 0
            assert one == {float(first * (2 if kind == "sync" else 1))}
        # What is in the snapshot is not carried out again, and what came later is unknown.
        assert raw.await_step("of-raw", operation).state == COMMITTED
        assert raw.commit("of-raw", operation, 0, []).state == COMMITTED
        assert raw.await_step("of-raw", operation, 1).state == COMMITTED
        assert raw.values("of-raw") == [{1.0}, {1.0}]
        parts = raw.stage("of-raw", later, 1)
        assert raw.commit("of-raw", later, 1, parts).state == COMMITTED
        wait_until(lambda: raw.num_steps("of-raw") == [2, 2], "both have carried it out")
        assert raw.values("of-raw") == [{2.0}, {2.0}]
        assert other.info().num_steps == 2


def test_a_shard_that_dies_during_a_snapshot(tmp_path: Path) -> None:
    with (
        cluster_of_processes(tmp_path) as cluster,
        paramd.connect(cluster.target, timeout=60.0) as session,
    ):
        trainer = _trainer(session, "async")
        _step(trainer)
        session.save_snapshot()
        cluster.halt(1)
        errors: list[BaseException] = []

        def save() -> None:
            try:
                session.save_snapshot()
            except SnapshotFailedError as err:
                errors.append(err)

        thread = threading.Thread(target=save)
        thread.start()
        wait_until(lambda: cluster.said(0, "captured snapshot 2") != [], "the coordinator has it")
        cluster.kill(1)
        cluster.start(1)
        thread.join(60)
        (error,) = errors
        assert "snapshot 2" in str(error)
        assert "shard 1" in str(error)
        cluster.await_formed()
        trainer.step(1, grads={"async": -paramd.nd.ones(SHAPE)})
        assert session.status().num_failed_snapshots == 1
        assert [each.number for each in session.snapshots()] == [1]
        assert session.save_snapshot().number > 1
        wait_until(lambda: _numbers(cluster, 0) == _numbers(cluster, 1), "both keep the same")
        assert 2 not in _numbers(cluster, 0)


def test_clients_are_put_off_until_the_cluster_has_formed(tmp_path: Path) -> None:
    with cluster_of_processes(tmp_path, start=False) as cluster:
        cluster.start(0)
        with RawWorker(cluster.addresses, "raw") as raw:
            wait_until(lambda: cluster.said(0, "serving on") != [], "it runs", timeout_s=60.0)
            with refused("UNAVAILABLE") as refusal:
                raw.shards[0].status()
            assert "not all there" in refusal.message
            cluster.start(1)
            cluster.await_formed()
            assert raw.shards[0].status().num_parameters == 0
