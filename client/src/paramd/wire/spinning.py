"""Waiting for a message without sleeping, for the moment in which most of them come.

The thread of a process that sleeps runs again some 60 us after its message has come: on each side
that is half of what a small call takes on the same host. So both look for a moment before they
sleep. A thread that looks keeps the GIL from others most of the time, so nobody looks where others
are at work, and where messages do not come within the moment, it is hardly tried.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Spin"]

# A small call takes half of it.
_SECONDS: Final = 0.0003
# How many waits go by then, before the next one is tried.
_PAUSE: Final = 63


class Spin:
    """Waits for what comes over one connection. For one thread at a time.

    Args:
        connection: that it comes over.
        is_alone: whether nobody else is at work; asked again and again.
        successes: how many tries have to succeed for each one that fails.
    """

    def __init__(
        self, connection: socket.socket, is_alone: Callable[[], bool], *, successes: int
    ) -> None:
        self._is_alone = is_alone
        self._successes = successes
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        # On one processor a message cannot come while somebody looks for it.
        self._is_possible = len(os.sched_getaffinity(0)) > 1
        # What tries that succeeded have saved for those that fail, at most two of them.
        self._saved = 2 * successes
        self._num_left = 0  # of a pause

    def wait(self) -> None:
        """Waits until something has come, or it does not pay to wait awake."""
        if not self._is_possible:
            return
        if self._num_left:
            self._num_left -= 1
            return
        look = self._poll.poll
        give_up_at = time.perf_counter() + _SECONDS
        while not look(0):
            if not self._is_alone():
                return
            if time.perf_counter() > give_up_at:
                self._saved = max(self._saved - self._successes, 0)
                if not self._saved:
                    self._num_left = _PAUSE
                return
        self._saved = min(self._saved + 1, 2 * self._successes)
