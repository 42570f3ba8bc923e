"""Where the servers of a session are now, where somebody can tell that they have moved."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from paramd.errors import ClusterMismatchError

__all__ = ["Resolve", "Whereabouts"]

# Gives the address of every shard, in their order; '' for one that is nowhere at the moment.
Resolve = Callable[[], Sequence[str]]

# Many calls fail at the same time, and one answer is good for all of them.
_FRESH_S: Final = 0.5


class Whereabouts:
    """Asks where the servers are, when one of them cannot be reached. Thread-safe.

    Args:
        addresses: as they were at the start.
        resolve: gives them anew; None where they never change.
    """

    def __init__(self, addresses: Sequence[str], resolve: Resolve | None) -> None:
        self._resolve = resolve
        self._lock = threading.Lock()
        # Both are written under _lock; the addresses are replaced as a whole.
        self._addresses = tuple(addresses)
        self._asked_at = float("-inf")

    def of(self, shard: int) -> str:
        """The address of a shard, as far as it is known.

        Raises:
            ClusterMismatchError: where there is another number of servers now.
        """
        # While another thread asks, what was known before has to do.
        if self._resolve is not None and self._lock.acquire(blocking=False):
            try:
                if time.monotonic() - self._asked_at > _FRESH_S:
                    self._ask(self._resolve)
            finally:
                self._lock.release()
        return self._addresses[shard]

    def _ask(self, resolve: Resolve) -> None:
        found = tuple(resolve())
        self._asked_at = time.monotonic()
        if len(found) != len(self._addresses):
            raise ClusterMismatchError(
                f"resolve= names {len(found)} servers, but this session began with "
                f"{len(self._addresses)}"
            )
        self._addresses = tuple(
            new or known for new, known in zip(found, self._addresses, strict=True)
        )
