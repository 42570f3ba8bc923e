"""The element types that cross the wire, by name, NumPy dtype and number."""

from __future__ import annotations

from typing import Any, Final

import ml_dtypes
import numpy as np

from paramd.errors import InvalidArgumentError

__all__ = ["BFLOAT16", "DTYPES", "dtype_from_wire", "dtype_of", "dtype_to_wire"]

BFLOAT16: Final[np.dtype[Any]] = np.dtype(ml_dtypes.bfloat16)

# Numbers as in paramd.v1.DType.
DTYPES: Final[dict[int, np.dtype[Any]]] = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<f2"),
    4: BFLOAT16,
    5: np.dtype("u1"),
    6: np.dtype("i1"),
    7: np.dtype("<i4"),
    8: np.dtype("<i8"),
    9: np.dtype("?"),
}

_NUMBERS: Final = {dtype: number for number, dtype in DTYPES.items()}


def dtype_of(value: Any) -> np.dtype[Any]:
    """The parameter dtype that a user means.

    Args:
        value: a NumPy dtype or scalar type, a name such as 'float32' or 'bfloat16', or None for
            float32.

    Raises:
        TypeError: where it is no dtype, or none that a parameter can have.
    """
    if isinstance(value, np.dtype) and (number := _NUMBERS.get(value)) is not None:
        return DTYPES[number]
    if value is None:
        return DTYPES[1]
    if isinstance(value, str) and value == "bfloat16":
        return BFLOAT16
    dtype: np.dtype[Any] = np.dtype(value)
    if dtype.names is not None and [dtype[name] for name in dtype.names] == [np.dtype("u2")]:
        # MXNet spells bfloat16 as np.dtype([('bfloat16', np.uint16)]).
        if dtype.names == ("bfloat16",):
            return BFLOAT16
    elif dtype.newbyteorder("<") in _NUMBERS:
        little: np.dtype[Any] = dtype.newbyteorder("<")
        return little
    names = ", ".join(str(known) for known in DTYPES.values())
    raise TypeError(f"a parameter's dtype is one of {names}, but got {value!r}")


def dtype_to_wire(dtype: np.dtype[Any]) -> int:
    """The number of a dtype in paramd.v1.DType.

    Raises:
        InvalidArgumentError: where it has none.
    """
    number = _NUMBERS.get(dtype)
    if number is None:
        raise InvalidArgumentError(f"dtype {dtype} cannot be sent")
    return number


def dtype_from_wire(number: int) -> np.dtype[Any]:
    """The dtype of a number in paramd.v1.DType.

    Raises:
        InvalidArgumentError: for a number that no dtype has.
    """
    dtype = DTYPES.get(number)
    if dtype is None:
        raise InvalidArgumentError(f"dtype number {number} is unknown")
    return dtype
