"""The calls of `paramd.v1.TrainingService`, with plain values in and out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Final

import numpy as np

from paramd.context import Context
from paramd.errors import InvalidStreamError
from paramd.spec import Selector, TensorHead
from paramd.trainer_spec import (
    StagedPart,
    StatesManifest,
    StepOptions,
    StepResult,
    TrainerInfo,
    TrainerSpec,
)
from paramd.transport.connection import Connection
from paramd.transport.conversions import selector_to_wire
from paramd.transport.operations import Operation
from paramd.transport.receiving import Out, Place, TensorsReceiver, payload_of
from paramd.transport.records import TensorValue, TensorWrite
from paramd.transport.sending import write_messages
from paramd.v1 import training_service_pb2 as pb
from paramd.wire.envelope import Payload, whole
from paramd.wire.messages import context_to_wire
from paramd.wire.parsing import parse_message
from paramd.wire.tensors import head_from_wire
from paramd.wire.training import (
    manifest_from_wire,
    manifest_pages,
    staged_part_to_wire,
    step_result_from_wire,
    trainer_info_from_wire,
    trainer_spec_to_wire,
)

__all__ = ["StatesSink", "StepReceiver", "TrainingCalls", "step_opening"]

# How long the server keeps one question waiting.
_POLL_SECONDS: Final = 1.0
# How long a push may wait on a thread that serves values; then it is asked for.
_WAIT_SECONDS: Final = 0.5

Received = list[tuple[TensorHead, TensorValue]]
# Called with the manifest; gives what takes the payload, in order and in pieces.
StatesSink = Callable[[StatesManifest], AbstractContextManager[Callable[[memoryview], None]]]


class TrainingCalls:
    """Calls about trainers. Thread-safe.

    Args:
        connection: sends them.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def declare(
        self, spec: TrainerSpec, elsewhere: Sequence[str] = (), shards: Sequence[int] = ()
    ) -> TrainerInfo:
        """Creates a trainer, or attaches to the one of that name.

        Args:
            spec: of the trainer.
            elsewhere: those of its parameters of which this server holds nothing.
            shards: the other servers, without the coordinator, that hold something of them.
        """
        request = pb.DeclareTrainerRequest(
            spec=trainer_spec_to_wire(spec), elsewhere=elsewhere, shards=shards
        )
        answer = self._connection.unary("DeclareTrainer", request, pb.DeclareTrainerResponse)
        return trainer_info_from_wire(answer.trainer)

    def describe(self, names: Sequence[str] = ()) -> list[TrainerInfo]:
        """Describes trainers; all of them where none is named."""
        infos: list[TrainerInfo] = []
        token = ""
        while True:
            request = pb.ListTrainersRequest(names=names, page_token=token)
            answer = self._connection.unary("ListTrainers", request, pb.ListTrainersResponse)
            infos += [trainer_info_from_wire(each) for each in answer.trainers]
            token = answer.next_page_token
            if not token:
                return infos

    def delete(self, name: str) -> None:
        """Removes a trainer with its optimizer states."""
        self._change(
            "DeleteTrainer", pb.DeleteTrainerRequest(trainer=name), pb.DeleteTrainerResponse
        )

    def join(self, name: str) -> pb.JoinTrainerResponse:
        """Makes this session one of a trainer's workers."""
        request = pb.JoinTrainerRequest(identity=self._connection.operations.identity, trainer=name)
        return self._connection.unary("JoinTrainer", request, pb.JoinTrainerResponse)

    def leave(self, name: str) -> None:
        """Takes this session out of a trainer."""
        request = pb.LeaveTrainerRequest(
            identity=self._connection.operations.identity, trainer=name
        )
        self._connection.unary("LeaveTrainer", request, pb.LeaveTrainerResponse)

    def set_learning_rate(self, name: str, learning_rate: float) -> None:
        """Changes the learning rate."""
        request = pb.SetLearningRateRequest(trainer=name, learning_rate=learning_rate)
        self._change("SetLearningRate", request, pb.SetLearningRateResponse)

    def step(
        self,
        options: StepOptions,
        writes: Sequence[TensorWrite],
        pull: Sequence[Selector],
        current_context: Context,
        *,
        out: Sequence[Out] | None = None,
    ) -> tuple[StepResult, Received]:
        """Pushes gradients, waits until the worker may go on, and fetches values.

        Args:
            options: how the step is made.
            writes: the gradients.
            pull: the values to fetch.
            current_context: for values that name no context.
            out: for each value an array to receive into, or None for a new one.

        Returns:
            The result, whose state is 'committed'; and the values, where the server sent them with
            it: else the caller fetches them, as where they can be read in shared memory.
        """
        local = self._connection.local.values()
        if pull and local is not None and local.finds(pull, current_context):
            # Read in place afterwards, they cross no wire.
            pull = ()
        names = [selector.name for selector in pull]
        with self._connection.operations.begin() as operation:

            def messages() -> Iterator[Payload]:
                opened = step_opening(options, operation, pull, current_context)
                yield pb.StepRequest(open=opened).SerializeToString()
                yield from write_messages(writes, pb.StepRequest)

            while True:
                result, values = self._connection.exchange(
                    "Step", messages, lambda _stack: StepReceiver(names, out)
                )
                while result.state in ("staged", "ahead"):
                    result, values = self.await_step(options.trainer, operation), []
                if result.state == "committed":
                    return result, values
                # The server has been started again since, and has only what was committed.

    def await_step(self, trainer: str, operation: Operation) -> StepResult:
        """How a push stands, after a second at most if it has to wait."""
        asked_at = time.monotonic()
        request = pb.AwaitStepRequest(trainer=trainer, wait_ms=int(_POLL_SECONDS * 1000))
        answer = self._connection.unary(
            "AwaitStep", request, pb.AwaitStepResponse, operation=operation
        )
        result = step_result_from_wire(answer.result)
        if result.state in ("staged", "ahead"):
            # A server with too many waiting callers answers at once.
            pause = 0.05 - (time.monotonic() - asked_at)
            if pause > 0:
                self._connection.attempts.sleep(pause)
        return result

    def hold_steps(self) -> float:
        """Has the coordinator commit nothing for so many seconds; 0 where that cannot be now."""
        request = pb.HoldStepsRequest()
        answer = self._connection.unary("HoldSteps", request, pb.HoldStepsResponse)
        return answer.held_ms / 1000

    def release_steps(self) -> None:
        """Ends what `hold_steps` began."""
        request = pb.HoldStepsRequest(release=True)
        self._connection.unary("HoldSteps", request, pb.HoldStepsResponse)

    def update(self, options: StepOptions) -> bool:
        """Steps by what the gradient buffers hold; gives whether the step was skipped."""
        with self._connection.operations.begin() as operation:
            return self.update_part(options, operation).skipped

    def update_part(
        self,
        options: StepOptions,
        operation: Operation,
        parts: Sequence[StagedPart] = (),
        generation: int = 0,
    ) -> pb.UpdateResponse:
        """Steps by the gradient buffers of one server, or asks a shard what it would step.

        Args:
            options: how the step is made.
            operation: identifies it.
            parts: to the coordinator of several shards: what the others answered.
            generation: of the cluster, as this session knows it; 0 where it does not matter.
        """
        request = pb.UpdateRequest(
            trainer=options.trainer,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            ignore_stale_grad=options.ignore_stale_grad,
            zero_grad=options.zero_grad,
            reduced=options.reduced,
            parts=[staged_part_to_wire(part) for part in parts],
            generation=generation,
        )
        return self._connection.unary("Update", request, pb.UpdateResponse, operation=operation)

    def allreduce_grads(self, name: str) -> None:
        """Sums the gradient buffers over the contexts."""
        request = pb.AllreduceGradsRequest(trainer=name)
        self._change("AllreduceGrads", request, pb.AllreduceGradsResponse)

    def save_states(self, name: str, write: StatesSink) -> None:
        """Reads a trainer's optimizer states.

        Args:
            name: of the trainer.
            write: see StatesSink. A retry calls it again, after the first one was left with an
                exception.
        """
        request = pb.SaveStatesRequest(trainer=name)
        self._connection.download(
            "SaveStates", request, lambda stack: _StatesReceiver(write, stack)
        )

    def load_states(
        self,
        name: str,
        manifest: StatesManifest,
        arrays: Callable[[], Iterable[np.ndarray[Any, Any]]],
        *,
        only_check: bool = False,
    ) -> None:
        """Replaces a trainer's optimizer states.

        Args:
            name: of the trainer.
            manifest: describes them.
            arrays: gives the arrays of the manifest in their order, anew for each attempt.
            only_check: whether to ask only whether they could be replaced.
        """
        with self._connection.operations.begin() as operation:

            def messages() -> Iterator[Payload]:
                opened = pb.LoadStatesOpen(
                    operation=operation.to_wire(), trainer=name, only_check=only_check
                )
                yield pb.LoadStatesRequest(open=opened).SerializeToString()
                for page in manifest_pages(manifest):
                    yield pb.LoadStatesRequest(manifest=page).SerializeToString()
                if only_check:
                    return
                writes = (
                    TensorWrite(head.name, array)
                    for (head, _), array in zip(manifest.arrays, arrays(), strict=True)
                )
                yield from write_messages(writes, pb.LoadStatesRequest)

            self._connection.upload("LoadStates", messages, pb.LoadStatesResponse)

    def _change(self, method: str, request: Any, answer_class: type[Any]) -> Any:
        """Sends a changing request, with its operation."""
        with self._connection.operations.begin() as operation:
            return self._connection.unary(method, request, answer_class, operation=operation)


def step_opening(
    options: StepOptions,
    operation: Operation,
    pull: Sequence[Selector],
    current_context: Context,
    *,
    wait: float = _WAIT_SECONDS,
) -> pb.StepOpen:
    """The message that opens a step.

    Args:
        options: how it is made.
        operation: identifies it.
        pull: the values to fetch.
        current_context: for values that name no context.
        wait: seconds for which the server may let it wait for other workers.
    """
    return pb.StepOpen(
        operation=operation.to_wire(),
        trainer=options.trainer,
        clock=options.clock,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        ignore_stale_grad=options.ignore_stale_grad,
        pull=[selector_to_wire(selector) for selector in pull],
        current_context=context_to_wire(current_context),
        wait_ms=int(wait * 1000),
    )


class StepReceiver:
    """Receives the result of a step, and then values.

    Args:
        names: of the values.
        out: for each an array to receive into, or None for a new one.
        on_staged: told what a shard that is not the coordinator has of the push, before its result.
    """

    def __init__(
        self,
        names: Sequence[str],
        out: Sequence[Out | Place] | None,
        on_staged: Callable[[StagedPart], None] | None = None,
    ) -> None:
        self._result: StepResult | None = None
        self._tensors = TensorsReceiver(pb.StepResponse, names, out)
        self._on_staged = on_staged

    def feed(self, message: Payload) -> None:
        """Takes the next message."""
        if self._result is not None and self._result.staged is None:
            self._tensors.feed(message)
            return
        parsed = parse_message(pb.StepResponse, whole(message))
        if parsed.WhichOneof("part") != "result":
            raise InvalidStreamError("the answer to a step begins with its result")
        self._result = step_result_from_wire(parsed.result)
        if self._result.staged is not None and self._on_staged is not None:
            self._on_staged(self._result.staged)

    def finish(self) -> tuple[StepResult, Received]:
        """The result, and the values where they came."""
        if self._result is None:
            raise InvalidStreamError("the answer to a step has no result")
        if self._result.state != "committed":
            return self._result, []
        return self._result, self._tensors.finish()


class _StatesReceiver:
    """Receives optimizer states: the manifest, then every payload, passed on as it comes."""

    def __init__(self, write: StatesSink, stack: ExitStack) -> None:
        self._write = write
        self._stack = stack
        self._pages: list[pb.StatesManifest] = []
        self._heads: list[TensorHead] = []
        self._sink: Callable[[memoryview], None] | None = None
        self._next = 0
        self._missing = 0

    def feed(self, message: Payload) -> None:
        payload, parsed = payload_of(message, pb.SaveStatesResponse)
        if payload is not None:
            if len(payload) > self._missing or self._sink is None:
                raise InvalidStreamError(f"{len(payload)} bytes of states came unexpectedly")
            self._missing -= len(payload)
            self._sink(payload)
            return
        part = parsed.WhichOneof("part")
        if part == "manifest" and self._sink is None:
            self._pages.append(parsed.manifest)
            if parsed.manifest.last:
                manifest = manifest_from_wire(self._pages)
                self._heads = [head for head, _ in manifest.arrays]
                self._sink = self._stack.enter_context(self._write(manifest))
        elif part == "header" and self._sink is not None and not self._missing:
            head = head_from_wire(parsed.header)
            if self._next >= len(self._heads) or head != self._heads[self._next]:
                raise InvalidStreamError(
                    f"a state of parameter {head.name!r} came that the manifest does not hold "
                    "there",
                    parameter=head.name,
                )
            self._next += 1
            self._missing = head.size_bytes
        else:
            raise InvalidStreamError(f"unexpected message in the answer to SaveStates: {part}")

    def finish(self) -> None:
        if self._sink is None or self._missing or self._next < len(self._heads):
            raise InvalidStreamError("the answer to SaveStates ended early")
