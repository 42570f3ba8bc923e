"""The RPCs as methods on plain values.

Each takes care of retries, operations, deadlines and stall limits; what goes wrong is one of
`paramd.errors`. A request with so many names that it exceeds 1 MiB is sent in several, each of
which is atomic by itself. The meaning of each call stands in `parameter_service.proto`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from paramd.context import Context
from paramd.errors import InvalidArgumentError, InvalidStreamError, ShapeMismatchError
from paramd.spec import (
    InitializeEntry,
    LoadOptions,
    ParameterSpec,
    Part,
    Selector,
    StoredInfo,
    TensorHead,
    Version,
)
from paramd.transport.connection import Connection, Receiver
from paramd.transport.conversions import (
    attribute_fields,
    infos_from_wire,
    load_openings,
    name_size,
    selector_to_wire,
    status_from_wire,
)
from paramd.transport.local.values import LocalValues
from paramd.transport.operations import Operation
from paramd.transport.receiving import (
    Out,
    Place,
    RowsReceiver,
    SaveReceiver,
    SinkFactory,
    TensorsReceiver,
)
from paramd.transport.records import (
    DeviceStatus,
    SessionStatus,
    TensorValue,
    TensorWrite,
    WorkerStatus,
)
from paramd.transport.sending import batches, id_blocks, write_messages
from paramd.transport.snapshots import SnapshotCalls
from paramd.transport.training import TrainingCalls
from paramd.v1 import parameter_service_pb2 as pb
from paramd.v1 import session_service_pb2
from paramd.wire.dtypes import dtype_to_wire
from paramd.wire.envelope import Payload, whole
from paramd.wire.messages import (
    context_to_wire,
    contexts_to_wire,
    info_from_wire,
    initializer_to_wire,
    spec_to_wire,
)
from paramd.wire.parsing import parse_message

__all__ = [
    "Calls",
    "DeviceStatus",
    "SessionStatus",
    "TensorValue",
    "TensorWrite",
    "WorkerStatus",
]

_OUTCOMES = {1: "initialized", 2: "deferred", 3: "already_initialized"}

T = TypeVar("T")

Received = list[tuple[TensorHead, TensorValue]]


class Calls:
    """The calls of one session. Thread-safe.

    Args:
        connection: sends them.

    Attributes:
        training: the calls about trainers.
        snapshots: the calls about snapshots.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.training = TrainingCalls(connection)
        self.snapshots = SnapshotCalls(connection)

    def declare(
        self, declarations: Sequence[tuple[ParameterSpec, frozenset[str]]]
    ) -> list[StoredInfo]:
        """Creates parameters, or attaches to those that exist.

        Args:
            declarations: each spec, with the attributes that must agree with what is there.
        """
        messages = [
            pb.Declaration(spec=spec_to_wire(spec), compared=sorted(compared))
            for spec, compared in declarations
        ]
        infos: list[StoredInfo] = []
        for batch in batches(messages, pb.Declaration.ByteSize):
            request = pb.DeclareRequest(declarations=batch)
            answer = self._connection.unary("Declare", request, pb.DeclareResponse)
            infos += infos_from_wire(answer.parameters, len(batch), "Declare")
        return infos

    def describe(self, names: Sequence[str]) -> list[StoredInfo]:
        """Describes parameters, in the order asked for.

        Raises:
            ParameterNotFoundError: for an unknown name.
        """
        infos: list[StoredInfo] = []
        for batch in batches(names, name_size):
            request = pb.ListRequest(names=batch)
            answer = self._connection.unary("List", request, pb.ListResponse)
            infos += infos_from_wire(answer.parameters, len(batch), "List")
        return infos

    def list_parameters(self, prefix: str = "") -> list[StoredInfo]:
        """Describes all parameters whose name begins with `prefix`, in order of creation."""
        infos: list[StoredInfo] = []
        token = ""
        while True:
            request = pb.ListRequest(prefix=prefix, page_token=token)
            answer = self._connection.unary("List", request, pb.ListResponse)
            infos += [info_from_wire(info) for info in answer.parameters]
            token = answer.next_page_token
            if not token:
                return infos

    def delete(self, names: Sequence[str]) -> None:
        """Removes parameters."""
        for batch in batches(names, name_size):
            self._change("Delete", pb.DeleteRequest(names=batch), pb.DeleteResponse)

    def initialize(
        self,
        entries: Sequence[InitializeEntry],
        contexts: Sequence[Context],
        *,
        force_reinit: bool,
    ) -> list[tuple[str, StoredInfo]]:
        """Gives parameters their first values.

        Returns:
            For each entry 'initialized', 'deferred' or 'already_initialized', and the parameter.
        """
        messages = [
            pb.InitializeEntry(
                name=entry.name,
                init=initializer_to_wire(entry.init),
                seed=entry.seed,
                draw=entry.draw,
            )
            for entry in entries
        ]
        outcomes: list[tuple[str, StoredInfo]] = []
        for batch in batches(messages, pb.InitializeEntry.ByteSize):
            request = pb.InitializeRequest(
                entries=batch, contexts=contexts_to_wire(contexts), force_reinit=force_reinit
            )
            answer = self._change("Initialize", request, pb.InitializeResponse)
            infos = infos_from_wire(answer.parameters, len(batch), "Initialize")
            words = [_OUTCOMES.get(number, "") for number in answer.outcomes]
            if len(words) != len(batch) or "" in words:
                raise InvalidStreamError("the answer to Initialize has outcomes that do not fit")
            outcomes += zip(words, infos, strict=True)
        return outcomes

    def get_data(
        self,
        selectors: Sequence[Selector],
        current_context: Context,
        *,
        out: Sequence[Out | Place] | None = None,
    ) -> Received:
        """Pulls values.

        Args:
            selectors: the arrays, at most 4 MiB of names.
            current_context: for selectors without one.
            out: for each selector an array to receive into, or None for a new one. C-contiguous
                ones are written to directly; of a call that fails, the contents are undefined.
        """
        local = self._in_place(selectors, out)
        found = None if local is None else local.get_data(selectors, current_context, out)
        if found is not None:
            return found
        return self._get("GetData", pb.GetDataRequest, selectors, current_context, out)

    def seen_in_place(self, selector: Selector, current_context: Context) -> TensorHead | None:
        """What a dense value is, without its version, where no call is needed to see that.

        Args:
            selector: the copy, without a region.
            current_context: for a selector without a context.
        """
        local = self._connection.local.values()
        return None if local is None else local.head(selector, current_context)

    def get_values(
        self,
        selectors: Sequence[Selector],
        current_context: Context,
        *,
        out: Sequence[Out | Place] | None = None,
    ) -> list[TensorValue]:
        """Pulls values as `get_data`, without what is said of them."""
        local = self._in_place(selectors, out)
        found = None if local is None else local.get(selectors, current_context, out)
        if found is not None:
            return found
        received = self._get("GetData", pb.GetDataRequest, selectors, current_context, out)
        return [value for _, value in received]

    def _in_place(
        self, selectors: Sequence[Selector], out: Sequence[Out | Place] | None
    ) -> LocalValues | None:
        """What may read values in shared memory."""
        _check_out(selectors, out)
        return self._connection.local.values() if selectors else None

    def get_grad(
        self,
        selectors: Sequence[Selector],
        current_context: Context,
        *,
        out: Sequence[Out | Place] | None = None,
    ) -> Received:
        """Pulls gradient buffers, as `get_data`."""
        _check_out(selectors, out)
        return self._get("GetGrad", pb.GetGradRequest, selectors, current_context, out)

    def _get(
        self,
        method: str,
        request_class: Any,
        selectors: Sequence[Selector],
        current_context: Context,
        out: Sequence[Out | Place] | None,
    ) -> Received:
        names = [selector.name for selector in selectors]
        if not names:
            return []
        request = request_class(
            tensors=[selector_to_wire(selector) for selector in selectors],
            current_context=context_to_wire(current_context),
        )
        answer_class = pb.GetDataResponse if method == "GetData" else pb.GetGradResponse
        return self._connection.download(
            method, request, lambda _stack: TensorsReceiver(answer_class, names, out)
        )

    def set_data(
        self,
        writes: Sequence[TensorWrite],
        *,
        initialize: bool = False,
        force_reinit: bool = False,
        contexts: Sequence[Context] = (),
    ) -> list[Version]:
        """Writes values, all in one step.

        Args:
            writes: the tensors.
            initialize: they are first values that this client computed.
            force_reinit: with initialize, they replace values that are there.
            contexts: with initialize, of the new copies.
        """

        def opening(operation: Operation) -> bytes:
            opened = pb.SetDataOpen(
                operation=operation.to_wire(),
                initialize=initialize,
                force_reinit=force_reinit,
                contexts=contexts_to_wire(contexts),
            )
            return pb.SetDataRequest(open=opened).SerializeToString()

        return self._write("SetData", opening, writes, pb.SetDataRequest, pb.SetDataResponse)

    def set_grad(self, writes: Sequence[TensorWrite], current_context: Context) -> list[Version]:
        """Writes gradient buffers, all in one step.

        Args:
            writes: the tensors; mode 'by_grad_req' makes it a push.
            current_context: for tensors without one.
        """

        def opening(operation: Operation) -> bytes:
            opened = pb.SetGradOpen(
                operation=operation.to_wire(), current_context=context_to_wire(current_context)
            )
            return pb.SetGradRequest(open=opened).SerializeToString()

        return self._write("SetGrad", opening, writes, pb.SetGradRequest, pb.SetGradResponse)

    def _write(
        self,
        method: str,
        opening: Callable[[Operation], bytes],
        writes: Sequence[TensorWrite],
        message_class: type[Any],
        answer_class: type[Any],
    ) -> list[Version]:
        if not writes:
            return []
        with self._connection.operations.begin() as operation:

            def messages() -> Iterator[Payload]:
                yield opening(operation)
                yield from write_messages(writes, message_class)

            answer = self._connection.upload(method, messages, answer_class)
        if len(answer.versions) != len(writes):
            raise InvalidStreamError(
                f"{method}: {len(answer.versions)} versions for {len(writes)} tensors"
            )
        return [Version(version.epoch, version.counter) for version in answer.versions]

    def zero_grad(self, names: Sequence[str]) -> None:
        """Clears gradient buffers."""
        for batch in batches(names, name_size):
            self._change("ZeroGrad", pb.ZeroGradRequest(names=batch), pb.ZeroGradResponse)

    def reset_ctx(self, names: Sequence[str], contexts: Sequence[Context]) -> None:
        """Moves parameters to other contexts."""
        for batch in batches(names, name_size):
            request = pb.ResetCtxRequest(names=batch, contexts=contexts_to_wire(contexts))
            self._change("ResetCtx", request, pb.ResetCtxResponse)

    def cast(self, names: Sequence[str], dtype: np.dtype[Any]) -> None:
        """Casts values and gradients."""
        number: Any = dtype_to_wire(dtype)
        for batch in batches(names, name_size):
            self._change("Cast", pb.CastRequest(names=batch, dtype=number), pb.CastResponse)

    def set_attribute(
        self, names: Sequence[str], attribute: str, value: Any, part: Part | None = None
    ) -> None:
        """Changes one attribute.

        Args:
            names: the parameters.
            attribute: 'shape' (tuple), 'grad_req' (str), 'lr_mult', 'wd_mult' (float) or 'init'
                (InitializerSpec, or None to take it away).
            value: its new value.
            part: with 'shape', which is then that of the part: what of it this server has.
        """
        fields = attribute_fields(attribute, value, part)
        for batch in batches(names, name_size):
            request = pb.SetAttributesRequest(names=batch, **fields)
            self._change("SetAttributes", request, pb.SetAttributesResponse)

    def pull_rows(
        self,
        name: str,
        ids: np.ndarray[Any, Any],
        context: Context | None,
        current_context: Context,
        *,
        out: Out = None,
    ) -> tuple[TensorHead, np.ndarray[Any, Any]]:
        """Pulls rows of a row_sparse parameter.

        Args:
            name: the parameter.
            ids: int64, sorted and unique, shape (n,).
            context: of the copy; None for the only one, or the one on the current context.
            current_context: see `context`.
            out: array of shape (n, *shape[1:]) to receive into, or None.

        Returns:
            The header (the full logical shape), and the rows, shape (n, *shape[1:]).
        """
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ShapeMismatchError(
                f"parameter {name!r}: row ids are whole numbers of one dimension, but got "
                f"{ids.dtype} of shape {ids.shape}",
                parameter=name,
            )
        local = self._connection.local.values()
        if local is not None:
            rows = local.take_rows(Selector(name, context), ids, current_context, out)
            if rows is not None:
                return rows
        return self.exchange_rows(
            name, ids, context, current_context, lambda: RowsReceiver(name, len(ids), out)
        )

    def exchange_rows(
        self,
        name: str,
        ids: np.ndarray[Any, Any],
        context: Context | None,
        current_context: Context,
        receiver: Callable[[], Receiver[T]],
    ) -> T:
        """Pulls rows into a receiver, which is made anew for each attempt. See `pull_rows`."""
        opened = pb.PullRowSparseOpen(name=name, current_context=context_to_wire(current_context))
        if context is not None:
            opened.context.CopyFrom(context_to_wire(context))

        def messages() -> Iterator[bytes]:
            yield pb.PullRowSparseRequest(open=opened).SerializeToString()
            yield from id_blocks(ids, pb.PullRowSparseRequest)

        return self._connection.exchange("PullRowSparse", messages, lambda _stack: receiver())

    def save(self, names: Sequence[str], write: SinkFactory) -> None:
        """Reads parameters for a file on the caller's side: the mean over the copies.

        Args:
            names: the parameters.
            write: called with all headers, gives a context manager of what takes the payload, in
                order and in pieces. A retry calls it again, after the first one was left with an
                exception.
        """
        request = pb.SaveRequest(names=names)
        self._connection.download("Save", request, lambda stack: SaveReceiver(write, stack))

    def save_on_server(self, names: Sequence[str], path: str, strip_prefix: str) -> tuple[int, int]:
        """Has the server write a file below its snapshot directory.

        Returns:
            The number of tensors, and their bytes.
        """
        request = pb.SaveRequest(names=names, path=path, strip_prefix=strip_prefix)
        return self._connection.download("Save", request, lambda _stack: _Summary())

    def load(self, tensors: Callable[[], Iterable[TensorWrite]], options: LoadOptions) -> list[str]:
        """Loads parameters from a file's tensors.

        Args:
            tensors: gives a fresh iterator over the tensors, for each attempt; with
                `options.path` it is not called.
            options: how.

        Returns:
            The names of the parameters that were loaded.
        """
        with self._connection.operations.begin() as operation:

            def messages() -> Iterator[Payload]:
                yield from load_openings(operation, options)
                yield from write_messages(() if options.path else tensors(), pb.LoadRequest)

            answer = self._connection.upload("Load", messages, pb.LoadResponse)
        return list(answer.loaded)

    def hello(self) -> session_service_pb2.HelloResponse:
        """Greets the server, and gives what it said of itself."""
        return self._connection.hello()

    def status(self) -> SessionStatus:
        """What the server holds, and who works with it."""
        request = session_service_pb2.GetStatusRequest()
        answer = self._connection.unary("GetStatus", request, session_service_pb2.GetStatusResponse)
        return status_from_wire(answer)

    def _change(self, method: str, request: Any, answer_class: type[Any]) -> Any:
        """Sends a changing request, with its operation."""
        with self._connection.operations.begin() as operation:
            return self._connection.unary(method, request, answer_class, operation=operation)


def _check_out(selectors: Sequence[Selector], out: Sequence[Out | Place] | None) -> None:
    if out is not None and len(out) != len(selectors):
        raise InvalidArgumentError(f"{len(out)} arrays for {len(selectors)} values in out=")


class _Summary:
    """Receives the answer to a Save on the server's side."""

    def __init__(self) -> None:
        self._summary: pb.SaveSummary | None = None

    def feed(self, message: Payload) -> None:
        self._summary = parse_message(pb.SaveResponse, whole(message)).summary

    def finish(self) -> tuple[int, int]:
        if self._summary is None:
            raise InvalidStreamError("the answer to Save has no summary")
        return self._summary.num_tensors, self._summary.size_bytes
