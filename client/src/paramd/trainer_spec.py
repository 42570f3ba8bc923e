"""What a trainer is declared to be, and how its steps go: plain values of client and server."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from paramd.optimizer import Optimizer
from paramd.spec import TensorHead

__all__ = [
    "NON_FINITE_POLICIES",
    "STEP_STATES",
    "WORKER_LOSS_POLICIES",
    "StagedPart",
    "StatesManifest",
    "StepOptions",
    "StepResult",
    "TrainerInfo",
    "TrainerSpec",
    "TrainerWorker",
]

# In the order of the enumerations in paramd/v1.
NON_FINITE_POLICIES: Final = ("apply", "skip", "error")
WORKER_LOSS_POLICIES: Final = ("continue", "error")
STEP_STATES: Final = ("committed", "staged", "ahead", "unknown")
# The largest count that a double holds exactly, as `begin_num_update`.
_MOST: Final = 1 << 53


@dataclass(frozen=True)
class TrainerSpec:
    """A trainer as it is declared.

    Attributes:
        name: identity on the cluster, 1 to 1024 bytes of UTF-8.
        parameters: names of the parameters that it steps, each once.
        optimizer: how.
        distributed: whether workers join it, and steps come with their gradients.
        staleness: how many clocks a worker may be ahead of the slowest one: 0 is synchronous, None
            asynchronous. Without meaning where it is not distributed.
        num_workers: the first round waits for that many; 0: for whoever has joined.
        non_finite: what becomes of a push in which a gradient is NaN or infinite: one of
            NON_FINITE_POLICIES.
        worker_loss: what happens when a worker's lease ends: one of WORKER_LOSS_POLICIES.
        two_bit_threshold: of 2-bit gradient compression; 0 for none.
        update_each_copy: whether each copy is updated by its own gradient buffer and has an
            optimizer state of its own (MXNet's `update_on_kvstore=False`).
    """

    name: str
    parameters: tuple[str, ...]
    optimizer: Optimizer
    distributed: bool = False
    staleness: int | None = None
    num_workers: int = 0
    non_finite: str = "apply"
    worker_loss: str = "continue"
    two_bit_threshold: float = 0.0
    update_each_copy: bool = False

    @property
    def synchronous(self) -> bool:
        """Whether pushes of a round are summed and committed together."""
        return self.distributed and self.staleness == 0


@dataclass(frozen=True)
class TrainerWorker:
    """One worker of a trainer.

    Attributes:
        worker: the name that it goes by.
        rank: its number, from 0.
        clock: steps that it has committed.
        staged: whether its push of the round under way has come.
    """

    worker: str
    rank: int
    clock: int
    staged: bool


@dataclass(frozen=True)
class TrainerInfo:
    """A trainer as a server describes it.

    Attributes:
        spec: as declared.
        learning_rate: of the next update.
        num_update: the largest number of updates that one parameter has had.
        num_steps: committed rounds of a synchronous trainer, committed pushes of another.
        workers: those whose leases hold.
        num_non_finite: pushes in which a gradient was NaN or infinite.
        num_skipped: those of them that were skipped.
        state_bytes: size of the optimizer states.
        num_lost_steps: committed steps of which a shard has lost its part: it died, came back from
            a snapshot, and the trainer is asynchronous.
    """

    spec: TrainerSpec
    learning_rate: float
    num_update: int
    num_steps: int
    workers: tuple[TrainerWorker, ...] = ()
    num_non_finite: int = 0
    num_skipped: int = 0
    state_bytes: int = 0
    num_lost_steps: int = 0


@dataclass(frozen=True)
class StepOptions:
    """How one step is made.

    Attributes:
        trainer: its name.
        batch_size: gradients are multiplied by the optimizer's rescale_grad and divided by this.
        clock: of a distributed trainer, the steps that the worker has committed before.
        learning_rate: of this step alone; None for the trainer's own.
        ignore_stale_grad: whether parameters without a new gradient are passed over, and no error.
        zero_grad: of a step from the gradient buffers: they are cleared with it.
        reduced: of a step from the gradient buffers: they hold sums over the contexts already.
    """

    trainer: str
    batch_size: float
    clock: int = 0
    learning_rate: float | None = None
    ignore_stale_grad: bool = False
    zero_grad: bool = False
    reduced: bool = False


@dataclass(frozen=True)
class StagedPart:
    """That a shard has its part of a push, and carries it out when the coordinator says so.

    Attributes:
        shard: its number.
        epoch: of the server that has it: another start of it has lost it.
        names: the parameters that the push updates there.
        non_finite: one of them whose gradient is NaN or infinite somewhere, or ''.
    """

    shard: int
    epoch: int
    names: tuple[str, ...]
    non_finite: str = ""


@dataclass(frozen=True)
class StepResult:
    """How a push stands.

    Attributes:
        state: one of STEP_STATES.
        clock: steps that the worker has committed, this one included when it is.
        skipped: whether it was left out because a gradient was NaN or infinite.
        staged: of a shard that is not the coordinator: what it has of the push.
        position: of the commit in the cluster's log; 0 where there is one server alone.
    """

    state: str
    clock: int = 0
    skipped: bool = False
    staged: StagedPart | None = None
    position: int = 0


@dataclass(frozen=True)
class StatesManifest:
    """What describes the optimizer states of a trainer, before their arrays.

    Attributes:
        optimizer: whose states they are.
        learning_rate: the rate that was set last; None for the optimizer's own.
        num_updates: how many updates each parameter has had, by name.
        arrays: the header of each array, whose name is the parameter's, and the name of the state.

    Raises:
        ValueError: for a rate or a count that no trainer can have, or arrays that are no states.
    """

    optimizer: Optimizer
    learning_rate: float | None = None
    num_updates: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    arrays: tuple[tuple[TensorHead, str], ...] = ()

    def __post_init__(self) -> None:
        """Checks what comes from files and from the wire."""
        rate = self.learning_rate
        if rate is not None and not 0.0 <= rate < math.inf:
            raise ValueError(f"a learning rate is finite and at least 0, but got {rate!r}")
        for name, count in self.num_updates.items():
            # A file may have put anything here.
            if type(count) is not int or not 0 <= count <= _MOST:
                raise ValueError(
                    f"parameter {name!r}: a count of updates is 0 to {_MOST}, but got {count!r:.40}"
                )
        places = set()
        for head, state in self.arrays:
            # bfloat16 is no subtype of NumPy's floats.
            is_float = head.dtype.kind in "fV"
            if head.stype != "default" or head.two_bit_threshold or not is_float:
                raise ValueError(
                    f"parameter {head.name!r}: the state {state!r:.40} is no dense array of floats"
                )
            if (head.name, state) in places:
                raise ValueError(f"parameter {head.name!r}: the state {state!r:.40} comes twice")
            places.add((head.name, state))
