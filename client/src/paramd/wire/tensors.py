"""Tensors as streams of messages: a header, then the payload in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from paramd.errors import InvalidMessageError, InvalidStreamError
from paramd.spec import MODES, Region, TensorHead, Version, check_name
from paramd.v1 import tensor_pb2
from paramd.wire.dtypes import dtype_from_wire, dtype_to_wire
from paramd.wire.envelope import decode_data, encode_data
from paramd.wire.messages import (
    context_from_wire,
    context_to_wire,
    part_from_wire,
    part_to_wire,
    stype_from_wire,
    stype_to_wire,
)

__all__ = [
    "CHUNK_BYTES",
    "TensorReceiver",
    "byte_view",
    "data_messages",
    "head_from_wire",
    "head_to_wire",
    "region_from_wire",
    "region_to_wire",
    "tensor_messages",
]

# Measured (docs/performance.md): smaller chunks cost at 1 to 64 MB, larger ones gain nothing.
CHUNK_BYTES: Final = 1 << 20

# Up to this size a message of its own costs more than two further copies.
_SMALL_BYTES: Final = 128 << 10
_PACK_BYTES: Final = 768 << 10
# About what a header adds.
_HEAD_BYTES: Final = 64

_MAX_RANK: Final = 32
_MODE_NAMES: Final = {
    1: "assign",
    2: "add",
    3: "subtract",
    4: "multiply",
    5: "divide",
    6: "by_grad_req",
    7: "assign_rows",
}
_MODE_NUMBERS: Final = {name: number for number, name in _MODE_NAMES.items()}
assert tuple(_MODE_NUMBERS) == MODES


def region_to_wire(region: Region) -> tensor_pb2.Region:
    """The message of a region."""
    return tensor_pb2.Region(
        ranges=[
            tensor_pb2.Range(begin=begin, count=count, step=step) for begin, count, step in region
        ]
    )


def region_from_wire(message: tensor_pb2.Region) -> Region:
    """The region of a message. Whether an array has it is for its owner to check."""
    if len(message.ranges) > _MAX_RANK:
        raise InvalidStreamError(f"a region has at most {_MAX_RANK} axes")
    return tuple((part.begin, part.count, part.step) for part in message.ranges)


def head_to_wire(head: TensorHead) -> tensor_pb2.TensorHeader:
    """The message of a tensor's header."""
    message = tensor_pb2.TensorHeader(
        name=head.name,
        shape=tensor_pb2.Shape(dimensions=head.shape),
        dtype=dtype_to_wire(head.dtype),  # type: ignore[arg-type]
        stype=stype_to_wire(head.stype),
        size_bytes=head.size_bytes,
        num_rows=head.num_rows,
        mode=_MODE_NUMBERS.get(head.mode, 0),  # type: ignore[arg-type]
        two_bit_threshold=head.two_bit_threshold,
    )
    if head.context is not None:
        message.context.CopyFrom(context_to_wire(head.context))
    if head.version is not None:
        message.version.epoch = head.version.epoch
        message.version.counter = head.version.counter
    if head.step is not None:
        message.step.trainer, message.step.number = head.step
    if head.region is not None:
        message.region.CopyFrom(region_to_wire(head.region))
        message.region.SetInParent()
    if head.part is not None:
        message.part.CopyFrom(part_to_wire(head.part))
    return message


def head_from_wire(message: tensor_pb2.TensorHeader) -> TensorHead:
    """The header of a message, checked against itself.

    Raises:
        InvalidStreamError: where its sizes are negative, too large, or contradict each other.
        InvalidNameError, InvalidArgumentError: for what no tensor can be.
    """
    name = check_name(message.name)
    shape = tuple(message.shape.dimensions)
    if len(shape) > _MAX_RANK or any(dimension < 0 for dimension in shape):
        raise InvalidStreamError(
            f"tensor {name!r}: a shape has at most {_MAX_RANK} dimensions, none negative, but got "
            f"{shape[:40]}",
            parameter=name,
        )
    stype = stype_from_wire(message.stype)
    head = TensorHead(
        name=name,
        shape=shape,
        dtype=dtype_from_wire(message.dtype),
        stype=stype,
        num_rows=message.num_rows,
        context=context_from_wire(message.context) if message.HasField("context") else None,
        version=(
            Version(message.version.epoch, message.version.counter)
            if message.HasField("version")
            else None
        ),
        region=region_from_wire(message.region) if message.HasField("region") else None,
        mode=_MODE_NAMES.get(message.mode, ""),
        two_bit_threshold=message.two_bit_threshold,
        step=(message.step.trainer, message.step.number) if message.HasField("step") else None,
        part=part_from_wire(message.part) if message.HasField("part") else None,
    )
    _check_sizes(head, message.size_bytes)
    return head


def _check_sizes(head: TensorHead, size_bytes: int) -> None:
    wrong = ""
    if head.stype == "csr":
        wrong = "csr tensors are not sent"
    elif head.stype == "default" and head.num_rows != 0:
        wrong = f"a dense tensor has no num_rows, but got {head.num_rows}"
    elif head.stype == "row_sparse" and not head.shape:
        wrong = "a row_sparse tensor has at least one dimension"
    elif head.stype == "row_sparse" and not 0 <= head.num_rows <= head.shape[0]:
        wrong = f"num_rows is 0 to {head.shape[0]}, but got {head.num_rows}"
    elif head.two_bit_threshold and (head.stype != "default" or not _positive(head)):
        wrong = "only a dense tensor is compressed, by a threshold above 0"
    elif size_bytes != head.size_bytes:
        wrong = (
            f"shape {head.shape} of {head.dtype} takes {head.size_bytes} bytes, but the header "
            f"says {size_bytes}"
        )
    if wrong:
        raise InvalidStreamError(f"tensor {head.name!r}: {wrong}", parameter=head.name)


def _positive(head: TensorHead) -> bool:
    return 0 < head.two_bit_threshold < math.inf


def byte_view(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of a C-contiguous array, without a copy; writable if the array is."""
    if array.size == 0:
        return memoryview(bytearray())
    return array.reshape(-1).view(np.uint8).data


def data_messages(payload: memoryview) -> Iterator[bytes]:
    """The messages that carry a payload, each at most CHUNK_BYTES of it."""
    for begin in range(0, len(payload), CHUNK_BYTES):
        yield encode_data(payload[begin : begin + CHUNK_BYTES])


def tensor_messages(
    tensors: Iterable[tuple[TensorHead, Iterable[np.ndarray[Any, Any]]]],
    message_class: type[Any],
) -> Iterator[bytes]:
    """The messages that carry tensors: small ones packed together, others in chunks.

    Args:
        tensors: each with the arrays, C-contiguous, that make its payload. One at a time is taken
            and copied, so that they may share memory; but not those of a tensor of up to 128 KiB.
        message_class: of the stream's messages.
    """
    pack = tensor_pb2.TensorPack()
    packed = 0
    for head, parts in tensors:
        size = head.size_bytes
        if packed and (size > _SMALL_BYTES or packed + size > _PACK_BYTES):
            yield message_class(pack=pack).SerializeToString()
            pack, packed = tensor_pb2.TensorPack(), 0
        if size > _SMALL_BYTES:
            yield message_class(header=head_to_wire(head)).SerializeToString()
            for part in parts:
                yield from data_messages(byte_view(part))
        else:
            data = b"".join([byte_view(part) for part in parts])
            pack.tensors.add(header=head_to_wire(head), data=data)
            packed += size + _HEAD_BYTES
    if packed:
        yield message_class(pack=pack).SerializeToString()


class TensorReceiver:
    """Takes the messages of a stream of tensors and puts the payload where it belongs.

    Args:
        message_class: generated class of the stream's messages.
        place: called with each header; gives the buffers (writable, flat bytes) that the payload
            fills in turn. What it raises ends the stream.
        complete: called with each header when its payload is there.
        other: called with each message that is neither header nor data; without it such a
            message is an error.
    """

    def __init__(
        self,
        message_class: type[Any],
        place: Callable[[TensorHead], Sequence[memoryview]],
        *,
        complete: Callable[[TensorHead], None] | None = None,
        other: Callable[[Any], None] | None = None,
    ) -> None:
        self._message_class = message_class
        self._place = place
        self._complete = complete
        self._other = other
        self._head: TensorHead | None = None
        self._left: list[memoryview] = []
        self._missing = 0
        self.num_tensors = 0

    def feed(self, message: bytes) -> None:
        """Takes the next message.

        Raises:
            InvalidMessageError: for bytes that are no message.
            InvalidStreamError: for a message that cannot come now, or payload that runs over.
        """
        payload = decode_data(message)
        if payload is None:
            payload = self._feed_slowly(message)
        if payload is not None:
            self._put(payload)

    def finish(self) -> None:
        """Checks that no tensor is left half-way.

        Raises:
            InvalidStreamError: where bytes are missing.
        """
        if self._head is not None:
            raise InvalidStreamError(
                f"tensor {self._head.name!r}: the stream ended {self._missing} bytes early, of "
                f"{self._head.size_bytes}",
                parameter=self._head.name,
            )

    def _feed_slowly(self, message: bytes) -> memoryview | None:
        try:
            parsed = self._message_class.FromString(message)
        except DecodeError as err:
            name = self._message_class.DESCRIPTOR.name
            raise InvalidMessageError(f"{len(message)} bytes are no {name} message") from err
        part = parsed.WhichOneof("part")
        if part == "data":
            return memoryview(parsed.data)
        if part == "header":
            self.finish()
            self._open(head_from_wire(parsed.header))
        elif part == "pack":
            self.finish()
            for tensor in parsed.pack.tensors:
                self._open(head_from_wire(tensor.header))
                data = tensor.data
                if data:
                    self._put(memoryview(data))
                self.finish()
        elif self._other is not None and part is not None:
            self.finish()
            self._other(parsed)
        else:
            raise InvalidStreamError(f"unexpected message in a stream of tensors: {part}")
        return None

    def _open(self, head: TensorHead) -> None:
        self._left = [view for view in self._place(head) if len(view)]
        self._head = head
        self._missing = head.size_bytes
        self.num_tensors += 1
        if not self._missing:
            self._close()

    def _close(self) -> None:
        head, self._head = self._head, None
        self._left = []
        if self._complete is not None and head is not None:
            self._complete(head)

    def _put(self, payload: memoryview) -> None:
        size = len(payload)
        if self._head is None:
            raise InvalidStreamError(f"{size} bytes of payload without a header before them")
        if size > self._missing:
            raise InvalidStreamError(
                f"tensor {self._head.name!r}: the payload runs over its "
                f"{self._head.size_bytes} bytes",
                parameter=self._head.name,
            )
        self._missing -= size
        while len(payload):
            target = self._left[0]
            count = min(len(payload), len(target))
            target[:count] = payload[:count]
            payload = payload[count:]
            if count == len(target):
                self._left.pop(0)
            else:
                self._left[0] = target[count:]
        if not self._missing:
            self._close()
