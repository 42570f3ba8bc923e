"""When a server waits awake for the next call of a process of its host."""

from __future__ import annotations

import time

import pytest

from paramd_server.local import calls
from paramd_server.rpc.running_calls import RunningCalls


def test_one_client_is_alone_after_a_while_without_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    running = RunningCalls()
    is_alone = calls._Alone(running)

    def after(seconds: float, *, num_calls: int) -> bool:
        nonlocal now
        for _ in range(num_calls):
            with running.running():
                pass
        now += seconds
        return is_alone()

    # A connection that has just begun knows nothing of others.
    assert not after(0.0, num_calls=1)
    assert not after(0.0004, num_calls=1)
    assert after(0.0002, num_calls=1)
    assert after(0.0, num_calls=0)
    # One call more than its own.
    assert not after(0.0, num_calls=2)
    assert not after(0.0004, num_calls=1)
    assert after(0.0002, num_calls=1)
