"""What a step leaves behind when a shard or a worker dies in the middle of it, at each point.

Gradients are all -1 and the rate is 1, so a value is the number of pushes in it: half a step shows
as different numbers, on one shard or between them. Trainers of every kind are brought to every
point, each a trainer of its own, and then one process dies.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import paramd
from paramd import Parameter, Session, Trainer
from paramd.errors import NonFiniteGradientError, ParamdError, RolledBackError, ServerUnavailable
from tests.support.cluster_process import ClusterProcess, cluster_of_processes
from tests.support.raw_calls import refused
from tests.support.raw_workers import COMMITTED, STAGED, RawWorker, first_messages
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KINDS: Final = ("sync", "bounded", "local")
# Of steps that come with their gradients. In a step by the buffers a shard keeps nothing.
FOLLOWER_POINTS: Final = (
    "before_staging",
    "while_staging",
    "staged",
    "committed",
    "carried_out",
)
COORDINATOR_POINTS: Final = ("before_commit", "record_lost", "carried_out")
# Steps before the snapshot, and after it.
SAVED, LATER = 2, 1


def _cases(points: Sequence[str]) -> list[Any]:
    return [
        pytest.param(kind, point, id=f"{kind}-{point}")
        for kind in KINDS
        for point in points
        if not (kind == "local" and point == "while_staging")
    ]


def _declare(session: Session, name: str, kind: str) -> Trainer:
    """A trainer with one parameter of its name, spread over all shards."""
    parameter = Parameter(name, shape=(10, 3), session=session)
    parameter.initialize("zeros")
    settings: dict[str, dict[str, Any]] = {
        "sync": {"kvstore": "dist_sync", "num_workers": 2},
        "bounded": {"kvstore": "dist_async", "staleness": 5},
        "async": {"kvstore": "dist_async"},
        "local": {"kvstore": "device"},
    }
    rate = {"learning_rate": 1.0}
    return Trainer([parameter], "sgd", rate, name=name, session=session, **settings[kind])


class Scene:
    """A cluster with trainers, and the two workers that step them.

    Args:
        cluster: whose target is connected to.
        stack: ends what is opened.
    """

    def __init__(self, cluster: ClusterProcess, stack: ExitStack) -> None:
        self.cluster = cluster
        self.session = stack.enter_context(paramd.connect(cluster.target, timeout=60.0))
        self.one = stack.enter_context(RawWorker(cluster.addresses, "one"))
        self.two = stack.enter_context(RawWorker(cluster.addresses, "two"))
        self.trainers: dict[tuple[str, str], Trainer] = {}
        self.last: dict[tuple[str, str], Any] = {}
        self.saved: dict[tuple[str, str], Any] = {}

    def workers(self, kind: str) -> list[RawWorker]:
        return [self.one, self.two] if kind == "sync" else [self.one]

    def declare(self, kind: str, point: str) -> None:
        name = f"{kind}-{point}"
        self.trainers[kind, point] = _declare(self.session, name, kind)
        if kind != "local":
            for worker in self.workers(kind):
                assert worker.join(name) == 0

    def step(self, kind: str, point: str, clock: int) -> None:
        """A whole step of all workers."""
        name = f"{kind}-{point}"
        if kind == "local":
            self.last[kind, point] = self.one.update(name)
            return
        operations = []
        for worker in self.workers(kind):
            operations.append(worker.operation())
            worker.step(name, clock, operations[-1])
        self.last[kind, point] = operations[0]
        for worker, operation in zip(self.workers(kind), operations, strict=True):
            assert worker.await_step(name, operation).state == COMMITTED
            wait_until(
                lambda w=worker, o=operation: w.await_step(name, o, 1).state == COMMITTED,  # type: ignore[misc]
                "the other shard has carried it out",
            )

    def stage(self, kind: str, point: str, clock: int) -> list[tuple[RawWorker, Any, Any]]:
        """Stages a step of all workers: each with its operation and parts."""
        name = f"{kind}-{point}"
        if kind == "local":
            self.one.fill(name)
            operation = self.one.operation()
            return [(self.one, operation, self.one.stage_update(name, operation))]
        staged = []
        for worker in self.workers(kind):
            operation = worker.operation()
            staged.append((worker, operation, worker.stage(name, operation, clock)))
        return staged

    def commit(self, kind: str, point: str, clock: int, staged: Sequence[Any]) -> None:
        """Commits what `stage` gave."""
        name = f"{kind}-{point}"
        for worker, operation, parts in staged:
            if kind == "local":
                assert not worker.commit_update(name, operation, parts).stage_again
            else:
                result = worker.commit(name, operation, clock, parts)
                assert result.state in (COMMITTED, STAGED)
        if kind == "sync":
            for worker, operation, _ in staged:
                assert worker.await_step(name, operation).state == COMMITTED

    def pushes(self, kind: str, num_steps: int) -> float:
        return float(num_steps * len(self.workers(kind)))

    def check_whole(self, kind: str, point: str, num_steps: int) -> None:
        """Every element on every shard has the same number of steps in it."""
        name, expected = f"{kind}-{point}", [num_steps] * self.cluster.num_shards
        wait_until(
            lambda: self.one.num_steps(name) == expected,
            f"{name}: {num_steps} steps on all shards, but {self.one.num_steps(name)}",
        )
        values = {self.pushes(kind, num_steps)}
        assert self.one.values(name) == [values] * self.cluster.num_shards

    def prepare(self, points: Sequence[str]) -> None:
        """Every trainer, with steps that are in a snapshot and steps that are not."""
        cases = [each.values for each in _cases(points)]
        for kind, point in cases:
            self.declare(str(kind), str(point))
            for clock in range(SAVED):
                self.step(str(kind), str(point), clock)
        with self.session.once("prepare") as first:
            assert first
        self.session.save_snapshot()
        for kind, point in cases:
            # The operation that the snapshot has is asked about later.
            self.saved[str(kind), str(point)] = self.last[str(kind), str(point)]
            for clock in range(SAVED, SAVED + LATER):
                self.step(str(kind), str(point), clock)
            self.check_whole(str(kind), str(point), SAVED + LATER)

    def check_after(self, kind: str, point: str) -> None:
        """The cluster has gone back: what was staged is nowhere, and training goes on."""
        name, clock = f"{kind}-{point}", SAVED + LATER
        self.check_whole(kind, point, SAVED)
        if kind == "local":
            # Sent again, what the snapshot has is answered and not carried out.
            self.one.commit_update(name, self.saved[kind, point], [])
            self.check_whole(kind, point, SAVED)
            self.one.update(name)
        else:
            again = self.one.await_step(name, self.saved[kind, point])
            assert (again.state, again.clock) == (COMMITTED, SAVED)
            for worker in self.workers(kind):
                operation = worker.operation()
                parts = worker.stage(name, operation, clock)
                with refused("ROLLED_BACK") as refusal:
                    worker.commit(name, operation, clock, parts)
                assert "trainer.join()" in refusal.message
                assert worker.join(name) == SAVED
            self.step(kind, point, SAVED)
        self.check_whole(kind, point, SAVED + 1)


@pytest.fixture(scope="module")
def follower_died(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Shard 1 dies with every trainer at another point of a step."""
    with ExitStack() as stack:
        directory = tmp_path_factory.mktemp("follower")
        cluster = stack.enter_context(cluster_of_processes(directory))
        scene = Scene(cluster, stack)
        scene.prepare(FOLLOWER_POINTS)
        clock = SAVED + LATER
        generation = cluster.await_formed()
        ends, calls = threading.Event(), []
        for kind in KINDS:
            if kind != "local":
                calls.append(_stage_half(scene.one, f"{kind}-while_staging", clock, ends))
            scene.stage(kind, "staged", clock)
            scene.step(kind, "carried_out", clock)
        staged = {kind: scene.stage(kind, "committed", clock) for kind in KINDS}
        cluster.halt(1)
        for kind in KINDS:
            scene.commit(kind, "committed", clock, staged[kind])
            assert scene.one.shards[0].trainers(f"{kind}-committed")[0].num_steps == clock + 1
        cluster.kill(1)
        ends.set()
        cluster.start(1)
        cluster.await_formed(other_than=generation)
        yield scene


def _stage_half(worker: RawWorker, trainer: str, clock: int, ends: threading.Event) -> Any:
    """Opens a stream to shard 1 that has got half of its messages when this returns."""
    messages = worker.push(1, trainer, worker.operation(), clock)
    taken = threading.Event()

    def half() -> Iterator[bytes]:
        yield from first_messages(messages, 2)
        taken.set()
        ends.wait(60)

    # Without anybody who holds it a call is cancelled.
    call = worker.shards[1].start("Step", half(), ends=False)
    assert taken.wait(20)
    return call


@pytest.mark.parametrize(("kind", "point"), _cases(FOLLOWER_POINTS))
def test_a_shard_dies(follower_died: Scene, kind: str, point: str) -> None:
    follower_died.check_after(kind, point)


@pytest.fixture(scope="module")
def coordinator_died(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The coordinator dies with every trainer at another point of a step."""
    with ExitStack() as stack:
        directory = tmp_path_factory.mktemp("coordinator")
        cluster = stack.enter_context(cluster_of_processes(directory))
        scene = Scene(cluster, stack)
        scene.prepare(COORDINATOR_POINTS)
        clock = SAVED + LATER
        generation = cluster.await_formed()
        staged = {}
        for kind in KINDS:
            scene.stage(kind, "before_commit", clock)
            scene.step(kind, "carried_out", clock)
            staged[kind] = scene.stage(kind, "record_lost", clock)
        # Half of a round waits in the coordinator alone.
        worker, operation, parts = scene.stage("sync", "before_commit", clock)[0]
        assert worker.commit("sync-before_commit", operation, clock, parts).state == STAGED
        cluster.halt(1)
        for kind in KINDS:
            # The coordinator has done it, and nobody has heard of it.
            scene.commit(kind, "record_lost", clock, staged[kind])
        cluster.kill(0)
        cluster.go_on(1)
        cluster.start(0)
        cluster.await_formed(other_than=generation)
        yield scene


@pytest.mark.parametrize(("kind", "point"), _cases(COORDINATOR_POINTS))
def test_the_coordinator_dies(coordinator_died: Scene, kind: str, point: str) -> None:
    coordinator_died.check_after(kind, point)


def test_claims_outlive_the_coordinator(coordinator_died: Scene) -> None:
    with coordinator_died.session.once("prepare") as first:
        assert not first


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A cluster in which only workers die."""
    with ExitStack() as stack:
        directory = tmp_path_factory.mktemp("living")
        cluster = stack.enter_context(cluster_of_processes(directory, snapshots=False))
        yield Scene(cluster, stack)


@pytest.mark.parametrize("kind", ["sync", "bounded", "async"])
@pytest.mark.parametrize("point", ["one_shard", "all_shards", "asked", "committed"])
def test_a_worker_dies(living: Scene, kind: str, point: str) -> None:
    """It dies when its push is on one shard, on all, in the coordinator, or committed."""
    name = f"{kind}-{point}"
    trainer = _declare(living.session, name, kind)
    other = RawWorker(living.cluster.addresses, f"other {name}")
    dying = RawWorker(living.cluster.addresses, f"dying {name}", lease_s=0.5)
    with other, dying:
        other.join(name)
        dying.join(name)
        operation = dying.operation()
        parts = dying.stage(name, operation, 0)
        expected = 0
        if point == "all_shards":
            # The coordinator has it all, apart from the word that it is to be committed.
            messages = dying.push(0, name, operation, 0)
            dying.shards[0].start("Step", (list(messages)), ends=False).cancel()
        elif point in ("asked", "committed"):
            state = dying.commit(name, operation, 0, parts).state
            assert state == (STAGED if kind == "sync" else COMMITTED)
            expected = 1
        if point == "committed" and kind == "sync":
            assert other.step(name, 0).state == COMMITTED
            expected = 2
        dying.__exit__()
        wait_until(
            lambda: len(trainer.info().workers) == 1, "the lease of the dead worker has ended"
        )
        clock = other.join(name)
        later = other.operation()
        other.step(name, clock, later)
        wait_until(lambda: other.await_step(name, later).state == COMMITTED, "it goes on")
        wait_until(lambda: len(set(other.num_steps(name))) == 1, "all shards are as far")
        assert other.values(name) == [{float(expected + 1)}] * 2


@pytest.mark.parametrize("kind", ["sync", "bounded", "async"])
def test_what_is_refused_leaves_nothing_behind(living: Scene, kind: str) -> None:
    """Again and again: shards have staged their parts each time."""
    name = f"{kind}-refused"
    parameter = Parameter(name, shape=(10, 3), session=living.session)
    parameter.initialize("zeros")
    settings: dict[str, Any] = {"sync": {"kvstore": "dist_sync"}, "async": {}}.get(
        kind, {"staleness": 2}
    )
    trainer = Trainer(
        [parameter],
        "sgd",
        {"learning_rate": 1.0},
        **{"kvstore": "dist_async", **settings},
        non_finite="error",
        name=name,
    )
    wrong = np.full((10, 3), -1.0, "f4")
    wrong[9, 2] = np.nan
    for _ in range(12):
        with pytest.raises(NonFiniteGradientError, match=name):
            trainer.step(1, grads={name: wrong})
    values = trainer.step(1, grads={name: -np.ones((10, 3), "f4")}, pull=True)
    assert values is not None
    assert set(values[name].ravel()) == {1.0}
    assert trainer.info().num_non_finite == 12


def test_a_shard_that_dies_without_snapshots(tmp_path: Path) -> None:
    """All begin with nothing, and say so: half of a model is none."""
    with cluster_of_processes(tmp_path, snapshots=False) as cluster:
        generation = cluster.await_formed()
        with paramd.connect(cluster.target, timeout=60.0) as session:
            trainer = _declare(session, "t", "bounded")
            grads = {"t": -paramd.nd.ones((10, 3))}
            trainer.step(1, grads=grads)
            cluster.kill(1)
            cluster.start(1)
            cluster.await_formed(other_than=generation)
            with pytest.raises(ParamdError, match=r"'t'|no trainer"):
                trainer.step(1, grads=grads)
            assert session.parameters().keys() == set()
            assert session.trainers() == []
            again = _declare(session, "t", "bounded")
            values = again.step(1, grads=grads, pull=True)
            assert values is not None
            assert set(values["t"].ravel()) == {1.0}


def test_workers_find_out_and_go_on(tmp_path: Path) -> None:
    """Through the library: the error says what to do, and doing it is enough."""
    with (
        cluster_of_processes(tmp_path) as cluster,
        paramd.connect(cluster.target, timeout=60.0, worker="one") as session,
        paramd.connect(cluster.target, timeout=60.0, worker="late") as late,
    ):
        generation = cluster.await_formed()
        trainer = _declare(session, "t", "bounded")
        grads = {"t": -paramd.nd.ones((10, 3))}
        trainer.step(1, grads=grads)
        session.save_snapshot()
        beside = _declare(late, "t", "bounded")
        for _ in range(2):
            trainer.step(1, grads=grads)
            beside.step(1, grads=grads)
        cluster.kill(1)
        cluster.start(1)
        cluster.await_formed(other_than=generation)
        for each, clock in ((trainer, 1), (beside, 1)):
            for _ in range(2):
                # Until the worker has said that it knows.
                with pytest.raises(RolledBackError, match=r"trainer\.join\(\)"):
                    each.step(1, grads=grads)
            assert each.join() == clock
        trainer.step(1, grads=grads)
        values = beside.step(1, grads=grads, pull=True)
        assert values is not None
        assert set(values["t"].ravel()) == {3.0}


def test_a_shard_that_stays_away(tmp_path: Path) -> None:
    with (
        cluster_of_processes(tmp_path) as cluster,
        paramd.connect(cluster.target, timeout=60.0) as session,
        paramd.connect(cluster.target, timeout=5.0) as impatient,
    ):
        grads = {"t": -paramd.nd.ones((10, 3))}
        _declare(session, "t", "bounded").step(1, grads=grads)
        trainer = _declare(impatient, "t", "bounded")
        trainer.join()
        cluster.kill(1)
        with pytest.raises(ServerUnavailable, match=cluster.addresses[1]):
            trainer.step(1, grads=grads)
        # The coordinator has committed nothing of it.
        with RawWorker(cluster.addresses[:1], "raw") as raw:
            assert raw.num_steps("t") == [1]
            assert raw.values("t") == [{1.0}]


def test_a_worker_that_gave_up_finds_out(tmp_path: Path) -> None:
    """Whether its step was committed is not known, but that those before it were, is."""
    with (
        cluster_of_processes(tmp_path) as cluster,
        paramd.connect(cluster.target, timeout=5.0) as session,
    ):
        generation = cluster.await_formed()
        trainer = _declare(session, "t", "bounded")
        grads = {"t": -paramd.nd.ones((10, 3))}
        trainer.step(1, grads=grads)
        session.save_snapshot()
        for _ in range(2):
            trainer.step(1, grads=grads)
        cluster.kill(1)
        with pytest.raises(ServerUnavailable, match=cluster.addresses[1]):
            trainer.step(1, grads=grads)
        cluster.start(1)
        cluster.await_formed(other_than=generation)
        for _ in range(2):
            with pytest.raises(RolledBackError, match=r"was 3, and the servers are at 1"):
                trainer.step(1, grads=grads)
        assert trainer.join() == 1
        trainer.step(1, grads=grads)
        assert trainer.clock == 2
