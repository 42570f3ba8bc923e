"""Making local arrays, with MXNet's defaults: float32, on the current context."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from paramd.context import Context, current_context
from paramd.ndarray.arithmetic import as_values, cast
from paramd.ndarray.base import NDArray
from paramd.ndarray.local import LocalNDArray, wrap
from paramd.ndarray.sparse import zeros as sparse_zeros
from paramd.wire.dtypes import dtype_of

__all__ = [
    "add_n",
    "arange",
    "array",
    "concat",
    "empty",
    "full",
    "ones",
    "ones_like",
    "zeros",
    "zeros_like",
]

ShapeLike = int | Iterable[int]


def array(source_array: Any, ctx: Context | None = None, dtype: Any = None) -> NDArray:
    """A new array with the values of another one or of nested lists.

    Args:
        source_array: an NDArray, an array of any library on any device, a number, or a nested
            list of numbers.
        ctx: the context to label it with; the current one by default.
        dtype: float32 by default, except for an NDArray, whose dtype stays. The dtype of another
            library's array is not kept, as in MXNet that of a NumPy array.

    Raises:
        TypeError: where the source holds anything else than real numbers.
    """
    context = ctx or current_context()
    if isinstance(source_array, NDArray):
        copied = source_array.astype(source_array.dtype if dtype is None else dtype)
        return copied.as_in_context(context)
    wanted = dtype_of(dtype)
    try:
        values = as_values(source_array)
    except TypeError as err:
        raise TypeError(f"source_array must be array like object: {err}") from err
    return wrap(np.array(cast(values, wanted), order="C"), context)


def empty(
    shape: ShapeLike, ctx: Context | None = None, dtype: Any = None, stype: str | None = None
) -> NDArray:
    """A new array of any values; of storage type 'row_sparse' one without rows."""
    if stype not in (None, "default"):
        return sparse_zeros(str(stype), _sizes(shape), ctx, dtype)
    return wrap(np.empty(_sizes(shape), dtype_of(dtype)), ctx or current_context())


def zeros(
    shape: ShapeLike, ctx: Context | None = None, dtype: Any = None, stype: str | None = None
) -> NDArray:
    """A new array of zeros.

    Args:
        shape: a size, or sizes.
        ctx: the context to label it with; the current one by default.
        dtype: float32 by default.
        stype: 'default' or 'row_sparse'.

    Raises:
        ValueError: for a negative size or an unknown storage type.
    """
    if stype not in (None, "default"):
        return sparse_zeros(str(stype), _sizes(shape), ctx, dtype)
    return full(shape, 0, ctx, dtype)


def ones(shape: ShapeLike, ctx: Context | None = None, dtype: Any = None) -> LocalNDArray:
    """A new array of ones; arguments as for `zeros`."""
    return full(shape, 1, ctx, dtype)


def full(shape: ShapeLike, val: Any, ctx: Context | None = None, dtype: Any = None) -> LocalNDArray:
    """A new array of one value, or of an array that broadcasts to the shape."""
    filled = wrap(np.empty(_sizes(shape), dtype_of(dtype)), ctx or current_context())
    filled[...] = val
    return filled


def arange(
    start: float,
    stop: float | None = None,
    step: float = 1.0,
    repeat: int = 1,
    *,
    ctx: Context | None = None,
    dtype: Any = None,
) -> LocalNDArray:
    """A new array of evenly spaced values, the end excluded.

    Args:
        start: the first value; the end where `stop` is None, and then the first is 0.
        stop: the end.
        step: distance between two values.
        repeat: how often each value comes.
        ctx: the context to label it with; the current one by default.
        dtype: float32 by default.
    """
    begin, end = (0.0, start) if stop is None else (start, stop)
    values = np.repeat(np.arange(begin, end, step), repeat)
    return wrap(cast(values, dtype_of(dtype)), ctx or current_context())


def zeros_like(data: NDArray) -> NDArray:
    """Zeros in the shape, dtype, storage type and context of another array."""
    return zeros(data.shape, data.context, data.dtype, data.stype)


def ones_like(data: NDArray) -> LocalNDArray:
    """Ones in the shape, dtype and context of another array."""
    return ones(data.shape, data.context, data.dtype)


def concat(*data: NDArray, dim: int = 1) -> LocalNDArray:
    """Joins arrays along an axis, by default the second, as in MXNet.

    Raises:
        ValueError: for no array, or shapes that do not fit.
    """
    if not data:
        raise ValueError("concat needs one array or more")
    return wrap(np.concatenate([one.asnumpy() for one in data], axis=dim), data[0].context)


def add_n(*data: NDArray) -> NDArray:
    """The sum of arrays, on the context of the first.

    Raises:
        ValueError: for no array.
    """
    if not data:
        raise ValueError("add_n needs one array or more")
    total = data[0].copy()
    for one in data[1:]:
        total = total + one
    return total


def _sizes(shape: ShapeLike) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    checked = tuple(operator.index(size) for size in sizes)
    if any(size < 0 for size in checked):
        raise ValueError(f"sizes are not negative, but the shape is {checked}")
    return checked
