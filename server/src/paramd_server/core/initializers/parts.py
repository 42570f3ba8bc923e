"""Filling a part of a parameter: a range of its elements, or some of its rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from paramd.errors import RowIdError
from paramd.initial_values import InitialValues, fill, resolve
from paramd.spec import InitializerSpec, Shape

__all__ = ["fill_range", "fill_rows"]

# Rows no further apart than this come from one read: what lies between is computed in any case.
_SPAN = 65_536


def fill_range(
    spec: InitializerSpec,
    name: str,
    shape: Shape | None,
    dtype: np.dtype[Any],
    *,
    seed: int,
    draw: int,
    out: npt.NDArray[Any],
    begin: int = 0,
) -> None:
    """Computes the initial values of the elements from `begin` on, in C order.

    Args:
        spec: an initializer, not `client_side`.
        name: of the parameter.
        shape: of the whole parameter, whatever part of it this server holds.
        dtype: of the parameter.
        seed: key of the random stream.
        draw: how often the name was initialized before under that seed.
        out: C-contiguous array of that dtype, of any shape; takes `out.size` elements.
        begin: index of the first element in the whole parameter.

    Raises:
        InitializerError: where the initializer cannot fill such a parameter.
        UnknownShapeError: where the shape is not known.
        ValueError: where `out` does not fit.
    """
    fill(spec, name, shape, dtype, seed=seed, draw=draw, out=out, begin=begin)


def fill_rows(
    spec: InitializerSpec,
    name: str,
    shape: Shape | None,
    dtype: np.dtype[Any],
    *,
    seed: int,
    draw: int,
    rows: npt.NDArray[np.int64],
    out: npt.NDArray[Any],
) -> None:
    """Computes the initial values of some rows, the same as they have in the whole parameter.

    Rows of the same block are computed together, so one in n rows of a table costs as much time
    as the whole table, where a row is shorter than a block. Memory: about two rows and a block.

    Args:
        spec: an initializer, not `client_side`.
        name: of the parameter.
        shape: of the whole parameter.
        dtype: of the parameter.
        seed: key of the random stream.
        draw: how often the name was initialized before under that seed.
        rows: indices on axis 0, not descending, shape (n,).
        out: C-contiguous array of that dtype, of shape (n, *shape[1:]).

    Raises:
        InitializerError: where the initializer cannot fill such a parameter.
        UnknownShapeError: where the shape is not known.
        RowIdError: where a row is out of range.
        ValueError: where `rows` descend, or `out` does not fit.
    """
    values = resolve(spec, name, shape, dtype, seed=seed, draw=draw)
    whole = shape or ()
    if out.shape != (rows.size, *whole[1:]) or out.dtype != dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"expected a C-contiguous array of {dtype} and shape {(rows.size, *whole[1:])}, "
            f"but got {out.dtype} and {out.shape}"
        )
    if not rows.size:
        return
    if (rows[1:] < rows[:-1]).any():
        raise ValueError("rows must not descend")
    if rows[0] < 0 or rows[-1] >= whole[0]:
        wrong = rows[0] if rows[0] < 0 else rows[-1]
        raise RowIdError(
            f"parameter {name!r}: row {wrong} is not in 0 to {whole[0] - 1}", parameter=name
        )
    _read_rows(values, rows, out.reshape(rows.size, -1), math.prod(whole[1:]))


def _read_rows(
    values: InitialValues, rows: npt.NDArray[np.int64], out: npt.NDArray[Any], width: int
) -> None:
    reach = max(_SPAN // width, 1)
    first = 0
    while first < rows.size:
        begin = int(rows[first])
        last = int(np.searchsorted(rows, begin + reach))
        if int(rows[last - 1]) - begin == last - first - 1 and _ascends(rows[first:last]):
            values.read(begin * width, out[first:last].reshape(-1))
        else:
            span = np.empty((int(rows[last - 1]) - begin + 1, width), out.dtype)
            values.read(begin * width, span.reshape(-1))
            np.take(span, rows[first:last] - begin, axis=0, out=out[first:last], mode="clip")
        first = last


def _ascends(rows: npt.NDArray[np.int64]) -> bool:
    return bool((np.diff(rows) == 1).all())
