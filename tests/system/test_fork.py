"""Forked children of processes with sessions. Nothing here may hang."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from paramd.session import Session, connect
from paramd.spec import ParameterSpec, Selector
from paramd.transport import forks
from paramd.transport.calls import TensorWrite
from paramd.v1 import session_service_pb2 as pb
from tests.support.contexts import device

REPETITIONS = 20
CHILD_SECONDS = 30


@pytest.fixture
def session() -> Iterator[Session]:
    with connect("local") as session:
        yield session


def _fill(session: Session, name: str, size: int) -> None:
    session.calls.declare([(ParameterSpec(name, (size,)), frozenset())])
    session.calls.set_data(
        [TensorWrite(name, np.ones(size, "f4"))], initialize=True, contexts=[device(0)]
    )


def _pull(session: Session, name: str) -> float:
    ((_, value),) = session.calls.get_data([Selector(name)], device(0))
    return float(np.asarray(value).sum())


def _fork(body: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        # Whatever hangs is killed, and shows as a signal.
        signal.alarm(CHILD_SECONDS)
        body()
        status = 0
    finally:
        os._exit(status)


def _status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_child_has_an_identity_of_its_own(session: Session) -> None:
    _fill(session, "w", 1000)
    parent = session.identity

    def body() -> None:
        assert session.identity != parent
        assert _pull(session, "w") == 1000
        assert session.identity in {worker.identity for worker in session.workers()}
        session.calls.zero_grad(["w"])
        session.close()

    for repetition in range(REPETITIONS):
        assert _status(_fork(body)) == 0
        # The child has ended neither the server nor the operations of its parent.
        session.calls.zero_grad(["w"])
        assert _pull(session, "w") == 1000
        assert len(session.workers()) == repetition + 2
    assert session.identity == parent


def test_child_and_parent_pull_at_the_same_time(session: Session) -> None:
    _fill(session, "w", 1 << 18)

    def body() -> None:
        for _ in range(3):
            assert _pull(session, "w") == 1 << 18

    for _ in range(REPETITIONS):
        pids = [_fork(body), _fork(body)]
        for _ in range(3):
            assert _pull(session, "w") == 1 << 18
        assert [_status(pid) for pid in pids] == [0, 0]


@pytest.mark.parametrize("grace", [forks.GRACE_SECONDS, 0.0], ids=["waits", "interrupts"])
def test_fork_while_other_threads_stream(
    session: Session, grace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "GRACE_SECONDS", grace)
    size = 1 << 20
    _fill(session, "w", size)
    stop = threading.Event()
    counts = [0, 0]
    errors: list[BaseException] = []

    def stream(index: int) -> None:
        try:
            while not stop.is_set():
                assert _pull(session, "w") == size
                session.calls.set_data([TensorWrite("w", np.ones(size, "f4"))])
                session.calls.describe(["w"])
                counts[index] += 1
        except BaseException as err:
            errors.append(err)

    def body() -> None:
        assert _pull(session, "w") == size
        session.calls.set_data([TensorWrite("w", np.ones(size, "f4"))])

    threads = [threading.Thread(target=stream, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    try:
        statuses = [_status(_fork(body)) for _ in range(REPETITIONS)]
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert statuses == [0] * REPETITIONS
    assert errors == []
    assert min(counts) > 0


def test_fork_does_not_wait_for_a_claim_or_barrier(session: Session) -> None:
    waiting = threading.Thread(target=lambda: session.barrier(num_workers=2))
    waiting.start()
    start = time.monotonic()
    assert _status(_fork(lambda: None)) == 0
    assert time.monotonic() - start < 5
    session.barrier(num_workers=2)
    waiting.join(30)
    assert not waiting.is_alive()


def _state_of_claim(session: Session) -> str:
    """What another session is told that asks for the claim now."""
    operation = session._connection.operations.begin()
    with operation as another:
        request = pb.OnceRequest(
            name="load", action=pb.ONCE_ACTION_CLAIM, operation=another.to_wire(), lease_ms=1000
        )
        answer = session._connection.unary("Once", request, pb.OnceResponse)
    return {pb.ONCE_STATE_BUSY: "busy", pb.ONCE_STATE_DONE: "done"}.get(answer.state, "open")


def test_claim_of_the_parent_stays_the_parents(session: Session) -> None:
    pid = -1
    try:
        with session.once("load", lease=5) as first:
            assert first
            pid = os.fork()
            if pid:
                # The child has left the block when it ends, and must not have completed anything.
                assert _status(pid) == 0
                assert _state_of_claim(session) == "busy"
            else:
                signal.alarm(CHILD_SECONDS)
    finally:
        if pid == 0:
            os._exit(0)
    with session.once("load") as again:
        assert not again


_inherited: list[Session] = []


def _pull_in_worker(_index: int) -> float:
    # As a data loader does: the workers use what they inherited.
    return _pull(_inherited[0], "w")


def test_pool_of_forked_workers_pulls(session: Session) -> None:
    _fill(session, "w", 1000)
    _inherited.append(session)
    try:
        for _ in range(3):
            with multiprocessing.get_context("fork").Pool(4) as pool:
                answers = pool.map_async(_pull_in_worker, range(16))
                assert _pull(session, "w") == 1000
                assert answers.get(timeout=60) == [1000.0] * 16
    finally:
        _inherited.clear()


def test_child_that_ends_normally_leaves_the_server_alone(session: Session) -> None:
    _fill(session, "w", 1000)
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        child = context.Process(target=_pull, args=(session, "w"))
        child.start()
        child.join(CHILD_SECONDS)
        assert child.exitcode == 0
    assert _pull(session, "w") == 1000
