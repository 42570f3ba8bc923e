"""A trainer on a shard that is not the coordinator: it keeps pushes until it is told their fate."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from paramd.errors import InvalidArgumentError, ParamdError
from paramd.trainer_spec import StagedPart, StepResult, TrainerInfo, TrainerSpec
from paramd_server.core.operations import Operation
from paramd_server.core.shared_copies import changing
from paramd_server.core.stored_parameter import StoredParameter
from paramd_server.core.training.gradients import check_trainable
from paramd_server.core.training.pushes import MisfitError, Push, check_fits
from paramd_server.core.training.records import StepRecord, UpdateRecord
from paramd_server.core.training.state import Tally, TrainerState, check_complete
from paramd_server.core.training.trainer import World

__all__ = ["FollowedTrainer"]

_log = logging.getLogger(__name__)

# Of one worker: the one that is to be committed, and what failed before it.
_MAX_STAGED: Final = 8


@dataclass
class _Staged:
    """A push that waits for its fate.

    Attributes:
        push: itself.
        touched_at: when its worker was heard of last.
    """

    push: Push
    touched_at: float = field(default_factory=time.monotonic)


class FollowedTrainer(TrainerState):
    """A trainer whose steps the coordinator decides. Workers and clocks are with the coordinator.

    Args:
        spec: as declared; some of its parameters are the registry's.
        world: what it works with.
        shard: the number of this shard.
    """

    def __init__(self, spec: TrainerSpec, world: World, shard: int) -> None:
        super().__init__(spec)
        self._world = world
        self._shard = shard
        self._staged: dict[Operation, _Staged] = {}  # guarded by `condition`

    def info(self) -> TrainerInfo:
        """The trainer, described, as far as this shard knows it."""
        with self.condition:
            return self.describe(())

    def progress(self) -> dict[str, Any]:
        """What a snapshot keeps beside the states: plain JSON values."""
        with self.condition:
            return {
                "learning_rate": None,
                "clock": self.clock,
                "tally": asdict(self.tally),
                "placement": self.placement(),
            }

    def restore_progress(self, document: Mapping[str, Any]) -> None:
        """Takes up what `progress` gave."""
        with self.condition:
            self.clock = int(document["clock"])
            self.tally = Tally(**document["tally"])
            self.place(**document["placement"])
            self.mark_restored(self._world.registry)

    def delete(self) -> None:
        """Marks it as gone, and wakes those who wait in it."""
        with self.condition:
            self._staged.clear()
            super().delete()

    # Pushes

    def submit(self, push: Push) -> StepResult:
        """Keeps a complete push until the coordinator decides.

        Returns:
            'staged', with what is staged; 'committed' where it had been decided before.

        Raises:
            What stands at Step in training_service.proto; nothing is kept then.
        """
        with self.condition:
            self.check_there()
            answered = self._world.operations.answered(push.operation)
            if answered is not None:
                return self._world.answers.decode(answered)
            if push.non_finite and self.spec.non_finite == "error":
                # The coordinator refuses it, and counts; there is nothing to keep.
                push = replace(push, gradients={})
            elif not push.options.ignore_stale_grad and not self.skips(push):
                check_complete(self, self._world.registry, push.gradients)
            self._forget_answered(push.operation)
            mine = [each for each in self._staged if each.identity == push.identity]
            if len(mine) >= _MAX_STAGED:
                raise InvalidArgumentError(
                    f"trainer {self.spec.name!r}: {_MAX_STAGED} pushes of this worker wait for the "
                    "coordinator already"
                )
            self._staged[push.operation] = _Staged(push)
            return self._standing(push)

    def _forget_answered(self, operation: Operation) -> None:
        """Lets go of the pushes of a worker that it does not wait for any more."""
        for other in list(self._staged):
            mine = other.identity == operation.identity
            if mine and other.sequence < operation.acknowledged_below:
                del self._staged[other]

    def knows(self, operation: Operation) -> bool:
        """Whether a push has been decided, or waits here."""
        with self.condition:
            known = self._world.operations.answered(operation) is not None
            return known or operation in self._staged

    def expect(self, operation: Operation, on_commit: Callable[[], None] | None) -> None:
        """Notes that the worker of a push that waits is still there, and what it wants to read."""
        with self.condition:
            staged = self._staged.get(operation)
            if staged is not None:
                staged.touched_at = time.monotonic()
                staged.push = replace(staged.push, on_commit=on_commit)

    def wait(self, operation: Operation, wait_s: float) -> StepResult:
        """How a push stands, after a moment if it is not decided.

        Returns:
            'committed', 'staged', or 'unknown' where it has to be sent again.

        Raises:
            TrainerNotFoundError: where the trainer is deleted meanwhile.
        """
        deadline = time.monotonic() + wait_s
        with self.condition:
            while True:
                answered = self._world.operations.answered(operation)
                if answered is not None:
                    return self._world.answers.decode(answered)
                self.check_there()
                staged = self._staged.get(operation)
                if staged is None and not self._updates_buffers:
                    return StepResult("unknown", self.clock)
                if staged is not None:
                    staged.touched_at = time.monotonic()
                left = deadline - time.monotonic()
                if left <= 0:
                    standing = StepResult("staged", self.clock)
                    return standing if staged is None else self._standing(staged.push)
                self.condition.wait(left)

    @property
    def _updates_buffers(self) -> bool:
        """Whether steps by the gradient buffers, of which nothing is staged, are waited for."""
        return not self.spec.distributed

    def old(self, before: float) -> list[Operation]:
        """The pushes whose workers were heard of last before a time of the monotonic clock."""
        with self.condition:
            return [each for each, staged in self._staged.items() if staged.touched_at < before]

    def drop(self, operation: Operation, before: float) -> None:
        """Lets a push go, unless its worker has been heard of since a time."""
        with self.condition:
            staged = self._staged.get(operation)
            if staged is not None and staged.touched_at < before:
                del self._staged[operation]
                self.condition.notify_all()

    def part_of(self, names: Collection[str], non_finite: str) -> StagedPart:
        """What this shard tells the coordinator of a step."""
        ordered = tuple(name for name in self.spec.parameters if name in names)
        return StagedPart(self._shard, self._world.registry.epoch, ordered, non_finite)

    def _standing(self, push: Push) -> StepResult:
        part = self.part_of(push.gradients.keys(), push.non_finite)
        return StepResult("staged", self.clock, staged=part)

    # What the coordinator decided

    def carry_out(self, record: StepRecord, position: int) -> None:
        """Applies a step. Whatever happens, it counts as applied: there is no second chance."""
        with self.condition:
            if self.deleted:
                return
            pushes = self._take(record)
            counted = [
                push
                for push, committed in zip(pushes, record.pushes, strict=True)
                if push is not None and not committed.skipped
            ]
            try:
                self._apply(record, counted)
            except Exception:
                _log.exception("trainer %r: step %d failed here", self.spec.name, record.num_steps)
                self.tally.num_lost_steps += 1
            self.count(record.num_steps, non_finite=any(p and p.non_finite for p in pushes))
            self.clock = record.clock
            for committed in record.pushes:
                result = StepResult(
                    "committed", committed.clock, committed.skipped, position=position
                )
                self._world.operations.record(
                    committed.operation, self._world.answers.encode(result)
                )
            for push in pushes:
                if push is not None and push.on_commit is not None:
                    push.on_commit()
            self.condition.notify_all()

    def answer_update(self, record: UpdateRecord, position: int) -> None:
        """Keeps the answer of a step by the gradient buffers, and wakes who waits for it."""
        result = StepResult("committed", 0, record.skipped, position=position)
        self._world.operations.record(record.operation, self._world.answers.encode(result))
        self.condition.notify_all()

    def count(self, num_steps: int, *, non_finite: bool) -> None:
        """Counts a step, and those before it that either this shard or the coordinator has lost."""
        self.tally.num_lost_steps += abs(num_steps - 1 - self.tally.num_steps)
        self.tally.num_steps = num_steps
        self.tally.num_non_finite += non_finite

    def _take(self, record: StepRecord) -> list[Push | None]:
        """The pushes of a step. What their workers sent before them will not be committed."""
        pushes: list[Push | None] = []
        for committed in record.pushes:
            staged = self._staged.pop(committed.operation, None)
            pushes.append(None if staged is None else staged.push)
            for other in list(self._staged):
                mine = other.identity == committed.operation.identity
                if mine and other.sequence < committed.operation.sequence:
                    del self._staged[other]
        return pushes

    def _apply(self, record: StepRecord, pushes: Sequence[Push]) -> None:
        names = {name for push in pushes for name in push.gradients}
        batch_size = record.pushes[0].batch_size
        registry = self._world.registry
        there = set(registry.names())
        held = [name for name in self.local_parameters if name in there]
        with registry.hold(held) as parameters, registry.devices.committed():
            chosen = [each for each in parameters if each.name in names]
            fitting = [each for each in chosen if _fits(each, pushes)]
            actions = self.prepare_pushes(fitting, pushes, batch_size, record.rates)
            with changing(parameters):
                for action in actions:
                    action()
                self.mark(parameters, record.num_steps)
        lost = names - {parameter.name for parameter in fitting}
        if lost:
            _log.warning(
                "trainer %r: step %d passes over %s, deleted or made anew since it was staged",
                self.spec.name,
                record.num_steps,
                ", ".join(map(repr, sorted(lost))),
            )


def _fits(parameter: StoredParameter, pushes: Sequence[Push]) -> bool:
    try:
        check_trainable(parameter)
        for push in pushes:
            check_fits(parameter, push)
    except (ParamdError, MisfitError):
        return False
    return True
