"""Buffers by context as arrays of a snapshot, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paramd.context import Context
from paramd.spec import Shape
from paramd_server.arrays.backend import Buffer, HostArray
from paramd_server.arrays.devices import Devices
from paramd_server.core.held_buffers import HeldBuffer, ParameterLock
from paramd_server.core.snapshot import ArraysReader, SavedArray

__all__ = ["restore_buffers", "save_buffers"]


def save_buffers(
    key: str, buffers: Mapping[Context, HeldBuffer], lock: ParameterLock
) -> tuple[list[dict[str, Any]], list[SavedArray]]:
    """The arrays of some buffers, and what the document says of them.

    Buffers of equal bytes share one array. One whose bytes are all zero has none, so that a table
    that was never touched costs nothing on either side.

    Args:
        key: of the arrays, which become 'key/0', 'key/1', ...
        buffers: held, of one shape and dtype.
        lock: of their parameter.

    Returns:
        For each buffer, in their order, {'context': text, 'array': key, or None for zeros}; and
        the arrays.

    Raises:
        SnapshotError: where their content could not be kept.
    """
    entries: list[dict[str, Any]] = []
    arrays: list[SavedArray] = []
    stored: list[HeldBuffer] = []
    for context, held in buffers.items():
        array: str | None = None
        if any(bool(_bytes(piece).any()) for piece in held.peek(lock)):
            for known, other in zip(arrays, stored, strict=True):
                if _same_bytes(held, other, lock):
                    array = known.key
                    break
            else:
                array = f"{key}/{len(arrays)}"
                arrays.append(_saved(array, held, lock))
                stored.append(held)
        if array is None or held is not stored[-1]:
            # Nobody will read it any more.
            held.release()
        entries.append({"context": str(context), "array": array})
    return entries, arrays


def restore_buffers(
    entries: Sequence[Mapping[str, Any]],
    arrays: ArraysReader,
    shape: Shape,
    dtype: np.dtype[Any],
    devices: Devices,
) -> dict[Context, Buffer]:
    """The buffers again, read straight into the memory that they keep.

    Args:
        entries: what `save_buffers` gave.
        arrays: of the section.
        shape: of every buffer.
        dtype: of every buffer.
        devices: where they will be.

    Raises:
        ContextNotAvailableError: where the server lacks a context.
        MemoryLimitError: where they do not fit.
        SnapshotError: where an array is another one, or damaged.
    """
    buffers: dict[Context, Buffer] = {}
    first: dict[str, Buffer] = {}
    for entry in entries:
        context, key = Context.from_string(entry["context"]), entry["array"]
        backend = devices.backend(context)
        if context in buffers:
            raise ValueError(f"context {context} comes twice")
        if key is None:
            buffers[context] = backend.zeros(shape, dtype, context)
        elif key in first:
            buffers[context] = backend.empty(shape, dtype, context)
            devices.copy(first[key], buffers[context])
        else:
            staged = devices.stage(shape, dtype)
            arrays.read(key, devices.staged_array(staged))
            first[key] = buffers[context] = backend.adopt(staged, context)
    return buffers


def _saved(key: str, held: HeldBuffer, lock: ParameterLock) -> SavedArray:
    return SavedArray(key, held.shape, held.dtype, lambda: held.read(lock))


def _bytes(piece: HostArray) -> HostArray:
    return piece.view(np.uint8)


def _same_bytes(one: HeldBuffer, other: HeldBuffer, lock: ParameterLock) -> bool:
    # As bytes: NaN is equal to itself, and 0 is not -0.
    pairs = zip(one.peek(lock), other.peek(lock), strict=True)
    return all(np.array_equal(_bytes(left), _bytes(right)) for left, right in pairs)
