"""Arrays on the server: the live handles that `Parameter.data()` and `grad()` give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from paramd.context import Context
from paramd.errors import BroadcastError, ShapeMismatchError
from paramd.files import RowSparseRows
from paramd.ndarray.arithmetic import cast
from paramd.ndarray.base import NDArray
from paramd.ndarray.indexing import View, broadcast_source
from paramd.ndarray.local import LocalNDArray, wrap
from paramd.ndarray.operators import StoreMode
from paramd.ndarray.row_sparse import RowSparseNDArray
from paramd.session import Session
from paramd.spec import Region, Selector, Shape, StoredInfo, TensorHead
from paramd.tensor_values import sendable
from paramd.transport.calls import TensorWrite

__all__ = ["RemoteNDArray", "RemoteRowSparseNDArray", "handle", "value_handle"]

_Values = npt.NDArray[Any]


class RemoteNDArray(NDArray):
    """A copy of a parameter, or a gradient buffer, or a part of one: found by name at each use.

    Reading fetches, only what the handle shows. Writing writes through, and fetches nothing. Where
    the parameter was deleted, or left that context, each use raises.

    Args:
        session: serves it.
        name: of the parameter.
        context: of the copy.
        view: what is shown of the stored array.
        seen_dtype: the dtype when it was looked at last; a cast may have changed it since.
        gradient: whether it is the gradient buffer and not the value.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        context: Context,
        view: View,
        seen_dtype: np.dtype[Any],
        *,
        gradient: bool,
    ) -> None:
        self._session = session
        self._name = name
        self._context = context
        self._shown = view
        self._seen_dtype = seen_dtype
        self._gradient = gradient

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type, as it is now: one round trip, or none where it is seen in place."""
        calls = self._session.calls
        selector = Selector(self._name, self._context)
        head = None if self._gradient else calls.seen_in_place(selector, self._context)
        if head is None:
            (info,) = calls.describe([self._name])
            self._seen_dtype = info.current.dtype
        else:
            self._seen_dtype = head.dtype
        return self._seen_dtype

    @property
    def context(self) -> Context:
        """Where on the server the array is."""
        return self._context

    @property
    def _layout(self) -> View:
        return self._shown

    def _fetch(self) -> _Values:
        selector = Selector(self._name, self._context, _region(self._shown))
        get = self._session.calls.get_grad if self._gradient else self._session.calls.get_data
        ((_, value),) = get([selector], self._context)
        if isinstance(value, RowSparseRows) or value.shape != self._shown.part_shape:
            raise ShapeMismatchError(
                f"parameter '{self._name}' is not any more what this handle was made for, an array "
                f"of shape {self._shown.stored_shape}",
                parameter=self._name,
            )
        return value.reshape(self._shown.shape)

    def _converted(self, values: _Values, mode: StoreMode) -> _Values:
        # The server casts, to the dtype of that moment, which this process would have to ask for.
        # A division is cast here, where a divisor of 0 shows.
        return cast(values, self._seen_dtype) if mode == "divide" else values

    def _store(self, view: View, value: _Values, mode: StoreMode) -> None:
        write = TensorWrite(
            self._name,
            sendable(view.align(value)),
            context=self._context,
            region=_region(view),
            mode=mode,
        )
        if self._gradient:
            self._session.calls.set_grad([write], self._context)
        else:
            self._session.calls.set_data([write])

    def _view(self, view: View) -> NDArray:
        return RemoteNDArray(
            self._session,
            self._name,
            self._context,
            view,
            self._seen_dtype,
            gradient=self._gradient,
        )

    def _is_part(self, view: View, other: NDArray) -> bool:
        return (
            isinstance(other, RemoteNDArray)
            and other._session is self._session
            and (other._name, other._context) == (self._name, self._context)
            and other._gradient == self._gradient
            and other._shown == view
        )


class RemoteRowSparseNDArray(RowSparseNDArray):
    """A gradient buffer that holds only the rows that were pushed. Reading fetches all of them.

    Args:
        session: serves it.
        name: of the parameter.
        context: of the buffer.
        shape: the full logical shape.
    """

    def __init__(self, session: Session, name: str, context: Context, shape: Shape) -> None:
        self._session = session
        self._name = name
        self._context = context
        self._shape = shape

    @property
    def rows(self) -> RowSparseRows:
        """The rows that are there, fetched."""
        selector = Selector(self._name, self._context)
        ((_, value),) = self._session.calls.get_grad([selector], self._context)
        if not isinstance(value, RowSparseRows):
            raise ShapeMismatchError(
                f"parameter '{self._name}' is not any more what this handle was made for, a "
                f"row_sparse gradient of shape {self._shape}",
                parameter=self._name,
            )
        return value

    @property
    def indices(self) -> LocalNDArray:
        """Ids of the rows that are there, sorted and unique: int64, of the shape (n,)."""
        return wrap(self.rows.ids, self._context)

    @property
    def data(self) -> LocalNDArray:
        """The rows that are there, of the shape (n, *shape[1:])."""
        return wrap(self.rows.rows, self._context)

    @property
    def shape(self) -> Shape:
        """The full logical shape."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type, as it is now: one round trip."""
        (info,) = self._session.calls.describe([self._name])
        return info.current.dtype

    def copy(self) -> RowSparseNDArray:
        """A local copy with the same context."""
        return RowSparseNDArray(self.rows, self._context)

    def retain(self, indices: Any) -> RowSparseNDArray:
        """A local array of the rows of some ids: see `RowSparseNDArray.retain`."""
        return self.copy().retain(indices)

    def astype(self, dtype: Any, copy: bool = True) -> NDArray:
        """A local row-sparse array of another dtype."""
        return self.copy().astype(dtype, copy=False)

    def _assign(self, value: Any) -> None:
        self._send(value, "assign")

    def _update(self, mode: StoreMode, value: Any) -> Self:
        if mode in ("add", "subtract"):
            self._send(value, mode)
        else:
            self._send(self._binary(mode, value) if mode != "assign" else value, "assign")
        return self

    def _send(self, value: Any, mode: StoreMode) -> None:
        sent: _Values | RowSparseRows
        if isinstance(value, RowSparseNDArray):
            if value.shape != self._shape:
                raise BroadcastError(
                    f"a row_sparse value of the shape {value.shape} is assigned to one of the "
                    f"shape {self._shape}"
                )
            sent = value.rows
        else:
            values = self._assigned(value)
            broadcast_source(values.shape, self._shape)
            sent = sendable(values if mode == "assign" else cast(values, self.dtype))
        write = TensorWrite(self._name, sent, context=self._context, mode=mode)
        self._session.calls.set_grad([write], self._context)

    def _binary(self, name: str, other: Any, *, reflected: bool = False) -> NDArray:
        return self.copy()._binary(name, other, reflected=reflected)

    def _elementwise(self, function: Callable[[_Values], _Values]) -> NDArray:
        return self.copy()._elementwise(function)

    def _fetch(self) -> _Values:
        return self.rows.todense()

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            RemoteRowSparseNDArray,
            (self._session, self._name, self._context, self._shape),
        )


def handle(
    session: Session, info: StoredInfo, context: Context, *, gradient: bool = False
) -> NDArray:
    """The handle of a copy, or of a gradient buffer, of a parameter that has a value.

    Args:
        session: serves it.
        info: describes the parameter.
        context: of the copy.
        gradient: whether the gradient buffer is meant.
    """
    spec = info.current
    assert spec.shape is not None
    if gradient and spec.grad_stype != "default":
        return RemoteRowSparseNDArray(session, spec.name, context, spec.shape)
    view = View.whole(spec.shape)
    return RemoteNDArray(session, spec.name, context, view, spec.dtype, gradient=gradient)


def value_handle(session: Session, head: TensorHead) -> NDArray:
    """The handle of a dense value.

    Args:
        session: serves it.
        head: of the copy.
    """
    assert head.context is not None
    view = View.whole(head.shape)
    return RemoteNDArray(session, head.name, head.context, view, head.dtype, gradient=False)


def _region(view: View) -> Region | None:
    if view.is_whole:
        return None
    return tuple((axis.begin, axis.count, axis.step) for axis in view.ranges)
