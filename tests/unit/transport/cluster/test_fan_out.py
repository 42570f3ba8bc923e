"""Calls to several shards at once: results, errors, interrupts, many callers, forks."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from paramd.transport.attempts import CALL_GROUP, Attempts, CallCancelledError
from paramd.transport.cluster.fan_out import FanOut

ADDRESSES = ("a:1", "b:2", "c:3")


def _raising(error: BaseException) -> Callable[[], int]:
    def call() -> int:
        raise error

    return call


def test_all_run_at_once_and_the_first_in_the_callers_thread() -> None:
    gate = threading.Barrier(3, timeout=10)
    threads: dict[int, int] = {}

    def call(shard: int) -> Callable[[], int]:
        def run() -> int:
            threads[shard] = threading.get_ident()
            gate.wait()
            return shard * 10

        return run

    found = FanOut(ADDRESSES).run({shard: call(shard) for shard in (2, 0, 1)})
    assert list(found.items()) == [(0, 0), (1, 10), (2, 20)]
    assert threads[0] == threading.get_ident()
    assert len(set(threads.values())) == 3


def test_one_shard_or_none_needs_no_thread() -> None:
    fan_out = FanOut(ADDRESSES)
    assert fan_out.run({1: threading.get_ident}) == {1: threading.get_ident()}
    assert fan_out.run({}) == {}


def test_first_error_counts_and_has_notes_of_the_others() -> None:
    ended: list[int] = []
    calls = {
        0: lambda: ended.append(0),
        1: _raising(ValueError("one")),
        2: _raising(KeyError("two")),
    }
    with pytest.raises(ValueError, match="one") as caught:
        FanOut(ADDRESSES).run(calls)
    assert ended == [0]
    assert caught.value.__notes__ == [
        "at shard 1, b:2",
        "shard 2, c:3, failed too: KeyError: 'two'",
    ]


@pytest.mark.parametrize("interrupted", ["own", "waiting"])
def test_interrupt_ends_the_other_calls(interrupted: str) -> None:
    attempts = Attempts()
    begun = threading.Event()
    ended: list[str] = []

    cancelled = threading.Event()

    class Call:
        def cancel(self) -> bool:
            cancelled.set()
            return True

    def long() -> int:
        with attempts.begin(None) as attempt:
            attempt.bind(Call())
            begun.set()
            assert cancelled.wait(20)
            ended.append(attempt.ended_by)
        with pytest.raises(CallCancelledError), attempts.begin(None):
            pass
        return 0

    def own() -> int:
        assert begun.wait(20)
        if interrupted == "own":
            raise KeyboardInterrupt
        # The signal comes while the main thread waits for the other one.
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        return 0

    # A shell that starts something in the background has it ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            FanOut(ADDRESSES).run({0: own, 1: long})
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == ["cancel"]
    assert CALL_GROUP.get() is None


def test_many_callers_wait_for_no_thread_of_a_pool() -> None:
    fan_out = FanOut(ADDRESSES)
    gate = threading.Barrier(60, timeout=20)
    results: list[dict[int, int]] = []

    def user() -> None:
        # Every call waits for all others: a pool with a bound would be stuck.
        results.append(fan_out.run({shard: lambda: gate.wait() * 0 for shard in range(3)}))

    users = [threading.Thread(target=user) for _ in range(20)]
    for each in users:
        each.start()
    for each in users:
        each.join(30)
    assert results == [{0: 0, 1: 0, 2: 0}] * 20


def test_sequential_calls_share_threads() -> None:
    fan_out = FanOut(ADDRESSES)
    seen: set[int] = set()
    for _ in range(50):
        seen |= set(fan_out.run(dict.fromkeys(range(3), threading.get_ident)).values())
    # The caller's, and one for each other shard: a thread is free before its caller goes on.
    assert len(seen) == 3


def test_forked_child_has_threads_of_its_own() -> None:
    fan_out = FanOut(ADDRESSES)
    fan_out.run(dict.fromkeys(range(3), threading.get_ident))
    pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.alarm(20)
            gate = threading.Barrier(3, timeout=10)
            fan_out.run(dict.fromkeys(range(3), gate.wait))
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_own_work_goes_on_beside_calls() -> None:
    fan_out = FanOut(ADDRESSES)
    met = threading.Barrier(3, timeout=10)

    def meet() -> None:
        met.wait()

    def nothing() -> None:
        pass

    def fail(error: Exception) -> Callable[[], None]:
        def call() -> None:
            raise error

        return call

    fan_out.run_beside(meet, {0: meet, 1: meet})
    with pytest.raises(ValueError, match="shard"):
        fan_out.run_beside(nothing, {0: fail(ValueError("shard"))})
    with pytest.raises(OSError, match="own"):
        fan_out.run_beside(fail(OSError("own")), {0: nothing})
