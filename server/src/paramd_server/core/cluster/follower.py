"""A shard that is not the coordinator: carries out what the coordinator has decided."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from paramd.errors import TrainerNotFoundError
from paramd_server.core.operations import Operation, OperationWindow
from paramd_server.core.training.buffers import BufferSteps
from paramd_server.core.training.followed import FollowedTrainer
from paramd_server.core.training.records import (
    Record,
    SnapshotRecord,
    SnapshotResult,
    StepRecord,
    UpdateRecord,
)
from paramd_server.core.training.trainers import Trainers

__all__ = ["Follower"]

_log = logging.getLogger(__name__)

_OLD_S: Final = 60.0


class Follower:
    """Carries out records, one after the other.

    Args:
        trainers: of this server.
        operations: of this server.
        buffers: steps them by their gradient buffers.
        snapshot: told of snapshots, at their place.
        position: up to where the log has been carried out.
        old_s: how long a push is kept without a word from its worker before the coordinator is
            asked about it.
    """

    def __init__(
        self,
        trainers: Trainers,
        operations: OperationWindow,
        buffers: BufferSteps,
        snapshot: Callable[[SnapshotRecord | SnapshotResult], None],
        position: int = 0,
        *,
        old_s: float = _OLD_S,
    ) -> None:
        self.position = position
        self._old_s = old_s
        self._trainers = trainers
        self._operations = operations
        self._buffers = buffers
        self._snapshot = snapshot

    def carry_out(self, position: int, record: Record) -> None:
        """Carries out the next record. What fails is logged: the others have done it already."""
        if isinstance(record, SnapshotRecord | SnapshotResult):
            # The state is captured with all records before this one, and none after it.
            self.position = position
            self._snapshot(record)
            return
        with self._operations.gate.shared():
            try:
                self._step(position, record)
            except Exception:
                # A shard that does not go on would stop all the others.
                _log.exception("record %d could not be carried out: %.200r", position, record)
            self.position = position

    def old_pushes(self) -> list[tuple[str, Operation]]:
        """Pushes that have been kept for long without a word from their workers."""
        before = time.monotonic() - self._old_s
        return [
            (trainer.spec.name, operation)
            for trainer in self._followed()
            for operation in trainer.old(before)
        ]

    def drop(self, pushes: Iterable[tuple[str, Operation]], asked_at: float) -> None:
        """Lets pushes go that will not be committed, unless their workers came back since."""
        for name, operation in pushes:
            for trainer in self._followed():
                if trainer.spec.name == name:
                    trainer.drop(operation, asked_at)

    def _followed(self) -> list[FollowedTrainer]:
        return [each for each in self._trainers.all() if isinstance(each, FollowedTrainer)]

    def _step(self, position: int, record: StepRecord | UpdateRecord) -> None:
        try:
            trainer = self._trainers.find(record.trainer)
        except TrainerNotFoundError:
            # It has no parameters here, or has been deleted.
            return
        if not isinstance(trainer, FollowedTrainer):
            return
        if isinstance(record, StepRecord):
            trainer.carry_out(record, position)
        else:
            self._buffers.carry_out(trainer, record, position)
