"""Calls of a server in messages and bytes, independent of the client library's transport."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paramd.context import Context, current_context
from paramd.spec import InitializerSpec, ParameterSpec, Region, TensorHead
from paramd.trainer_spec import TrainerSpec
from paramd.v1 import (
    error_pb2,
    parameter_pb2,
    parameter_service_pb2,
    session_service_pb2,
    snapshot_service_pb2,
    tensor_pb2,
    trainer_pb2,
    training_service_pb2,
)
from paramd.v1 import parameter_service_pb2 as pb
from paramd.wire.envelope import encode_data
from paramd.wire.messages import (
    context_from_wire,
    context_to_wire,
    contexts_to_wire,
    initializer_to_wire,
    spec_to_wire,
)
from paramd.wire.tensor_receiver import TensorReceiver
from paramd.wire.tensors import (
    byte_view,
    data_messages,
    head_to_wire,
    region_to_wire,
)
from paramd.wire.training import trainer_spec_to_wire
from tests.support.contexts import suite_context
from tests.support.receiving import feed_all

Array = np.ndarray[Any, Any]

SERVICES: Final = (
    parameter_service_pb2.DESCRIPTOR.services_by_name["ParameterService"],
    session_service_pb2.DESCRIPTOR.services_by_name["SessionService"],
    training_service_pb2.DESCRIPTOR.services_by_name["TrainingService"],
    snapshot_service_pb2.DESCRIPTOR.services_by_name["SnapshotService"],
)
METHODS: Final = {method.name: method for service in SERVICES for method in service.methods}
DEADLINE_S: Final = 60.0
ZERO: Final = InitializerSpec("zero")
INT64_MAX: Final = 2**63 - 1
SHAPE: Final = (4, 5)
VALUE: Final = np.arange(20, dtype="f4").reshape(SHAPE)


@dataclass(frozen=True)
class Refusal:
    """Why a call failed: gRPC's code, and the reason in the trailing metadata ('' if none)."""

    code: grpc.StatusCode
    reason: str
    message: str
    parameter: str
    detail_bytes: int


def refusal_of(err: grpc.RpcError) -> Refusal:
    """Reads what a failed call says."""
    assert isinstance(err, grpc.Call)
    details = [value for key, value in err.trailing_metadata() or () if key == "paramd-error-bin"]
    if not details:
        return Refusal(err.code(), "", err.details() or "", "", 0)
    (data,) = details
    assert isinstance(data, bytes)
    detail = error_pb2.ErrorDetail.FromString(data)
    return Refusal(err.code(), detail.reason, detail.message, detail.parameter, len(data))


@dataclass
class Refused:
    """Filled when the block of `refused` has ended."""

    refusal: Refusal | None = None

    @property
    def message(self) -> str:
        assert self.refusal is not None
        return self.refusal.message


@contextmanager
def refused(*reasons: str) -> Iterator[Refused]:
    """Passes where a call in the block fails with one of the reasons, and a short detail."""
    outcome = Refused()
    with pytest.raises(grpc.RpcError) as caught:
        yield outcome
    outcome.refusal = refusal_of(caught.value)
    assert outcome.refusal.reason in reasons, outcome.refusal
    assert outcome.refusal.detail_bytes <= 2048
    assert outcome.refusal.message


@dataclass
class RawClient:
    """One client with an identity of its own."""

    address: str
    identity: bytes = field(default_factory=lambda: os.urandom(16))
    sequence: int = 0

    def __post_init__(self) -> None:
        # A subchannel of its own: otherwise channels of one process share a connection.
        self.channel = grpc.insecure_channel(
            self.address, options=[("grpc.use_local_subchannel_pool", 1)]
        )

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.channel.close()

    def operation(self) -> parameter_pb2.Operation:
        """The next operation; everything before it counts as answered."""
        self.sequence += 1
        return parameter_pb2.Operation(
            identity=self.identity, sequence=self.sequence, acknowledged_below=self.sequence
        )

    def start(
        self,
        method: str,
        request: Message | bytes | Iterable[Message | bytes],
        *,
        deadline_s: float = DEADLINE_S,
        ends: bool = True,
    ) -> Any:
        """Starts a call with bytes or messages.

        Args:
            method: name of the RPC.
            request: what is sent.
            deadline_s: of the call.
            ends: whether a stream that changes something gets its end message.

        Returns:
            The grpc.Call: for a stream of responses an iterator of bytes, else with `result()`.
        """
        descriptor = METHODS[method]
        path = f"/{descriptor.containing_service.full_name}/{method}"
        sent: Any = (
            as_bytes(request)
            if isinstance(request, Message | bytes)
            else map(as_bytes, chain(request, _end_of(method) if ends else ()))
        )
        up, down = descriptor.client_streaming, descriptor.server_streaming
        if down:
            multi: Any = self.channel.stream_stream(path) if up else self.channel.unary_stream(path)
            return multi(sent, timeout=deadline_s)
        if up:
            return self.channel.stream_unary(path).future(sent, timeout=deadline_s)
        return self.channel.unary_unary(path).future(sent, timeout=deadline_s)

    def call(
        self,
        method: str,
        request: Message | bytes | Iterable[Message | bytes],
        *,
        deadline_s: float = DEADLINE_S,
    ) -> Any:
        """Makes a call to its end: the response, or all of them."""
        call = self.start(method, request, deadline_s=deadline_s)
        response = GetMessageClass(METHODS[method].output_type)
        if METHODS[method].server_streaming:
            return [response.FromString(each) for each in call]
        return response.FromString(call.result())

    def health(self, *, deadline_s: float = 5.0) -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=deadline_s)
        return int(answer.status)

    def status(self) -> session_service_pb2.GetStatusResponse:
        answer = self.call("GetStatus", session_service_pb2.GetStatusRequest())
        assert isinstance(answer, session_service_pb2.GetStatusResponse)
        return answer

    def used_bytes(self) -> int:
        """What the server's buffers take, wherever they are."""
        status = self.status()
        return status.memory_bytes + sum(device.memory_bytes for device in status.devices)

    def device_bytes(self) -> int:
        """What buffers take on `device(0)`, or of main memory, where that is the same."""
        status = self.status()
        wire = context_to_wire(suite_context())
        own = [each.memory_bytes for each in status.devices if each.context == wire]
        return own[0] if own else status.memory_bytes

    def declare(self, *specs: ParameterSpec) -> None:
        declarations = [pb.Declaration(spec=spec_to_wire(spec)) for spec in specs]
        self.call("Declare", pb.DeclareRequest(declarations=declarations))

    def initialize(
        self,
        *names: str,
        init: InitializerSpec = ZERO,
        contexts: Sequence[Context] | None = None,
        force_reinit: bool = False,
    ) -> pb.InitializeResponse:
        request = pb.InitializeRequest(
            operation=self.operation(),
            entries=[
                pb.InitializeEntry(name=name, init=initializer_to_wire(init), seed=1)
                for name in names
            ],
            contexts=contexts_to_wire([current_context()] if contexts is None else contexts),
            force_reinit=force_reinit,
        )
        answer = self.call("Initialize", request)
        assert isinstance(answer, pb.InitializeResponse)
        return answer

    def create(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        init: InitializerSpec = ZERO,
        contexts: Sequence[Context] | None = None,
        **attributes: Any,
    ) -> None:
        """Declares a parameter and initializes it."""
        self.declare(ParameterSpec(name, shape=shape, **attributes))
        self.initialize(name, init=init, contexts=contexts)

    def infos(self, *names: str, prefix: str = "") -> list[parameter_pb2.ParameterInfo]:
        """Descriptions by name, or of all under a prefix."""
        if names:
            return list(self.call("List", pb.ListRequest(names=names)).parameters)
        found: list[parameter_pb2.ParameterInfo] = []
        token = ""
        while True:
            page = self.call("List", pb.ListRequest(prefix=prefix, page_token=token))
            found += page.parameters
            token = page.next_page_token
            if not token:
                return found

    def get(self, name: str, **selector: Any) -> Array:
        """The value of a parameter, or a part of it."""
        return self._read("GetData", pb.GetDataRequest, pb.GetDataResponse, name, **selector)

    def get_grad(self, name: str, **selector: Any) -> Array:
        return self._read("GetGrad", pb.GetGradRequest, pb.GetGradResponse, name, **selector)

    def _read(
        self,
        method: str,
        request_class: Any,
        response_class: Any,
        name: str,
        context: Context | None = None,
        region: Region | None = None,
    ) -> Array:
        call = self.start(
            method, request_class(tensors=[selector(name, context=context, region=region)])
        )
        (found,) = received(response_class, call)
        return found[1]

    def set(self, name: str, value: Array, **head: Any) -> pb.SetDataResponse:
        """Writes a value."""
        answer = self.call("SetData", data_stream(self.operation(), (name, value), **head))
        assert isinstance(answer, pb.SetDataResponse)
        return answer

    def push(self, name: str, value: Array, **head: Any) -> pb.SetGradResponse:
        """Pushes a gradient."""
        answer = self.call("SetGrad", grad_stream(self.operation(), (name, value), **head))
        assert isinstance(answer, pb.SetGradResponse)
        return answer

    def pull_rows(self, name: str, ids: Sequence[int], context: Context | None = None) -> bytes:
        """The payload of a pull of rows."""
        opened = pb.PullRowSparseOpen(name=name)
        if context is not None:
            opened.context.CopyFrom(context_to_wire(context))
        messages = [pb.PullRowSparseRequest(open=opened)]
        if ids:
            block = np.array(ids, "<i8").tobytes()
            messages.append(pb.PullRowSparseRequest(ids=block))
        return b"".join(each.data for each in self.call("PullRowSparse", messages))

    def join(self, worker: str = "", *, lease_s: float = 60.0) -> session_service_pb2.JoinResponse:
        """Joins the workers of the cluster."""
        request = session_service_pb2.JoinRequest(
            identity=self.identity, worker=worker, lease_ms=int(lease_s * 1000)
        )
        answer = self.call("Join", request)
        assert isinstance(answer, session_service_pb2.JoinResponse)
        return answer

    def leave(self) -> None:
        """Leaves the workers, so that nobody waits for this one."""
        self.call("Leave", session_service_pb2.LeaveRequest(identity=self.identity))

    def join_trainer(self, trainer: str) -> int:
        """Joins a trainer: the clock."""
        request = training_service_pb2.JoinTrainerRequest(identity=self.identity, trainer=trainer)
        return int(self.call("JoinTrainer", request).clock)

    def declare_trainer(self, spec: TrainerSpec) -> trainer_pb2.TrainerInfo:
        request = training_service_pb2.DeclareTrainerRequest(spec=trainer_spec_to_wire(spec))
        answer = self.call("DeclareTrainer", request)
        assert isinstance(answer, training_service_pb2.DeclareTrainerResponse)
        return answer.trainer

    def delete_trainer(self, name: str) -> None:
        request = training_service_pb2.DeleteTrainerRequest(
            operation=self.operation(), trainer=name
        )
        self.call("DeleteTrainer", request)

    def trainers(self, *names: str) -> list[trainer_pb2.TrainerInfo]:
        request = training_service_pb2.ListTrainersRequest(names=names)
        return list(self.call("ListTrainers", request).trainers)

    def states(self, trainer: str) -> list[bytes]:
        """The messages of a trainer's optimizer states."""
        request = training_service_pb2.SaveStatesRequest(trainer=trainer)
        return list(self.start("SaveStates", request))

    def step(
        self, trainer: str, *tensors: tuple[str, Array], head: Any = None, **options: Any
    ) -> training_service_pb2.StepResult:
        """Pushes gradients through a trainer."""
        stream = step_stream(self.operation(), trainer, *tensors, head=head, **options)
        first, *_ = self.call("Step", stream)
        assert isinstance(first, training_service_pb2.StepResponse)
        return first.result

    def everything(self) -> dict[str, Any]:
        """All that a client can see of parameters and trainers, to be compared."""
        seen: dict[str, Any] = {}
        for trainer in self.trainers():
            name = trainer.spec.name
            seen[f"trainer {name}"] = trainer.SerializeToString(deterministic=True)
            seen[f"trainer {name} states"] = b"".join(self.states(name))
        for info in self.infos():
            name = info.current.name
            seen[name] = info.SerializeToString(deterministic=True)
            for wire in info.contexts if info.state == 3 else ():
                context = context_from_wire(wire)
                if info.current.stype == 1:
                    seen[f"{name} {context}"] = self.get(name, context=context).tobytes()
                elif info.current.stype == 2:
                    rows = range(info.current.shape.dimensions[0])
                    seen[f"{name} {context}"] = self.pull_rows(name, rows, context)
                if info.current.grad_req != 3:
                    seen[f"{name} {context} grad"] = self.get_grad(name, context=context).tobytes()
        return seen


def as_bytes(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def selector(
    name: str, *, context: Context | None = None, region: Region | None = None
) -> pb.TensorSelector:
    message = pb.TensorSelector(name=name)
    if context is not None:
        message.context.CopyFrom(context_to_wire(context))
    if region is not None:
        message.region.CopyFrom(region_to_wire(region))
    return message


def received(response_class: Any, messages: Iterable[bytes]) -> list[tuple[TensorHead, Array]]:
    """The tensors of a stream: the payload of a row_sparse one as flat bytes."""
    found: list[tuple[TensorHead, Array]] = []

    def place(head: TensorHead) -> list[memoryview]:
        if head.stype == "row_sparse":
            array = np.empty(head.size_bytes, np.uint8)
        else:
            array = np.empty(head.shape, head.dtype)
        found.append((head, array))
        return [byte_view(array)]

    feed_all(TensorReceiver(response_class, place), messages)
    return found


def payload(value: Array) -> list[bytes]:
    return list(map(encode_data, data_messages(byte_view(np.ascontiguousarray(value)))))


def head(name: str, value: Array, *, mode: str = "assign", **more: Any) -> TensorHead:
    return TensorHead(name, value.shape, value.dtype, mode=mode, **more)


def _end_of(method: str) -> list[Message]:
    if method not in ("SetData", "SetGrad", "Load", "Step", "LoadStates"):
        return []
    return [GetMessageClass(METHODS[method].input_type)(end=tensor_pb2.StreamEnd())]


def data_stream(
    operation: parameter_pb2.Operation, *tensors: tuple[str, Array], **more: Any
) -> Iterator[Message | bytes]:
    """The messages of a SetData."""
    yield pb.SetDataRequest(open=pb.SetDataOpen(operation=operation))
    for name, value in tensors:
        yield pb.SetDataRequest(header=head_to_wire(head(name, value, **more)))
        yield from payload(value)


def grad_stream(
    operation: parameter_pb2.Operation,
    *tensors: tuple[str, Array],
    mode: str = "by_grad_req",
    **more: Any,
) -> Iterator[Message | bytes]:
    """The messages of a SetGrad."""
    yield pb.SetGradRequest(open=pb.SetGradOpen(operation=operation))
    for name, value in tensors:
        yield pb.SetGradRequest(header=head_to_wire(head(name, value, mode=mode, **more)))
        yield from payload(value)


def step_stream(
    operation: parameter_pb2.Operation,
    trainer: str,
    *tensors: tuple[str, Array],
    head: Any = None,
    **options: Any,
) -> Iterator[Message | bytes]:
    """The messages of a Step.

    Args:
        operation: of the push.
        trainer: its name.
        tensors: dense gradients.
        head: further fields of their headers.
        options: further fields of StepOpen.
    """
    opened = training_service_pb2.StepOpen(
        operation=operation, trainer=trainer, **{"batch_size": 1.0, **options}
    )
    yield training_service_pb2.StepRequest(open=opened)
    for name, value in tensors:
        described = TensorHead(
            name, value.shape, value.dtype, **{"mode": "by_grad_req", **(head or {})}
        )
        yield training_service_pb2.StepRequest(header=head_to_wire(described))
        yield from payload(value)


def rows_messages(
    name: str, ids: Sequence[int], rows: Array, shape: tuple[int, ...]
) -> Iterator[Message | bytes]:
    """The messages of a row_sparse gradient in a Step, as they are given: nothing is checked."""
    described = TensorHead(
        name, shape, rows.dtype, stype="row_sparse", num_rows=len(ids), mode="by_grad_req"
    )
    yield training_service_pb2.StepRequest(header=head_to_wire(described))
    yield from payload(np.asarray(ids, "<i8"))
    yield from payload(rows)
