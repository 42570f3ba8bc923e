"""Reads and writes of whole parameters, taken apart for the shards: pure functions.

A part is some rows (axis 0) of a parameter: consecutive ones, or every n-th. What is read or
written is a range of rows; what a shard has of it is again a range, of the rows that it holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from paramd.compression import packed_size
from paramd.errors import (
    BroadcastError,
    InvalidStreamError,
    RowIdError,
    ShapeMismatchError,
    WrongStorageTypeError,
)
from paramd.files import RowSparseRows
from paramd.spec import Part, Region, Shape, check_region
from paramd.transport.cluster.placed import Placed
from paramd.transport.records import PackedGradient, TensorWrite

__all__ = [
    "Slice",
    "check_row_ids",
    "check_write",
    "cut",
    "local_ids",
    "merged_rows",
    "repack",
    "split_write",
    "whole_ids",
]

Array = np.ndarray[Any, Any]
Ids = np.ndarray[Any, np.dtype[np.int64]]
Packed = np.ndarray[Any, np.dtype[np.uint8]]

_CODES_A_BYTE: Final = 4
# Modes in which rows that do not come are not touched.
_ROWS_ONLY: Final = ("assign_rows", "add", "subtract")


@dataclass(frozen=True)
class Slice:
    """What one shard has of a range of rows.

    Attributes:
        local: the range of its own rows: begin, count, step.
        where: which of the asked-for rows they are.
    """

    local: tuple[int, int, int]
    where: slice


def cut(rows: tuple[int, int, int], part: Part) -> Slice | None:
    """What a part has of a range of rows.

    Row begin + k * step is row j of the part where it is part.begin + j * part.step: those k are
    again evenly spaced, by part.step / gcd(step, part.step).

    Args:
        rows: begin, count and step (not 0, may be negative) of rows of the whole parameter.
        part: what the shard has.

    Returns:
        None where it has none of them.
    """
    begin, count, step = rows
    divisor = math.gcd(step, part.step)
    distance = part.begin - begin
    if count < 1 or distance % divisor:
        return None
    period = part.step // divisor
    # The least k at which a row of that residue comes: step * k = distance (modulo part.step).
    first = (distance // divisor) * pow(step // divisor, -1, period) % period if period > 1 else 0
    low, high = _between(begin, step, part)
    low = max(low, 0)
    first += -(-(low - first) // period) * period if low > first else 0
    last = min(high, count - 1)
    if first > last:
        return None
    chosen = (last - first) // period + 1
    local_begin = (begin + first * step - part.begin) // part.step
    local_step = step * period // part.step if chosen > 1 else 1
    end = first + (chosen - 1) * period + 1
    return Slice((local_begin, chosen, local_step), slice(first, end, period))


def _between(begin: int, step: int, part: Part) -> tuple[int, int]:
    """The first and the last k at which begin + k * step is within the span of a part."""
    low, high = part.begin, part.begin + (part.count - 1) * part.step
    if step < 0:
        begin, step, low, high = -begin, -step, -high, -low
    return -(-(low - begin) // step), (high - begin) // step


def check_row_ids(name: str, ids: Ids, num_rows: int) -> None:
    """Checks row ids that are to be sent.

    Raises:
        RowIdError: for an id out of range.
        InvalidStreamError: for ids that are not sorted and unique.
    """
    if not ids.size:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= num_rows:
        raise RowIdError(
            f"Parameter '{name}': row ids are 0 to {num_rows - 1}, but got "
            f"{low if low < 0 else high}",
            parameter=name,
        )
    if not bool(np.all(ids[1:] > ids[:-1])):
        raise InvalidStreamError(
            f"Parameter '{name}': row ids in a stream must be sorted and unique", parameter=name
        )


def local_ids(ids: Ids, parts: Mapping[int, Part]) -> dict[int, tuple[Ids, Ids | slice]]:
    """The rows of each part among some rows.

    Args:
        ids: of the whole parameter, sorted and unique.
        parts: what each shard has.

    Returns:
        By shard their numbers there, and which of `ids` they are.
    """
    # Divisions are slow, and parts have one step.
    divided = {step: np.divmod(ids, step) for step in {part.step for part in parts.values()} - {1}}
    found: dict[int, tuple[Ids, Ids | slice]] = {}
    for shard, part in parts.items():
        if part.step == 1:
            bounds = np.searchsorted(ids, (part.begin, part.begin + part.count))
            where = slice(int(bounds[0]), int(bounds[1]))
            found[shard] = ids[where] - part.begin, where
        else:
            numbers, remainders = divided[part.step]
            chosen = np.flatnonzero(remainders == part.begin)
            found[shard] = numbers[chosen], chosen
    return found


def whole_ids(ids: Ids, part: Part) -> Ids:
    """The rows of the whole parameter that a shard's own rows are."""
    return ids * part.step + part.begin


def check_write(placed: Placed, write: TensorWrite, *, gradient: bool) -> None:
    """Checks what is to be written to a parameter that is spread, as one server would.

    So that nothing is sent to any shard where one of them would refuse it.

    Args:
        placed: the parameter.
        write: of a value, or of a gradient.
        gradient: which of the two.

    Raises:
        ShapeMismatchError, BroadcastError, InvalidRegionError, WrongStorageTypeError: with the
            shapes of the whole parameter.
    """
    if gradient:
        _check_gradient(placed, write)
    else:
        _check_value(placed, write)


def _check_value(placed: Placed, write: TensorWrite) -> None:
    value, shape = write.value, placed.whole
    sparse = isinstance(value, RowSparseRows)
    if write.context is None and write.region is None and write.mode == "assign":
        if value.shape != shape:
            raise ShapeMismatchError(
                f"Parameter '{write.name}': expected shape {shape}, but got {value.shape}",
                parameter=write.name,
            )
    elif sparse and write.mode in _ROWS_ONLY:
        _check_rows(write, shape)
    elif placed.stype != "default":
        raise WrongStorageTypeError(
            f"Parameter '{write.name}' is {placed.stype}: its value is only written whole, by "
            "set_data(), or by rows, by set_row_sparse_data()",
            parameter=write.name,
        )
    elif sparse:
        _check_rows(write, shape)
        if write.mode != "assign":
            raise WrongStorageTypeError(
                f"Parameter '{write.name}': rows can only be assigned to a dense value",
                parameter=write.name,
            )
    else:
        _check_dense(write, shape)


def _check_gradient(placed: Placed, write: TensorWrite) -> None:
    value, shape = write.value, placed.whole
    if write.mode == "by_grad_req" and (value.shape != shape or write.region is not None):
        raise ShapeMismatchError(
            f"Parameter '{write.name}': expected a gradient of shape {shape}, but got "
            f"{value.shape}",
            parameter=write.name,
        )
    sparse = isinstance(value, RowSparseRows)
    if sparse:
        _check_rows(write, shape)
    else:
        _check_dense(write, shape)
    if (sparse or placed.grad_stype == "row_sparse") and (
        write.mode in ("multiply", "divide") or write.region is not None
    ):
        raise WrongStorageTypeError(
            f"Parameter '{write.name}': a row_sparse gradient can be assigned, added and "
            "subtracted, and only as a whole",
            parameter=write.name,
        )


def _check_rows(write: TensorWrite, shape: Shape) -> None:
    if write.value.shape != shape:
        raise ShapeMismatchError(
            f"Parameter '{write.name}': expected a row_sparse value of shape {shape}, but got "
            f"{write.value.shape}",
            parameter=write.name,
        )
    if write.region is not None:
        raise WrongStorageTypeError(
            f"Parameter '{write.name}': rows cannot be written to a part of an array",
            parameter=write.name,
        )


def _check_dense(write: TensorWrite, shape: Shape) -> None:
    target = shape if write.region is None else check_region(write.name, write.region, shape)
    trimmed = _trimmed(write.value.shape, len(target))
    if len(trimmed) > len(target) or not all(
        one in (1, other) for one, other in zip(trimmed[::-1], target[::-1], strict=False)
    ):
        raise BroadcastError(
            f"Parameter '{write.name}': could not broadcast a value of shape {write.value.shape} "
            f"into shape {target}",
            parameter=write.name,
        )


def _trimmed(shape: Shape, rank: int) -> Shape:
    # NumPy drops leading dimensions of 1 when it assigns.
    while len(shape) > rank and shape[0] == 1:
        shape = shape[1:]
    return shape


def split_write(placed: Placed, write: TensorWrite, *, gradient: bool) -> dict[int, TensorWrite]:
    """What each shard is sent of a write to a parameter that is spread.

    Gradients reach every shard that has a part, some with nothing in them: so that a buffer that
    was written is one everywhere.

    Args:
        placed: the parameter.
        write: for which `check_write` holds.
        gradient: whether it is of a gradient.
    """
    value = write.value
    if isinstance(value, RowSparseRows):
        every = gradient or write.mode not in _ROWS_ONLY
        return _split_rows(placed, write, value, every=every)
    if isinstance(value, PackedGradient):
        return {
            shard: replace(write, value=repack(value, part), part=part)
            for shard, part in placed.parts.items()
        }
    return _split_dense(placed, write, value, every=gradient)


def _split_rows(
    placed: Placed, write: TensorWrite, value: RowSparseRows, *, every: bool
) -> dict[int, TensorWrite]:
    ids = np.asarray(value.ids)
    writes: dict[int, TensorWrite] = {}
    for shard, (mine, where) in local_ids(ids, placed.parts).items():
        if every or len(mine):
            part = placed.parts[shard]
            rows = RowSparseRows(mine, value.rows[where], part.local_shape)
            writes[shard] = replace(write, value=rows, part=part)
    if not writes:
        part = placed.parts[placed.home]
        nothing = RowSparseRows(ids[:0], value.rows[:0], part.local_shape)
        writes[placed.home] = replace(write, value=nothing, part=part)
    return writes


def _split_dense(
    placed: Placed, write: TensorWrite, value: Array, *, every: bool
) -> dict[int, TensorWrite]:
    shape = placed.whole
    region = write.region
    rows = (0, shape[0], 1) if region is None else region[0]
    value = value.reshape(_trimmed(value.shape, len(shape)))
    by_rows = value.ndim == len(shape) and value.shape[0] != 1
    writes: dict[int, TensorWrite] = {}
    for shard, part in placed.parts.items():
        there = cut(rows, part)
        if there is None:
            if every:
                writes[shard] = _nothing(write, value, region, part)
            continue
        local = None if region is None else (there.local, *region[1:])
        piece = value[there.where] if by_rows else value
        writes[shard] = replace(write, value=piece, region=local, part=part)
    if not writes:
        writes[placed.home] = _nothing(write, value, region, placed.parts[placed.home])
    return writes


def _nothing(write: TensorWrite, value: Array, region: Region | None, part: Part) -> TensorWrite:
    """A write of no element, to a shard that has none of the region."""
    assert region is not None, "every shard has rows of the whole"
    nothing = tuple((0, 0, 1) for _ in region)
    return replace(write, value=np.zeros((), value.dtype), region=nothing, part=part)


def repack(gradient: PackedGradient, part: Part) -> PackedGradient:
    """The rows of a part of a compressed gradient, as compressed ones.

    Args:
        gradient: of the whole parameter: two bits for each element, the first in the two highest
            bits of a byte.
        part: what the shard has.
    """
    row = math.prod(gradient.shape[1:])
    size = part.count * row
    if part.step == 1:
        packed = _packed_range(gradient.packed, part.begin * row, size)
    else:
        codes = np.empty((gradient.packed.size, _CODES_A_BYTE), np.uint8)
        for place in range(_CODES_A_BYTE):
            codes[:, place] = gradient.packed >> np.uint8(6 - 2 * place) & np.uint8(3)
        rows = codes.reshape(-1)[: math.prod(gradient.shape)].reshape(-1, row)
        packed = _pack(rows[part.begin :: part.step].reshape(-1))
    return PackedGradient(packed, part.local_shape, gradient.dtype, gradient.threshold)


def _packed_range(packed: Packed, begin: int, size: int) -> Packed:
    """The bytes of some consecutive elements."""
    first, shift = divmod(begin, _CODES_A_BYTE)
    count = packed_size(size)
    taken = packed[first : first + count]
    if shift:
        following = np.zeros(count, np.uint8)
        rest = packed[first + 1 : first + 1 + count]
        following[: len(rest)] = rest
        bits = np.uint8(2 * shift)
        taken = (taken << bits) | (following >> np.uint8(8 - 2 * shift))
    padding = -size % _CODES_A_BYTE
    if padding and count:
        taken = taken.copy()
        taken[-1] &= np.uint8(0xFF << 2 * padding & 0xFF)
    return taken


def _pack(codes: Packed) -> Packed:
    padded = np.zeros(packed_size(codes.size) * _CODES_A_BYTE, np.uint8)
    padded[: codes.size] = codes
    by_byte = padded.reshape(-1, _CODES_A_BYTE)
    packed: Packed = np.zeros(len(by_byte), np.uint8)
    for place in range(_CODES_A_BYTE):
        packed |= by_byte[:, place] << np.uint8(6 - 2 * place)
    return packed


def merged_rows(placed: Placed, pieces: Mapping[int, RowSparseRows]) -> RowSparseRows:
    """The rows of all shards' row_sparse arrays, sorted."""
    parts = placed.parts
    ids = np.concatenate([whole_ids(piece.ids, parts[shard]) for shard, piece in pieces.items()])
    rows = np.concatenate([piece.rows for piece in pieces.values()])
    if any(part.step != 1 for part in parts.values()):
        order = np.argsort(ids, kind="stable")
        ids, rows = ids[order], rows[order]
    return RowSparseRows(ids, rows, placed.whole)
