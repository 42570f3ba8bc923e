"""The calls about trainers over the shards of a cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np

from paramd.context import Context
from paramd.errors import RolledBackError, StalledError, TrainerNotFoundError
from paramd.spec import Selector
from paramd.trainer_spec import (
    StatesManifest,
    StepOptions,
    StepResult,
    TrainerInfo,
    TrainerSpec,
)
from paramd.transport.cluster.catalogue import STALE, Catalogue, StalePlacementError
from paramd.transport.cluster.placed import Placed
from paramd.transport.cluster.reading import ReadPlan, plan_reads
from paramd.transport.cluster.shards import Shards
from paramd.transport.cluster.slicing import check_write, split_write
from paramd.transport.cluster.states import load_states, save_states
from paramd.transport.cluster.steps import ClusterStep, ShardPush
from paramd.transport.operations import Operation
from paramd.transport.protocols import Received
from paramd.transport.receiving import Out
from paramd.transport.records import TensorWrite
from paramd.transport.training import StatesSink
from paramd.v1 import training_service_pb2 as pb
from paramd.wire.training import staged_part_from_wire

__all__ = ["ClusterTrainingCalls"]

T = TypeVar("T")

# Before a step is offered again.
_AGAIN_SECONDS: Final = 0.05
# How long a shard may take to carry out what has been committed.
_FOLLOW_SECONDS: Final = 30.0


@dataclass(frozen=True)
class _Trainer:
    """Where the parameters of a trainer are.

    Attributes:
        spec: of the trainer.
        placed: each of its parameters.
        shards: those that hold something of them, apart from the coordinator.
    """

    spec: TrainerSpec
    placed: Mapping[str, Placed]
    shards: tuple[int, ...]

    def elsewhere(self, shard: int) -> list[str]:
        """Those of its parameters of which a shard holds nothing."""
        return [name for name, placed in self.placed.items() if shard not in placed.shards]


class ClusterTrainingCalls:
    """Calls about trainers: see `paramd.transport.training.TrainingCalls`. Thread-safe.

    The coordinator owns workers, clocks and the learning rate; each shard steps what it holds.

    Args:
        shards: of the cluster.
        catalogue: knows where parameters are.
    """

    def __init__(self, shards: Shards, catalogue: Catalogue) -> None:
        self._shards = shards
        self._catalogue = catalogue
        self._lock = threading.Lock()
        self._trainers: dict[str, _Trainer] = {}  # guarded by _lock
        # Of the cluster, by trainer, when this session made it or stepped it last.
        self._generations: dict[str, int] = {}  # guarded by _lock
        self._coordinator = shards.calls[0].training

    def declare(self, spec: TrainerSpec) -> TrainerInfo:
        """Creates a trainer, or attaches to the one of that name: first at the coordinator."""
        trainer = self._locate(spec)
        info = self._declare_on(0, trainer)
        others = self._shards.run(
            {shard: partial(self._declare_on, shard, trainer) for shard in trainer.shards}
        )
        with self._lock:
            self._trainers[spec.name] = trainer
            self._generations.setdefault(spec.name, self._shards.generation)
        return _merged(info, list(others.values()))

    def describe(self, names: Sequence[str] = ()) -> list[TrainerInfo]:
        """Describes trainers; all of them where none is named."""
        infos = self._coordinator.describe(names)
        wanted = [info.spec.name for info in infos]
        others = self._shards.run(
            {shard: partial(self._describe_on, shard, wanted) for shard in self._others}
        )
        return [
            _merged(info, [one[info.spec.name] for one in others.values() if info.spec.name in one])
            for info in infos
        ]

    def delete(self, name: str) -> None:
        """Removes a trainer with its optimizer states."""
        self._coordinator.delete(name)
        with self._lock:
            self._trainers.pop(name, None)
        self._shards.run({shard: partial(self._delete_on, shard, name) for shard in self._others})

    def join(self, name: str) -> pb.JoinTrainerResponse:
        """Makes this session one of a trainer's workers."""
        return self._coordinator.join(name)

    def leave(self, name: str) -> None:
        """Takes this session out of a trainer."""
        self._coordinator.leave(name)

    def set_learning_rate(self, name: str, learning_rate: float) -> None:
        """Changes the learning rate."""
        self._coordinator.set_learning_rate(name, learning_rate)

    def step(
        self,
        options: StepOptions,
        writes: Sequence[TensorWrite],
        pull: Sequence[Selector],
        current_context: Context,
        *,
        out: Sequence[Out] | None = None,
    ) -> tuple[StepResult, Received]:
        """Pushes gradients, waits until the worker may go on, and fetches values."""

        def attempt(trainer: _Trainer) -> tuple[StepResult, Received]:
            with self._generation(trainer.spec) as generation:
                step, reads = self._plan_step(
                    trainer, options, writes, pull, current_context, out, generation
                )
                result, received = step.run()
            if reads is None or received is None:
                # The caller fetches what is there now.
                return result, []
            try:
                return result, reads.merge(received)
            except StalePlacementError:
                # The step is committed all the same: the caller fetches what is there now.
                return result, []

        return self._again(options.trainer, attempt)

    def _plan_step(
        self,
        trainer: _Trainer,
        options: StepOptions,
        writes: Sequence[TensorWrite],
        pull: Sequence[Selector],
        current_context: Context,
        out: Sequence[Out] | None,
        generation: int,
    ) -> tuple[ClusterStep, ReadPlan | None]:
        """A step over the shards of a trainer, and the reads that go with it."""
        pieces: dict[int, list[TensorWrite]] = {0: [], **{shard: [] for shard in trainer.shards}}
        for write in writes:
            for shard, piece in _split(trainer.placed[write.name], write).items():
                pieces[shard].append(piece)
        placed = self._catalogue.placed(selector.name for selector in pull)
        reads = plan_reads(placed, pull, out, gradient=False)
        # Of a shard that steps nothing, as of a parameter of another trainer, they come afterwards.
        together = reads.selectors.keys() <= pieces.keys()
        pushes = {
            shard: ShardPush(
                some,
                reads.selectors.get(shard, ()) if together else (),
                reads.outs.get(shard) if together else None,
            )
            for shard, some in pieces.items()
        }
        step = ClusterStep(
            self._shards,
            options,
            pushes,
            current_context,
            staleness=trainer.spec.staleness if trainer.spec.distributed else 0,
            generation=generation,
        )
        return step, reads if together else None

    def _again(self, name: str, call: Callable[[_Trainer], T]) -> T:
        """Makes a call about a trainer, and again where its parameters are not where they were.

        Args:
            name: of the trainer.
            call: gets where its parameters are; has changed nothing where it raises one of STALE.
        """
        trainer = self._find(name)
        try:
            return call(trainer)
        except STALE:
            fresh = self._locate(trainer.spec)
            if fresh.placed == trainer.placed:
                raise
        self.declare(trainer.spec)
        return call(self._find(name))

    def update(self, options: StepOptions) -> bool:
        """Steps by what the gradient buffers hold; gives whether the step was skipped."""
        return self._again(options.trainer, lambda trainer: self._update(trainer, options))

    def _update(self, trainer: _Trainer, options: StepOptions) -> bool:
        with self._shards.operations.begin() as operation:
            while True:
                staged = self._shards.run(
                    {
                        shard: partial(
                            self._shards.calls[shard].training.update_part, options, operation
                        )
                        for shard in trainer.shards
                    }
                )
                parts = [staged_part_from_wire(each.staged) for each in staged.values()]
                with self._generation(trainer.spec) as generation:
                    answer = self._coordinator.update_part(options, operation, parts, generation)
                if not answer.stage_again:
                    break
                self._shards.coordinator.attempts.sleep(_AGAIN_SECONDS)
            self._shards.run(
                {
                    shard: partial(
                        self._await_update, shard, options.trainer, operation, part.epoch
                    )
                    for shard, part in zip(staged, parts, strict=True)
                }
            )
        return answer.skipped

    @contextmanager
    def _generation(self, trainer: TrainerSpec) -> Iterator[int]:
        """The cluster's generation that a step without a clock expects, while the block runs.

        Where the cluster has gone back to a snapshot since, the session is told; and once more
        where the coordinator had not yet done so then.
        """
        if trainer.distributed:
            yield 0
            return
        with self._lock:
            known = self._generations.setdefault(trainer.name, self._shards.generation)
        try:
            yield known
        except RolledBackError:
            with self._lock:
                self._generations[trainer.name] = self._shards.generation
            raise

    def allreduce_grads(self, name: str) -> None:
        """Sums the gradient buffers over the contexts, on each shard by itself."""

        def attempt(trainer: _Trainer) -> None:
            self._shards.run(
                {
                    shard: partial(self._shards.calls[shard].training.allreduce_grads, name)
                    for shard in (0, *trainer.shards)
                }
            )

        self._again(name, attempt)

    def save_states(self, name: str, write: StatesSink) -> None:
        """Reads a trainer's optimizer states."""
        trainer = self._find(name)
        save_states(self._shards, name, (0, *trainer.shards), trainer.placed, write)

    def load_states(
        self,
        name: str,
        manifest: StatesManifest,
        arrays: Callable[[], Iterable[np.ndarray[Any, Any]]],
    ) -> None:
        """Replaces a trainer's optimizer states, all or none on each shard."""

        def attempt(trainer: _Trainer) -> None:
            numbers = (0, *trainer.shards)
            load_states(self._shards, name, numbers, trainer.placed, manifest, arrays)

        self._again(name, attempt)

    def _locate(self, spec: TrainerSpec) -> _Trainer:
        """Where the parameters of a trainer are now."""
        surveys = self._catalogue.survey(spec.parameters)
        placed = {name: survey.placed for name, survey in surveys.items()}
        there = {shard for each in placed.values() for shard in each.shards}
        return _Trainer(spec, placed, tuple(sorted(there - {0})))

    @property
    def _others(self) -> range:
        return range(1, len(self._shards))

    def _find(self, name: str) -> _Trainer:
        """A trainer that this session has declared, or asks for.

        Raises:
            TrainerNotFoundError: where there is none of that name.
        """
        with self._lock:
            known = self._trainers.get(name)
        if known is not None:
            return known
        (info,) = self._coordinator.describe([name])
        trainer = self._locate(info.spec)
        with self._lock:
            self._trainers[name] = trainer
        return trainer

    def _declare_on(self, shard: int, trainer: _Trainer) -> TrainerInfo:
        calls = self._shards.calls[shard].training
        return calls.declare(trainer.spec, trainer.elsewhere(shard), trainer.shards)

    def _describe_on(self, shard: int, names: Sequence[str]) -> dict[str, TrainerInfo]:
        """What a shard says of those trainers of which it holds something."""
        if not names:
            return {}
        infos = self._shards.calls[shard].training.describe()
        return {info.spec.name: info for info in infos if info.spec.name in names}

    def _delete_on(self, shard: int, name: str) -> None:
        try:
            self._shards.calls[shard].training.delete(name)
        except TrainerNotFoundError:
            # It is gone there already.
            return

    def _await_update(self, shard: int, name: str, operation: Operation, epoch: int) -> None:
        """Waits until a shard has carried out a step by the gradient buffers.

        Args:
            shard: its number.
            name: of the trainer.
            operation: of the step.
            epoch: of the server that was asked what it would step.
        """
        calls = self._shards.calls[shard]
        where = f"shard {shard} at {self._shards.address(shard)}"
        began = time.monotonic()
        while calls.training.await_step(name, operation).state != "committed":
            if calls.status().epoch != epoch:
                raise RolledBackError(
                    f"trainer {name!r}: {where} has died and lost its part of the step, so the "
                    "cluster goes back to a snapshot"
                )
            if time.monotonic() - began > _FOLLOW_SECONDS:
                raise StalledError(
                    f"trainer {name!r}: the step is committed, but {where} has not carried it out "
                    f"within {_FOLLOW_SECONDS:g} s"
                )


def _split(placed: Placed, write: TensorWrite) -> Mapping[int, TensorWrite]:
    if not placed.is_spread:
        return {placed.home: write}
    check_write(placed, write, gradient=True)
    return split_write(placed, write, gradient=True)


def _merged(info: TrainerInfo, others: Sequence[TrainerInfo]) -> TrainerInfo:
    return replace(
        info,
        state_bytes=info.state_bytes + sum(each.state_bytes for each in others),
        num_lost_steps=max([info.num_lost_steps, *(each.num_lost_steps for each in others)]),
    )
