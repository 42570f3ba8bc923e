"""What the coordinator of several shards has decided, in the form in which shards carry it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from paramd.trainer_spec import StagedPart
from paramd_server.core.operations import Operation
from paramd_server.core.training.updates import Plan

__all__ = [
    "Alone",
    "Commits",
    "CommittedPush",
    "Record",
    "SnapshotRecord",
    "SnapshotResult",
    "StepRecord",
    "UpdateRecord",
]


@dataclass(frozen=True)
class CommittedPush:
    """A push in a step.

    Attributes:
        operation: identifies it.
        clock: of its worker, after it.
        skipped: whether it was left out because a gradient was NaN or infinite.
        batch_size: of its worker.
    """

    operation: Operation
    clock: int
    skipped: bool
    batch_size: float


@dataclass(frozen=True)
class StepRecord:
    """A round, or a push of its own, that was committed.

    Attributes:
        trainer: its name.
        clock: the trainer's, after it.
        num_steps: how many steps the trainer has had, this one included.
        pushes: in the order in which they are added up.
        rates: of every parameter that is updated, on all shards.
    """

    trainer: str
    clock: int
    num_steps: int
    pushes: tuple[CommittedPush, ...]
    rates: Plan


@dataclass(frozen=True)
class UpdateRecord:
    """A step by the gradient buffers that was committed.

    Attributes:
        trainer: its name.
        operation: identifies it.
        num_steps: how many steps the trainer has had, this one included.
        skipped: whether nothing was updated because a gradient was NaN or infinite.
        batch_size: what the gradients are divided by.
        zero_grad: whether the buffers are cleared.
        reduced: whether they hold sums over the contexts already.
        rates: of every parameter that is updated, on all shards.
    """

    trainer: str
    operation: Operation
    num_steps: int
    skipped: bool
    batch_size: float
    zero_grad: bool
    reduced: bool
    rates: Plan


@dataclass(frozen=True)
class SnapshotRecord:
    """Every shard's state at this place of the log belongs to one snapshot.

    Attributes:
        number: of the snapshot.
        directory: as the user named it; '' for a numbered one.
    """

    number: int
    directory: str


@dataclass(frozen=True)
class SnapshotResult:
    """A snapshot is whole, or has failed.

    Attributes:
        number: of the snapshot.
        directory: as the user named it; '' for a numbered one.
        manifest: what every shard writes beside its part; b'' where it has failed.
        kept: the numbers of the snapshots that stay.
    """

    number: int
    directory: str
    manifest: bytes
    kept: tuple[int, ...]


Record = StepRecord | UpdateRecord | SnapshotRecord | SnapshotResult


class Commits(Protocol):
    """Where the commits of trainers go."""

    @property
    def generation(self) -> int:
        """Of the cluster; 0 where there are no other shards."""

    def hold(self, parts: tuple[StagedPart, ...]) -> bool:
        """Whether every shard still has what it said that it has."""

    def append(self, record: StepRecord | UpdateRecord) -> int:
        """Tells the other shards; gives the record's place in the log."""

    def hold_steps(self) -> float:
        """Lets nothing be committed that concerns several shards, for so many seconds."""

    def release_steps(self) -> None:
        """Ends what `hold_steps` began."""


class Alone:
    """The commits of a server without other shards: nobody else needs to know."""

    generation: int = 0

    def hold(self, parts: tuple[StagedPart, ...]) -> bool:
        """See Commits."""
        return not parts

    def append(self, record: StepRecord | UpdateRecord) -> int:
        """See Commits."""
        return 0

    def hold_steps(self) -> float:
        """See Commits."""
        return 0.0

    def release_steps(self) -> None:
        """Nothing was held."""
