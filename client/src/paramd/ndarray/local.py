"""Dense arrays whose values are the caller's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from paramd.context import Context
from paramd.errors import BroadcastError
from paramd.ndarray.arithmetic import apply, cast
from paramd.ndarray.base import NDArray
from paramd.ndarray.indexing import View
from paramd.ndarray.operators import StoreMode
from paramd.wire.dtypes import dtype_of

__all__ = ["LocalNDArray", "wrap"]

_Values = npt.NDArray[Any]


class LocalNDArray(NDArray):
    """An array over a NumPy array, with a context as a label.

    Args:
        values: the storage, which is shared.
        context: what `context` shows.

    Raises:
        TypeError: where no parameter can have the dtype, or `context` is none.
    """

    def __init__(self, values: _Values, context: Context) -> None:
        if not isinstance(context, Context):
            raise TypeError(f"expected a context such as cpu(0), but got {context!r}")
        if dtype_of(values.dtype) != values.dtype:
            raise TypeError(f"the values must be in native byte order, but are {values.dtype.str}")
        self._values = values
        self._context = context

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type. It equals the NumPy scalar type that MXNet gives here."""
        return self._values.dtype

    @property
    def context(self) -> Context:
        """The context that the array is labelled with; the values are in the caller's memory."""
        return self._context

    @property
    def _layout(self) -> View:
        return View.whole(self._values.shape)

    @property
    def _lends_storage(self) -> bool:
        return True

    def _read(self) -> _Values:
        return self._values

    def _fetch(self) -> _Values:
        return np.array(self._values, order="C")

    def _view(self, view: View) -> LocalNDArray:
        return LocalNDArray(view.of(self._values), self._context)

    def _is_part(self, view: View, other: NDArray) -> bool:
        if not isinstance(other, LocalNDArray):
            return False
        part = view.of(self._values).__array_interface__
        shown = other._values.__array_interface__
        return all(part[key] == shown[key] for key in ("data", "shape", "strides", "typestr"))

    def _store(self, view: View, value: _Values, mode: StoreMode) -> None:
        target = view.of(self._values)
        if mode != "assign":
            value = cast(apply(mode, target, value), target.dtype)
        # Of too many axes, all in front and of size 1, as NumPy takes them too.
        target[...] = value

    def _store_indexed(self, key: Any, value: _Values) -> None:
        try:
            self._values[key] = cast(value, self.dtype)
        except ValueError as err:
            raise BroadcastError(str(err)) from err

    def __reduce__(self) -> tuple[type[LocalNDArray], tuple[_Values, Context]]:
        return (LocalNDArray, (self._fetch(), self._context))


def wrap(values: _Values, context: Context) -> LocalNDArray:
    """An array that shares the memory of a NumPy array: writing to one writes to the other.

    Args:
        values: of a dtype that parameters can have.
        context: the label.
    """
    return LocalNDArray(values, context)
