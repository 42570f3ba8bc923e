"""Rounds with real workers: what they add up to, bit for bit, and what readers see."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import numpy as np
import pytest

import paramd
from paramd.optimizer import NAMES
from tests.support.server_process import ServerProcess
from tests.support.waiting import wait_until
from tests.system.training.conftest import Connect

Array = np.ndarray[Any, Any]
# Dense, or ids and rows.
Grads = Mapping[str, Array | tuple[Array, Array]]

SHAPE: Final = (5, 7)
TABLE: Final = (12, 3)
NUM_STEPS: Final = 3
# Every argument that makes a rule take another path.
OPTIMIZERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "sgd": {"momentum": 0.9, "wd": 0.01},
    "nag": {"momentum": 0.9, "wd": 0.01},
    "signum": {"wd_lh": 0.01},
    "adam": {"wd": 0.01, "clip_gradient": 0.5},
    "adamw": {},
    "adagrad": {"wd": 0.01},
    "rmsprop": {"centered": True},
    "adadelta": {},
    "ftrl": {},
    "lamb": {"wd": 0.01},
    "dcasgd": {"momentum": 0.9},
}
# Ids of each worker's push to the table: overlapping, disjoint, empty, all.
IDS: Final[Sequence[Sequence[Sequence[int]]]] = (
    ([0, 3, 4, 11], [3, 4, 5], [4]),
    ([0, 1], [5, 6, 7], [2, 10, 11]),
    ([], [2, 3], []),
)


def test_all_optimizers_are_compared() -> None:
    assert set(OPTIMIZERS) == set(NAMES)


def parameters(session: paramd.Session, prefix: str, dtype: str) -> paramd.ParameterDict:
    found = paramd.ParameterDict(prefix, session=session)
    found.get("dense", shape=SHAPE, dtype=dtype, init=paramd.init.Normal(0.5))
    found.get(
        "table", shape=TABLE, dtype=dtype, init=paramd.init.Normal(0.5), grad_stype="row_sparse"
    )
    found.initialize()
    return found


def gradient(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Numbers whose sum depends on the order, and zeros of both signs."""
    value = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 2, shape)
    value[rng.random(shape) < 0.3] = -0.0
    value[rng.random(shape) < 0.1] = 0.0
    return value.astype(dtype)


def gradients(seed: int, step: int, rank: int, dtype: str) -> dict[str, Any]:
    rng = np.random.default_rng([seed, step, rank])
    ids = np.array(IDS[step % len(IDS)][rank % 3], np.int64)
    return {
        "dense": gradient(rng, SHAPE, dtype),
        "table": (ids, gradient(rng, (len(ids), *TABLE[1:]), dtype)),
    }


def summed(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What NumPy makes of the gradients in the order of the ranks."""
    dense = each[0]["dense"].copy()
    for further in each[1:]:
        dense = dense + further["dense"]
    rows: dict[int, Array] = {}
    for one in each:
        for row, value in zip(*one["table"], strict=True):
            rows[int(row)] = rows[int(row)] + value if int(row) in rows else value
    ids = np.array(sorted(rows), np.int64)
    values = [rows[int(row)] for row in ids]
    stacked = np.stack(values) if values else np.empty((0, *TABLE[1:]), dense.dtype)
    return {"dense": dense, "table": (ids, stacked)}


def named(prefix: str, grads: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in grads.items()}


def is_in(trainer: paramd.Trainer, rank: int) -> bool:
    return any(each.rank == rank and each.staged for each in trainer.info().workers)


def step_of(
    trainers: Sequence[paramd.Trainer], sizes: Sequence[float], grads: Sequence[Any], rank: int
) -> Any:
    return trainers[rank].step(sizes[rank], grads=grads[rank])


class Workers:
    """Workers with sessions and threads of their own, whose pushes arrive as the test says."""

    def __init__(self, connect: Connect, count: int) -> None:
        self.sessions = [connect(worker=f"w{rank}") for rank in range(count)]
        self.pool = ThreadPoolExecutor(count)
        # In turn, so that ranks are what the names say.
        assert [session.join() for session in self.sessions] == list(range(count))

    def trainers(self, make: Callable[[paramd.Session], paramd.Trainer]) -> list[paramd.Trainer]:
        made = [make(session) for session in self.sessions]
        for trainer in made:
            trainer.join()
        return made

    def round(
        self,
        trainers: Sequence[paramd.Trainer],
        order: Sequence[int],
        step: Callable[[int], Any],
    ) -> list[Any]:
        """One round: each push is sent when the one before is in."""
        futures: dict[int, Future[Any]] = {}
        for rank in order[:-1]:
            futures[rank] = self.pool.submit(step, rank)
            wait_until(partial(is_in, trainers[0], rank), f"the push of worker {rank} is in")
            assert not futures[rank].done()
        futures[order[-1]] = self.pool.submit(step, order[-1])
        return [futures[rank].result(timeout=30) for rank in sorted(futures)]

    def close(self) -> None:
        for session in self.sessions:
            session.close()
        self.pool.shutdown()


def compare(
    connect: Connect, name: str, dtype: str, num_workers: int, sizes: Sequence[float] = ()
) -> None:
    """Rounds in several orders of arrival against one local trainer that is fed the sum."""
    seed = 7
    options = {**OPTIMIZERS[name], "multi_precision": dtype == "float16"}
    workers = Workers(connect, num_workers)
    batch_sizes = list(sizes) or [4.0] * num_workers
    for params in (parameters(workers.sessions[0], prefix, dtype) for prefix in ("l_", "d_")):
        rng = np.random.default_rng(seed)
        for parameter in params.values():
            parameter.set_data(rng.standard_normal(parameter.shape).astype(dtype))
    alone = connect()
    local = paramd.Trainer(parameters(alone, "l_", dtype), name, options, kvstore="local")
    shared = workers.trainers(
        lambda session: paramd.Trainer(
            parameters(session, "d_", dtype),
            name,
            options,
            kvstore="dist_sync",
            num_workers=num_workers,
        )
    )
    orders = itertools.cycle(itertools.permutations(range(num_workers)))
    for _ in range(num_workers):
        next(orders)
    try:
        for step in range(NUM_STEPS):
            order = next(itertools.islice(orders, 3, None))
            each = [gradients(seed, step, rank, dtype) for rank in range(num_workers)]
            sent = [named("d_", one) for one in each]
            workers.round(
                shared,
                order,
                partial(step_of, shared, batch_sizes, sent),
            )
            local.step(batch_sizes[0], grads=named("l_", summed(each)))
        values = [alone.parameters(prefix).pull() for prefix in ("l_", "d_")]
        for kind in ("dense", "table"):
            ours, theirs = values[1]["d_" + kind], values[0]["l_" + kind]
            assert np.isfinite(theirs).all()
            assert ours.tobytes() == theirs.tobytes(), f"{name} {kind} {dtype}, seed {seed}"
    finally:
        workers.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_round_is_what_one_optimizer_makes_of_the_sum(
    connect: Connect, served: ServerProcess, name: str
) -> None:
    if name == "lamb" and len(served.addresses) > 1:
        # Its norms are those of whole parameters.
        with pytest.raises(paramd.errors.InvalidArgumentError, match="is spread over"):
            compare(connect, name, "float32", 3)
        return
    compare(connect, name, "float32", 3)


@pytest.mark.parametrize(("name", "dtype"), [("sgd", "float16"), ("adam", "float64")])
def test_a_round_is_what_one_optimizer_makes_of_the_sum_in_other_dtypes(
    connect: Connect, name: str, dtype: str
) -> None:
    compare(connect, name, dtype, 3)


@pytest.mark.parametrize("num_workers", [1, 5])
def test_a_round_of_any_number_of_workers(connect: Connect, num_workers: int) -> None:
    compare(connect, "adam", "float32", num_workers)


def test_batch_sizes_of_each_worker(connect: Connect) -> None:
    """A gradient counts by 1 / the batch size of the worker that sent it."""
    workers = Workers(connect, 3)
    params = paramd.ParameterDict("n_", session=workers.sessions[0])
    params.get("w", shape=(4,), init="zeros")
    params.initialize()
    shared = workers.trainers(
        lambda session: paramd.Trainer(
            session.parameters("n_"), "sgd", {"learning_rate": 1.0}, kvstore="dist_sync"
        )
    )
    sizes = [2, 8, 4]
    for order in itertools.permutations(range(3)):
        values = workers.round(
            shared,
            order,
            lambda rank: shared[rank].step(
                sizes[rank], grads={"n_w": np.full(4, 8, "f4")}, pull=True
            ),
        )
        # 8/2 + 8/8 + 8/4
        expected = np.full(4, -7.0 * shared[0].info().num_steps, "f4")
        for value in values:
            np.testing.assert_array_equal(value["n_w"], expected)
    workers.close()


def test_readers_see_whole_rounds(connect: Connect) -> None:
    """Both parameters have had the same number of steps whenever they are pulled together."""
    shape = (60_000,)
    workers = Workers(connect, 2)
    params = paramd.ParameterDict("n_", session=workers.sessions[0])
    for name in ("a", "b"):
        params.get(name, shape=shape, init="zeros")
    params.initialize()
    shared = workers.trainers(
        lambda session: paramd.Trainer(
            session.parameters("n_"), "sgd", {"learning_rate": 1.0}, kvstore="dist_sync"
        )
    )
    ended = threading.Event()
    seen: set[float] = set()

    def read() -> None:
        reader = connect()
        found = reader.parameters("n_")
        while not ended.is_set():
            values = found.pull()
            (number,) = set(np.unique(np.concatenate(list(values.values()))))
            assert number % 2 == 0, "half of a round"
            seen.add(float(number))

    def work(rank: int) -> None:
        grads = {name: np.ones(shape, "f4") for name in ("n_a", "n_b")}
        for number in range(1, 13):
            values = shared[rank].step(1, grads=grads, pull=True)
            assert values is not None
            # A worker that is told that its round was committed sees it, and at most the next.
            for value in values.values():
                assert -value[0] in (2 * number, 2 * number + 2)

    with ThreadPoolExecutor(3) as pool:
        reading = pool.submit(read)
        try:
            for done in [pool.submit(work, rank) for rank in range(2)]:
                done.result(timeout=60)
        finally:
            ended.set()
        reading.result(timeout=30)
    assert len(seen) > 1
    workers.close()


@pytest.mark.parametrize("staleness", [1, 3])
def test_a_worker_ahead_waits_and_others_go_on(connect: Connect, staleness: int) -> None:
    workers = Workers(connect, 3)
    params = paramd.ParameterDict("n_", session=workers.sessions[0])
    params.get("w", shape=(4,), init="zeros")
    params.initialize()
    trainers = workers.trainers(
        lambda session: paramd.Trainer(
            session.parameters("n_"),
            "sgd",
            {"learning_rate": 1.0},
            kvstore="dist_async",
            staleness=staleness,
        )
    )
    grads = {"n_w": np.ones(4, "f4")}

    def clocks() -> list[int]:
        return [each.clock for each in trainers[0].info().workers]

    def run(rank: int, count: int) -> None:
        for _ in range(count):
            trainers[rank].step(1, grads=grads)

    ahead = workers.pool.submit(run, 0, staleness + 3)
    wait_until(lambda: clocks()[0] == staleness + 1, "the fast worker is ahead")
    # Another one is not held up by it, up to the same bound.
    workers.pool.submit(run, 1, staleness).result(timeout=20)
    assert clocks() == [staleness + 1, staleness, 0]
    assert not ahead.done()
    run(2, 1)
    wait_until(lambda: clocks()[0] == staleness + 2, "the fast worker goes on")
    assert not ahead.done()
    # It goes on for good when the slow ones are gone.
    trainers[2].leave()
    trainers[1].leave()
    ahead.result(timeout=20)
    assert clocks() == [staleness + 3]
    workers.close()


def test_asynchronous_workers_never_wait(connect: Connect) -> None:
    workers = Workers(connect, 2)
    params = paramd.ParameterDict("n_", session=workers.sessions[0])
    params.get("w", shape=(4,), init="zeros")
    params.initialize()
    trainers = workers.trainers(
        lambda session: paramd.Trainer(
            session.parameters("n_"), "sgd", {"learning_rate": 1.0}, kvstore="dist_async"
        )
    )
    for number in range(1, 21):
        values = trainers[0].step(1, grads={"n_w": np.ones(4, "f4")}, pull=True)
        assert values is not None
        assert values["n_w"][0] == -number
    # A late one starts where the slowest is, and the slowest is nobody's brake.
    late = connect(worker="late")
    trainer = paramd.Trainer(
        late.parameters("n_"), "sgd", {"learning_rate": 1.0}, kvstore="dist_async"
    )
    assert trainer.join() == 0
    trainer.step(1, grads={"n_w": np.ones(4, "f4")})
    assert [each.clock for each in trainer.info().workers] == [20, 0, 1]
    workers.close()


def test_the_first_round_waits_for_the_number_of_workers(connect: Connect) -> None:
    def make(session: paramd.Session) -> paramd.Trainer:
        params = paramd.ParameterDict("n_", session=session)
        params.get("w", shape=(4,), init="zeros")
        params.initialize()
        return paramd.Trainer(
            params, "sgd", {"learning_rate": 1.0}, kvstore="dist_sync", num_workers=2
        )

    first = make(connect(worker="first"))
    grads = {"n_w": np.ones(4, "f4")}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(first.step, 1, grads=grads, pull=True)
        wait_until(lambda: any(each.staged for each in first.info().workers), "its push is in")
        assert not waiting.done()
        second = make(connect(worker="second"))
        values = second.step(1, grads=grads, pull=True)
        assert values is not None
        np.testing.assert_array_equal(values["n_w"], np.full(4, -2, "f4"))
        assert waiting.result(timeout=20) is not None
