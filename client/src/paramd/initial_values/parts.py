"""The first values of what one shard holds of a parameter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from paramd.initial_values.values import BLOCK, InitialValues
from paramd.spec import Part

__all__ = ["values_of_part"]

_Array = np.ndarray[Any, np.dtype[Any]]
_LARGEST_ITEM_BYTES = 8


def values_of_part(values: InitialValues, part: Part) -> InitialValues:
    """The values of a part, bit for bit those that the whole parameter has in these rows.

    Args:
        values: of the whole parameter, which has `part.shape`.
        part: the rows that are wanted.

    Returns:
        Values of `part.local_shape`, by index in C order of the part.
    """
    return _Rows(values, part)


class _Rows(InitialValues):
    """Every `step`-th row of other values, from `begin` on."""

    def __init__(self, whole: InitialValues, part: Part) -> None:
        self._whole = whole
        self._row = math.prod(part.shape[1:])
        self._first = part.begin * self._row
        # From the start of one row to that of the next, in elements of the whole.
        self._stride = part.step * self._row

    @property
    def workspace_bytes(self) -> int:
        """About the memory that reading takes at its peak."""
        return self._whole.workspace_bytes + _LARGEST_ITEM_BYTES * BLOCK

    def read(self, begin: int, out: _Array) -> None:
        """Computes a range of the values."""
        if self._stride == self._row:
            self._whole.read(self._first + begin, out)
            return
        position = 0
        while position < out.size:
            row, offset = divmod(begin + position, self._row)
            place = self._first + row * self._stride + offset
            num_rows = min((out.size - position) // self._row, BLOCK // self._stride)
            if offset or num_rows < 2:
                chosen = out[position : position + self._row - offset]
                self._whole.read(place, chosen)
            else:
                chosen = out[position : position + num_rows * self._row]
                self._read_rows(place, chosen.reshape(num_rows, self._row))
            position += chosen.size

    def _read_rows(self, place: int, rows: _Array) -> None:
        """Several short rows, taken out of what lies between them: a call for each is slow."""
        num_rows = len(rows)
        stretch = np.empty(num_rows * self._stride, rows.dtype)
        self._whole.read(place, stretch[: stretch.size - self._stride + self._row])
        rows[...] = stretch.reshape(num_rows, self._stride)[:, : self._row]
