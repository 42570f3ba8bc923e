"""The workers of one trainer: how far each one is, and who is waited for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from paramd.errors import (
    ClockMismatchError,
    RolledBackError,
    WorkerLostError,
    WorkerNotJoinedError,
)
from paramd.trainer_spec import TrainerSpec
from paramd_server.core.training.members import Member

__all__ = ["Participant", "Participants"]


@dataclass
class Participant:
    """A worker of a trainer whose lease holds.

    Attributes:
        member: the worker.
        clock: steps that it has committed.
    """

    member: Member
    clock: int


class Participants:
    """The workers of one trainer. Guarded by the trainer's lock.

    Args:
        spec: of the trainer.
    """

    def __init__(self, spec: TrainerSpec) -> None:
        self._spec = spec
        self._there: dict[bytes, Participant] = {}
        self._gathered = spec.num_workers == 0
        # Rank by name, of those whose leases ended where that stops the others.
        self._lost: dict[str, int] = {}

    def all(self) -> list[Participant]:
        """Those whose leases hold, by rank."""
        return sorted(self._there.values(), key=lambda each: each.member.rank)

    def find(self, identity: bytes) -> Participant | None:
        """A worker, where it is there."""
        return self._there.get(identity)

    def join(self, member: Member, clock: int) -> tuple[Participant, bool]:
        """Takes a worker in.

        Args:
            member: the worker.
            clock: of the trainer.

        Returns:
            The worker, and whether it is new or has come back.
        """
        participant = self._there.get(member.identity)
        is_new = participant is None
        if participant is None:
            # Nobody is to wait for it longer than for the others.
            slowest = None if self._spec.synchronous else self.slowest()
            participant = Participant(member, clock if slowest is None else slowest)
            self._there[member.identity] = participant
        # Itself, or whoever takes its place.
        self._lost = {
            worker: rank
            for worker, rank in self._lost.items()
            if worker != member.worker and rank != member.rank
        }
        if len(self._there) >= self._spec.num_workers:
            self._gathered = True
        return participant, is_new

    def leave(self, identity: bytes, *, lost: bool) -> bool:
        """Lets a worker go. Gives whether it was there."""
        participant = self._there.pop(identity, None)
        if participant is not None and lost and self._spec.worker_loss == "error":
            self._lost[participant.member.worker] = participant.member.rank
        return participant is not None

    def slowest(self) -> int | None:
        """The lowest clock; None where nobody is there."""
        return min((each.clock for each in self._there.values()), default=None)

    def awaited(self) -> int:
        """The clock that nobody may be too far ahead of: 0 until enough workers have come."""
        slowest = self.slowest()
        return 0 if slowest is None or not self._gathered else slowest

    def fastest(self) -> int:
        """The highest clock of those who are there."""
        return max(each.clock for each in self._there.values())

    def set_clocks(self, clock: int) -> None:
        """Sets the clock of all: a round has been committed."""
        for each in self._there.values():
            each.clock = clock

    def have_all(self, workers: Collection[str]) -> bool:
        """Whether all that are waited for are among some workers, by name."""
        return self._gathered and {each.member.worker for each in self._there.values()} <= set(
            workers
        )

    @property
    def anybody_lost(self) -> bool:
        """Whether steps stop because the lease of a worker ended."""
        return bool(self._lost)

    def check_nobody_lost(self) -> None:
        """Raises WorkerLostError where steps stop because the lease of a worker ended."""
        if self._lost:
            names = ", ".join(f"{worker} (rank {rank})" for worker, rank in self._lost.items())
            raise WorkerLostError(
                f"trainer {self._spec.name!r}: the lease of worker {names} ended; steps go on when "
                "it has come back under the same name, or another has its rank"
            )

    def check_turn(self, identity: bytes, clock: int) -> Participant:
        """The worker whose push has a clock, where both are right.

        Raises:
            WorkerNotJoinedError: where it is not there.
            ClockMismatchError: where its clock is another one; RolledBackError where it is ahead.
        """
        participant = self._there.get(identity)
        if participant is None:
            raise WorkerNotJoinedError(
                f"trainer {self._spec.name!r}: this worker has not joined it, or its lease ended: "
                "call join() first"
            )
        if clock == participant.clock:
            return participant
        what = (
            f"trainer {self._spec.name!r}: worker {participant.member.worker} has committed "
            f"{participant.clock} steps, but its push says {clock}: a clock that goes "
        )
        if clock < participant.clock:
            raise ClockMismatchError(f"{what}backwards")
        raise RolledBackError(
            f"{what}ahead. The servers went back to a snapshot: trainer.join() tells the clock to "
            "go on from"
        )

    def document(self) -> dict[str, Any]:
        """What a snapshot keeps: plain JSON values."""
        return {
            "gathered": self._gathered,
            "lost": dict(self._lost),
            "clocks": {identity.hex(): each.clock for identity, each in self._there.items()},
        }

    def restore(self, document: Mapping[str, Any], members: Iterable[Member]) -> None:
        """Takes up what `document` gave, of those that are members."""
        by_identity = {each.identity: each for each in members}
        self._gathered = bool(document["gathered"])
        self._lost = {str(name): int(rank) for name, rank in document["lost"].items()}
        for text, clock in document["clocks"].items():
            member = by_identity.get(bytes.fromhex(text))
            if member is not None:
                self._there[member.identity] = Participant(member, int(clock))
