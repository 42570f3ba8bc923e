"""Tensors to send: arrays of any layout as streams of messages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

import numpy as np

from paramd.context import Context
from paramd.errors import DTypeMismatchError
from paramd.files import RowSparseRows
from paramd.spec import Part, Region, Shape, TensorHead
from paramd.transport.records import PackedGradient, TensorWrite
from paramd.v1 import tensor_pb2
from paramd.wire.dtypes import dtype_of
from paramd.wire.envelope import Payload
from paramd.wire.tensors import tensor_messages

__all__ = ["BATCH_BYTES", "batches", "id_blocks", "unended_messages", "write_messages"]

T = TypeVar("T")

# A unary request larger than this is split.
BATCH_BYTES = 1 << 20

# Rows come back while later ids are still being sent; small enough that the server begins soon.
_IDS_PER_BLOCK = 8192
# How many headers are remembered.
_KNOWN_HEADS: Final = 4096


def batches(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """The items in their order, in lists of at most about BATCH_BYTES."""
    batch: list[T] = []
    total = 0
    for item in items:
        size = size_of(item) + 8
        if batch and total + size > BATCH_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch


def _as_sent(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array itself where it is C-contiguous and little-endian, else a copy that is."""
    try:
        dtype = dtype_of(array.dtype)
    except TypeError as err:
        raise DTypeMismatchError(f"parameter {name!r}: {err}", parameter=name) from None
    return np.asarray(array, dtype=dtype, order="C")


@functools.lru_cache(_KNOWN_HEADS)
def _dense_head(
    name: str,
    shape: Shape,
    dtype: np.dtype[Any],
    context: Context | None,
    region: Region | None,
    mode: str,
    part: Part | None,
) -> TensorHead:
    """The header of a dense tensor: workers send the same ones in every step."""
    return TensorHead(name, shape, dtype, context=context, region=region, mode=mode, part=part)


def _parts(write: TensorWrite) -> tuple[TensorHead, list[np.ndarray[Any, Any]]]:
    value = write.value
    if isinstance(value, PackedGradient):
        head = TensorHead(
            write.name,
            value.shape,
            value.dtype,
            mode=write.mode,
            two_bit_threshold=value.threshold,
            part=write.part,
        )
        return head, [value.packed]
    if isinstance(value, RowSparseRows):
        ids = np.asarray(value.ids, dtype="<i8", order="C")
        rows = _as_sent(write.name, value.rows)
        head = TensorHead(
            write.name,
            value.shape,
            rows.dtype,
            stype="row_sparse",
            num_rows=len(ids),
            context=write.context,
            region=write.region,
            mode=write.mode,
            part=write.part,
        )
        return head, [ids, rows]
    array = _as_sent(write.name, value)
    head = _dense_head(
        write.name, array.shape, array.dtype, write.context, write.region, write.mode, write.part
    )
    return head, [array]


def write_messages(writes: Iterable[TensorWrite], message_class: type[Any]) -> Iterator[Payload]:
    """The messages of tensors, then the end of the stream.

    Args:
        writes: the tensors; one at a time is taken.
        message_class: of the stream's messages.
    """
    yield from unended_messages(writes, message_class)
    yield message_class(end=tensor_pb2.StreamEnd()).SerializeToString()


def unended_messages(writes: Iterable[TensorWrite], message_class: type[Any]) -> Iterator[Payload]:
    """The messages of tensors, without the end of the stream."""
    yield from tensor_messages(map(_parts, writes), message_class)


def id_blocks(ids: np.ndarray[Any, Any], message_class: type[Any]) -> Iterator[bytes]:
    """The ids of a pull of rows, in blocks.

    Args:
        ids: int64, shape (n,).
        message_class: of the stream's messages.
    """
    sent = np.asarray(ids, dtype="<i8", order="C")
    for begin in range(0, len(sent), _IDS_PER_BLOCK):
        block = sent[begin : begin + _IDS_PER_BLOCK].tobytes()
        yield message_class(ids=block).SerializeToString()
