"""Many who wait are in nobody's way."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np

import paramd
from paramd.v1 import session_service_pb2 as spb
from paramd.v1 import training_service_pb2 as pb
from tests.support.raw_calls import RawClient
from tests.support.server_process import ServerProcess
from tests.support.waiting import wait_until
from tests.system.training.conftest import SGD

NUM_WAITING = 64
# What a call that has nothing to do with those who wait may take.
MOST_S = 1.0


def worst(call: Callable[[], object], count: int) -> float:
    """The longest of some calls, in seconds."""
    longest = 0.0
    for _ in range(count):
        begun = time.monotonic()
        call()
        longest = max(longest, time.monotonic() - begun)
    return longest


def one_trainer(session: paramd.Session) -> paramd.Trainer:
    """A trainer whose round needs one worker more than wait."""
    return paramd.Trainer(
        {"w": session.parameters("n_")["n_w"]},
        SGD,
        kvstore="dist_sync",
        num_workers=NUM_WAITING + 1,
    )


def test_many_waiting_workers_do_not_stall_an_unrelated_pull(
    shared_server: ServerProcess,
) -> None:
    """64 wait in a round, and the same 64 at a barrier, as the client library waits."""
    with ExitStack() as stack:
        reader = stack.enter_context(paramd.connect(shared_server.address))
        params = paramd.ParameterDict("n_", session=reader)
        params.get("w", shape=(8, 8), init="zeros")
        params.get("other", shape=(1000, 256), init="ones")
        params.initialize()
        sessions = [paramd.connect(shared_server.address) for _ in range(NUM_WAITING)]
        for session in sessions:
            stack.callback(session.close)
        pool = stack.enter_context(ThreadPoolExecutor(2 * NUM_WAITING))
        grads = {"n_w": np.ones((8, 8), "f4")}
        steps: list[Future[Any]] = []
        meetings: list[Future[Any]] = []
        for session in sessions:
            steps.append(pool.submit(one_trainer(session).step, 1, grads=grads))
            meetings.append(pool.submit(session.barrier, "meeting", num_workers=NUM_WAITING + 1))
        wait_until(
            lambda: (
                sum(w.staged for info in reader.trainers() for w in info.workers) == NUM_WAITING
            ),
            "all pushes are in",
        )
        with RawClient(shared_server.address) as probe:
            probe.health()
            assert worst(probe.health, 20) < MOST_S
            assert worst(lambda: params["n_other"].data().asnumpy(), 10) < MOST_S
            assert worst(reader.status, 10) < MOST_S
            assert worst(reader.trainers, 10) < MOST_S
            assert not any(each.done() for each in (*steps, *meetings))
        # One comes, and all go on.
        last = stack.enter_context(paramd.connect(shared_server.address))
        one_trainer(last).step(1, grads=grads)
        last.barrier("meeting", num_workers=NUM_WAITING + 1)
        for each in (*steps, *meetings):
            each.result(timeout=20)
        assert len({each.result() for each in meetings}) == NUM_WAITING
        np.testing.assert_array_equal(
            params["n_w"].data().asnumpy(), np.full((8, 8), -0.5 * (NUM_WAITING + 1), "f4")
        )


def test_raw_waiters_that_take_every_place_do_not_stall_heartbeats(
    shared_server: ServerProcess,
) -> None:
    """Long polls at once, whatever they ask for: others are served all the same."""
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(shared_server.address)) for _ in range(20)]
        probe = stack.enter_context(RawClient(shared_server.address))
        probe.join("probe")
        calls = []
        for client in clients:
            for number in range(5):
                barrier = spb.BarrierRequest(
                    name=f"nobody comes {number}",
                    operation=client.operation(),
                    num_workers=1000,
                    wait_ms=2000,
                )
                calls.append(client.start("Barrier", barrier))
                once = spb.OnceRequest(
                    name="held",
                    operation=client.operation(),
                    action=spb.ONCE_ACTION_CLAIM,
                    lease_ms=60_000,
                    wait_ms=2000,
                )
                calls.append(client.start("Once", once))
        probe.health()
        beat = spb.HeartbeatRequest(identity=probe.identity)
        assert worst(probe.health, 10) < MOST_S
        assert worst(lambda: probe.call("Heartbeat", beat), 10) < MOST_S
        assert worst(lambda: probe.call("ListTrainers", pb.ListTrainersRequest()), 5) < MOST_S
        for call in calls:
            call.cancel()
