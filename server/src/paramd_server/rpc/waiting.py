"""How many calls may wait at a time, so that waiting never uses up the threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from paramd_server.core.coordination import MAX_WAIT_S

__all__ = ["WaitingSlots"]


class WaitingSlots:
    """A number of calls that may wait; the others are answered at once, and ask again.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self._slots = threading.BoundedSemaphore(count)

    @contextmanager
    def take(self, wait_ms: int) -> Iterator[float]:
        """Gives how many seconds the block may wait: 0 where all slots are taken."""
        if wait_ms <= 0 or not self._slots.acquire(blocking=False):
            yield 0.0
            return
        try:
            yield min(wait_ms / 1000, MAX_WAIT_S)
        finally:
            self._slots.release()
