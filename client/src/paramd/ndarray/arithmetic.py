"""What MXNet computes with arrays, over NumPy arrays: its dtype rules and its integer division.

A number takes the dtype of the array that it meets (2.5 with an int32 array is 2), bool arrays
count as int64, and comparisons give 0 and 1 in the dtype that was compared. Two arrays of
different dtypes, which MXNet refuses, are promoted as in NumPy.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paramd.dlpack import host_array
from paramd.errors import BroadcastError
from paramd.wire.dtypes import BFLOAT16, dtype_of

__all__ = ["apply", "as_values", "cast", "is_number", "reduce_values", "unary"]

_Values = npt.NDArray[Any]

_INT64: Final = np.dtype(np.int64)
# What NumPy may promote to and no parameter can be.
_HELD_AS: Final = {"int16": "int32", "uint16": "int32", "uint32": "int64", "uint64": "int64"}


def is_number(value: Any) -> bool:
    """Whether it is a real number, of Python or NumPy (bfloat16 too), and no array."""
    if isinstance(value, (numbers.Real, np.bool_)):
        return True
    return isinstance(value, np.generic) and value.dtype == BFLOAT16


def cast(values: _Values, dtype: np.dtype[Any]) -> _Values:
    """Casts as MXNet does: silently, fractions cut off, integers wrapped around.

    Returns:
        The array itself if it has the dtype.
    """
    with np.errstate(all="ignore"):
        return values.astype(dtype, copy=False)


def as_values(value: Any) -> _Values:
    """The NumPy array that an array-like value stands for.

    Args:
        value: a number, a nested list of numbers, or an array of any library on any device.

    Raises:
        TypeError: where it holds anything else than real numbers, or its library gives no copy
            in host memory.
    """
    try:
        values = host_array(value)
    except ValueError as err:
        raise TypeError(f"expected numbers in a regular shape, but got {value!r}") from err
    if values.dtype.kind in "biuf" or values.dtype == BFLOAT16:
        return values
    raise TypeError(f"expected real numbers, but got {type(value)} of dtype {values.dtype}")


def apply(name: str, left: Any, right: Any) -> _Values:
    """Computes with two operands, at least one of them a NumPy array.

    Args:
        name: a key of the table below: 'add', 'equal', ...
        left: an array or a number.
        right: an array or a number.

    Returns:
        A new array of the dtype that MXNet's rules give.

    Raises:
        BroadcastError: where the shapes do not broadcast.
        ZeroDivisionError: for integers divided by 0.
    """
    dtype = _common_dtype(left, right)
    one, other = (_operand(value, dtype) for value in (left, right))
    try:
        np.broadcast_shapes(one.shape, other.shape)
    except ValueError as err:
        raise BroadcastError(
            f"operands of the shapes {one.shape} and {other.shape} do not broadcast together"
        ) from err
    with np.errstate(all="ignore"):
        return cast(np.asarray(_FUNCTIONS[name](one, other)), dtype)


def unary(function: Callable[[_Values], _Values], values: _Values) -> _Values:
    """Applies an elementwise function and keeps the dtype; bool counts as int64."""
    dtype = _counted(values.dtype)
    with np.errstate(all="ignore"):
        return cast(np.asarray(function(cast(values, dtype))), dtype)


def reduce_values(
    function: Callable[..., Any],
    values: _Values,
    axis: int | tuple[int, ...] | list[int] | None,
    keepdims: bool,
) -> _Values:
    """Reduces axes and keeps the dtype.

    Args:
        function: such as `numpy.sum`; works on float32 for the narrower floats.
        values: what to reduce.
        axis: one or more axes; None and () mean all.
        keepdims: leaves the reduced axes with size 1.

    Returns:
        A new array; of shape (1,) where no axis is left, as in MXNet.
    """
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else axis
    narrow = values.dtype == BFLOAT16 or values.dtype == np.float16
    wide = values.astype(np.float32) if narrow else values
    with np.errstate(all="ignore"):
        result = np.asarray(function(wide, axis=None if axes == () else axes, keepdims=keepdims))
    return cast(result.reshape(result.shape or (1,)), values.dtype)


def _common_dtype(left: Any, right: Any) -> np.dtype[Any]:
    if is_number(right):
        return _counted(left.dtype)
    if is_number(left):
        return _counted(right.dtype)
    return _counted(np.result_type(left.dtype, right.dtype))


def _counted(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind == "b":
        return _INT64
    return dtype_of(_HELD_AS.get(dtype.name, dtype))


def _operand(value: Any, dtype: np.dtype[Any]) -> _Values:
    if isinstance(value, float) and dtype.kind in "iu":
        value = int(value)
    return cast(np.asarray(value), dtype)


def _divide(one: _Values, other: _Values) -> _Values:
    if one.dtype.kind == "f" or one.dtype == BFLOAT16:
        return np.asarray(one / other)
    quotient = _floor_divide(one, other)
    inexact = quotient * other != one
    return np.asarray(quotient + (inexact & ((one < 0) != (other < 0))).astype(one.dtype))


def _floor_divide(one: _Values, other: _Values) -> _Values:
    if one.dtype.kind in "iu" and not other.all():
        raise ZeroDivisionError("division of integers by zero")
    return np.asarray(one // other)


def _remainder(one: _Values, other: _Values) -> _Values:
    # The sign of the divisor, and 0 where the divisor is 0.
    return np.where(other == 0, one.dtype.type(0), np.remainder(one, other))


def _power(one: _Values, other: _Values) -> _Values:
    if one.dtype.kind in "iu":
        # NumPy refuses negative exponents; the C library's pow() on doubles does not.
        return np.power(one.astype(np.float64), other.astype(np.float64))
    return np.asarray(one**other)


_FUNCTIONS: Final[dict[str, Callable[[_Values, _Values], Any]]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": _divide,
    "floor_divide": _floor_divide,
    "remainder": _remainder,
    "power": _power,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
}
