"""How many calls are being carried out, so that a server that stops lets them finish."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from paramd.errors import ServerUnavailable

__all__ = ["RunningCalls"]


class RunningCalls:
    """Counts calls, and lets none begin once the server stops.

    gRPC's own way of stopping, with a grace, loses calls that come in the moment in which it
    begins: they are neither answered nor ended before the grace is over, and the server is not done
    before that either. So calls are counted and refused here, and gRPC is stopped when none is
    left.

    Attributes:
        num_begun: how many calls have begun since the server was started.
    """

    def __init__(self) -> None:
        self.num_begun = 0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._count = 0  # guarded by _lock
        self._draining = False  # guarded by _lock

    def __len__(self) -> int:
        return self._count

    def begin(self) -> None:
        """Counts a call, until `end`.

        Raises:
            ServerUnavailable: where the server stops. Clients try again, wherever it is then.
        """
        with self._lock:
            if self._draining:
                raise ServerUnavailable("the server is stopping")
            self._count += 1
            self.num_begun += 1

    def end(self) -> None:
        """Says that a call has ended, and that its answer is on its way."""
        with self._lock:
            self._count -= 1
            if self._draining and not self._count:
                self._changed.notify_all()

    def begin_until_sent(self, context: grpc.ServicerContext) -> None:
        """Counts a call of gRPC's until its last byte has been handed over.

        Raises:
            ServerUnavailable: where the server stops.
        """
        self.begin()
        if not context.add_callback(self.end):
            # It has been cancelled before it began.
            self.end()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts a call for as long as the block runs.

        Raises:
            ServerUnavailable: where the server stops.
        """
        self.begin()
        try:
            yield
        finally:
            self.end()

    def drain(self, seconds: float) -> bool:
        """Lets no call begin any more, and waits for those that have begun.

        Returns:
            Whether all of them have ended in that time.
        """
        with self._lock:
            self._draining = True
            return self._changed.wait_for(lambda: not self._count, seconds)
