"""A push is applied once, whatever happens on its way."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paramd
from paramd.v1 import training_service_pb2 as training_pb
from tests.support.clusters import small_cluster
from tests.support.faults.plan import LOST_REPLIES, Fault, FaultPlan
from tests.support.faults.proxy import FaultProxy, fault_proxy
from tests.support.faults.restarting import RestartingServer

NUM_PUSHES = 1000
NUM_ROUNDS = 200
# Of the steps that are made twice, with faults and without.
NUM_COMPARED = 60
SHAPE = (3, 4)
# More than one chunk, so that a cut finds a push in the middle of a tensor.
BIG_SHAPE = (200_000,)
# Every so many pushes has the big one too.
BIG_EVERY = 40
# Every so many steps brings the values back, so that a reply can break off in their middle.
PULL_EVERY = 10

# One in ten of each kind at most, so that several meet one push now and then.
FAULTS: Mapping[Fault, float] = {
    Fault.DROP: 0.06,
    Fault.DELAY: 0.06,
    Fault.TWICE: 0.06,
    Fault.TWICE_AT_ONCE: 0.06,
    Fault.REPLAY: 0.06,
    Fault.CUT_REQUEST: 0.06,
    Fault.LOSE_REPLY: 0.08,
    Fault.LOSE_CONNECTION: 0.02,
    # Each costs the stall limit below.
    Fault.HOLD_REPLY: 0.01,
}
# A deadline: a push in which nothing moves for that long is sent again.
STALL_S = 2.0

Array = np.ndarray[Any, Any]
Grads = dict[str, Array]


@pytest.fixture
def seed() -> int:
    """Another one each time; the report of the faults has it, and so have failures."""
    return random.SystemRandom().getrandbits(32)


def plan_for(seed: int, num_calls: int, *methods: str, num_restarts: int = 0) -> FaultPlan:
    counts = {fault: round(share * num_calls) for fault, share in FAULTS.items()}
    return FaultPlan(
        seed, {**counts, Fault.RESTART: num_restarts}, num_calls=num_calls, methods=methods
    )


def check_plan(plan: FaultPlan, *, num_lost: int, num_cut: int, num_restarts: int = 0) -> None:
    """All faults that were asked for happened."""
    assert plan.left() == 0, plan.report()
    assert plan.done(*LOST_REPLIES) >= num_lost, plan.report()
    assert plan.done(Fault.CUT_UP, Fault.CUT_DOWN) >= num_cut, plan.report()
    assert plan.done(Fault.RESTART) == num_restarts, plan.report()


def integers(seed: int, index: int, num_pushes: int) -> Iterator[Grads]:
    """Gradients of one worker, in float64: their sums are exact, in whatever order."""
    rng = np.random.default_rng([seed, index])
    for number in range(num_pushes):
        grads = {"net_small": rng.integers(-9, 10, SHAPE).astype("f8")}
        if number % BIG_EVERY == 0:
            grads["net_big"] = rng.integers(-9, 10, BIG_SHAPE).astype("f8")
        yield grads


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape, np.float32)


def sums(gradients: Callable[[int], Iterator[Grads]], num_workers: int) -> Grads:
    """What the gradients of all workers add up to."""
    total: Grads = {"net_small": np.zeros(SHAPE), "net_big": np.zeros(BIG_SHAPE)}
    for index in range(num_workers):
        for grads in gradients(index):
            for name, value in grads.items():
                total[name] += value
    return total


def declare(session: paramd.Session, dtype: str, grad_req: str = "write") -> paramd.ParameterDict:
    params = paramd.ParameterDict("net_", session=session)
    params.get("small", shape=SHAPE, dtype=dtype, grad_req=grad_req, init=paramd.init.Zero())
    params.get("big", shape=BIG_SHAPE, dtype=dtype, grad_req=grad_req, init=paramd.init.Zero())
    params.initialize()
    return params


def at_once(work: Callable[[int], None], num_threads: int) -> None:
    """Runs work(0), work(1) ... at the same time; raises what the first of them raises."""
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(work, range(num_threads)))


def test_pushes_under_faults_add_up_to_exactly_their_sum(tmp_path: Path, seed: int) -> None:
    """The buffers accumulate (grad_req 'add'), and nothing else: the server keeps them."""
    plan = plan_for(seed, NUM_PUSHES, "SetGrad", num_restarts=2)
    num_threads = 4  # two for each of two sessions

    def gradients(index: int) -> Iterator[Grads]:
        return integers(seed, index, NUM_PUSHES // num_threads)

    with (
        RestartingServer(tmp_path) as server,
        fault_proxy(server.address, plan, num_cuts=30, restart=server.restart) as proxy,
        paramd.connect(proxy.address, worker="a", stall_timeout=STALL_S, transport="tcp") as one,
        paramd.connect(proxy.address, worker="b", stall_timeout=STALL_S, transport="tcp") as two,
    ):
        dicts = [declare(session, "float64", "add") for session in (one, two)]

        def work(index: int) -> None:
            for grads in gradients(index):
                dicts[index % 2].push(grads)

        at_once(work, num_threads)
        proxy.settle()
        num_pushes = {each.worker: each.num_pushes for each in one.workers()}
        buffers = {name: dicts[0][name].grad().asnumpy() for name in dicts[0]}
    for name, total in sums(gradients, num_threads).items():
        np.testing.assert_array_equal(buffers[name], total, f"{name}, seed {seed}")
    assert num_pushes == {"a": NUM_PUSHES // 2, "b": NUM_PUSHES // 2}, f"seed {seed}"
    check_plan(plan, num_lost=50, num_cut=20, num_restarts=2)


def same_step(method: str, one: tuple[bytes, ...], two: tuple[bytes, ...]) -> bool:
    """Whether two replies tell of one step. Only a push that waited can have got further."""
    if method != "Step":
        return True  # A question, which changes nothing.
    first, again = (training_pb.StepResponse.FromString(each[0]).result for each in (one, two))
    waited = first.state in (training_pb.STEP_STATE_STAGED, training_pb.STEP_STATE_AHEAD)
    return first == again or (waited and again.state == training_pb.STEP_STATE_COMMITTED)


@contextmanager
def training(
    directory: Path, plan: FaultPlan, num_workers: int, num_cuts: int
) -> Iterator[tuple[FaultProxy, list[paramd.Session]]]:
    """A server that the plan restarts, and the sessions of workers with it."""
    directory.mkdir(exist_ok=True)
    with ExitStack() as stack:
        server = stack.enter_context(RestartingServer(directory))
        proxy = stack.enter_context(
            fault_proxy(
                server.address, plan, num_cuts=num_cuts, restart=server.restart, same=same_step
            )
        )
        sessions = [
            stack.enter_context(
                paramd.connect(
                    proxy.address, worker=f"worker-{index}", stall_timeout=STALL_S, transport="tcp"
                )
            )
            for index in range(num_workers)
        ]
        yield proxy, sessions


def train(
    sessions: list[paramd.Session],
    gradients: Callable[[int], Iterator[Grads]],
    kvstore: str,
    optimizer_params: Mapping[str, float],
    dtype: str = "float64",
) -> Grads:
    """Each session steps with the gradients of one worker; the values in the end."""

    def work(index: int) -> None:
        params = declare(sessions[index], dtype)
        trainer = paramd.Trainer(
            params,
            "sgd",
            {"wd": 0.0, **optimizer_params},
            kvstore=kvstore,
            num_workers=len(sessions),
        )
        for number, grads in enumerate(gradients(index)):
            trainer.step(1, grads=grads, pull=number % PULL_EVERY == 0, ignore_stale_grad=True)

    at_once(work, len(sessions))
    return sessions[0].parameters("net_").pull()


def test_asynchronous_steps_under_faults_and_restarts_add_up(tmp_path: Path, seed: int) -> None:
    plan = plan_for(seed, NUM_PUSHES, "Step", num_restarts=2)
    num_workers = 4

    def gradients(index: int) -> Iterator[Grads]:
        return integers(seed, index, NUM_PUSHES // num_workers)

    with training(tmp_path, plan, num_workers, num_cuts=20) as (proxy, sessions):
        values = train(sessions, gradients, "dist_async", {"learning_rate": 1.0})
        proxy.settle()
    for name, total in sums(gradients, num_workers).items():
        np.testing.assert_array_equal(values[name], -total, f"{name}, seed {seed}")
    check_plan(plan, num_lost=50, num_cut=10, num_restarts=2)


def test_synchronous_rounds_under_faults_and_a_restart_add_up(tmp_path: Path, seed: int) -> None:
    plan = plan_for(seed, 2 * NUM_ROUNDS, "Step", "AwaitStep", num_restarts=1)

    def gradients(index: int) -> Iterator[Grads]:
        return integers(seed, index, NUM_ROUNDS)

    with training(tmp_path, plan, 2, num_cuts=8) as (proxy, sessions):
        values = train(sessions, gradients, "dist_sync", {"learning_rate": 1.0})
        proxy.settle()
    for name, total in sums(gradients, 2).items():
        np.testing.assert_array_equal(values[name], -total, f"{name}, seed {seed}")
    check_plan(plan, num_lost=20, num_cut=4, num_restarts=1)


@pytest.mark.parametrize(("kvstore", "num_workers"), [("dist_sync", 2), ("dist_async", 3)])
def test_steps_over_shards_under_faults_add_up(seed: int, kvstore: str, num_workers: int) -> None:
    """The calls that commit meet every fault; those that stage are dropped, and cut at any byte.

    A call that stages answers twice, first that its part is there, so it cannot be recorded.
    """
    num_shards, num_steps = 3, 40
    num_calls = num_workers * num_steps
    commits = plan_for(seed, num_calls, "Step", "AwaitStep")
    counts = {fault: round(FAULTS[fault] * num_calls) for fault in (Fault.DROP, Fault.DELAY)}
    plans = [commits] + [
        FaultPlan(seed + shard, counts, num_calls=num_calls, methods=["Step", "AwaitStep"])
        for shard in range(1, num_shards)
    ]

    def gradients(index: int) -> Iterator[Grads]:
        return integers(seed, index, num_steps)

    with ExitStack() as stack:
        shards = stack.enter_context(small_cluster(num_shards)).split(",")
        proxies = [
            stack.enter_context(fault_proxy(shard, plan, num_cuts=5, same=same_step))
            for shard, plan in zip(shards, plans, strict=True)
        ]
        target = ",".join(proxy.address for proxy in proxies)
        sessions = [
            stack.enter_context(
                paramd.connect(
                    target, worker=f"worker-{index}", stall_timeout=STALL_S, transport="tcp"
                )
            )
            for index in range(num_workers)
        ]
        values = train(sessions, gradients, kvstore, {"learning_rate": 1.0})
        for proxy in proxies:
            proxy.settle()
    for name, total in sums(gradients, num_workers).items():
        np.testing.assert_array_equal(values[name], -total, f"{name}, seed {seed}")
    check_plan(commits, num_lost=5, num_cut=2)
    for plan in plans[1:]:
        check_plan(plan, num_lost=0, num_cut=2)


@pytest.mark.parametrize(("kvstore", "num_workers"), [("dist_sync", 2), ("dist_async", 1)])
def test_momentum_under_faults_is_bit_for_bit_that_without(
    tmp_path: Path, seed: int, kvstore: str, num_workers: int
) -> None:
    """The order of the updates is given: rounds, or the steps of a single worker."""
    none = FaultPlan(seed, {}, num_calls=0, methods=[])
    some = plan_for(seed, NUM_COMPARED * num_workers, "Step", "AwaitStep", num_restarts=1)

    def gradients(index: int) -> Iterator[Grads]:
        rng = np.random.default_rng([seed, index])
        for grads in integers(seed, index, NUM_COMPARED):
            yield {name: normal(rng, each.shape) for name, each in grads.items()}

    results = []
    for name, plan, num_cuts in (("without", none, 0), ("with", some, 4)):
        with training(tmp_path / name, plan, num_workers, num_cuts) as (proxy, sessions):
            optimizer_params = {"learning_rate": 0.1, "momentum": 0.9}
            results.append(train(sessions, gradients, kvstore, optimizer_params, "float32"))
            proxy.settle()
    for name, without in results[0].items():
        np.testing.assert_array_equal(results[1][name], without, f"{name}, seed {seed}")
    check_plan(some, num_lost=5, num_cut=1, num_restarts=1)
