"""Gradients that hold only the rows that were pushed, and checks of row ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paramd.context import Context
from paramd.errors import InvalidStreamError, RowIdError
from paramd.spec import Shape
from paramd_server.arrays.backend import Buffer, HostArray, Values
from paramd_server.arrays.devices import Devices

__all__ = ["RowSparseGradient", "check_ids", "union_of"]

IntArray = np.ndarray[Any, np.dtype[np.int64]]


def check_ids(name: str, ids: IntArray, num_rows: int, *, after: int = -1) -> None:
    """Checks a block of ids from the wire.

    Args:
        name: the parameter.
        ids: int64, which must be in range, sorted, and unique.
        num_rows: of the parameter.
        after: the last id of the block before.

    Raises:
        RowIdError: for an id out of range.
        InvalidStreamError: for ids that are not sorted and unique.
    """
    if not ids.size:
        return
    ordered = bool((ids[1:] > ids[:-1]).all())
    low, high = (int(ids[0]), int(ids[-1])) if ordered else (int(ids.min()), int(ids.max()))
    if low < 0 or high >= num_rows:
        wrong = low if low < 0 else high
        raise RowIdError(
            f"Parameter '{name}': row ids are 0 to {num_rows - 1}, but got {wrong}",
            parameter=name,
        )
    if low <= after or not ordered:
        raise InvalidStreamError(
            f"Parameter '{name}': row ids in a stream must be sorted and unique", parameter=name
        )


def union_of(ids: Sequence[IntArray]) -> IntArray:
    """The ids that any of some arrays has, sorted and unique.

    Args:
        ids: one array at least, each sorted and unique.
    """
    # np.unique looks each up in a table, and takes thirty times as long.
    merged = np.sort(np.concatenate(ids))
    return merged[np.concatenate((merged[:-1] != merged[1:], [True]))] if merged.size else merged


@dataclass(frozen=True)
class RowSparseGradient:
    """A gradient of which only some rows are there; the others are zero.

    It is never changed in place, so a reader needs nothing but a reference.

    Attributes:
        ids: int64, sorted and unique; shape (rows,).
        rows: buffer of shape (rows, *shape[1:]) on the gradient's context.
        shape: the full logical shape.
    """

    ids: IntArray
    rows: Buffer
    shape: Shape

    @classmethod
    def empty(
        cls, shape: Shape, dtype: np.dtype[Any], context: Context, devices: Devices
    ) -> RowSparseGradient:
        """A gradient without any row."""
        rows = devices.backend(context).zeros((0, *shape[1:]), dtype, context)
        return cls(np.zeros(0, np.int64), rows, shape)

    @property
    def nbytes(self) -> int:
        """Bytes of ids and rows."""
        return self.ids.nbytes + self.rows.nbytes

    def cast(self, dtype: np.dtype[Any], devices: Devices) -> RowSparseGradient:
        """The same rows in another dtype."""
        backend = devices.backend(self.rows.context)
        rows = backend.empty(self.rows.shape, dtype, self.rows.context)
        backend.copy(self.rows, rows)
        return RowSparseGradient(self.ids, rows, self.shape)

    def replaced(self, ids: IntArray, rows: Values, devices: Devices) -> RowSparseGradient:
        """A gradient of exactly these rows, which may lie on any context."""
        context = self.rows.context
        backend = devices.backend(context)
        buffer = backend.empty((len(ids), *self.shape[1:]), self.rows.dtype, context)
        if isinstance(rows, np.ndarray):
            backend.write(buffer, rows, mode="assign")
        else:
            devices.copy(rows, buffer)
        return RowSparseGradient(ids, buffer, self.shape)

    def merged(
        self, ids: IntArray, rows: HostArray, devices: Devices, *, mode: str
    ) -> RowSparseGradient:
        """This gradient with further rows worked in: rows that were not there count as zero.

        Args:
            ids: sorted and unique.
            rows: (len(ids), *shape[1:]).
            devices: where the new buffer comes from.
            mode: 'add' or 'subtract'.
        """
        if not ids.size:
            return self
        context = self.rows.context
        backend = devices.backend(context)
        union = union_of([self.ids, ids])
        buffer = backend.zeros((len(union), *self.shape[1:]), self.rows.dtype, context)
        backend.put_rows(buffer, np.searchsorted(union, self.ids), self.rows, mode="assign")
        backend.put_rows(buffer, np.searchsorted(union, ids), rows, mode=mode)
        return RowSparseGradient(union, buffer, self.shape)
