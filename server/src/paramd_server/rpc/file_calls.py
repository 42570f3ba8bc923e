"""Save and Load, to and from the client's files and the server's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from paramd.errors import (
    FileFormatError,
    InvalidArgumentError,
    InvalidStreamError,
)
from paramd.files import FileReader, TensorInfo, file_errors, format_of, open_reader, open_writer
from paramd.spec import LoadOptions, TensorHead
from paramd.v1 import parameter_service_pb2 as pb
from paramd.wire.envelope import Payload, whole
from paramd.wire.messages import contexts_from_wire
from paramd.wire.tensors import byte_view, data_messages, head_to_wire
from paramd_server.arrays.backend import HostArray
from paramd_server.core.loading import LoadStage, check_names
from paramd_server.core.operations import Operation, OperationWindow
from paramd_server.core.registry import Registry
from paramd_server.core.saving import SavedTensor, open_saved
from paramd_server.rpc.authorization import Authorization
from paramd_server.rpc.requests import first_message, operation_from_wire, receive_tensors
from paramd_server.storage.directory import SnapshotDirectory

__all__ = ["FileCalls"]

_MANIFEST_PAGE: Final = 500
_MAX_NAMES: Final = 1_000_000
_DTYPE_SOURCES: Final = {0: "current", 1: "current", 2: "saved"}


class FileCalls:
    """Answers Save and Load.

    Args:
        registry: the parameters.
        operations: what makes repeated calls safe.
        directory: where files on the server's side are.
        authorization: says who may name them; None for everybody.
    """

    def __init__(
        self,
        registry: Registry,
        operations: OperationWindow,
        directory: SnapshotDirectory,
        authorization: Authorization | None = None,
    ) -> None:
        self._registry = registry
        self._operations = operations
        self._directory = directory
        self._authorization = authorization

    def save(self, request: pb.SaveRequest, context: grpc.ServicerContext) -> Iterator[Payload]:
        """See Save in the proto file."""
        self._check_path(request.path, context)
        names = list(request.names)
        if len(set(names)) != len(names):
            raise InvalidArgumentError("a file holds each parameter once, but a name comes twice")
        with open_saved(self._registry, names) as saved:
            if request.path:
                yield self._write(saved, request.path, request.strip_prefix)
                return
            yield from _manifest(saved)
            for tensor in saved:
                yield pb.SaveResponse(header=head_to_wire(tensor.head)).SerializeToString()
                for block in tensor.blocks():
                    yield from data_messages(byte_view(np.asarray(block)))

    def load(self, messages: Iterator[Payload], context: grpc.ServicerContext) -> bytes:
        """See Load in the proto file."""
        operation, options, rest = _open_load(messages)
        self._check_path(options.path, context)
        if (answer := self._operations.answered(operation)) is not None:
            return answer
        if options.path:
            receive_tensors(rest, pb.LoadRequest, _refuse_tensor)
            stage = self._read(options)
        else:
            check_names(options, options.file_names)
            stage = LoadStage(self._registry, options)
            receive_tensors(rest, pb.LoadRequest, stage.place)
            _check_complete(stage, options)

        def carry_out() -> bytes:
            names = stage.names
            stage.commit()
            return pb.LoadResponse(loaded=names).SerializeToString()

        return self._operations.run(operation, carry_out)

    def _check_path(self, path: str, context: grpc.ServicerContext) -> None:
        if path and self._authorization is not None:
            self._authorization.require_server_files(context)

    def _write(self, saved: Sequence[SavedTensor], path: str, strip_prefix: str) -> bytes:
        infos = []
        for tensor in saved:
            head = tensor.head
            if not head.name.startswith(strip_prefix):
                raise InvalidArgumentError(
                    f"Prefix '{strip_prefix}' is to be stripped before saving, but Parameter's "
                    f"name '{head.name}' does not start with '{strip_prefix}'",
                    parameter=head.name,
                )
            infos.append(_file_info(head, head.name[len(strip_prefix) :]))
        target = self._directory.resolve(path)
        with _file_errors(path, target):
            format_of(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_writer(target, infos) as writer:
                for tensor in saved:
                    for block in tensor.blocks():
                        writer.write(byte_view(np.asarray(block)))
        size = sum(tensor.head.size_bytes for tensor in saved)
        summary = pb.SaveSummary(num_tensors=len(saved), size_bytes=size)
        return pb.SaveResponse(summary=summary).SerializeToString()

    def _read(self, options: LoadOptions) -> LoadStage:
        source = self._directory.resolve(options.path)
        options = replace(options, source=f"file: {options.path}")
        wanted = frozenset(options.names)
        with _file_errors(options.path, source), open_reader(source) as reader:
            if reader.infos and not reader.named:
                raise FileFormatError(f"file {options.path!r}: its arrays have no names")
            held = _held_names(reader, options.restore_prefix)
            check_names(options, held)
            stage = LoadStage(self._registry, options)
            for index, name in enumerate(held):
                if name in wanted:
                    _stage_from_file(stage, reader, index, name)
        return stage


def _file_info(head: TensorHead, name: str) -> TensorInfo:
    return TensorInfo(
        name=name,
        shape=head.shape,
        dtype=head.dtype,
        stype="row_sparse" if head.stype == "row_sparse" else "default",
        num_rows=head.num_rows if head.stype == "row_sparse" else None,
    )


def _held_names(reader: FileReader, restore_prefix: str) -> list[str]:
    names = []
    for info in reader.infos:
        name = info.name[4:] if info.name.startswith(("arg:", "aux:")) else info.name
        names.append(restore_prefix + name)
    return names


def _stage_from_file(stage: LoadStage, reader: FileReader, index: int, name: str) -> None:
    info = reader.infos[index]
    head = TensorHead(
        name=name,
        shape=info.shape,
        dtype=info.dtype,
        stype=info.stype,
        num_rows=info.num_rows or 0,
        mode="assign",
    )
    targets = [byte_view(np.asarray(array)) for array in stage.place(head)]
    for chunk in reader.chunks(index, 1 << 20):
        rest = chunk
        while len(rest):
            count = min(len(rest), len(targets[0]))
            targets[0][:count] = rest[:count]
            rest = rest[count:]
            targets[0] = targets[0][count:]
            if not len(targets[0]):
                targets.pop(0)


@contextmanager
def _file_errors(path: str, target: Path) -> Iterator[None]:
    try:
        with file_errors(path):
            yield
    except FileFormatError as err:
        # Where the directory is, is not for clients to know.
        raise FileFormatError(str(err).replace(str(target), path)) from err


def _manifest(saved: Sequence[SavedTensor]) -> Iterator[bytes]:
    headers = [head_to_wire(tensor.head) for tensor in saved]
    for begin in range(0, max(1, len(headers)), _MANIFEST_PAGE):
        page = pb.SaveManifest(
            headers=headers[begin : begin + _MANIFEST_PAGE],
            last=begin + _MANIFEST_PAGE >= len(headers),
        )
        yield pb.SaveResponse(manifest=page).SerializeToString()


def _open_load(
    messages: Iterator[Payload],
) -> tuple[Operation, LoadOptions, Iterator[Payload]]:
    """Reads the opening messages: what they say, and the messages that follow."""
    first: pb.LoadOpen = first_message(messages, pb.LoadRequest, "open")
    names, file_names = list(first.names), list(first.file_names)
    rest: list[Payload] = []
    for message in messages:
        try:
            more = pb.LoadRequest.FromString(whole(message))
        except DecodeError:
            # The receiver will say what is wrong with it.
            rest.append(message)
            break
        if more.WhichOneof("part") != "open":
            rest.append(message)
            break
        names.extend(more.open.names)
        file_names.extend(more.open.file_names)
        if len(names) + len(file_names) > _MAX_NAMES:
            raise InvalidArgumentError(f"a load names at most {_MAX_NAMES} parameters")
    options = LoadOptions(
        names=tuple(names),
        contexts=contexts_from_wire(first.contexts),
        allow_missing=first.allow_missing,
        ignore_extra=first.ignore_extra,
        restore_prefix=first.restore_prefix,
        cast_dtype=first.cast_dtype,
        dtype_source=_DTYPE_SOURCES.get(first.dtype_source, ""),
        source=first.source or "param_dict",
        path=first.path,
        file_names=tuple(file_names),
    )

    def following() -> Iterator[Payload]:
        yield from rest
        yield from messages

    return operation_from_wire(first.operation), options, following()


def _refuse_tensor(head: TensorHead) -> list[HostArray]:
    raise InvalidStreamError(
        f"tensor {head.name!r} comes in a load from a file on the server", parameter=head.name
    )


def _check_complete(stage: LoadStage, options: LoadOptions) -> None:
    expected = set(options.file_names) & set(options.names)
    missing = sorted(expected - set(stage.names))
    if missing:
        raise InvalidStreamError(
            f"the stream ended before parameter {missing[0]!r}", parameter=missing[0]
        )
