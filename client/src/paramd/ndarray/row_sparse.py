"""Row-sparse arrays whose values are the caller's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paramd.context import Context
from paramd.errors import BroadcastError, InvalidRegionError, RowIdError
from paramd.files.tensors import RowSparseRows
from paramd.ndarray.arithmetic import apply, as_values, cast, is_number, unary
from paramd.ndarray.base import NDArray
from paramd.ndarray.indexing import View, broadcast_source
from paramd.ndarray.local import LocalNDArray, wrap
from paramd.ndarray.operators import StoreMode
from paramd.ndarray.printing import describe
from paramd.wire.dtypes import dtype_of

__all__ = ["RowSparseNDArray", "add_up", "distinct", "from_dense", "row_ids"]

_Values = npt.NDArray[Any]

_KEEP_ZERO: Final = frozenset({"multiply", "divide"})
_ADDITIVE: Final = frozenset({"add", "subtract"})
_PAIRS: Final[dict[np.dtype[Any], np.dtype[Any]]] = {
    np.dtype(np.float32): np.dtype(np.complex64),
    np.dtype(np.float64): np.dtype(np.complex128),
}
_COMPARISONS: Final = frozenset(
    {"equal", "not_equal", "less", "less_equal", "greater", "greater_equal"}
)


class RowSparseNDArray(NDArray):
    """An array of which only some rows are stored; all others are zero.

    Reading gives the full logical shape. It is assigned as a whole, `x[:] = ...`. Multiplying or
    dividing by a number, and adding, subtracting or multiplying with another row-sparse array
    give row-sparse arrays; the rest of arithmetic gives dense ones.

    Args:
        rows: the stored rows, which are shared.
        context: what `context` shows.
    """

    def __init__(self, rows: RowSparseRows, context: Context) -> None:
        if not isinstance(context, Context):
            raise TypeError(f"expected a context such as cpu(0), but got {context!r}")
        dtype_of(rows.rows.dtype)
        self._rows = rows
        self._context = context

    @property
    def rows(self) -> RowSparseRows:
        """The stored rows, as files and the wire take them. They are not a copy."""
        return self._rows

    @property
    def indices(self) -> LocalNDArray:
        """Ids of the stored rows, sorted and unique: a copy, int64, of the shape (n,)."""
        return wrap(self._rows.ids.copy(), self._context)

    @property
    def data(self) -> LocalNDArray:
        """The stored rows: a copy of the shape (n, *shape[1:])."""
        return wrap(self._rows.rows.copy(), self._context)

    @property
    def shape(self) -> tuple[int, ...]:
        """The full logical shape."""
        return self._rows.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type of the rows."""
        return self._rows.rows.dtype

    @property
    def context(self) -> Context:
        """The context that the array is labelled with; the values are in the caller's memory."""
        return self._context

    @property
    def stype(self) -> str:
        """Always 'row_sparse'."""
        return "row_sparse"

    def __repr__(self) -> str:
        return describe(None, "RowSparseNDArray", self.shape, self.context)

    def retain(self, indices: Any) -> RowSparseNDArray:
        """The rows of some ids only.

        Args:
            indices: ids in any order; numbers, a NumPy array or an NDArray of whole numbers.

        Returns:
            An array of the same logical shape that holds a row for each of these ids: the stored
            one, or zeros, as in MXNet.

        Raises:
            RowIdError: for ids that are out of range or no whole numbers.
        """
        wanted = distinct(row_ids(indices, self.shape[0]))
        rows = np.zeros((len(wanted), *self.shape[1:]), self.dtype)
        _, here, there = np.intersect1d(
            wanted, self._rows.ids, assume_unique=True, return_indices=True
        )
        rows[here] = self._rows.rows[there]
        return self._with(wanted, rows)

    def copy(self) -> RowSparseNDArray:
        """A copy with the same context."""
        return self._with(self._rows.ids.copy(), self._rows.rows.copy())

    def copyto(self, other: NDArray | Context) -> NDArray:
        """Copies the values: to an array of the same shape, or to a new one on a context.

        Raises:
            BroadcastError: where the shapes differ.
            TypeError: where `other` is neither.
        """
        if isinstance(other, Context):
            return RowSparseNDArray(self.copy().rows, other)
        return super().copyto(other)

    def astype(self, dtype: Any, copy: bool = True) -> NDArray:
        """A row-sparse array of another dtype; the array itself if it has it and copy is False."""
        wanted = dtype_of(dtype)
        if not copy and wanted == self.dtype:
            return self
        return self._with(self._rows.ids.copy(), cast(self._rows.rows.copy(), wanted))

    def tostype(self, stype: str) -> NDArray:
        """A copy as 'default' or 'row_sparse'.

        Raises:
            ValueError: for any other storage type.
        """
        if stype == "row_sparse":
            return self.copy()
        if stype == "default":
            return self._local(self._fetch())
        raise ValueError(f"cast_storage from row_sparse to {stype} is not supported")

    def detach(self) -> RowSparseNDArray:
        """The array itself: there are no gradients to detach it from."""
        return self

    def __getitem__(self, key: Any) -> NDArray:
        self._check_key(key)
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        self._check_key(key)
        if value is not self:
            self._assign(value)

    @staticmethod
    def _check_key(key: Any) -> None:
        if key is not Ellipsis and key != slice(None):
            raise TypeError(
                "a RowSparseNDArray is indexed by [:] only: use indices and data, retain(), or "
                "tostype('default')"
            )

    def _assign(self, value: Any) -> None:
        if isinstance(value, RowSparseNDArray):
            if value.shape != self.shape:
                raise BroadcastError(
                    f"a row_sparse value of the shape {value.shape} is assigned to one of the "
                    f"shape {self.shape}"
                )
            rows = cast(value.rows.rows.copy(), self.dtype)
            self._rows = RowSparseRows(value.rows.ids.copy(), rows, self.shape)
            return
        values = cast(self._assigned(value), self.dtype)
        if is_number(value):
            ids = np.arange(self.shape[0], dtype=np.int64)
            self._rows = RowSparseRows(ids, np.full(self.shape, values), self.shape)
            return
        aligned = values.reshape(broadcast_source(values.shape, self.shape))
        self._rows = _stored(np.broadcast_to(aligned, self.shape))

    def _binary(self, name: str, other: Any, *, reflected: bool = False) -> NDArray:
        if isinstance(other, RowSparseNDArray) and name in _ADDITIVE | {"multiply"}:
            if other.shape == self.shape:
                return self._merge(name, other)
        elif is_number(other):
            # What maps zero to zero needs the stored rows only.
            sparse = name in _KEEP_ZERO and not (reflected and name == "divide")
            sparse = sparse or (name in _ADDITIVE and other == 0 and not reflected)
            if sparse or name in _COMPARISONS:
                zero = np.zeros(1, self.dtype)
                if not apply(name, zero, other).any():
                    return self._on_rows(lambda rows: apply(name, rows, other))
        elif name == "multiply" and not reflected and self._same_shape(other):
            dense = self._operand(other)
            return self._on_rows(lambda rows: apply(name, rows, dense[self._rows.ids]))
        return super()._binary(name, other, reflected=reflected)

    def _same_shape(self, other: Any) -> bool:
        return isinstance(other, NDArray) and other.shape == self.shape

    def _merge(self, name: str, other: RowSparseNDArray) -> RowSparseNDArray:
        ids = distinct(np.concatenate((self._rows.ids, other.rows.ids)))
        one, two = self.retain(ids), other.retain(ids)
        return self._with(ids, apply(name, one.rows.rows, two.rows.rows))

    def _update(self, mode: StoreMode, value: Any) -> RowSparseNDArray:
        self._assign(value if mode == "assign" else self._binary(mode, value))
        return self

    def _elementwise(self, function: Callable[[_Values], _Values]) -> NDArray:
        if unary(function, np.zeros(1, self.dtype)).any():
            return super()._elementwise(function)
        return self._on_rows(lambda rows: unary(function, rows))

    def _on_rows(self, function: Callable[[_Values], _Values]) -> RowSparseNDArray:
        return self._with(self._rows.ids.copy(), function(self._rows.rows))

    def _with(self, ids: npt.NDArray[np.int64], rows: _Values) -> RowSparseNDArray:
        return RowSparseNDArray(RowSparseRows(ids, rows, self.shape), self._context)

    @property
    def _layout(self) -> View:
        return View.whole(self.shape)

    def _fetch(self) -> _Values:
        return self._rows.todense()

    def _store(self, view: View, value: _Values, mode: StoreMode) -> None:
        # Only the whole is ever written: by copyto.
        self._assign(wrap(value, self._context))

    def _write(self, view: View, value: Any, mode: StoreMode) -> None:
        self._assign(value)

    def _view(self, view: View) -> NDArray:
        raise InvalidRegionError("a RowSparseNDArray has no views")

    def _is_part(self, view: View, other: NDArray) -> bool:
        return other is self

    def __reduce__(self) -> tuple[type[RowSparseNDArray], tuple[RowSparseRows, Context]]:
        return (RowSparseNDArray, (self._rows, self._context))


def from_dense(values: _Values, context: Context) -> RowSparseNDArray:
    """A row-sparse array of the rows that are not all zero.

    Args:
        values: of one axis or more.
        context: the label.

    Raises:
        ValueError: for values without axes.
    """
    return RowSparseNDArray(_stored(values), context)


def row_ids(ids: Any, num_rows: int) -> npt.NDArray[np.int64]:
    """Row ids as an array of int64 with one axis, in the order given.

    Args:
        ids: numbers, a NumPy array or an NDArray, of any integer dtype or whole floats, of any
            number of axes.
        num_rows: how many rows there are.

    Raises:
        RowIdError: for ids that are out of range or no whole numbers.
    """
    values = (ids.asnumpy() if isinstance(ids, NDArray) else as_values(ids)).reshape(-1)
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64)
    if not np.can_cast(values.dtype, np.int64) and not np.array_equal(whole, values):
        raise RowIdError(f"row ids are whole numbers, but got {values[whole != values][0]}")
    if whole.size and (whole.min() < 0 or whole.max() >= num_rows):
        wrong = whole[(whole < 0) | (whole >= num_rows)][0]
        raise RowIdError(f"row id {wrong} is out of range: there are {num_rows} rows")
    return whole


def distinct(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Ids of shape (n,), sorted and each once: themselves, where they are so."""
    if bool((ids[1:] > ids[:-1]).all()):
        return ids
    # np.unique looks each up in a table, and takes ten to twenty times as long.
    ordered = np.sort(ids)
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))]


def add_up(ids: npt.NDArray[np.int64], rows: _Values) -> tuple[npt.NDArray[np.int64], _Values]:
    """Sorts rows by id and adds up those of one id; integers exactly.

    Args:
        ids: shape (n,).
        rows: shape (n, ...).

    Returns:
        The same object for each where nothing is to be done.
    """
    if bool((ids[1:] > ids[:-1]).all()):
        return ids, rows
    ordered, order = _sorted(ids)
    first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    begins = np.flatnonzero(first)
    sums = np.take(rows, order[begins], axis=0)
    if len(begins) < len(ids):
        counts = np.diff(begins, append=len(ids))
        repeated = counts > 1
        terms = np.take(rows, order[np.repeat(repeated, counts)], axis=0)
        counts = counts[repeated]
        sums[repeated] = _segment_sums(terms, np.cumsum(counts) - counts)
    return ordered[begins], sums


def _sorted(ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids that are not negative, sorted, and where each was; equal ones in their order."""
    bits = len(ids).bit_length()
    if int(ids.max()) >> (63 - bits):
        order = np.argsort(ids, kind="stable")
        return ids[order], order
    # Sorting numbers that carry their place takes a fraction of the time of a stable argsort.
    keys = ids << bits
    keys |= np.arange(len(ids))
    keys.sort()
    return keys >> bits, keys & ((1 << bits) - 1)


def _segment_sums(rows: _Values, begins: npt.NDArray[np.intp]) -> _Values:
    """Sums of consecutive rows.

    Args:
        rows: shape (n, ...), C-contiguous.
        begins: where each sum begins, ascending from 0.
    """
    # Sums of many 16-bit floats need more digits than their terms.
    terms = rows.astype(np.float32) if _is_half(rows.dtype) else rows
    flat = terms.reshape(len(terms), -1)
    pair = _PAIRS.get(flat.dtype)
    if pair is not None and flat.shape[1] % 2 == 0 and flat.size:
        # As complex numbers, two columns are added up at a time.
        sums = np.add.reduceat(flat.view(pair), begins, axis=0).view(flat.dtype)
    else:
        sums = np.add.reduceat(flat, begins, axis=0)
    return sums.reshape(len(begins), *rows.shape[1:])


def _is_half(dtype: np.dtype[Any]) -> bool:
    return dtype.itemsize == 2 and dtype.kind in "fV"


def _stored(values: _Values) -> RowSparseRows:
    if not values.ndim:
        raise ValueError("a row_sparse array has one axis or more, but the shape is ()")
    ids = np.flatnonzero(values.reshape(len(values), -1).any(axis=1) if values.size else [])
    return RowSparseRows(ids.astype(np.int64), values[ids], values.shape)
