"""What a file holds: descriptions of tensors, and row-sparse values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from paramd.context import Context, cpu
from paramd.files.limits import MAX_RANK
from paramd.wire.dtypes import dtype_of

__all__ = ["RowSparseRows", "TensorInfo", "first_bad_row", "shape_problem"]

_ID_BYTES = 8


def shape_problem(shape: Sequence[int], item_size: int) -> str | None:
    """What keeps a shape from being an array's, or None.

    Args:
        shape: dimensions, which may come from a hostile file.
        item_size: bytes of an element.
    """
    if len(shape) > MAX_RANK:
        return f"has {len(shape)} dimensions, more than {MAX_RANK}"
    for size in shape:
        if not -1 << 63 <= size < 1 << 63:
            return "has a dimension of more than 64 bits"
        if size < 0:
            return f"has the negative dimension {size}"
    # NumPy multiplies the dimensions of an empty array too, without its zeros.
    if math.prod(size for size in shape if size) * item_size >= 1 << 63:
        return f"has the shape {tuple(shape)}, which no array can have"
    return None


def first_bad_row(ids: npt.NDArray[np.int64], last: int, num_rows: int) -> int | None:
    """Index of the first id that is not above the one before it, or out of range; or None.

    Args:
        ids: row ids, or a block of them.
        last: the id before the first, -1 where there is none.
        num_rows: rows of the logical shape.
    """
    previous = np.empty_like(ids)
    previous[:1] = last
    previous[1:] = ids[:-1]
    bad = (ids <= previous) | (ids >= num_rows)
    return int(bad.argmax()) if bad.any() else None


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Description of one tensor of a file.

    The payload of a dense tensor is its elements in C order, little-endian. The payload of a
    row_sparse one is its `num_rows` ids as int64, sorted and unique, then the rows in that order.

    Attributes:
        name: its name, any text of UTF-8.
        shape: the logical shape.
        dtype: a dtype that parameters can have, little-endian.
        stype: 'default' or 'row_sparse'.
        num_rows: rows that are stored, for row_sparse only.
        context: where it lived, which only `.params` keeps.

    Raises:
        ValueError: where the parts contradict one another.
        TypeError: where no parameter can have the dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stype: Literal["default", "row_sparse"] = "default"
    num_rows: int | None = None
    context: Context = field(default_factory=cpu)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "dtype", dtype_of(self.dtype))
        problem = shape_problem(self.shape, self.dtype.itemsize)
        if problem is not None:
            raise ValueError(f"tensor {self.name!r} {problem}")
        if self.stype == "default":
            if self.num_rows is not None:
                raise ValueError(f"tensor {self.name!r} is dense and has num_rows={self.num_rows}")
        elif self.stype == "row_sparse":
            self._check_rows()
        else:
            raise ValueError(
                f"tensor {self.name!r}: stype is 'default' or 'row_sparse', but got {self.stype!r}"
            )

    def _check_rows(self) -> None:
        if not self.shape:
            raise ValueError(f"tensor {self.name!r} is row_sparse and has no dimension")
        if self.num_rows is None or not 0 <= self.num_rows <= self.shape[0]:
            raise ValueError(
                f"tensor {self.name!r}: num_rows is 0 to {self.shape[0]} for the shape "
                f"{self.shape}, but got {self.num_rows}"
            )

    @property
    def ids_bytes(self) -> int:
        """Bytes of the row ids in the payload: 0 for a dense tensor."""
        return (self.num_rows or 0) * _ID_BYTES

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of the elements in the payload: the stored rows of a row_sparse tensor."""
        return self.shape if self.num_rows is None else (self.num_rows, *self.shape[1:])

    @property
    def data_bytes(self) -> int:
        """Bytes of the elements in the payload."""
        return math.prod(self.data_shape) * self.dtype.itemsize

    @property
    def size_bytes(self) -> int:
        """Bytes of the payload."""
        return self.ids_bytes + self.data_bytes


@dataclass(frozen=True, eq=False)
class RowSparseRows:
    """The stored rows of a row_sparse tensor; all other rows are zero.

    Attributes:
        ids: ids of the stored rows, int64, sorted and unique, shape (n,).
        rows: the rows, shape (n, *shape[1:]).
        shape: the logical shape.

    Raises:
        ValueError: where the parts contradict one another.
    """

    ids: npt.NDArray[np.int64]
    rows: npt.NDArray[Any]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if not self.shape:
            raise ValueError("a row_sparse tensor has at least one dimension, but the shape is ()")
        if self.ids.ndim != 1 or self.ids.dtype != np.int64:
            raise ValueError(
                "row ids are int64 of one dimension, but got "
                f"{self.ids.dtype} of the shape {self.ids.shape}"
            )
        expected = (len(self.ids), *self.shape[1:])
        if self.rows.shape != expected:
            raise ValueError(f"rows have the shape {expected}, but got {self.rows.shape}")
        bad = first_bad_row(self.ids, -1, self.shape[0])
        if bad is not None:
            raise ValueError(
                f"row ids are sorted, unique and 0 to {self.shape[0] - 1}, but id {bad} is "
                f"{self.ids[bad]}"
            )

    def todense(self) -> npt.NDArray[Any]:
        """The whole array, of the logical shape."""
        dense = np.zeros(self.shape, self.rows.dtype)
        dense[self.ids] = self.rows
        return dense
