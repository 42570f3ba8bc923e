"""The namespace `paramd.nd.sparse`: making row-sparse arrays."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from paramd.context import Context, current_context
from paramd.files.tensors import RowSparseRows
from paramd.ndarray.arithmetic import as_values, cast
from paramd.ndarray.base import NDArray
from paramd.ndarray.local import wrap
from paramd.ndarray.row_sparse import RowSparseNDArray, add_up, from_dense, row_ids
from paramd.wire.dtypes import dtype_of

__all__ = ["RowSparseNDArray", "empty", "retain", "row_sparse_array", "zeros"]


def row_sparse_array(
    arg1: Any,
    shape: Iterable[int] | None = None,
    ctx: Context | None = None,
    dtype: Any = None,
) -> RowSparseNDArray:
    """A new row-sparse array.

    Args:
        arg1: `(rows, ids)`; or a shape, for an array without rows; or a dense or row-sparse array,
            whose rows that are not all zero are taken.
        shape: the logical shape; of `(rows, ids)` by default as long as the largest id demands.
        ctx: the context to label it with; the current one by default.
        dtype: by default that of the rows, and float32 for lists.

    Returns:
        An array whose ids are sorted, also where those given are not. Rows of one id add up.

    Raises:
        RowIdError: for ids that are out of range or no whole numbers.
        ValueError: for a shape that contradicts the rows.
    """
    context = ctx or current_context()
    if isinstance(arg1, tuple) and all(_is_size(size) for size in arg1):
        made: NDArray = zeros("row_sparse", arg1, context, dtype)
    elif isinstance(arg1, tuple) and len(arg1) == 2:
        made = _of_rows(arg1[0], arg1[1], shape, context, dtype)
    else:
        source = arg1 if isinstance(arg1, NDArray) else None
        if isinstance(source, RowSparseNDArray):
            made = source.copyto(context)
        else:
            values = as_values(arg1) if source is None else source.asnumpy()
            made = from_dense(cast(values, _dtype(arg1, values, None)), context)
    if shape is not None and made.shape != tuple(shape):
        raise ValueError(f"the shape is {made.shape}, but {tuple(shape)} was asked for")
    made = made if dtype is None else made.astype(dtype, copy=False)
    assert isinstance(made, RowSparseNDArray)
    return made


def zeros(
    stype: str, shape: Iterable[int], ctx: Context | None = None, dtype: Any = None
) -> NDArray:
    """A new array of zeros: without rows for 'row_sparse', dense for 'default'.

    Raises:
        ValueError: for any other storage type; 'csr' is not supported.
    """
    sizes = tuple(operator.index(size) for size in shape)
    context = ctx or current_context()
    if stype == "default":
        return wrap(np.zeros(sizes, dtype_of(dtype)), context)
    if stype != "row_sparse":
        raise ValueError(f"stype is 'default' or 'row_sparse', but got {stype!r}")
    rows = np.zeros((0, *sizes[1:]), dtype_of(dtype))
    return RowSparseNDArray(RowSparseRows(np.zeros(0, np.int64), rows, sizes), context)


def empty(
    stype: str, shape: Iterable[int], ctx: Context | None = None, dtype: Any = None
) -> NDArray:
    """Same as `zeros`."""
    return zeros(stype, shape, ctx, dtype)


def retain(data: RowSparseNDArray, indices: Any) -> RowSparseNDArray:
    """The rows of some ids only: see `RowSparseNDArray.retain`."""
    return data.retain(indices)


def _of_rows(
    data: Any, ids: Any, shape: Iterable[int] | None, context: Context, dtype: Any
) -> RowSparseNDArray:
    values = data.asnumpy() if isinstance(data, NDArray) else as_values(data)
    rows = np.array(cast(values, _dtype(data, values, dtype)), order="C")
    whole = row_ids(ids, np.iinfo(np.int64).max)
    if len(whole) != len(rows):
        raise ValueError(f"{len(rows)} rows do not go with {len(whole)} ids")
    sizes = (int(whole.max(initial=-1)) + 1, *rows.shape[1:]) if shape is None else tuple(shape)
    row_ids(whole, sizes[0])
    return RowSparseNDArray(RowSparseRows(*add_up(whole, rows), sizes), context)


def _dtype(source: Any, values: np.ndarray[Any, Any], dtype: Any) -> np.dtype[Any]:
    if dtype is None and isinstance(source, (np.ndarray, NDArray)):
        dtype = values.dtype
    return dtype_of(dtype)


def _is_size(value: Any) -> bool:
    return isinstance(value, (int, np.integer))
