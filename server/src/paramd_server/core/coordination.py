"""What the workers of a job agree on: work that is done once, and barriers.

Waiting is bounded: a caller waits for a moment and asks again, so that a waiting worker holds no
thread for long and one that has died is noticed.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from paramd.errors import (
    BarrierMismatchError,
    ClaimLostError,
    InvalidArgumentError,
)

__all__ = ["Arrival", "Barriers", "Claims"]

# Identity of a session, and the sequence of the operation.
Ticket = tuple[bytes, int]

MAX_WAIT_S: Final = 2.0
_MAX_LEASE_S: Final = 3600.0
_MAX_NAMES: Final = 100_000


@dataclass
class _Claim:
    holder: Ticket | None = None
    until: float = 0.0
    done: bool = False


class Claims:
    """Pieces of work that one session of the cluster does, by name."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._claims: dict[str, _Claim] = {}  # guarded by _changed

    def claim(self, name: str, ticket: Ticket, *, lease_s: float, wait_s: float) -> str:
        """Asks for a piece of work.

        Args:
            name: of the work.
            ticket: who asks; the same one for each repetition.
            lease_s: how long the claim holds unless it is renewed.
            wait_s: how long to wait for another's; at most MAX_WAIT_S.

        Returns:
            'claimed' where the caller is to do it, 'done' where it has been done, else 'busy'.
        """
        _check_lease(lease_s)
        deadline = time.monotonic() + min(max(wait_s, 0.0), MAX_WAIT_S)
        with self._changed:
            if name not in self._claims and len(self._claims) >= _MAX_NAMES:
                raise InvalidArgumentError(f"there are {_MAX_NAMES} claims already")
            while True:
                claim = self._claims.setdefault(name, _Claim())
                now = time.monotonic()
                if claim.done:
                    return "done"
                if claim.holder in (None, ticket) or claim.until < now:
                    claim.holder, claim.until = ticket, now + lease_s
                    return "claimed"
                if now >= deadline:
                    return "busy"
                self._changed.wait(min(deadline, claim.until) - now)

    def renew(self, name: str, ticket: Ticket, *, lease_s: float) -> None:
        """Extends a claim. Raises ClaimLostError where the caller does not hold it any more."""
        _check_lease(lease_s)
        with self._changed:
            self._held(name, ticket).until = time.monotonic() + lease_s

    def complete(self, name: str, ticket: Ticket) -> None:
        """Says that the work is done. Raises ClaimLostError where another has the claim."""
        with self._changed:
            claim = self._claims.get(name)
            if claim is not None and claim.done and claim.holder == ticket:
                return
            self._held(name, ticket).done = True
            self._changed.notify_all()

    def abandon(self, name: str, ticket: Ticket) -> None:
        """Gives the work up; the next caller gets it. A claim that is not held stays as it is."""
        with self._changed:
            claim = self._claims.get(name)
            if claim is not None and claim.holder == ticket and not claim.done:
                claim.holder = None
                self._changed.notify_all()

    def done(self) -> dict[str, Ticket]:
        """Who did which work, of all that is done."""
        with self._changed:
            return {
                name: claim.holder
                for name, claim in self._claims.items()
                if claim.done and claim.holder is not None
            }

    def take_up(self, done: Mapping[str, Ticket]) -> None:
        """Takes work as done that was done under another start of the server."""
        with self._changed:
            for name, ticket in done.items():
                self._claims[name] = _Claim(holder=ticket, done=True)

    def _held(self, name: str, ticket: Ticket) -> _Claim:
        claim = self._claims.get(name)
        if claim is None or claim.holder != ticket or claim.done:
            raise ClaimLostError(f"the claim on {name!r} is not held by this session any more")
        return claim


def _check_lease(lease_s: float) -> None:
    if not 0 < lease_s <= _MAX_LEASE_S:
        raise InvalidArgumentError(
            f"a lease lasts up to {_MAX_LEASE_S:g} seconds, but got {lease_s:g}"
        )


@dataclass(frozen=True)
class Arrival:
    """How an arrival at a barrier stands.

    Attributes:
        open: whether all are there.
        num_arrived: how many there are.
        index: the place in the order of arrival, from 0.
    """

    open: bool
    num_arrived: int
    index: int


@dataclass
class _Barrier:
    num_workers: int
    # When each arrival was last asked for, in order of arrival.
    arrived: OrderedDict[Ticket, float] = field(default_factory=OrderedDict)


class Barriers:
    """Meeting points, by name.

    Args:
        members: gives the identities of the workers that have joined and hold their leases.
        forget_after_s: an arrival that has not been asked for in that time is dropped: its worker
            is gone.
    """

    def __init__(
        self,
        members: Callable[[], frozenset[bytes]] = frozenset,
        *,
        forget_after_s: float = 15.0,
    ) -> None:
        self._members = members
        self._forget_after_s = forget_after_s
        self._changed = threading.Condition()
        self._barriers: dict[str, _Barrier] = {}  # guarded by _changed
        # Arrivals that went through, for those who ask again; guarded by _changed.
        self._passed: OrderedDict[Ticket, int] = OrderedDict()

    def arrive(self, name: str, ticket: Ticket, num_workers: int, *, wait_s: float) -> Arrival:
        """Arrives, or asks again, and waits a moment for the others.

        Args:
            name: of the barrier.
            ticket: who arrives; the same one for each repetition.
            num_workers: how many are to meet; 0 for all workers that have joined, of whom the
                caller is one.
            wait_s: at most MAX_WAIT_S.

        Raises:
            BarrierMismatchError: where those who wait expect another number.
        """
        deadline = time.monotonic() + min(max(wait_s, 0.0), MAX_WAIT_S)
        with self._changed:
            while True:
                passed = self._passed.get(ticket)
                if passed is not None:
                    return Arrival(True, num_workers, passed)
                barrier = self._join(name, ticket, num_workers)
                if self._is_complete(barrier):
                    self._open(name, barrier)
                    continue
                now = time.monotonic()
                if now >= deadline:
                    index = list(barrier.arrived).index(ticket)
                    return Arrival(False, len(barrier.arrived), index)
                self._changed.wait(deadline - now)

    def leave(self, name: str, ticket: Ticket) -> bool:
        """Withdraws an arrival. Gives True where the barrier had opened, too late to leave."""
        with self._changed:
            if ticket in self._passed:
                return True
            barrier = self._barriers.get(name)
            if barrier is not None:
                barrier.arrived.pop(ticket, None)
                if not barrier.arrived:
                    del self._barriers[name]
            return False

    def _join(self, name: str, ticket: Ticket, num_workers: int) -> _Barrier:
        now = time.monotonic()
        barrier = self._barriers.get(name)
        if barrier is not None:
            for gone in [
                each
                for each, asked in barrier.arrived.items()
                if now - asked > self._forget_after_s
            ]:
                del barrier.arrived[gone]
            if barrier.arrived and barrier.num_workers != num_workers:
                raise BarrierMismatchError(
                    f"barrier {name!r} is for {barrier.num_workers} workers, but this one expects "
                    f"{num_workers}"
                )
        if barrier is None or not barrier.arrived:
            if len(self._barriers) >= _MAX_NAMES:
                raise InvalidArgumentError(f"there are {_MAX_NAMES} barriers already")
            barrier = self._barriers[name] = _Barrier(num_workers)
        barrier.arrived[ticket] = now
        return barrier

    def _is_complete(self, barrier: _Barrier) -> bool:
        if barrier.num_workers:
            return len(barrier.arrived) >= barrier.num_workers
        # Whoever has died neither counts nor is waited for.
        return self._members() <= {identity for identity, _ in barrier.arrived}

    def _open(self, name: str, barrier: _Barrier) -> None:
        for index, ticket in enumerate(barrier.arrived):
            self._passed[ticket] = index
        while len(self._passed) > _MAX_NAMES:
            self._passed.popitem(last=False)
        del self._barriers[name]
        self._changed.notify_all()
