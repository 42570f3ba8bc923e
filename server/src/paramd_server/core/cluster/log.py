"""The coordinator's log: what concerns several shards, in the one order that all follow."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final

from paramd_server.core.training.records import Record

__all__ = ["CommitLog"]

# Beyond these a shard that does not ask is too far behind to catch up.
_MAX_RECORDS: Final = 100_000


class CommitLog:
    """Numbered records. Thread-safe.

    Args:
        position: of the record before the first one to come.
    """

    def __init__(self, position: int = 0) -> None:
        self._condition = threading.Condition()
        # All that follow are guarded by _condition.
        self._records: deque[Record] = deque()
        self._first = position + 1
        self._num_wakes = 0

    @property
    def head(self) -> int:
        """The position of the last record."""
        with self._condition:
            return self._head()

    def begin(self, position: int) -> None:
        """Begins anew, without records, after a position."""
        with self._condition:
            self._records.clear()
            self._first = position + 1
            self._condition.notify_all()

    def append(self, record: Record) -> int:
        """Adds a record, and wakes those who wait. Gives its position."""
        with self._condition:
            self._records.append(record)
            if len(self._records) > _MAX_RECORDS:
                self._records.popleft()
                self._first += 1
            self._condition.notify_all()
            return self._head()

    def reaches(self, position: int) -> bool:
        """Whether every record after a position is still there."""
        with self._condition:
            return self._first - 1 <= position <= self._head()

    def after(self, position: int, count: int) -> list[tuple[int, Record]]:
        """The first records after a position which `reaches` has found, with their positions."""
        with self._condition:
            begin = position + 1 - self._first
            end = min(begin + count, len(self._records))
            return [(self._first + index, self._records[index]) for index in range(begin, end)]

    def wait(self, position: int, wait_s: float) -> None:
        """Waits for a record after a position, for `wake`, or until a time is over."""
        deadline = time.monotonic() + wait_s
        with self._condition:
            before = self._num_wakes
            while self._head() <= position and self._num_wakes == before:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self._condition.wait(left)

    def wake(self) -> None:
        """Wakes those who wait, although there is no record."""
        with self._condition:
            self._num_wakes += 1
            self._condition.notify_all()

    def forget(self, position: int) -> None:
        """Lets go of the records up to a position."""
        with self._condition:
            while self._records and self._first <= position:
                self._records.popleft()
                self._first += 1

    def _head(self) -> int:
        return self._first + len(self._records) - 1
