"""The RPCs of paramd.v1.ParameterService. Their contract stands in the proto file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import grpc
import numpy as np

from paramd.errors import InvalidArgumentError, InvalidStreamError
from paramd.spec import InitializeEntry, StoredInfo, TensorHead, Version
from paramd.v1 import parameter_pb2, tensor_pb2
from paramd.v1 import parameter_service_pb2 as pb
from paramd.wire.dtypes import dtype_from_wire
from paramd.wire.envelope import Payload, decode_data
from paramd.wire.messages import (
    context_from_wire,
    contexts_from_wire,
    grad_req_from_wire,
    info_to_wire,
    initializer_from_wire,
    part_from_wire,
    shape_from_wire,
    spec_from_wire,
)
from paramd.wire.parsing import parse_message
from paramd.wire.tensors import (
    CHUNK_BYTES,
    byte_view,
    data_messages,
    head_to_wire,
)
from paramd_server.core import attributes
from paramd_server.core.gradient_writing import GradientStage
from paramd_server.core.initialization import initialize
from paramd_server.core.operations import OperationWindow
from paramd_server.core.reading import RowReader, open_gradients, open_values
from paramd_server.core.registry import Registry
from paramd_server.core.row_sparse import IntArray
from paramd_server.core.value_writing import FirstValueStage, ValueStage
from paramd_server.core.workers import Workers
from paramd_server.rpc.file_calls import FileCalls
from paramd_server.rpc.readings import (
    check_count,
    current_context,
    reading_messages,
    selectors_from_wire,
)
from paramd_server.rpc.requests import first_message, operation_from_wire, receive_tensors

__all__ = ["ParameterServicer"]

_PAGE_SIZE: Final = 500
_OUTCOMES: Final = {"initialized": 1, "deferred": 2, "already_initialized": 3}
_ID_BYTES: Final = 8


class ParameterServicer:
    """Answers the calls of one server.

    Args:
        registry: the parameters.
        operations: what makes repeated calls safe.
        workers: counts pushes.
        files: Save and Load.
    """

    def __init__(
        self,
        registry: Registry,
        operations: OperationWindow,
        workers: Workers,
        files: FileCalls,
    ) -> None:
        self._registry = registry
        self._operations = operations
        self._workers = workers
        self._files = files

    def Declare(
        self, request: pb.DeclareRequest, _context: grpc.ServicerContext
    ) -> pb.DeclareResponse:
        """Creates parameters, or attaches to them."""
        declarations = [
            (spec_from_wire(each.spec), frozenset(each.compared)) for each in request.declarations
        ]
        return pb.DeclareResponse(parameters=_infos(self._registry.declare(declarations)))

    def List(self, request: pb.ListRequest, _context: grpc.ServicerContext) -> pb.ListResponse:
        """Describes parameters."""
        if request.names:
            check_count(len(request.names))
            infos, token = self._registry.describe(list(request.names)), ""
        else:
            infos, token = self._registry.page(request.prefix, request.page_token, _PAGE_SIZE)
        return pb.ListResponse(parameters=_infos(infos), next_page_token=token)

    def Delete(self, request: pb.DeleteRequest, _context: grpc.ServicerContext) -> bytes:
        """Removes parameters."""

        def carry_out() -> bytes:
            self._registry.delete(list(dict.fromkeys(request.names)))
            return pb.DeleteResponse().SerializeToString()

        return self._operations.run(operation_from_wire(request.operation), carry_out)

    def Initialize(self, request: pb.InitializeRequest, _context: grpc.ServicerContext) -> bytes:
        """Gives parameters their first values."""
        entries = [
            InitializeEntry(each.name, initializer_from_wire(each.init), each.seed, each.draw)
            for each in request.entries
        ]
        contexts = contexts_from_wire(request.contexts)

        def carry_out() -> bytes:
            outcomes = initialize(
                self._registry, entries, contexts, force_reinit=request.force_reinit
            )
            return pb.InitializeResponse(
                outcomes=[_OUTCOMES[outcome] for outcome, _ in outcomes],  # type: ignore[misc]
                parameters=_infos(info for _, info in outcomes),
            ).SerializeToString()

        return self._operations.run(operation_from_wire(request.operation), carry_out)

    def GetData(
        self, request: pb.GetDataRequest, _context: grpc.ServicerContext
    ) -> Iterator[Payload]:
        """Streams values."""
        selectors = selectors_from_wire(request.tensors)
        with open_values(self._registry, selectors, current_context(request)) as readings:
            yield from reading_messages(readings, pb.GetDataResponse)

    def GetGrad(
        self, request: pb.GetGradRequest, _context: grpc.ServicerContext
    ) -> Iterator[Payload]:
        """Streams gradients."""
        selectors = selectors_from_wire(request.tensors)
        with open_gradients(self._registry, selectors, current_context(request)) as readings:
            yield from reading_messages(readings, pb.GetGradResponse)

    def SetData(self, messages: Iterator[Payload], _context: grpc.ServicerContext) -> bytes:
        """Writes values."""
        opened: pb.SetDataOpen = first_message(messages, pb.SetDataRequest, "open")
        operation = operation_from_wire(opened.operation)
        if (answer := self._operations.answered(operation)) is not None:
            return answer
        if opened.initialize:
            stage: ValueStage = FirstValueStage(
                self._registry,
                contexts_from_wire(opened.contexts),
                force_reinit=opened.force_reinit,
            )
        else:
            stage = ValueStage(self._registry)
        receive_tensors(messages, pb.SetDataRequest, stage.place)

        def carry_out() -> bytes:
            versions = _versions(stage.commit())
            return pb.SetDataResponse(versions=versions).SerializeToString()

        return self._operations.run(operation, carry_out)

    def SetGrad(self, messages: Iterator[Payload], _context: grpc.ServicerContext) -> bytes:
        """Writes gradients."""
        opened: pb.SetGradOpen = first_message(messages, pb.SetGradRequest, "open")
        operation = operation_from_wire(opened.operation)
        if (answer := self._operations.answered(operation)) is not None:
            return answer
        stage = GradientStage(self._registry, current_context(opened))
        receive_tensors(messages, pb.SetGradRequest, stage.place)

        def carry_out() -> bytes:
            num_tensors = len(stage.names)
            versions = _versions(stage.commit())
            self._workers.count_push(operation.identity, num_tensors)
            return pb.SetGradResponse(versions=versions).SerializeToString()

        return self._operations.run(operation, carry_out)

    def ZeroGrad(self, request: pb.ZeroGradRequest, _context: grpc.ServicerContext) -> bytes:
        """Clears gradients."""

        def carry_out() -> bytes:
            attributes.zero_gradients(self._registry, list(request.names))
            return pb.ZeroGradResponse().SerializeToString()

        return self._operations.run(operation_from_wire(request.operation), carry_out)

    def ResetCtx(self, request: pb.ResetCtxRequest, _context: grpc.ServicerContext) -> bytes:
        """Moves parameters to other contexts."""
        contexts = contexts_from_wire(request.contexts)

        def carry_out() -> bytes:
            attributes.reset_contexts(self._registry, list(request.names), contexts)
            return pb.ResetCtxResponse().SerializeToString()

        return self._operations.run(operation_from_wire(request.operation), carry_out)

    def Cast(self, request: pb.CastRequest, _context: grpc.ServicerContext) -> bytes:
        """Casts values and gradients."""
        dtype = dtype_from_wire(request.dtype)

        def carry_out() -> bytes:
            attributes.cast(self._registry, list(request.names), dtype)
            return pb.CastResponse().SerializeToString()

        return self._operations.run(operation_from_wire(request.operation), carry_out)

    def SetAttributes(
        self, request: pb.SetAttributesRequest, _context: grpc.ServicerContext
    ) -> bytes:
        """Changes one attribute of parameters."""

        def carry_out() -> bytes:
            self._set_attribute(request, list(request.names))
            return pb.SetAttributesResponse().SerializeToString()

        return self._operations.run(operation_from_wire(request.operation), carry_out)

    def PullRowSparse(
        self, messages: Iterator[Payload], _context: grpc.ServicerContext
    ) -> Iterator[Payload]:
        """Streams rows for blocks of ids."""
        reader: RowReader | None = None
        for message in messages:
            ids, request = _row_request(message)
            if ids is not None and reader is not None:
                for rows in reader.blocks(ids, CHUNK_BYTES):
                    yield from data_messages(byte_view(rows))
            elif request is not None and request.HasField("open"):
                opened = request.open
                wanted = context_from_wire(opened.context) if opened.HasField("context") else None
                reader = RowReader(self._registry, opened.name, wanted, current_context(opened))
                yield _row_header(reader.head)
            else:
                part = "ids" if request is None else request.WhichOneof("part")
                raise InvalidStreamError(f"a pull of rows begins with open, but got {part}")

    def Save(self, request: pb.SaveRequest, context: grpc.ServicerContext) -> Iterator[Payload]:
        """Reads parameters for a file."""
        return self._files.save(request, context)

    def Load(self, messages: Iterator[Payload], context: grpc.ServicerContext) -> bytes:
        """Loads parameters from a file."""
        return self._files.load(messages, context)

    def _set_attribute(self, request: pb.SetAttributesRequest, names: list[str]) -> None:
        attribute = request.WhichOneof("attribute")
        part = part_from_wire(request.part) if request.HasField("part") else None
        if part is not None and attribute != "shape":
            raise InvalidArgumentError(f"a part goes with a shape, but came with {attribute}")
        if attribute == "shape":
            attributes.set_shape(self._registry, names, shape_from_wire(request.shape), part)
        elif attribute == "grad_req":
            grad_req = grad_req_from_wire(request.grad_req)
            attributes.set_grad_req(self._registry, names, grad_req)
        elif attribute in ("lr_mult", "wd_mult"):
            value: float = getattr(request, attribute)
            if not np.isfinite(value):
                raise InvalidArgumentError(f"{attribute} is a finite number, but got {value}")
            attributes.set_multiplier(self._registry, names, attribute, value)
        elif attribute == "init":
            attributes.set_init(self._registry, names, initializer_from_wire(request.init))
        elif attribute == "clear_init":
            attributes.set_init(self._registry, names, None)
        else:
            raise InvalidArgumentError("SetAttributes comes without an attribute")


def _infos(infos: Iterable[StoredInfo]) -> list[parameter_pb2.ParameterInfo]:
    return [info_to_wire(info) for info in infos]


def _versions(versions: Iterable[Version]) -> list[tensor_pb2.Version]:
    return [tensor_pb2.Version(epoch=each.epoch, counter=each.counter) for each in versions]


def _row_request(message: Payload) -> tuple[IntArray | None, pb.PullRowSparseRequest | None]:
    """A block of ids, or a message of another kind."""
    if isinstance(message, memoryview):
        return _ids_of(message), None
    data = decode_data(message)
    if data is not None:
        return _ids_of(data), None
    request = parse_message(pb.PullRowSparseRequest, message)
    if request.WhichOneof("part") == "ids":
        return _ids_of(memoryview(request.ids)), None
    return None, request


def _ids_of(data: memoryview) -> IntArray:
    if len(data) % _ID_BYTES:
        raise InvalidStreamError(f"a block of ids has {len(data)} bytes, no multiple of 8")
    # A copy: within a message they are not aligned.
    return np.frombuffer(data, "<i8").astype(np.int64)


def _row_header(head: TensorHead) -> bytes:
    header = head_to_wire(head)
    header.stype = tensor_pb2.STORAGE_TYPE_ROW_SPARSE
    header.size_bytes = 0
    return pb.PullRowSparseResponse(header=header).SerializeToString()
