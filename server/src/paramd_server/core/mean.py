"""The mean over a parameter's copies, computed in blocks that fit the cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from paramd.wire.dtypes import BFLOAT16
from paramd_server.arrays.backend import Buffer, HostArray
from paramd_server.core.stored_parameter import StoredParameter

__all__ = ["FlatSource", "mean_blocks", "mean_of_arrays", "mean_of_buffers", "mean_of_copies"]

# Gives the elements of a flattened array from one place to another.
FlatSource = Callable[[int, int], HostArray]

_BLOCK: Final = 1 << 16


def mean_of_arrays(arrays: Sequence[HostArray]) -> HostArray:
    """The elementwise mean, in the dtype of the arrays.

    float16 is summed in float32, bfloat16 (which has float32's range) in float64, and integers
    exactly, so that nothing overflows on the way; integers round half to even, truth values go
    by the majority with ties to False.

    Args:
        arrays: of one shape and dtype, at least one.
    """
    first, count = arrays[0], len(arrays)
    if count == 1:
        return first
    if first.dtype.kind in "iu":
        return _integer_mean(arrays)
    if first.dtype.kind == "b":
        votes = np.sum([array.astype(np.int64) for array in arrays], axis=0)
        return np.asarray(2 * votes > count)
    wide = first.dtype
    if wide.itemsize < 4:
        wide = np.dtype(np.float64 if wide == BFLOAT16 else np.float32)
    total = first.astype(wide)
    with np.errstate(all="ignore"):
        for array in arrays[1:]:
            total += array
        total /= count
        return total.astype(first.dtype)


def _integer_mean(arrays: Sequence[HostArray]) -> HostArray:
    # sum = count * quotient + remainder, held apart so that 64-bit values cannot overflow.
    count = len(arrays)
    quotient = np.zeros(arrays[0].shape, np.int64)
    remainder = np.zeros(arrays[0].shape, np.int64)
    for array in arrays:
        q, r = np.divmod(array.astype(np.int64), count)
        quotient += q
        remainder += r
    carry, remainder = np.divmod(remainder, count)
    quotient += carry
    up = (2 * remainder > count) | ((2 * remainder == count) & (quotient % 2 == 1))
    return np.asarray((quotient + up).astype(arrays[0].dtype))


def mean_blocks(sources: Sequence[FlatSource], size: int) -> Iterator[HostArray]:
    """The mean over arrays, as flat blocks one after the other.

    Args:
        sources: each gives the elements of one array from one place to another.
        size: of each array.
    """
    for begin in range(0, size, _BLOCK):
        end = min(begin + _BLOCK, size)
        yield mean_of_arrays([source(begin, end) for source in sources])


def mean_of_buffers(parameter: StoredParameter, buffers: Sequence[Buffer]) -> Iterator[HostArray]:
    """The mean over some buffers of a parameter's shape, to which nobody writes meanwhile."""
    sources = [partial(parameter.backend(buffer.context).flat, buffer) for buffer in buffers]
    return mean_blocks(sources, math.prod(parameter.shape))


def mean_of_copies(parameter: StoredParameter) -> Buffer:
    """A new host buffer with the mean over a locked parameter's copies.

    Raises:
        MemoryLimitError: where it does not fit.
    """
    staged = parameter.stage(parameter.shape, parameter.current.dtype)
    flat: np.ndarray[Any, Any] = parameter.staged_array(staged).reshape(-1)
    begin = 0
    for block in mean_of_buffers(parameter, list(parameter.copies.values())):
        flat[begin : begin + block.size] = block
        begin += block.size
    return staged
