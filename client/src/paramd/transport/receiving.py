"""Answers that carry tensors: what is expected, and the arrays that it goes into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np

from paramd.errors import (
    DTypeMismatchError,
    InvalidArgumentError,
    InvalidStreamError,
    ShapeMismatchError,
    WrongStorageTypeError,
)
from paramd.files import RowSparseRows
from paramd.spec import TensorHead
from paramd.transport.records import TensorValue
from paramd.v1 import parameter_service_pb2 as pb
from paramd.wire.envelope import Payload, decode_data
from paramd.wire.parsing import parse_message
from paramd.wire.tensor_receiver import TensorReceiver
from paramd.wire.tensors import byte_view, head_from_wire

__all__ = [
    "Out",
    "OutArray",
    "Place",
    "RowsReceiver",
    "SaveReceiver",
    "SinkFactory",
    "TensorsReceiver",
    "payload_of",
]

Out = np.ndarray[Any, Any] | None
_NOTHING: Final = np.empty(0)
SinkFactory = Callable[[Sequence[TensorHead]], AbstractContextManager[Callable[[memoryview], None]]]


@runtime_checkable
class Place(Protocol):
    """Where one dense tensor is received to: the `OutArray` of a part of an array."""

    def open(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> memoryview:
        """The bytes to receive into, anew for each attempt."""
        ...

    def complete(self) -> np.ndarray[Any, Any]:
        """The array with what was received."""
        ...


class OutArray:
    """The array that one tensor is received into: the caller's own, or a new one.

    Args:
        name: the parameter, for messages.
        out: the caller's array, or None.

    Raises:
        InvalidArgumentError: where it cannot be written to.
    """

    def __init__(self, name: str, out: Out) -> None:
        if out is not None and not isinstance(out, np.ndarray):
            raise InvalidArgumentError(
                f"parameter {name!r}: out= takes NumPy arrays, but got {type(out).__name__}",
                parameter=name,
            )
        if out is not None and not out.flags.writeable:
            raise InvalidArgumentError(
                f"parameter {name!r}: the array given as out= is read-only", parameter=name
            )
        self._name = name
        self._out = out
        self._target = _NOTHING

    def open(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> memoryview:
        """The bytes to receive into.

        Raises:
            ShapeMismatchError, DTypeMismatchError: where the caller's array does not fit.
        """
        out = self._out
        if out is None:
            self._target = np.empty(shape, dtype)
            return byte_view(self._target)
        if out.dtype != dtype:
            raise DTypeMismatchError(
                f"parameter {self._name!r}: the value is of {dtype}, but the array given as out= "
                f"is of {out.dtype}",
                parameter=self._name,
            )
        if out.shape != shape:
            raise ShapeMismatchError(
                f"parameter {self._name!r}: the value has shape {shape}, but the array given as "
                f"out= has {out.shape}",
                parameter=self._name,
            )
        self._target = out if out.flags.c_contiguous else np.empty(shape, dtype)
        return byte_view(self._target)

    @property
    def target(self) -> np.ndarray[Any, Any]:
        """The array that is received into: the caller's own, where it is contiguous."""
        return self._target

    def complete(self) -> np.ndarray[Any, Any]:
        """The array with what was received."""
        if self._out is None:
            return self._target
        if self._target is not self._out:
            self._out[...] = self._target
        return self._out


class TensorsReceiver:
    """Receives the tensors of GetData and GetGrad, in the order asked for.

    Args:
        message_class: of the answers.
        names: the parameters asked for.
        outs: one for each.
    """

    def __init__(
        self, message_class: type[Any], names: Sequence[str], outs: Sequence[Out | Place] | None
    ) -> None:
        self._names = names
        self._outs = [
            _place_of(name, None if outs is None else outs[index])
            for index, name in enumerate(names)
        ]
        self._has_out = [outs is not None and out is not None for out in (outs or names)]
        self._results: list[tuple[TensorHead, TensorValue]] = []
        self._num_placed = 0
        # By the place of a tensor among the names.
        self._rows: dict[int, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {}
        self._receiver = TensorReceiver(message_class, self._place, complete=self._complete)
        self.feed = self._receiver.feed

    def _place(self, head: TensorHead) -> Sequence[memoryview]:
        index = self._num_placed
        if index >= len(self._names) or head.name != self._names[index]:
            expected = repr(self._names[index]) if index < len(self._names) else "the end"
            raise InvalidStreamError(
                f"the server sent parameter {head.name!r} where {expected} was expected",
                parameter=head.name,
            )
        self._num_placed += 1
        if head.stype == "default":
            return [self._outs[index].open(head.shape, head.dtype)]
        if self._has_out[index]:
            raise WrongStorageTypeError(
                f"parameter {head.name!r} is {head.stype}, which out= cannot hold: pull its rows",
                parameter=head.name,
            )
        ids = np.empty(head.num_rows, np.dtype("<i8"))
        rows = np.empty((head.num_rows, *head.shape[1:]), head.dtype)
        self._rows[index] = (ids, rows)
        return [byte_view(ids), byte_view(rows)]

    def _complete(self, head: TensorHead) -> None:
        value: TensorValue
        index = len(self._results)
        if head.stype == "default":
            value = self._outs[index].complete()
        else:
            ids, rows = self._rows.pop(index)
            _check_ids(head, ids)
            value = RowSparseRows(ids, rows, head.shape)
        self._results.append((head, value))

    def finish(self) -> list[tuple[TensorHead, TensorValue]]:
        """The tensors, all of them."""
        self._receiver.finish()
        if len(self._results) < len(self._names):
            name = self._names[len(self._results)]
            raise InvalidStreamError(f"the stream ended before parameter {name!r}", parameter=name)
        return self._results


def _place_of(name: str, out: Out | Place) -> Place:
    if out is None or isinstance(out, np.ndarray):
        return OutArray(name, out)
    # What else a user may give has no such methods, and is refused.
    given: Any = out
    return given if isinstance(given, Place) else OutArray(name, given)


def _check_ids(head: TensorHead, ids: np.ndarray[Any, Any]) -> None:
    if len(ids) and (
        ids[0] < 0 or ids[-1] >= head.shape[0] or not bool(np.all(ids[1:] > ids[:-1]))
    ):
        raise InvalidStreamError(
            f"parameter {head.name!r}: the row ids that came are not sorted, unique and below "
            f"{head.shape[0]}",
            parameter=head.name,
        )


def payload_of(message: Payload, message_class: type[Any]) -> tuple[memoryview | None, Any]:
    """The payload of a data message, or the parsed message of another kind."""
    if isinstance(message, memoryview):
        return message, None
    payload = decode_data(message)
    if payload is not None:
        return payload, None
    parsed = parse_message(message_class, message)
    if parsed.WhichOneof("part") == "data":
        return memoryview(parsed.data), None
    return None, parsed


class RowsReceiver:
    """Receives the rows of a pull into one array.

    Args:
        name: the parameter.
        num_rows: how many were asked for.
        out: the caller's array of shape (num_rows, *shape[1:]), or None.
    """

    def __init__(self, name: str, num_rows: int, out: Out) -> None:
        self._name = name
        self._num_rows = num_rows
        self._array = OutArray(name, out)
        self._head: TensorHead | None = None
        self._target = memoryview(b"")
        self._filled = 0

    def feed(self, message: Payload) -> None:
        """Takes the header, then rows."""
        payload, parsed = payload_of(message, pb.PullRowSparseResponse)
        if payload is None:
            self._open(parsed)
            return
        if self._head is None:
            raise self._wrong(f"{len(payload)} bytes came before the header")
        end = self._filled + len(payload)
        if end > len(self._target):
            raise self._wrong(f"the rows run over their {len(self._target)} bytes")
        self._target[self._filled : end] = payload
        self._filled = end

    def _open(self, parsed: pb.PullRowSparseResponse) -> None:
        if parsed.WhichOneof("part") != "header" or self._head is not None:
            raise self._wrong("an unexpected message came between the rows")
        head = head_from_wire(parsed.header)
        if head.name != self._name or not head.shape:
            raise self._wrong(f"the server sent parameter {head.name!r} of shape {head.shape}")
        self._head = head
        self._target = self._array.open((self._num_rows, *head.shape[1:]), head.dtype)

    def finish(self) -> tuple[TensorHead, np.ndarray[Any, Any]]:
        """The header and the rows."""
        if self._head is None:
            raise self._wrong("the stream ended before the header")
        if self._filled != len(self._target):
            raise self._wrong(f"{self._filled} bytes of rows came, of {len(self._target)} expected")
        return self._head, self._array.complete()

    def _wrong(self, what: str) -> InvalidStreamError:
        return InvalidStreamError(f"parameter {self._name!r}: {what}", parameter=self._name)


class SaveReceiver:
    """Receives a Save: the manifest, then every payload, passed on as it comes.

    Args:
        write: called with all headers; gives what takes the payload.
        stack: keeps what `write` opened, until the stream is complete.
    """

    def __init__(self, write: SinkFactory, stack: ExitStack) -> None:
        self._write = write
        self._stack = stack
        self._heads: list[TensorHead] = []
        self._sink: Callable[[memoryview], None] | None = None
        self._next = 0
        self._missing = 0

    def feed(self, message: Payload) -> None:
        """Takes the next message."""
        payload, parsed = payload_of(message, pb.SaveResponse)
        if payload is not None:
            if len(payload) > self._missing or self._sink is None:
                raise InvalidStreamError(f"{len(payload)} bytes of payload came unexpectedly")
            self._missing -= len(payload)
            self._sink(payload)
            return
        part = parsed.WhichOneof("part")
        if part == "manifest" and self._sink is None:
            self._heads += [head_from_wire(header) for header in parsed.manifest.headers]
            if parsed.manifest.last:
                self._sink = self._stack.enter_context(self._write(self._heads))
        elif part == "header" and self._sink is not None:
            self._open(head_from_wire(parsed.header))
        else:
            raise InvalidStreamError(f"unexpected message in the answer to Save: {part}")

    def _open(self, head: TensorHead) -> None:
        self._check_complete()
        expected = self._heads[self._next] if self._next < len(self._heads) else None
        if head != expected:
            raise InvalidStreamError(
                f"the server sent parameter {head.name!r}, which its manifest does not hold there",
                parameter=head.name,
            )
        self._next += 1
        self._missing = head.size_bytes

    def _check_complete(self) -> None:
        if self._missing:
            name = self._heads[self._next - 1].name
            raise InvalidStreamError(
                f"parameter {name!r}: {self._missing} bytes are missing", parameter=name
            )

    def finish(self) -> None:
        """Checks that everything of the manifest came."""
        self._check_complete()
        if self._sink is None or self._next < len(self._heads):
            raise InvalidStreamError(
                f"the answer to Save ended after {self._next} of {len(self._heads)} tensors"
            )
