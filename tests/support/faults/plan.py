"""Which call meets which fault: drawn by chance from a seed, and counted by class."""

from __future__ import annotations

import enum
import random
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

__all__ = ["LOST_REPLIES", "Fault", "FaultPlan", "Injection"]


class Fault(enum.StrEnum):
    """What can happen to one call, or to the connection that carries it."""

    DROP = "call dropped before the server"
    DELAY = "call delayed"
    TWICE = "request sent twice, one after the other"
    TWICE_AT_ONCE = "request sent twice at once"
    REPLAY = "request sent again after a later call"
    CUT_REQUEST = "request cut after N bytes"
    LOSE_REPLY = "reply lost after the commit"
    HOLD_REPLY = "reply held back after the commit until the client gave up"
    LOSE_CONNECTION = "connection lost after the commit"
    RESTART = "reply lost after the commit, then a server restart"
    CUT_UP = "connection cut after N bytes from the client"
    CUT_DOWN = "connection cut after N bytes from the server"


LOST_REPLIES = (Fault.LOSE_REPLY, Fault.HOLD_REPLY, Fault.LOSE_CONNECTION, Fault.RESTART)


@dataclass(frozen=True)
class Injection:
    """A fault for one call.

    Attributes:
        fault: its class.
        rng: decides its details: how long, after how many bytes, under which status.
    """

    fault: Fault
    rng: random.Random


class FaultPlan:
    """A shuffled deck of faults, from which each eligible call draws. Thread-safe.

    What was drawn but could not be done (the call failed by itself meanwhile) goes back into the
    deck. So a test that makes at least `num_calls` calls meets exactly the faults that it asked
    for.

    Args:
        seed: of the order and of all details.
        counts: how many of each class.
        num_calls: over how many calls they are spread; calls beyond meet what is left.
        methods: the RPCs that are eligible, by name ('SetGrad').
    """

    def __init__(
        self,
        seed: int,
        counts: Mapping[Fault, int],
        *,
        num_calls: int,
        methods: Collection[str],
    ) -> None:
        self.seed = seed
        self._methods = frozenset(methods)
        self._lock = threading.Lock()
        self._rng = random.Random(seed)
        self._done: Counter[Fault] = Counter()  # guarded by _lock
        deck: list[Fault | None] = [
            fault for fault, count in counts.items() for _ in range(count) if fault != Fault.RESTART
        ]
        num_restarts = counts.get(Fault.RESTART, 0)
        if len(deck) + num_restarts > num_calls:
            raise ValueError(f"{len(deck) + num_restarts} faults for {num_calls} calls")
        deck += [None] * (num_calls - num_restarts - len(deck))
        self._rng.shuffle(deck)
        for _ in range(num_restarts):
            # Not near the ends: all clients are to be at work.
            deck.insert(self._rng.randint(len(deck) // 4, len(deck) * 3 // 4), Fault.RESTART)
        self._deck = deck  # guarded by _lock

    def draw(self, method: str) -> Injection | None:
        """What the next call of a method meets; None for nothing."""
        with self._lock:
            if method not in self._methods or not self._deck:
                return None
            fault = self._deck.pop()
            if fault is None:
                return None
            return Injection(fault, random.Random(self._rng.getrandbits(64)))

    def count(self, fault: Fault) -> None:
        """Notes that a fault has happened."""
        with self._lock:
            self._done[fault] += 1

    def put_back(self, fault: Fault) -> None:
        """Notes that a fault that was drawn could not be done: a later call meets it."""
        with self._lock:
            self._deck.insert(self._rng.randrange(len(self._deck) + 1), fault)

    def done(self, *faults: Fault) -> int:
        """How many faults of these classes have happened."""
        with self._lock:
            return sum(self._done[fault] for fault in faults)

    def left(self) -> int:
        """How many faults are still in the deck."""
        with self._lock:
            return sum(fault is not None for fault in self._deck)

    def report(self) -> str:
        """The faults that have happened, by class."""
        with self._lock:
            lines = [f"  {self._done[each]:5d}  {each.value}" for each in Fault if self._done[each]]
            total = sum(self._done.values())
        return "\n".join([f"{total} faults (seed {self.seed}):", *lines])
