"""How the elements of a value meet those of a region, and how both are cut into pieces.

Strides count elements; a stride of 0 repeats one element along its axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import as_strided

from paramd.spec import Region, Shape
from paramd_server.arrays.backend import HostArray, region_shape

__all__ = [
    "ID_BYTES",
    "Layout",
    "Piece",
    "RowPiece",
    "aligned",
    "contiguous_strides",
    "merged_axes",
    "region_layout",
    "row_pieces",
    "value_pieces",
]

Strides = tuple[int, ...]

ID_BYTES: Final = 8
# What every element type's address is a multiple of, and what memory is read by.
_ALIGNMENT: Final = 256


def aligned(size: int) -> int:
    """The next multiple of what parts of a chunk begin at."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def contiguous_strides(shape: Shape) -> Strides:
    """The strides of an array in C order."""
    strides = []
    stride = 1
    for size in reversed(shape):
        strides.append(stride)
        stride *= size
    return tuple(reversed(strides))


@dataclass(frozen=True)
class Layout:
    """Which elements of a flat array make another array.

    Attributes:
        shape: of that array.
        strides: along each of its axes.
        base: its first element.
    """

    shape: Shape
    strides: Strides
    base: int


def region_layout(shape: Shape, region: Region | None) -> Layout:
    """Where a region of a contiguous array lies.

    Args:
        shape: of the array.
        region: none of whose counts is 0; None for all.
    """
    strides = contiguous_strides(shape)
    if region is None:
        return Layout(shape, strides, 0)
    return Layout(
        region_shape(region),
        tuple(step * stride for (_, _, step), stride in zip(region, strides, strict=True)),
        sum(begin * stride for (begin, _, _), stride in zip(region, strides, strict=True)),
    )


def merged_axes(shape: Shape, *strides: Strides) -> tuple[Shape, list[Strides]]:
    """The same elements in the same order with as few axes as they allow, but one at least.

    Args:
        shape: with no 0 in it.
        strides: of each array that has this shape.
    """
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        steps = [each[axis] for each in strides]
        if sizes and all(each[-1] == step * size for each, step in zip(merged, steps, strict=True)):
            sizes[-1] *= size
            for each, step in zip(merged, steps, strict=True):
                each[-1] = step
            continue
        sizes.append(size)
        for each, step in zip(merged, steps, strict=True):
            each.append(step)
    if not sizes:
        return (1,), [(1,) for _ in strides]
    return tuple(sizes), [tuple(each) for each in merged]


@dataclass(frozen=True)
class Piece:
    """Elements of a value in host memory, and where they go.

    Attributes:
        value: the distinct ones: its shape is that of the target, but for axes of size 1 along
            which it repeats.
        target: the elements that it goes to.
    """

    value: HostArray
    target: Layout

    @property
    def strides(self) -> Strides:
        """Those of the packed value along the axes of the target."""
        packed = contiguous_strides(self.value.shape)
        return tuple(
            stride if size > 1 else 0 for stride, size in zip(packed, self.value.shape, strict=True)
        )


def value_pieces(value: HostArray, target: Layout, max_elements: int) -> Iterator[Piece]:
    """Cuts a value that broadcasts to its target, so that each piece can be packed.

    What the value repeats, be it by broadcasting or by strides of 0, is packed once.

    Args:
        value: of any strides.
        target: no axis of which is 0.
        max_elements: of a packed piece, positive.
    """
    # As NumPy assigns: further axes of size 1 before those of the target do not matter.
    extra = max(value.ndim - len(target.shape), 0)
    spread = np.broadcast_to(value.reshape(value.shape[extra:]), target.shape)
    shape, (strides, byte_strides) = merged_axes(target.shape, target.strides, spread.strides)
    if math.prod(target.shape) == 1:
        distinct = spread.reshape(1)
    else:
        sizes = [size if step else 1 for size, step in zip(shape, byte_strides, strict=True)]
        distinct = as_strided(spread, sizes, byte_strides, writeable=False)
    yield from _cut(distinct, Layout(shape, strides, target.base), max_elements)


def _cut(value: HostArray, target: Layout, max_elements: int) -> Iterator[Piece]:
    if value.size <= max_elements:
        yield Piece(value, target)
        return
    axis = next(axis for axis, size in enumerate(value.shape) if size > 1)
    size = value.shape[axis]
    step = max(max_elements // (value.size // size), 1)
    for begin in range(0, size, step):
        count = min(step, size - begin)
        shape = (*target.shape[:axis], count, *target.shape[axis + 1 :])
        base = target.base + begin * target.strides[axis]
        part = value[(slice(None),) * axis + (slice(begin, begin + count),)]
        yield from _cut(part, Layout(shape, target.strides, base), max_elements)


@dataclass(frozen=True)
class RowPiece:
    """Elements of packed rows.

    Attributes:
        begin: the first one, counted over all the rows.
        count: how many.
        first: the row of the first one.
        last: the row after that of the last one.
    """

    begin: int
    count: int
    first: int
    last: int


def row_pieces(
    num_rows: int, row_size: int, element_bytes: int, capacity: int
) -> Iterator[RowPiece]:
    """Cuts rows, so that each piece fits into a chunk with the ids of its rows.

    Args:
        num_rows: how many.
        row_size: elements of each, positive.
        element_bytes: that each takes of the chunk.
        capacity: of the chunk in bytes, of which up to 256 may go to alignment.
    """
    room = capacity - _ALIGNMENT
    per_row = row_size * element_bytes + ID_BYTES
    if per_row <= room:
        step = room // per_row
        for first in range(0, num_rows, step):
            last = min(first + step, num_rows)
            yield RowPiece(first * row_size, (last - first) * row_size, first, last)
        return
    step = (room - ID_BYTES) // element_bytes
    for row in range(num_rows):
        for column in range(0, row_size, step):
            count = min(step, row_size - column)
            yield RowPiece(row * row_size + column, count, row, row + 1)
