"""What users give as values, as what is sent: NumPy arrays and row-sparse rows."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from paramd.context import Context
from paramd.dlpack import host_array
from paramd.errors import RowIdError, ShapeMismatchError
from paramd.files import RowSparseRows
from paramd.ndarray import NDArray, RowSparseNDArray, add_up, row_ids
from paramd.spec import Region, Shape
from paramd.transport.calls import TensorWrite
from paramd.wire.dtypes import DTYPES, dtype_of

__all__ = ["dense_value", "gradient_value", "ids_of", "sendable", "to_write"]

Array = np.ndarray[Any, np.dtype[Any]]
Ids = np.ndarray[Any, np.dtype[np.int64]]

# Element types that no parameter has, and the one that holds their values.
_WIDENED: Final = {
    np.dtype(narrow): np.dtype(wide)
    for narrow, wide in (("i2", "i4"), ("u2", "i4"), ("u4", "i8"), ("u8", "f8"), ("g", "f8"))
}
_SENT: Final = frozenset(DTYPES.values())


def dense_value(name: str, data: Any) -> Array:
    """A dense array, of a dtype that can be sent.

    Args:
        name: the parameter that it is for.
        data: an NDArray of any storage type, an array of any library on any device, a number or
            nested lists.

    Returns:
        The memory of `data` itself where that is the host's and of such a dtype.

    Raises:
        TypeError: where it is no array of numbers, or its library gives no copy in host memory.
    """
    if isinstance(data, np.ndarray) and data.dtype in _SENT:
        return data
    if isinstance(data, RowSparseNDArray):
        return data.rows.todense()
    if isinstance(data, NDArray):
        return np.asarray(data)  # The storage itself, where it is in this process.
    try:
        return sendable(host_array(data))
    except (TypeError, ValueError) as err:
        raise TypeError(f"parameter '{name}': expected an array of numbers: {err}") from err


def to_write(
    name: str,
    data: Any,
    *,
    dense: bool,
    context: Context | None = None,
    region: Region | None = None,
    mode: str = "assign",
) -> TensorWrite:
    """A value for a parameter, ready to be sent.

    Args:
        name: the parameter.
        data: as in `dense_value`.
        dense: whether a row_sparse value is made dense.
        context: which copy; None for all.
        region: which part of it; None for all.
        mode: how it meets what is there.

    Raises:
        TypeError: where it is no array of numbers.
    """
    if isinstance(data, RowSparseNDArray) and not dense:
        return TensorWrite(name, data.rows, context=context, region=region, mode=mode)
    return TensorWrite(name, dense_value(name, data), context=context, region=region, mode=mode)


def gradient_value(name: str, data: Any, shape: Shape) -> Array | RowSparseRows:
    """A pushed gradient.

    Args:
        name: the parameter.
        data: as in `dense_value`, or (ids, rows), where rows of one id add up.
        shape: the parameter's.

    Raises:
        TypeError: where it is neither.
        RowIdError: for ids out of range.
        ShapeMismatchError: where the rows are not as many, or of another shape.
    """
    # Most are NumPy's, and whether something is an NDArray takes long to ask.
    if isinstance(data, np.ndarray):
        return dense_value(name, data)
    if isinstance(data, RowSparseNDArray):
        return data.rows
    if not isinstance(data, tuple):
        return dense_value(name, data)
    if len(data) != 2:
        raise TypeError(
            f"a gradient of parameter '{name}' is an array or a pair (ids, rows), but got a tuple "
            f"of {len(data)}"
        )
    ids, rows = ids_of(name, data[0], shape[0]), dense_value(name, data[1])
    expected = (len(ids), *shape[1:])
    if rows.shape != expected:
        raise ShapeMismatchError(
            f"parameter '{name}' of shape {shape}: {len(ids)} rows have the shape {expected}, but "
            f"got {rows.shape}",
            parameter=name,
        )
    return RowSparseRows(*add_up(ids, rows), shape)


def ids_of(name: str, ids: Any, num_rows: int | None) -> Ids:
    """Row ids as int64 of one axis, in the order and number in which they were given.

    Args:
        name: the parameter.
        ids: an NDArray, an array of any library on any device or nested lists, of whole numbers.
        num_rows: of the parameter; None where that is not known yet.

    Raises:
        RowIdError: where they are out of range, or no whole numbers.
        TypeError: where they are no numbers at all.
    """
    try:
        return row_ids(ids, np.iinfo(np.int64).max if num_rows is None else num_rows)
    except RowIdError as err:
        raise RowIdError(f"parameter '{name}': {err}", parameter=name) from err
    except TypeError as err:
        raise TypeError(f"row ids of parameter '{name}': {err}") from err


def sendable(array: Array) -> Array:
    """An array of the same numbers, of a dtype that can be sent.

    Raises:
        TypeError: where they are no real numbers.
    """
    if array.dtype in _SENT:
        return array
    wide = _WIDENED.get(array.dtype.newbyteorder("="))
    if wide is not None:
        return array.astype(wide)
    dtype = dtype_of(array.dtype)
    # MXNet's bfloat16 is a structured dtype of the same bytes.
    return array.view(dtype) if array.dtype.names is not None else array.astype(dtype)
