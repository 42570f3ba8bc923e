"""The workers of a cluster: who has joined, under which rank, and until when its lease holds."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from paramd.errors import InvalidArgumentError, LeaseEndedError, WorkerNotJoinedError

__all__ = ["Member", "Members"]

_log = logging.getLogger(__name__)

_MAX_MEMBERS: Final = 4096
_MAX_LEASE_S: Final = 3600.0
# Names of workers that are gone, which get their rank back, and incarnations that are out.
_MAX_REMEMBERED: Final = 4096


@dataclass(frozen=True)
class Member:
    """A worker that has joined.

    Attributes:
        identity: its incarnation: 16 random bytes of one session of one process.
        worker: the name that it goes by; of a worker without one, its identity in hexadecimal.
        rank: its number; the lowest that was free when it joined.
        lease_s: how long it is believed to live after it was last heard of.
    """

    identity: bytes
    worker: str
    rank: int
    lease_s: float


class Members:
    """The workers that have joined and whose leases hold.

    Ranks are from 0. A worker of a name that had a rank before gets it again, where it is free.

    Args:
        clock: gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # All guarded by _lock.
        self._members: dict[bytes, Member] = {}
        self._until: dict[bytes, float] = {}
        self._ranks: OrderedDict[str, int] = OrderedDict()
        self._ended: OrderedDict[bytes, str] = OrderedDict()
        self._listeners: list[Callable[[Member, bool], None]] = []

    def listen(self, listener: Callable[[Member, bool], None]) -> None:
        """Has a function called with each worker that goes.

        The second argument says whether its lease ended, and not itself left. It is called without
        any lock of this object.
        """
        self._listeners.append(listener)

    def join(self, identity: bytes, worker: str, *, lease_s: float) -> Member:
        """Joins, or comes back, or renews the lease.

        Args:
            identity: of the incarnation.
            worker: its name, or ''.
            lease_s: how long the lease holds unless it is renewed.

        Raises:
            InvalidArgumentError: for a lease that is too long, or too many workers.
        """
        if not 0 < lease_s <= _MAX_LEASE_S:
            raise InvalidArgumentError(
                f"a lease lasts up to {_MAX_LEASE_S:g} seconds, but got {lease_s:g}"
            )
        self.expire()
        worker = worker or identity.hex()
        gone = []
        with self._lock:
            known = self._members.get(identity)
            if known is None:
                before = next((m for m in self._members.values() if m.worker == worker), None)
                if before is not None:
                    # The same worker, started again before the lease of its former self ended.
                    self._remove(before.identity, f"worker {worker!r} has joined anew")
                    gone.append(before)
                if len(self._members) >= _MAX_MEMBERS:
                    raise InvalidArgumentError(f"{_MAX_MEMBERS} workers have joined already")
                known = Member(identity, worker, self._free_rank(worker), lease_s)
            member = self._members[identity] = replace(known, lease_s=lease_s)
            self._until[identity] = self._clock() + lease_s
            self._ended.pop(identity, None)
            self._remember(worker, member.rank)
        for each in gone:
            self._tell(each, lost=False)
        return member

    def leave(self, identity: bytes) -> None:
        """Goes. A worker that is not there stays away."""
        with self._lock:
            member = self._remove(identity, "the worker has left")
        if member is not None:
            self._tell(member, lost=False)

    def check(self, identity: bytes) -> Member:
        """A worker whose lease holds, renewed.

        Raises:
            WorkerNotJoinedError: where it never joined.
            LeaseEndedError: where its lease has ended, or another has taken its place.
        """
        self.expire()
        with self._lock:
            member = self._members.get(identity)
            if member is not None:
                self._until[identity] = self._clock() + member.lease_s
                return member
            why = self._ended.get(identity)
        if why is None:
            raise WorkerNotJoinedError("this session has not joined the workers: call join() first")
        raise LeaseEndedError(f"{why}: call join() to come back with the current clock")

    def renew(self, identity: bytes) -> None:
        """Notes that a session has been heard of. Of one that is no worker, nothing is noted."""
        with self._lock:
            member = self._members.get(identity)
            if member is not None and self._until[identity] > self._clock():
                self._until[identity] = self._clock() + member.lease_s

    def expire(self) -> None:
        """Lets go of the workers whose leases have ended. Called now and then, and by waiters."""
        now = self._clock()
        with self._lock:
            ended = [identity for identity, until in self._until.items() if until <= now]
            gone = []
            for identity in ended:
                lease_s = self._members[identity].lease_s
                why = f"the lease ended: nothing was heard of this worker for {lease_s:g} s"
                gone.append(self._remove(identity, why))
        for member in gone:
            if member is not None:
                _log.warning("the lease of worker %s (rank %d) ended", member.worker, member.rank)
                self._tell(member, lost=True)

    def next_end(self) -> float:
        """Seconds until the next lease ends, unless it is renewed; infinite without workers."""
        with self._lock:
            return min(self._until.values(), default=float("inf")) - self._clock()

    def all(self) -> list[Member]:
        """The workers whose leases hold, by rank."""
        self.expire()
        with self._lock:
            return sorted(self._members.values(), key=lambda each: each.rank)

    def holds(self, identity: bytes) -> bool:
        """Whether a worker is there at this moment. Lets go of nobody, so any lock may be held."""
        with self._lock:
            return identity in self._members

    def identities(self) -> frozenset[bytes]:
        """The incarnations of the workers whose leases hold."""
        return frozenset(member.identity for member in self.all())

    def document(self) -> dict[str, Any]:
        """What a snapshot keeps: the workers, and the ranks of those that are gone."""
        with self._lock:
            return {
                "members": [
                    [each.identity.hex(), each.worker, each.rank, each.lease_s]
                    for each in self._members.values()
                ],
                "ranks": dict(self._ranks),
            }

    def restore(self, document: Any) -> None:
        """Takes up what `document` gave. No lease ends before `begin_leases`."""
        with self._lock:
            self._ranks = OrderedDict(document["ranks"])
            for identity, worker, rank, lease_s in document["members"]:
                member = Member(bytes.fromhex(identity), worker, rank, lease_s)
                self._members[member.identity] = member
                self._until[member.identity] = math.inf

    def begin_leases(self) -> None:
        """Lets all leases begin anew: from now on workers can be heard."""
        with self._lock:
            for identity, member in self._members.items():
                self._until[identity] = self._clock() + member.lease_s

    def _remove(self, identity: bytes, why: str) -> Member | None:
        member = self._members.pop(identity, None)
        if member is not None:
            del self._until[identity]
            self._ended[identity] = why
            while len(self._ended) > _MAX_REMEMBERED:
                self._ended.popitem(last=False)
        return member

    def _free_rank(self, worker: str) -> int:
        taken = {member.rank for member in self._members.values()}
        before = self._ranks.get(worker)
        if before is not None and before not in taken:
            return before
        rank = 0
        while rank in taken:
            rank += 1
        return rank

    def _remember(self, worker: str, rank: int) -> None:
        self._ranks[worker] = rank
        self._ranks.move_to_end(worker)
        while len(self._ranks) > _MAX_REMEMBERED:
            self._ranks.popitem(last=False)

    def _tell(self, member: Member, *, lost: bool) -> None:
        for listener in self._listeners:
            listener(member, lost)
