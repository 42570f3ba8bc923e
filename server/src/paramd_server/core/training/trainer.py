"""One trainer: its workers and their clocks, the rounds, and the steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from paramd.context import Context
from paramd.errors import (
    InvalidArgumentError,
    LeaseEndedError,
    ScheduledLearningRateError,
    StaleGradientError,
    TrainerNotFoundError,
)
from paramd.trainer_spec import StepOptions, StepResult, TrainerInfo, TrainerSpec, TrainerWorker
from paramd_server.arrays.backend import Buffer
from paramd_server.core.operations import Operation, OperationWindow
from paramd_server.core.registry import Registry
from paramd_server.core.stored_parameter import StoredParameter
from paramd_server.core.training.gradients import (
    Contribution,
    GradientSource,
    check_trainable,
    non_finite_error,
    prepare_sum,
)
from paramd_server.core.training.members import Member, Members
from paramd_server.core.training.participants import Participant, Participants
from paramd_server.core.training.pushes import Answers, MisfitError, Push, check_fits
from paramd_server.core.training.updates import Rates, Updates
from paramd_server.core.workers import Workers
from paramd_server.core.writing import Action

__all__ = ["StoredTrainer", "World"]

# A waiter looks again at least that often.
_LOOK_S: Final = 0.5


@dataclass(frozen=True)
class World:
    """What the trainers of a server work with.

    Attributes:
        registry: the parameters.
        members: the workers of the cluster.
        operations: where the answers of committed pushes are kept.
        answers: their form.
        workers: counts committed pushes.
    """

    registry: Registry
    members: Members
    operations: OperationWindow
    answers: Answers
    workers: Workers


@dataclass
class _Tally:
    """What has happened."""

    num_steps: int = 0
    num_non_finite: int = 0
    num_skipped: int = 0


class StoredTrainer:
    """A trainer as the server holds it.

    Its lock is taken before those of parameters. What waits does so on its condition, for a moment
    at a time.

    Args:
        spec: as declared; its parameters are the registry's.
        world: what it works with.
    """

    def __init__(self, spec: TrainerSpec, world: World) -> None:
        self.spec = spec
        self.condition = threading.Condition(threading.RLock())
        # All that follow are guarded by `condition`.
        self.updates = Updates(spec.optimizer)
        self.learning_rate: float | None = None
        self.clock = 0
        self.deleted = False
        # What 2-bit compression of the gradient buffers left over, by parameter and context.
        self.residuals: dict[tuple[str, Context], Buffer] = {}
        self._tally = _Tally()
        self._participants = Participants(spec)
        # By the worker's name: the second push of a round takes the place of the first.
        self._staged: dict[str, tuple[Member, Push]] = {}
        self._registry = world.registry
        self._members = world.members
        self._operations = world.operations
        self._answers = world.answers
        self._workers = world.workers

    def info(self) -> TrainerInfo:
        """The trainer, described."""
        with self.condition:
            return TrainerInfo(
                spec=self.spec,
                learning_rate=self._rate(self.updates.num_update),
                num_update=self.updates.num_update,
                num_steps=self._tally.num_steps,
                workers=tuple(
                    TrainerWorker(
                        each.member.worker,
                        each.member.rank,
                        each.clock,
                        each.member.worker in self._staged,
                    )
                    for each in self._participants.all()
                ),
                num_non_finite=self._tally.num_non_finite,
                num_skipped=self._tally.num_skipped,
                state_bytes=self.updates.state_bytes,
            )

    def set_learning_rate(self, learning_rate: float) -> None:
        """Changes the rate. Raises ScheduledLearningRateError where a scheduler sets it."""
        with self.condition:
            self.check_there()
            if self.spec.optimizer.lr_scheduler is not None:
                raise ScheduledLearningRateError(
                    f"trainer {self.spec.name!r} has a learning rate scheduler, which sets the "
                    "rate: pass learning_rate= to step() for one step of another rate"
                )
            self.learning_rate = learning_rate

    def delete(self) -> None:
        """Marks it as gone, and wakes those who wait in it."""
        with self.condition:
            self.deleted = True
            self._staged.clear()
            self.residuals.clear()
            self.updates.forget()
            self.condition.notify_all()

    def forget_deleted(self, name: str) -> None:
        """Lets go of what is kept of a parameter that has been deleted."""
        with self.condition:
            self.updates.forget_deleted(name)
            for key in [key for key in self.residuals if key[0] == name]:
                del self.residuals[key]

    def progress(self) -> dict[str, Any]:
        """What a snapshot keeps beside the states: plain JSON values."""
        with self.condition:
            return {
                "learning_rate": self.learning_rate,
                "clock": self.clock,
                "tally": asdict(self._tally),
                "participants": self._participants.document(),
            }

    def restore_progress(self, document: Mapping[str, Any]) -> None:
        """Takes up what `progress` gave. The workers have been restored before."""
        rate = document["learning_rate"]
        members = self._members.all()
        with self.condition:
            self.learning_rate = None if rate is None else float(rate)
            self.clock = int(document["clock"])
            self._tally = _Tally(**document["tally"])
            self._participants.restore(document["participants"], members)

    # Workers

    def join(self, identity: bytes) -> tuple[Member, int]:
        """Takes a worker in.

        Returns:
            The worker, and its clock: the current one where it is new or has come back.

        Raises:
            WorkerNotJoinedError, LeaseEndedError: where it is no worker of the cluster.
        """
        member = self._members.check(identity)
        if not self.spec.distributed:
            raise InvalidArgumentError(f"trainer {self.spec.name!r} is local: nobody joins it")
        with self.condition:
            self.check_there()
            if not self._members.holds(identity):
                # It has gone since: nobody would tell this trainer a second time.
                raise LeaseEndedError(
                    f"trainer {self.spec.name!r}: worker {member.worker} has gone while it joined"
                )
            participant, is_new = self._participants.join(member, self.clock)
            if is_new:
                # It pushes for this clock itself: what it pushed before it went must not count.
                self._staged.pop(member.worker, None)
            self.condition.notify_all()
            return member, participant.clock

    def leave(self, identity: bytes, *, lost: bool = False) -> None:
        """Lets a worker go. A push of its that waits in a round stays in it, until it is back."""
        with self.condition:
            if self._participants.leave(identity, lost=lost):
                self.condition.notify_all()

    # Steps

    def submit(self, push: Push) -> StepResult:
        """Takes a complete push: applies it, or keeps it until its round is complete.

        Returns:
            'committed', 'staged' or 'ahead'.

        Raises:
            What stands at Step in training_service.proto; nothing is changed then.
        """
        if not self.spec.synchronous:
            # The answer of a push that was applied before comes whatever has happened since.
            answer = self._operations.run(push.operation, lambda: self._apply_alone(push))
            return self._standing(push.identity, self._answers.decode(answer))
        with self.condition:
            answered = self._operations.answered(push.operation)
            if answered is None:
                participant = self._check_turn(push)
                self._check_finite(push)
                self._check_complete(push)
                self._check_rate(push)
                self._staged[participant.member.worker] = (participant.member, push)
                self._try_round_for(push.operation)
                answered = self._operations.answered(push.operation)
            if answered is None:
                return StepResult("staged", self.clock)
            return self._answers.decode(answered)

    def knows(self, operation: Operation) -> bool:
        """Whether a push has been answered, or waits in a round."""
        with self.condition:
            return self._operations.answered(operation) is not None or self._stages(operation)

    def wait(self, operation: Operation, wait_s: float) -> StepResult:
        """How a push stands, after a moment if it has to wait.

        Args:
            operation: of the push.
            wait_s: at most that long.

        Returns:
            'committed', 'staged', 'ahead', or 'unknown' where it has to be sent again.

        Raises:
            TrainerNotFoundError, LeaseEndedError, WorkerLostError, or what the round fails with.
        """
        deadline = time.monotonic() + wait_s
        while True:
            self._members.expire()
            with self.condition:
                result = self._look(operation)
                left = deadline - time.monotonic()
                if result.state not in ("staged", "ahead") or left <= 0:
                    return result
                pause = min(left, self._members.next_end() + 0.01, _LOOK_S)
                self.condition.wait(max(pause, 0.0))

    def _look(self, operation: Operation) -> StepResult:
        answered = self._operations.answered(operation)
        if answered is not None:
            return self._standing(operation.identity, self._answers.decode(answered))
        self.check_there()
        if not self._stages(operation):
            return StepResult("unknown", self.clock)
        if self._participants.find(operation.identity) is None:
            raise LeaseEndedError(
                f"trainer {self.spec.name!r}: the lease of this worker ended while it waited: call "
                "join() to come back with the current clock"
            )
        self._try_round_for(operation)
        answered = self._operations.answered(operation)
        if answered is None:
            return StepResult("staged", self.clock)
        return self._answers.decode(answered)

    def _standing(self, identity: bytes, result: StepResult) -> StepResult:
        """A committed push, or one whose worker is too far ahead of the slowest one."""
        staleness = self.spec.staleness
        if not staleness or not self.spec.distributed:
            return result
        with self.condition:
            if self._participants.find(identity) is None:
                return result
            if self._participants.anybody_lost:
                # What is committed is not told as a failure: the next step of this worker fails.
                return result
            ahead = result.clock - self._participants.awaited()
        return replace(result, state="ahead") if ahead > staleness else result

    def _apply_alone(self, push: Push) -> bytes:
        """A push that waits for nobody."""
        with self.condition:
            self.check_there()
            participant = None
            if self.spec.distributed:
                participant = self._check_turn(push)
                self._participants.check_nobody_lost()
            self._check_finite(push)
            self._check_complete(push)
            try:
                self._commit([push])
            except MisfitError as err:
                raise err.error from None
            clock = self.clock = self._tally.num_steps
            if participant is not None:
                clock = participant.clock = participant.clock + 1
                self.clock = self._participants.fastest()
            self.condition.notify_all()
            return self._answers.encode(StepResult("committed", clock, self._skips(push)))

    def _try_round_for(self, operation: Operation) -> None:
        """Commits the round where it can be; who is told that it failed has no push in it."""
        try:
            self._participants.check_nobody_lost()
            self._try_round()
        except MisfitError as err:
            # Its worker is told that the push is unknown, sends it again, and learns why.
            self._unstage(err.push.operation)
            if err.push.operation == operation:
                raise err.error from None
        except BaseException:
            self._unstage(operation)
            raise

    def _stages(self, operation: Operation) -> bool:
        return any(push.operation == operation for _, push in self._staged.values())

    def _unstage(self, operation: Operation) -> None:
        for worker, (_, push) in list(self._staged.items()):
            if push.operation == operation:
                del self._staged[worker]

    def _try_round(self) -> None:
        """Commits the round where every worker's push is in."""
        if not self._staged or not self._participants.have_all(self._staged):
            return
        staged = sorted(self._staged.values(), key=lambda each: each[0].rank)
        pushes = [push for _, push in staged]
        self._commit(pushes)
        self._staged.clear()
        self.clock += 1
        self._participants.set_clocks(self.clock)
        for push in pushes:
            result = StepResult("committed", self.clock, self._skips(push))
            self._operations.record(push.operation, self._answers.encode(result))
        self.condition.notify_all()

    def _commit(self, pushes: Sequence[Push]) -> None:
        """Updates by the sum of pushes, all parameters in one step, or none when it raises."""
        counted = [push for push in pushes if not self._skips(push)]
        scale = pushes[0].options.batch_size
        rates = self._rates(pushes[0].options)
        contributions: dict[str, list[Contribution]] = {}
        for push in counted:
            factor = scale / push.options.batch_size
            for name, gradient in push.gradients.items():
                contributions.setdefault(name, []).append(Contribution(gradient, factor))
        names = [name for name in self.spec.parameters if name in contributions]
        with self._registry.hold(names) as parameters:
            for parameter in parameters:
                check_trainable(parameter)
                for push in counted:
                    check_fits(parameter, push)
            sources = [
                {next(iter(each.copies)): prepare_sum(each, contributions[each.name])}
                for each in parameters
            ]
            for action in self._prepare(parameters, sources, rates):
                action()
        self._count(pushes)

    def _prepare(
        self,
        parameters: Sequence[StoredParameter],
        sources: Sequence[Mapping[Context, GradientSource]],
        rates: Rates,
    ) -> list[Action]:
        actions = []
        num_update = self.updates.num_update
        for parameter, gradients in zip(parameters, sources, strict=True):
            num_update = max(num_update, self.updates.next_count(parameter))
            actions.append(self.updates.prepare(parameter, gradients, rates, num_update))
        return actions

    def prepare_updates(
        self,
        parameters: Sequence[StoredParameter],
        sources: Sequence[Mapping[Context, GradientSource]],
        options: StepOptions,
    ) -> list[Action]:
        """Makes ready to update locked parameters, each by its sources. Raises MemoryLimitError."""
        return self._prepare(parameters, sources, self._rates(options))

    def count_step(self, *, non_finite: bool, skipped: bool) -> None:
        """Counts a step that did not come as a push."""
        self._tally.num_steps += 1
        self._tally.num_non_finite += non_finite
        self._tally.num_skipped += skipped
        self.clock = self._tally.num_steps

    def _check_finite(self, push: Push) -> None:
        if push.non_finite and self.spec.non_finite == "error":
            self._tally.num_non_finite += 1
            raise non_finite_error(push.non_finite)

    def count_refused(self) -> None:
        """Counts a step from the gradient buffers that was refused for NaN or infinity."""
        self._tally.num_non_finite += 1

    def _skips(self, push: Push) -> bool:
        return bool(push.non_finite) and self.spec.non_finite == "skip"

    def _count(self, pushes: Sequence[Push]) -> None:
        self._tally.num_steps += 1
        self._tally.num_non_finite += sum(bool(push.non_finite) for push in pushes)
        self._tally.num_skipped += sum(self._skips(push) for push in pushes)
        for push in pushes:
            self._workers.count_push(push.identity, len(push.gradients))

    # Rates

    def _rate(self, num_update: int) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        return self.spec.optimizer.rate(num_update)

    def _rates(self, options: StepOptions) -> Rates:
        rescale = self.spec.optimizer.rescale_grad / options.batch_size
        own = options.learning_rate
        return Rates(self._rate if own is None else lambda _num_update: own, rescale)

    # Checks

    def check_there(self) -> None:
        """Raises TrainerNotFoundError where it has been deleted."""
        if self.deleted:
            raise TrainerNotFoundError(f"trainer {self.spec.name!r} has been deleted")

    def _check_turn(self, push: Push) -> Participant:
        self.check_there()
        return self._participants.check_turn(push.identity, push.options.clock)

    def _check_complete(self, push: Push) -> None:
        if push.options.ignore_stale_grad:
            return
        with self._registry.hold(self.spec.parameters) as parameters:
            for parameter in parameters:
                missing = parameter.name not in push.gradients
                if missing and parameter.has_gradient and not self._skips(push):
                    raise StaleGradientError(
                        f"trainer {self.spec.name!r}: the push has no gradient of Parameter "
                        f"'{parameter.name}'; say ignore_stale_grad=True to pass it over",
                        parameter=parameter.name,
                    )

    def _check_rate(self, push: Push) -> None:
        """In one round there is one learning rate."""
        for member, other in self._staged.values():
            if (
                other.identity != push.identity
                and other.options.learning_rate != push.options.learning_rate
            ):
                raise InvalidArgumentError(
                    f"trainer {self.spec.name!r}: the learning rate of this push is "
                    f"{push.options.learning_rate}, but that of worker {member.worker} in the same "
                    f"round is {other.options.learning_rate}"
                )
