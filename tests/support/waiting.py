"""Waiting for what happens elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(there: Callable[[], bool], what: str, *, timeout_s: float = 20.0) -> None:
    """Asks until something is so. Fails, and says what was not, when time is up."""
    deadline = time.monotonic() + timeout_s
    while not there():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.005)
