"""Tensors as streams of messages: headers, then the payload in chunks."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np

from paramd.errors import InvalidStreamError
from paramd.spec import MODES, Region, TensorHead, Version, check_name
from paramd.v1 import tensor_pb2
from paramd.wire.dtypes import dtype_from_wire, dtype_to_wire
from paramd.wire.envelope import Payload, joined_payload
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

# Tensors up to this size are sent together with others.
_BATCHED_BYTES: Final = 512 << 10
_BATCHED_HEADERS: Final = 1024
# From this size on a tensor of a batch is not copied before it is sent.
_HELD_BYTES: Final = 16 << 10
# Up to so much in all, one message costs less than two, although it is copied more often.
_PACKED_BYTES: Final = 8 << 10

_MAX_RANK: Final = 32
# How many headers are remembered with what they say, and how long one of them may be.
_KNOWN_HEADERS: Final = 4096
_KNOWN_BYTES: Final = 256

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


# Workers send the same headers in every step.
_known_header = functools.lru_cache(_KNOWN_HEADERS)(head_to_wire)
_known_heads: dict[bytes, TensorHead] = {}


def head_from_wire(message: tensor_pb2.TensorHeader) -> TensorHead:
    """The header of a message, checked against itself.

    Raises:
        InvalidStreamError: where its sizes are negative, too large, or contradict each other.
        InvalidNameError, InvalidArgumentError: for what no tensor can be.
    """
    data = message.SerializeToString()
    head = _known_heads.get(data)
    if head is None:
        head = _new_head(message)
        if len(data) <= _KNOWN_BYTES:
            if len(_known_heads) >= _KNOWN_HEADERS:
                # By and by those come again that are still sent.
                _known_heads.clear()
            _known_heads[data] = head
    return head


def _new_head(message: tensor_pb2.TensorHeader) -> TensorHead:
    name = check_name(message.name)
    shape = tuple(message.shape.dimensions)
    if len(shape) > _MAX_RANK or min(shape, default=0) < 0:
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
    elif size_bytes != (expected := head.size_bytes):
        wrong = (
            f"shape {head.shape} of {head.dtype} takes {expected} bytes, but the header says "
            f"{size_bytes}"
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


def data_messages(payload: memoryview) -> Iterator[memoryview]:
    """The payload in parts of at most CHUNK_BYTES: that of one data message each."""
    for begin in range(0, len(payload), CHUNK_BYTES):
        yield payload[begin : begin + CHUNK_BYTES]


def tensor_messages(
    tensors: Iterable[tuple[TensorHead, Iterable[np.ndarray[Any, Any]]]],
    message_class: type[Any],
) -> Iterator[Payload]:
    """The messages that carry tensors: small ones together, others in chunks.

    Args:
        tensors: each with the arrays, C-contiguous, that make its payload. One at a time is taken
            and copied, so that those of one tensor may share memory. The only array of a tensor of
            up to 512 KiB stays in use while further tensors are taken.
        message_class: of the stream's messages.

    Returns:
        The messages. A view among them is a payload, and valid until the next one is asked for.
    """
    batch = _Batch(message_class)
    for head, parts in tensors:
        size = head.size_bytes
        if not batch.has_room(size):
            yield from batch.take()
        if size <= _BATCHED_BYTES:
            batch.add(head, size, iter(parts))
            continue
        yield message_class(header=head_to_wire(head)).SerializeToString()
        for part in parts:
            yield from data_messages(byte_view(part))
    yield from batch.take()


class _Batch:
    """Tensors that are sent together: their headers, then all payload in one message.

    Args:
        message_class: of the stream's messages.
    """

    def __init__(self, message_class: type[Any]) -> None:
        self._message_class = message_class
        self._clear()

    def _clear(self) -> None:
        self._headers: list[tensor_pb2.TensorHeader] = []
        self._payloads: list[bytes | memoryview] = []
        self._held: list[Iterator[np.ndarray[Any, Any]]] = []
        self._size = 0

    def has_room(self, size: int) -> bool:
        """Whether a tensor of so many bytes goes with those that are there; with none, any does."""
        return not self._headers or (
            size <= _BATCHED_BYTES
            and self._size + size <= CHUNK_BYTES
            and len(self._headers) < _BATCHED_HEADERS
        )

    def add(self, head: TensorHead, size: int, parts: Iterator[np.ndarray[Any, Any]]) -> None:
        """Takes a tensor of `size` bytes."""
        self._headers.append(_known_header(head))
        self._size += size
        if size < _HELD_BYTES:
            self._payloads.append(b"".join([bytes(byte_view(part)) for part in parts]))
            return
        for part in parts:
            view = byte_view(part)
            if len(view) == size:
                # Asked for the next one, its owner may write to this one.
                self._payloads.append(view)
                self._held.append(parts)
                return
            self._payloads.append(bytes(view))

    def take(self) -> Iterator[Payload]:
        """The messages of what is there; then it is empty."""
        if not self._headers:
            return
        if self._size <= _PACKED_BYTES:
            tensors = [
                tensor_pb2.PackedTensor(header=header, data=bytes(payload))
                for header, payload in zip(self._headers, self._payloads, strict=True)
            ]
            yield self._message_class(
                pack=tensor_pb2.TensorPack(tensors=tensors)
            ).SerializeToString()
        else:
            heads = tensor_pb2.TensorHeads(headers=self._headers)
            yield self._message_class(heads=heads).SerializeToString()
            if len(self._payloads) == 1:
                yield memoryview(self._payloads[0])
            else:
                yield joined_payload(self._payloads)
        held = self._held
        self._clear()
        for parts in held:
            # Whoever lends the memory has it back.
            for _ in parts:
                pass
