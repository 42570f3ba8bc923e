"""The RPCs of paramd.v1.TrainingService. Their contract stands in the proto file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import grpc

from paramd.errors import (
    InvalidArgumentError,
    InvalidStreamError,
    RolledBackError,
    StatesMismatchError,
)
from paramd.trainer_spec import StepOptions, StepResult
from paramd.v1 import trainer_pb2
from paramd.v1 import training_service_pb2 as pb
from paramd.wire.envelope import Payload, whole
from paramd.wire.parsing import parse_message
from paramd.wire.tensors import byte_view, data_messages, head_to_wire
from paramd.wire.training import (
    manifest_from_wire,
    manifest_pages,
    staged_part_from_wire,
    staged_part_to_wire,
    step_result_from_wire,
    step_result_to_wire,
    trainer_info_to_wire,
    trainer_spec_from_wire,
)
from paramd_server.core.operations import Operation, OperationWindow
from paramd_server.core.reading import open_values
from paramd_server.core.registry import Registry
from paramd_server.core.training.buffers import BufferSteps
from paramd_server.core.training.followed import FollowedTrainer
from paramd_server.core.training.gradients import StepStage
from paramd_server.core.training.members import Members
from paramd_server.core.training.pushes import Answers, Push
from paramd_server.core.training.records import Commits
from paramd_server.core.training.states import StatesStage, open_states
from paramd_server.core.training.trainer import PartLostError, StoredTrainer
from paramd_server.core.training.trainers import Trainers
from paramd_server.rpc.commit_reading import CommitReading
from paramd_server.rpc.methods import FLUSH
from paramd_server.rpc.readings import (
    check_count,
    current_context,
    reading_messages,
    selectors_from_wire,
)
from paramd_server.rpc.requests import (
    check_identity,
    first_message,
    operation_from_wire,
    receive_tensors,
)
from paramd_server.rpc.waiting import WaitingSlots

__all__ = ["STEP_ANSWERS", "TrainingServicer"]

# A list of trainers goes on in another page after that many bytes.
_PAGE_BYTES: Final = 1 << 20
# Of one parameter: no optimizer has more.
_MAX_STATES: Final = 4


def _encode(result: StepResult) -> bytes:
    return step_result_to_wire(result).SerializeToString()


def _decode(answer: bytes) -> StepResult:
    return step_result_from_wire(pb.StepResult.FromString(answer))


# How the results of steps stand in the window of operations.
STEP_ANSWERS: Final = Answers(_encode, _decode)


class TrainingServicer:
    """Answers the calls of one server.

    Args:
        registry: the parameters.
        trainers: the trainers.
        members: the workers of the cluster.
        commits: where the steps of several shards go.
        operations: what makes repeated calls safe.
        waiting: how many calls may wait at a time on the threads that serve values.
        polls: how many may wait on the threads of calls that only wait.
    """

    def __init__(
        self,
        registry: Registry,
        trainers: Trainers,
        members: Members,
        commits: Commits,
        operations: OperationWindow,
        *,
        waiting: WaitingSlots,
        polls: WaitingSlots,
    ) -> None:
        self._registry = registry
        self._trainers = trainers
        self._members = members
        self._commits = commits
        self._operations = operations
        self._buffers = BufferSteps(registry)
        self._waiting = waiting
        self._polls = polls

    def DeclareTrainer(
        self, request: pb.DeclareTrainerRequest, _context: grpc.ServicerContext
    ) -> pb.DeclareTrainerResponse:
        """Creates a trainer, or attaches to one."""
        info = self._trainers.declare(
            trainer_spec_from_wire(request.spec), request.elsewhere, request.shards
        )
        return pb.DeclareTrainerResponse(trainer=trainer_info_to_wire(info))

    def ListTrainers(
        self, request: pb.ListTrainersRequest, _context: grpc.ServicerContext
    ) -> pb.ListTrainersResponse:
        """Describes trainers."""
        names = list(request.names)
        check_count(len(names))
        if len(set(names)) < len(names):
            raise InvalidArgumentError("a trainer is named twice in one question")
        if names:
            trainers = [self._trainers.find(name) for name in names]
        else:
            trainers = self._trainers.after(request.page_token)
        page: list[trainer_pb2.TrainerInfo] = []
        size = 0
        for trainer in trainers:
            page.append(trainer_info_to_wire(trainer.info()))
            size += page[-1].ByteSize()
            if not names and size > _PAGE_BYTES and trainer is not trainers[-1]:
                return pb.ListTrainersResponse(trainers=page, next_page_token=trainer.spec.name)
        return pb.ListTrainersResponse(trainers=page)

    def DeleteTrainer(
        self, request: pb.DeleteTrainerRequest, _context: grpc.ServicerContext
    ) -> bytes:
        """Removes a trainer."""

        def carry_out() -> bytes:
            self._trainers.delete(request.trainer)
            return pb.DeleteTrainerResponse().SerializeToString()

        return self._operations.run(operation_from_wire(request.operation), carry_out)

    def JoinTrainer(
        self, request: pb.JoinTrainerRequest, _context: grpc.ServicerContext
    ) -> pb.JoinTrainerResponse:
        """Makes the caller one of a trainer's workers."""
        check_identity(request.identity)
        trainer = self._trainers.lead(request.trainer)
        member, clock = trainer.join(request.identity)
        num_workers = len(trainer.info().workers)
        return pb.JoinTrainerResponse(clock=clock, rank=member.rank, num_workers=num_workers)

    def LeaveTrainer(
        self, request: pb.LeaveTrainerRequest, _context: grpc.ServicerContext
    ) -> pb.LeaveTrainerResponse:
        """Takes the caller out of a trainer."""
        self._trainers.lead(request.trainer).leave(request.identity)
        return pb.LeaveTrainerResponse()

    def SetLearningRate(
        self, request: pb.SetLearningRateRequest, _context: grpc.ServicerContext
    ) -> bytes:
        """Changes the learning rate."""
        rate = _check_rate(request.learning_rate)

        def carry_out() -> bytes:
            self._trainers.lead(request.trainer).set_learning_rate(rate)
            return pb.SetLearningRateResponse().SerializeToString()

        return self._operations.run(operation_from_wire(request.operation), carry_out)

    def Step(
        self, messages: Iterator[Payload], _context: grpc.ServicerContext
    ) -> Iterator[Payload]:
        """Takes a worker's gradients, and gives values back."""
        opened: pb.StepOpen = first_message(messages, pb.StepRequest, "open")
        selectors = selectors_from_wire(opened.pull)
        operation = operation_from_wire(opened.operation)
        trainer = self._trainers.find(opened.trainer)
        current = current_context(opened)
        with CommitReading(self._registry, trainer.spec, selectors, current) as reading:
            # A push that waits in a round is not taken a second time: it would need memory twice.
            if not trainer.knows(operation):
                with open_values(self._registry, selectors, current):
                    # What cannot be pulled is told before anything is applied.
                    pass
                result = self._take(trainer, operation, opened, messages, reading)
            else:
                result = trainer.wait(operation, 0.0)
            if result.staged is not None:
                if isinstance(trainer, FollowedTrainer):
                    trainer.expect(operation, reading.on_commit)
                yield pb.StepResponse(result=step_result_to_wire(result)).SerializeToString()
                # The coordinator is asked to commit when its client knows that.
                yield FLUSH
            if result.state in ("staged", "ahead"):
                with self._waiting.take(opened.wait_ms) as wait_s:
                    if wait_s > 0:
                        result = trainer.wait(operation, wait_s)
            if result.staged is None:
                yield pb.StepResponse(result=step_result_to_wire(result)).SerializeToString()
            if result.state == "committed" and selectors:
                with reading.open() as readings:
                    yield from reading_messages(readings, pb.StepResponse)

    def _take(
        self,
        trainer: StoredTrainer | FollowedTrainer,
        operation: Operation,
        opened: pb.StepOpen,
        messages: Iterator[Payload],
        reading: CommitReading,
    ) -> StepResult:
        """Receives a push and submits it."""
        operation.check()
        options = StepOptions(
            trainer=opened.trainer,
            batch_size=_check_batch_size(opened.batch_size),
            clock=opened.clock,
            learning_rate=_rate_of(opened),
            ignore_stale_grad=opened.ignore_stale_grad,
        )
        if isinstance(trainer, StoredTrainer) and trainer.spec.distributed:
            # Before anything is received: a worker that is out keeps no memory.
            self._members.check(operation.identity)
        stage = StepStage(self._registry, trainer.spec)
        last = receive_tensors(messages, pb.StepRequest, stage.place, ends=("end", "commit"))
        parts = tuple(staged_part_from_wire(each) for each in last.commit.parts)
        gradients, non_finite = stage.finish()
        del stage
        self._check_generation(opened.trainer, last.commit.generation)
        if non_finite and trainer.spec.non_finite == "skip":
            gradients = {}
        push = Push(operation, options, gradients, non_finite, parts, reading.on_commit)
        return trainer.submit(push)

    def AwaitStep(
        self, request: pb.AwaitStepRequest, _context: grpc.ServicerContext
    ) -> pb.AwaitStepResponse:
        """Tells how a push stands."""
        operation = operation_from_wire(request.operation)
        self._members.renew(operation.identity)
        trainer = self._trainers.find(request.trainer)
        with self._polls.take(request.wait_ms) as wait_s:
            result = trainer.wait(operation, wait_s)
        return pb.AwaitStepResponse(result=step_result_to_wire(result))

    def HoldSteps(
        self, request: pb.HoldStepsRequest, _context: grpc.ServicerContext
    ) -> pb.HoldStepsResponse:
        """Has the coordinator commit nothing for a moment."""
        if request.release:
            self._commits.release_steps()
            return pb.HoldStepsResponse()
        return pb.HoldStepsResponse(held_ms=int(self._commits.hold_steps() * 1000))

    def Update(self, request: pb.UpdateRequest, _context: grpc.ServicerContext) -> bytes:
        """Steps by what the gradient buffers hold."""
        options = StepOptions(
            trainer=request.trainer,
            batch_size=_check_batch_size(request.batch_size),
            learning_rate=_rate_of(request),
            ignore_stale_grad=request.ignore_stale_grad,
            zero_grad=request.zero_grad,
            reduced=request.reduced,
        )

        operation = operation_from_wire(request.operation)
        trainer = self._trainers.find(request.trainer)
        if isinstance(trainer, FollowedTrainer):
            return self._stage_update(trainer, options, operation).SerializeToString()
        self._check_generation(request.trainer, request.generation)

        def carry_out() -> bytes:
            parts = [staged_part_from_wire(each) for each in request.parts]
            skipped, position = self._buffers.update(trainer, options, operation, parts)
            return pb.UpdateResponse(skipped=skipped, position=position).SerializeToString()

        try:
            return self._operations.run(operation, carry_out)
        except PartLostError:
            return pb.UpdateResponse(stage_again=True).SerializeToString()

    def _check_generation(self, trainer: str, generation: int) -> None:
        """Raises RolledBackError where a client knows the cluster as it was before it went back."""
        if generation and generation != self._commits.generation:
            raise RolledBackError(
                f"trainer {trainer!r}: the cluster went back to a snapshot since the last step of "
                "this session: the steps after the snapshot are undone, and this one was not made; "
                "the next one goes on from there"
            )

    def _stage_update(
        self, trainer: FollowedTrainer, options: StepOptions, operation: Operation
    ) -> pb.UpdateResponse:
        """What the coordinator has to know of this shard; or what it has decided already."""
        answered = self._operations.answered(operation)
        if answered is not None:
            result = _decode(answered)
            return pb.UpdateResponse(skipped=result.skipped, position=result.position)
        part = self._buffers.stage(trainer, options)
        return pb.UpdateResponse(staged=staged_part_to_wire(part))

    def AllreduceGrads(
        self, request: pb.AllreduceGradsRequest, _context: grpc.ServicerContext
    ) -> bytes:
        """Sums the gradient buffers over the contexts."""

        def carry_out() -> bytes:
            self._buffers.allreduce(self._trainers.find(request.trainer))
            return pb.AllreduceGradsResponse().SerializeToString()

        return self._operations.run(operation_from_wire(request.operation), carry_out)

    def SaveStates(
        self, request: pb.SaveStatesRequest, _context: grpc.ServicerContext
    ) -> Iterator[Payload]:
        """Reads optimizer states."""
        trainer = self._trainers.find(request.trainer)
        with open_states(self._registry, trainer) as saved:
            for page in manifest_pages(saved.manifest):
                yield pb.SaveStatesResponse(manifest=page).SerializeToString()
            for (head, _), pieces in zip(saved.manifest.arrays, saved.arrays, strict=True):
                yield pb.SaveStatesResponse(header=head_to_wire(head)).SerializeToString()
                for piece in pieces:
                    yield from data_messages(byte_view(piece))

    def LoadStates(self, messages: Iterator[Payload], _context: grpc.ServicerContext) -> bytes:
        """Replaces optimizer states."""
        opened: pb.LoadStatesOpen = first_message(messages, pb.LoadStatesRequest, "open")
        operation = operation_from_wire(opened.operation)
        if (answer := self._operations.answered(operation)) is not None:
            return answer
        trainer = self._trainers.find(opened.trainer)
        manifest = manifest_from_wire(_manifest_pages(messages, len(trainer.spec.parameters)))
        stage = StatesStage(self._registry, trainer, manifest)
        if opened.only_check:
            stage.check()
            return pb.LoadStatesResponse().SerializeToString()
        receive_tensors(messages, pb.LoadStatesRequest, stage.place)

        def carry_out() -> bytes:
            stage.commit()
            return pb.LoadStatesResponse().SerializeToString()

        return self._operations.run(operation, carry_out)


def _manifest_pages(messages: Iterator[Payload], num_parameters: int) -> list[pb.StatesManifest]:
    pages: list[pb.StatesManifest] = []
    num_names = num_arrays = 0
    for message in messages:
        parsed = parse_message(pb.LoadStatesRequest, whole(message))
        if parsed.WhichOneof("part") != "manifest":
            break
        page = parsed.manifest
        num_names += len(page.names)
        num_arrays += len(page.arrays)
        # Nobody counts the memory of pages, so they must not go on without end.
        empty = not page.names and not page.arrays and not page.last
        if empty or num_names > num_parameters or num_arrays > _MAX_STATES * num_parameters:
            raise StatesMismatchError(
                f"the trainer has {num_parameters} parameters with {_MAX_STATES} states each at "
                f"most, but the manifest has {num_names} names and {num_arrays} arrays"
            )
        pages.append(page)
        if page.last:
            return pages
    raise InvalidStreamError("optimizer states begin with the pages of their manifest")


def _check_batch_size(batch_size: float) -> float:
    if not 0.0 < batch_size < math.inf:
        raise InvalidArgumentError(f"batch_size is a number above 0, but got {batch_size:g}")
    return batch_size


def _check_rate(rate: float) -> float:
    if not (math.isfinite(rate) and rate >= 0.0):
        raise InvalidArgumentError(
            f"a learning rate is a finite number of at least 0, but got {rate:g}"
        )
    return rate


def _rate_of(message: Any) -> float | None:
    return _check_rate(message.learning_rate) if message.HasField("learning_rate") else None
