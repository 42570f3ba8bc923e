"""One step over the shards of a cluster: staged on all of them, committed by the coordinator."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from paramd.context import Context
from paramd.errors import ParamdError, RolledBackError, StalledError
from paramd.spec import Selector
from paramd.trainer_spec import StagedPart, StepOptions, StepResult
from paramd.transport.attempts import CALL_GROUP, CallCancelledError
from paramd.transport.cluster.shards import Shards
from paramd.transport.operations import Operation
from paramd.transport.protocols import Received
from paramd.transport.receiving import Out, Place
from paramd.transport.records import TensorWrite
from paramd.transport.sending import unended_messages, write_messages
from paramd.transport.training import StepReceiver, step_opening
from paramd.v1 import training_service_pb2 as pb
from paramd.wire.envelope import Payload
from paramd.wire.training import staged_part_to_wire

__all__ = ["ClusterStep", "ShardPush"]

# How long the coordinator's stream waits for the other shards; then the stream is made anew.
_STAGE_SECONDS: Final = 3.0
# Before a step is offered again.
_AGAIN_SECONDS: Final = 0.05
# How long a shard may take to carry out what has been committed.
_FOLLOW_SECONDS: Final = 30.0
# How long a bounded step that brings values waits in its stream for slower workers: what it reads
# is kept since the commit, so that it is of one step on all shards.
_AHEAD_SECONDS: Final = 20.0


@dataclass(frozen=True)
class ShardPush:
    """What one shard gets of a step.

    Attributes:
        writes: the gradients.
        pull: the values to fetch.
        out: for each value an array to receive into, or None for a new one.
    """

    writes: Sequence[TensorWrite] = ()
    pull: Sequence[Selector] = ()
    out: Sequence[Out | Place] | None = None


class _NotStagedError(ParamdError):
    """The other shards have not staged their parts in time; nothing was committed."""


@dataclass
class _Meeting:
    """Where the calls to the shards meet: the parts that are staged, and what was decided."""

    shards: frozenset[int]
    changed: threading.Condition = field(default_factory=threading.Condition)
    # All that follow are guarded by `changed`.
    parts: dict[int, StagedPart] = field(default_factory=dict)
    failed: bool = False
    decided: StepResult | None = None
    # Those that the coordinator was asked to commit last.
    offered: dict[int, StagedPart] = field(default_factory=dict)

    def stage(self, shard: int, part: StagedPart) -> None:
        """Notes that a shard has its part."""
        with self.changed:
            self.parts[shard] = part
            self.changed.notify_all()

    def fail(self) -> None:
        """Ends the step: one of the calls has failed."""
        with self.changed:
            self.failed = True
            self.changed.notify_all()

    def decide(self, result: StepResult) -> None:
        """Notes what the coordinator said."""
        with self.changed:
            self.decided = result
            self.changed.notify_all()

    def await_parts(self, wait_s: float | None) -> list[StagedPart] | None:
        """The parts of all shards; None where they are not there in time.

        Raises:
            CallCancelledError: where the step has failed elsewhere.
        """
        with self.changed:
            self.changed.wait_for(
                lambda: self.failed or self.parts.keys() >= self.shards, timeout=wait_s
            )
            if self.failed:
                raise CallCancelledError
            if not self.parts.keys() >= self.shards:
                return None
            self.offered = dict(self.parts)
            return [self.parts[shard] for shard in sorted(self.parts)]

    def lost(self, shard: int) -> bool:
        """Whether a shard has been started anew since its part was offered."""
        with self.changed:
            now, then = self.parts.get(shard), self.offered.get(shard)
            return now is not None and then is not None and now.epoch != then.epoch


class ClusterStep:
    """One push, with one operation on all shards.

    Args:
        shards: of the cluster.
        options: how the step is made.
        pushes: what each shard gets: the coordinator always, and every other one that holds
            parameters of the trainer.
        current_context: for values that name no context.
        staleness: of the trainer: how many steps workers may be ahead of each other; None for any.
        generation: of the cluster, as this session knows it, where the trainer has no clocks; or 0.
    """

    def __init__(
        self,
        shards: Shards,
        options: StepOptions,
        pushes: Mapping[int, ShardPush],
        current_context: Context,
        *,
        staleness: int | None,
        generation: int = 0,
    ) -> None:
        self._shards = shards
        self._options = options
        self._pushes = pushes
        self._context = current_context
        self._generation = generation
        self._bounded = bool(staleness)
        self._whole = staleness is not None

    def run(self) -> tuple[StepResult, dict[int, Received] | None]:
        """Makes the step, and waits until the worker may go on.

        Returns:
            The result, whose state is 'committed', and each shard's values; None where one of them
            did not send them with its result.
        """
        with self._shards.operations.begin() as operation:
            while True:
                result, values = self._attempt(operation)
                if result.state == "committed":
                    whole = all(
                        len(values[shard]) == len(push.pull) for shard, push in self._pushes.items()
                    )
                    return result, values if whole else None
                # A shard has lost its part since it was staged, or one stops: all is offered again.
                self._shards.coordinator.attempts.sleep(_AGAIN_SECONDS)

    def _attempt(self, operation: Operation) -> tuple[StepResult, dict[int, Received]]:
        others = frozenset(shard for shard in self._pushes if shard)
        meeting = _Meeting(others)

        def ask(shard: int) -> tuple[StepResult, Received]:
            try:
                if shard:
                    return self._stage(shard, operation, meeting)
                return self._commit(operation, meeting)
            except BaseException:
                meeting.fail()
                group = CALL_GROUP.get()
                if group is not None:
                    # The others would find out after a poll.
                    group.cancel()
                raise

        answers = self._shards.run(
            {shard: (lambda shard=shard: ask(shard)) for shard in self._pushes}  # type: ignore[misc]
        )
        result = answers[0][0]
        return result, {shard: received for shard, (_, received) in answers.items()}

    def _commit(self, operation: Operation, meeting: _Meeting) -> tuple[StepResult, Received]:
        """The coordinator's call."""
        push = self._pushes[0]
        connection, training = self._shards.coordinator, self._shards.calls[0].training
        names = [selector.name for selector in push.pull]

        def messages() -> Iterator[Payload]:
            opened = self._opening(push, operation)
            yield pb.StepRequest(open=opened).SerializeToString()
            yield from unended_messages(push.writes, pb.StepRequest)
            parts = meeting.await_parts(_STAGE_SECONDS)
            if parts is None:
                raise _NotStagedError
            commit = pb.StepCommit(
                parts=[staged_part_to_wire(part) for part in parts], generation=self._generation
            )
            yield pb.StepRequest(commit=commit).SerializeToString()

        while True:
            try:
                result, values = connection.exchange(
                    "Step", messages, lambda _stack: StepReceiver(names, push.out)
                )
                break
            except _NotStagedError:
                meeting.await_parts(None)
        while result.state in ("staged", "ahead"):
            result, values = training.await_step(self._options.trainer, operation), []
        meeting.decide(result)
        return result, values

    def _stage(
        self, shard: int, operation: Operation, meeting: _Meeting
    ) -> tuple[StepResult, Received]:
        """The call to another shard."""
        push = self._pushes[shard]
        connection, training = self._shards.connections[shard], self._shards.calls[shard].training
        names = [selector.name for selector in push.pull]

        def messages() -> Iterator[Payload]:
            yield pb.StepRequest(open=self._opening(push, operation)).SerializeToString()
            yield from write_messages(push.writes, pb.StepRequest)

        decided_at: float | None = None
        result, values = StepResult("unknown"), []  # type: StepResult, Received
        while True:
            decided = meeting.decided
            if meeting.failed or (decided is not None and decided.state != "committed"):
                return result, []
            if result.state == "unknown" and decided is None:
                result, values = connection.exchange(
                    "Step",
                    messages,
                    lambda _stack: StepReceiver(
                        names, push.out, lambda part: meeting.stage(shard, part)
                    ),
                )
            else:
                result, values = training.await_step(self._options.trainer, operation), []
            if result.state == "committed" and shard not in meeting.parts and decided is None:
                raise RolledBackError(
                    f"trainer {self._options.trainer!r}: shard {shard} at "
                    f"{self._shards.address(shard)} has carried the step out, and the coordinator "
                    "has gone back before it: trainer.join() tells the clock to go on from"
                )
            if result.state == "committed":
                break
            if decided is not None and (result.state == "unknown" or meeting.lost(shard)):
                # Committed, but the shard has died since, and lost its part of the step.
                self._check_gap(shard)
                break
            if decided is not None:
                decided_at = decided_at or time.monotonic()
                if time.monotonic() - decided_at > _FOLLOW_SECONDS:
                    raise StalledError(
                        f"trainer {self._options.trainer!r}: the step is committed, but shard "
                        f"{shard} at {self._shards.address(shard)} has not carried it out within "
                        f"{_FOLLOW_SECONDS:g} s"
                    )
        return result, values

    def _check_gap(self, shard: int) -> None:
        """Raises RolledBackError where a step cannot lack the part of one shard."""
        if self._whole:
            raise RolledBackError(
                f"trainer {self._options.trainer!r}: shard {shard} at "
                f"{self._shards.address(shard)} has died and lost its part of the step, so the "
                "cluster goes back to a snapshot: trainer.join() tells the clock to go on from"
            )

    def _opening(self, push: ShardPush, operation: Operation) -> pb.StepOpen:
        if self._bounded and push.pull:
            return step_opening(
                self._options, operation, push.pull, self._context, wait=_AHEAD_SECONDS
            )
        return step_opening(self._options, operation, push.pull, self._context)
