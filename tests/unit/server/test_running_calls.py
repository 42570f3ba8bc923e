"""Calls that are being carried out are waited for, and none begins meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from paramd.errors import ServerUnavailable
from paramd_server.rpc.running_calls import RunningCalls


class Call:
    """A call of gRPC's, whose end a test decides."""

    def __init__(self, *, active: bool = True) -> None:
        self._active = active
        self.callbacks: list[Callable[[], None]] = []

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if self._active:
            self.callbacks.append(callback)
        return self._active


def test_without_calls_there_is_nothing_to_wait_for() -> None:
    calls = RunningCalls()
    with calls.running():
        assert len(calls) == 1
    assert calls.drain(0.0)


def test_a_call_is_waited_for_until_it_is_sent() -> None:
    calls = RunningCalls()
    call: Any = Call()
    calls.begin_until_sent(call)
    assert not calls.drain(0.0)
    ended = threading.Timer(0.05, call.callbacks[0])
    ended.start()
    assert calls.drain(30.0)
    ended.join()
    assert len(calls) == 0


def test_no_call_begins_while_the_server_stops() -> None:
    calls = RunningCalls()
    call: Any = Call()
    with calls.running():
        assert not calls.drain(0.0)
        with pytest.raises(ServerUnavailable, match="stopping"):
            calls.begin_until_sent(call)
        with pytest.raises(ServerUnavailable), calls.running():
            pass
    assert not call.callbacks
    assert calls.drain(0.0)


def test_a_call_that_is_over_before_it_begins_is_not_waited_for() -> None:
    calls = RunningCalls()
    call: Any = Call(active=False)
    calls.begin_until_sent(call)
    assert len(calls) == 0
    assert calls.drain(0.0)
