"""Who works with the server, and how much came from each."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

__all__ = ["WorkerCounts", "Workers"]

_MAX_WORKERS: Final = 4096


@dataclass(frozen=True)
class WorkerCounts:
    """What one session did.

    Attributes:
        identity: of the session.
        worker: the name that it goes by, or ''.
        num_pushes: committed gradient writes.
        num_pushed_tensors: tensors in them.
    """

    identity: bytes
    worker: str
    num_pushes: int = 0
    num_pushed_tensors: int = 0


class Workers:
    """Counts by session. The session seen first is forgotten first when there are very many."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: OrderedDict[bytes, WorkerCounts] = OrderedDict()  # guarded by _lock

    def greet(self, identity: bytes, worker: str) -> None:
        """Notes the name of a session."""
        with self._lock:
            known = self._counts.get(identity, WorkerCounts(identity, worker))
            self._counts[identity] = replace(known, worker=worker)
            while len(self._counts) > _MAX_WORKERS:
                self._counts.popitem(last=False)

    def count_push(self, identity: bytes, num_tensors: int) -> None:
        """Counts a committed gradient write."""
        with self._lock:
            known = self._counts.get(identity, WorkerCounts(identity, ""))
            # No `replace`, which takes several times as long: this is part of every push.
            self._counts[identity] = WorkerCounts(
                identity,
                known.worker,
                known.num_pushes + 1,
                known.num_pushed_tensors + num_tensors,
            )

    def take_up(self, counts: Iterable[WorkerCounts]) -> None:
        """Goes on counting from what another start of the server counted."""
        with self._lock:
            self._counts.update((each.identity, each) for each in counts)

    def all(self) -> list[WorkerCounts]:
        """The counts of every session, in the order in which they came."""
        with self._lock:
            return list(self._counts.values())
