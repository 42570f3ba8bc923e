"""One trainer: its workers and their clocks, the rounds, and the steps."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from paramd.errors import InvalidArgumentError, LeaseEndedError
from paramd.trainer_spec import (
    StagedPart,
    StepOptions,
    StepResult,
    TrainerInfo,
    TrainerSpec,
    TrainerWorker,
)
from paramd_server.core.operations import Operation, OperationWindow
from paramd_server.core.registry import Registry
from paramd_server.core.shared_copies import changing
from paramd_server.core.training.gradients import check_trainable, non_finite_error
from paramd_server.core.training.members import Member, Members
from paramd_server.core.training.participants import Participant, Participants
from paramd_server.core.training.pushes import Answers, MisfitError, Push, check_fits
from paramd_server.core.training.records import (
    Alone,
    Commits,
    CommittedPush,
    StepRecord,
    UpdateRecord,
)
from paramd_server.core.training.state import Tally, TrainerState, check_complete
from paramd_server.core.training.updates import Plan
from paramd_server.core.workers import Workers

__all__ = ["PartLostError", "StoredTrainer", "World"]

# A waiter looks again at least that often.
_LOOK_S: Final = 0.5
_MAX_REFUSED: Final = 4096
# Of snapshots that were written before there were shards.
_NOWHERE_ELSE: Final[Mapping[str, Any]] = {"elsewhere": (), "shards": ()}


class PartLostError(Exception):
    """A shard has lost its part of a step since it was staged there: it has to be staged again."""


@dataclass(frozen=True)
class World:
    """What the trainers of a server work with.

    Attributes:
        registry: the parameters.
        members: the workers of the cluster.
        operations: where the answers of committed pushes are kept.
        answers: their form.
        workers: counts committed pushes.
        commits: where other shards learn of them.
        shard: the number of this server among the shards; 0 is the coordinator.
    """

    registry: Registry
    members: Members
    operations: OperationWindow
    answers: Answers
    workers: Workers
    commits: Commits = field(default_factory=Alone)
    shard: int = 0


class StoredTrainer(TrainerState):
    """A trainer of a server alone, or of the coordinator of several shards.

    What waits does so on its condition, for a moment at a time.

    Args:
        spec: as declared; its parameters are the registry's, apart from those elsewhere.
        world: what it works with.
    """

    def __init__(self, spec: TrainerSpec, world: World) -> None:
        super().__init__(spec)
        # All that follow are guarded by `condition`.
        self._participants = Participants(spec)
        # By the worker's name: the second push of a round takes the place of the first.
        self._staged: dict[str, tuple[Member, Push]] = {}
        # Pushes that a shard has let go because nobody asked for their commit, the oldest first.
        self._refused: OrderedDict[Operation, None] = OrderedDict()
        self._world = world

    def info(self) -> TrainerInfo:
        """The trainer, described."""
        with self.condition:
            return self.describe(
                tuple(
                    TrainerWorker(
                        each.member.worker,
                        each.member.rank,
                        each.clock,
                        each.member.worker in self._staged,
                    )
                    for each in self._participants.all()
                )
            )

    def delete(self) -> None:
        """Marks it as gone, and wakes those who wait in it."""
        with self.condition:
            self._staged.clear()
            super().delete()

    def progress(self) -> dict[str, Any]:
        """What a snapshot keeps beside the states: plain JSON values."""
        with self.condition:
            return {
                "learning_rate": self.learning_rate,
                "clock": self.clock,
                "tally": asdict(self.tally),
                "counts_elsewhere": self.updates.counts_elsewhere,
                "placement": self.placement(),
                "participants": self._participants.document(),
            }

    def restore_progress(self, document: Mapping[str, Any]) -> None:
        """Takes up what `progress` gave. The workers have been restored before."""
        rate = document["learning_rate"]
        members = self._world.members.all()
        with self.condition:
            self.learning_rate = None if rate is None else float(rate)
            self.clock = int(document["clock"])
            self.tally = Tally(**document["tally"])
            counts = document.get("counts_elsewhere", {})
            self.updates.set_counts_elsewhere({name: int(counts[name]) for name in counts})
            self.place(**document.get("placement", _NOWHERE_ELSE))
            self.mark_restored(self._world.registry)
            self._participants.restore(document["participants"], members)

    # Workers

    def join(self, identity: bytes) -> tuple[Member, int]:
        """Takes a worker in.

        Returns:
            The worker, and its clock: the current one where it is new or has come back.

        Raises:
            WorkerNotJoinedError, LeaseEndedError: where it is no worker of the cluster.
        """
        member = self._world.members.check(identity)
        if not self.spec.distributed:
            raise InvalidArgumentError(f"trainer {self.spec.name!r} is local: nobody joins it")
        with self.condition:
            self.check_there()
            if not self._world.members.holds(identity):
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
            'committed', 'staged' or 'ahead'; 'unknown' where a shard has lost its part of it.

        Raises:
            What stands at Step in training_service.proto; nothing is changed then.
        """
        if not self.spec.synchronous:
            # The answer of a push that was applied before comes whatever has happened since.
            try:
                answer = self._world.operations.run(push.operation, lambda: self._apply_alone(push))
            except PartLostError:
                return StepResult("unknown", self.clock)
            return self._standing(push.identity, self._world.answers.decode(answer))
        with self.condition:
            answered = self._world.operations.answered(push.operation)
            if answered is None:
                participant = self._check_turn(push)
                self._check_finite(push)
                self._check_complete(push)
                self._check_rate(push)
                if not self._holds_parts(push):
                    return StepResult("unknown", self.clock)
                self._staged[participant.member.worker] = (participant.member, push)
                self._try_round_for(push.operation)
                answered = self._world.operations.answered(push.operation)
            if answered is None:
                state = "staged" if self._stages(push.operation) else "unknown"
                return StepResult(state, self.clock)
            return self._world.answers.decode(answered)

    def refuse(self, operation: Operation) -> bool:
        """Lets a push go that a shard has kept for long, unless it waits here or is committed.

        Returns:
            Whether it is let go: it will not be committed any more, unless it is staged again.
        """
        with self.condition:
            if self.knows(operation):
                return False
            self._refused[operation] = None
            while len(self._refused) > _MAX_REFUSED:
                self._refused.popitem(last=False)
            return True

    def check_parts(self, operation: Operation, parts: Sequence[StagedPart]) -> None:
        """Checks that the other shards have what is to be committed with an operation.

        Raises:
            InvalidArgumentError: where it was staged on other shards than the trainer is on.
            PartLostError: where one of them has lost it since.
        """
        staged = {part.shard for part in parts}
        if staged != self.shards or len(staged) < len(parts):
            raise InvalidArgumentError(
                f"trainer {self.spec.name!r}: its parameters are also on the shards "
                f"{sorted(self.shards)}, but the step was staged on {sorted(staged)}"
            )
        if operation in self._refused:
            # It was sent to the shards anew, if the client does what it is told.
            del self._refused[operation]
            raise PartLostError
        if not self._world.commits.hold(tuple(parts)):
            raise PartLostError

    def tell_update(
        self, operation: Operation, options: StepOptions, plan: Plan, *, skipped: bool
    ) -> int:
        """Has the other shards carry out a step by the gradient buffers."""
        return self._world.commits.append(
            UpdateRecord(
                trainer=self.spec.name,
                operation=operation,
                num_steps=self.tally.num_steps,
                skipped=skipped,
                batch_size=options.batch_size,
                zero_grad=options.zero_grad,
                reduced=options.reduced,
                rates=plan,
            )
        )

    def _holds_parts(self, push: Push) -> bool:
        try:
            self.check_parts(push.operation, push.parts)
        except PartLostError:
            return False
        return True

    def knows(self, operation: Operation) -> bool:
        """Whether a push has been answered, or waits in a round."""
        with self.condition:
            return self._world.operations.answered(operation) is not None or self._stages(operation)

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
            self._world.members.expire()
            with self.condition:
                result = self._look(operation)
                left = deadline - time.monotonic()
                if result.state not in ("staged", "ahead") or left <= 0:
                    return result
                pause = min(left, self._world.members.next_end() + 0.01, _LOOK_S)
                self.condition.wait(max(pause, 0.0))

    def _look(self, operation: Operation) -> StepResult:
        answered = self._world.operations.answered(operation)
        if answered is not None:
            return self._standing(operation.identity, self._world.answers.decode(answered))
        self.check_there()
        if not self._stages(operation):
            return StepResult("unknown", self.clock)
        if self._participants.find(operation.identity) is None:
            raise LeaseEndedError(
                f"trainer {self.spec.name!r}: the lease of this worker ended while it waited: call "
                "join() to come back with the current clock"
            )
        self._try_round_for(operation)
        answered = self._world.operations.answered(operation)
        if answered is None:
            return StepResult("staged", self.clock)
        return self._world.answers.decode(answered)

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
            self.check_parts(push.operation, push.parts)
            try:
                plan = self._commit([push])
            except MisfitError as err:
                raise err.error from None
            clock = self.clock = self.tally.num_steps
            if participant is not None:
                clock = participant.clock = participant.clock + 1
                self.clock = self._participants.fastest()
            position = self._tell([push], clock, plan)
            self.condition.notify_all()
            result = StepResult("committed", clock, self.skips(push), position=position)
            return self._world.answers.encode(result)

    def _tell(self, pushes: Sequence[Push], clock: int, plan: Plan) -> int:
        """Has the other shards carry a step out, and lets those read who wait for it."""
        position = self._world.commits.append(
            StepRecord(
                trainer=self.spec.name,
                clock=self.clock,
                num_steps=self.tally.num_steps,
                pushes=tuple(
                    CommittedPush(each.operation, clock, self.skips(each), each.options.batch_size)
                    for each in pushes
                ),
                rates=plan,
            )
        )
        for push in pushes:
            if push.on_commit is not None:
                push.on_commit()
        return position

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
        lost = [push for _, push in self._staged.values() if not self._holds_parts(push)]
        if lost:
            # Their workers are told that they are unknown, and send them again.
            for push in lost:
                self._unstage(push.operation)
            self.condition.notify_all()
            return
        staged = sorted(self._staged.values(), key=lambda each: each[0].rank)
        pushes = [push for _, push in staged]
        plan = self._commit(pushes)
        self._staged.clear()
        self.clock += 1
        self._participants.set_clocks(self.clock)
        position = self._tell(pushes, self.clock, plan)
        for push in pushes:
            result = StepResult("committed", self.clock, self.skips(push), position=position)
            self._world.operations.record(push.operation, self._world.answers.encode(result))
        self.condition.notify_all()

    def _commit(self, pushes: Sequence[Push]) -> Plan:
        """Updates by the sum of pushes, all parameters in one step, or none when it raises."""
        counted = [push for push in pushes if not self.skips(push)]
        first = pushes[0].options
        pushed = {name for push in counted for name in push.gradients}
        elsewhere = {name for push in counted for part in push.parts for name in part.names}
        names = {name for name in self.local_parameters if name in pushed}
        with self._world.registry.hold(self._held(names)) as held:
            parameters = [each for each in held if each.name in names]
            for parameter in parameters:
                check_trainable(parameter)
                for push in counted:
                    check_fits(parameter, push)
            plan = self.plan(parameters, elsewhere, first)
            actions = self.prepare_pushes(parameters, counted, first.batch_size, plan)
            with changing(held):
                for action in actions:
                    action()
                self.mark(held, self.tally.num_steps + 1)
        self.updates.count_elsewhere(plan, plan.keys() - names)
        self._count(pushes)
        return plan

    def _held(self, names: Collection[str]) -> list[str]:
        """The parameters that a step locks: all that it marks, or those that it updates."""
        marks = self.shards and self.whole_steps
        return [name for name in self.local_parameters if marks or name in names]

    def count_step(self, *, non_finite: bool, skipped: bool) -> None:
        """Counts a step that did not come as a push."""
        self.tally.num_steps += 1
        self.tally.num_non_finite += non_finite
        self.tally.num_skipped += skipped
        self.clock = self.tally.num_steps

    def _check_finite(self, push: Push) -> None:
        wrong = self.non_finite(push)
        if wrong and self.spec.non_finite == "error":
            self.tally.num_non_finite += 1
            raise non_finite_error(wrong)

    def count_refused(self) -> None:
        """Counts a step from the gradient buffers that was refused for NaN or infinity."""
        self.tally.num_non_finite += 1

    def _count(self, pushes: Sequence[Push]) -> None:
        self.tally.num_steps += 1
        self.tally.num_non_finite += sum(bool(self.non_finite(push)) for push in pushes)
        self.tally.num_skipped += sum(self.skips(push) for push in pushes)
        for push in pushes:
            names = {name for part in push.parts for name in part.names}
            self._world.workers.count_push(push.identity, len(names | push.gradients.keys()))

    # Checks

    def _check_turn(self, push: Push) -> Participant:
        self.check_there()
        return self._participants.check_turn(push.identity, push.options.clock)

    def _check_complete(self, push: Push) -> None:
        if not push.options.ignore_stale_grad and not self.skips(push):
            check_complete(self, self._world.registry, push.gradients)

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
