"""What all arrays share, whether their values are the caller's or on the server."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from paramd.context import Context
from paramd.dlpack import HOST_DEVICE, capsule_of, check_request
from paramd.errors import BroadcastError, InvalidRegionError
from paramd.ndarray.arithmetic import apply, as_values, cast, is_number
from paramd.ndarray.functions import Functions
from paramd.ndarray.indexing import View, broadcast_source, is_basic
from paramd.ndarray.operators import StoreMode
from paramd.ndarray.printing import describe
from paramd.ndarray.shaping import resolve_shape
from paramd.wire.dtypes import dtype_of

__all__ = ["NDArray"]

_Values = npt.NDArray[Any]


class NDArray(Functions):
    """An array with a shape, a dtype and a context.

    Basic indexing (numbers, slices, Ellipsis, None) gives a lazy view: it moves nothing, and
    writing to it writes to the array. Indexing that leaves no axis gives the shape (1,), as in
    MXNet. Everything that computes gives a local array with the context of its left operand.

    A subclass gives `dtype`, `context`, and the primitives `_layout`, `_fetch`, `_store`, `_view`
    and `_is_part`.
    """

    # The primitives.

    @property
    @abstractmethod
    def _layout(self) -> View:
        """What this array shows of what is stored."""

    @abstractmethod
    def _fetch(self) -> _Values:
        """The values: a fresh NumPy array of `shape`, in C order."""

    @abstractmethod
    def _store(self, view: View, value: _Values, mode: StoreMode) -> None:
        """Writes a part of what is stored, atomically.

        Args:
            view: the part, of one element or more; a view of the stored array, as `_layout` is.
            value: of this array's dtype; broadcasts to `view.shape` (see `View.align`).
            mode: how the value meets what is stored.
        """

    @abstractmethod
    def _view(self, view: View) -> NDArray:
        """An array of the same storage that shows another part of it."""

    @abstractmethod
    def _is_part(self, view: View, other: NDArray) -> bool:
        """Whether `other` shows exactly that part of the same storage, in the same shape."""

    def _read(self) -> _Values:
        """The values, only to be read: for local arrays the storage itself."""
        return self._fetch()

    def _store_indexed(self, key: Any, value: _Values) -> None:
        """Writes through index arrays; `key` and `value` are NumPy's."""
        raise InvalidRegionError(
            "a parameter's handle is not written through index arrays or masks: write slices, or "
            "fetch the values with asnumpy(), change them and assign all of them"
        )

    # What it is.

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self._layout.shape

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Element type. It equals the NumPy scalar type that MXNet gives here."""

    @property
    @abstractmethod
    def context(self) -> Context:
        """Where the array is."""

    @property
    def ctx(self) -> Context:
        """Same as `context`."""
        return self.context

    @property
    def device(self) -> Context:
        """Same as `context`, by the name that MXNet 2.0 gives it."""
        return self.context

    @property
    def stype(self) -> str:
        """Storage type: 'default' or 'row_sparse'."""
        return "default"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def T(self) -> NDArray:  # noqa: N802 - MXNet's and NumPy's name
        """A local array with the axes in reverse order."""
        return self._local(np.array(self._read().T, order="C"))

    def __repr__(self) -> str:
        return describe(self.asnumpy(), "NDArray", self.shape, self.context)

    # Values out.

    def asnumpy(self) -> _Values:
        """The values as a fresh NumPy array."""
        return self._fetch()

    def asscalar(self) -> Any:
        """The only element, as a NumPy scalar.

        Raises:
            ValueError: where there are more or fewer.
        """
        if self.size != 1:
            raise ValueError(f"The current array is not a scalar: it has the shape {self.shape}")
        return self._read().reshape(-1)[0]

    def item(self) -> Any:
        """The only element, as a Python number.

        Raises:
            ValueError: where there are more or fewer.
        """
        return self.asscalar().item()

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        return self._read().tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> _Values:
        values = self._read() if self._lends_storage and not copy else self._fetch()
        result = values if dtype is None else values.astype(dtype, copy=False)
        if copy is False and (result is not values or not self._lends_storage):
            raise ValueError("the values have to be copied, but copy=False was given")
        return result

    @property
    def _lends_storage(self) -> bool:
        """Whether `_read` gives the storage itself."""
        return False

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule of the values, in host memory.

        Args:
            stream: None: nothing in host memory is waited for.
            max_version: the latest version that the consumer knows; None for those before 1.0.
            dl_device: None or (1, 0), the host.
            copy: True for memory of the consumer's own. None shares that of a local array, unless
                it is read-only and `max_version` cannot say so, or in reverse order; what is on
                the server is fetched. False raises where None would copy or fetch.

        Raises:
            BufferError: for another device, a stream, or a copy that was not allowed.
        """
        check_request(stream, dl_device)
        if self._lends_storage and not copy:
            try:
                return capsule_of(self._read(), max_version)
            except BufferError:
                if copy is False:
                    raise
        elif copy is False:
            raise BufferError(
                f"the values of a {type(self).__name__} are brought together for each use, which "
                "copy=False does not allow"
            )
        return capsule_of(self._fetch(), max_version, copied=True)

    def __dlpack_device__(self) -> tuple[int, int]:
        return HOST_DEVICE

    def __float__(self) -> float:
        return float(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise TypeError(
                f"only arrays of integers can be an index, but the dtype is {self.dtype}"
            )
        return int(self._number())

    def __bool__(self) -> bool:
        if self.size > 1:
            raise ValueError("The truth value of an NDArray with multiple elements is ambiguous.")
        return self.size == 1 and bool(self.asscalar())

    def _number(self) -> Any:
        if self.size != 1:
            raise TypeError(
                f"only arrays of one element are numbers, but the shape is {self.shape}"
            )
        return self.asscalar()

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray]:
        return (self[index] for index in range(len(self)))

    def __contains__(self, value: object) -> bool:
        return bool(apply("equal", self._read(), self._operand(value)).any())

    # Indexing.

    def __getitem__(self, key: Any) -> NDArray:
        if is_basic(key):
            return self._view(self._basic(key))
        values = self._read()[_index_arrays(key)]
        return self._local(np.array(values).reshape(values.shape or (1,)))

    def __setitem__(self, key: Any, value: Any) -> None:
        if is_basic(key):
            self._write(self._basic(key), value, "assign")
        else:
            self._store_indexed(_index_arrays(key), self._assigned(value))

    def _basic(self, key: Any) -> View:
        view = self._layout.index(key)
        return view if view.axes or not self._layout.axes else view.with_new_axis()

    def _write(self, view: View, value: Any, mode: StoreMode) -> None:
        # `x[key] += v` ends with `x[key] = (the view)`, after the view was updated.
        if mode == "assign" and isinstance(value, NDArray) and self._is_part(view, value):
            return
        values = self._assigned(value)
        broadcast_source(values.shape, view.shape)
        if mode != "assign" and values.ndim > len(view.axes):
            raise BroadcastError(
                f"an array of the shape {view.shape} is not updated in place by one of the shape "
                f"{values.shape}"
            )
        values = self._converted(values, mode)
        if mode == "divide" and values.dtype.kind in "iu" and not values.all():
            raise ZeroDivisionError("division of integers by zero")
        if view.size:
            self._store(view, values, mode)

    def _converted(self, values: _Values, mode: StoreMode) -> _Values:
        """Values as `_store` is to get them: a number takes the array's dtype, as in MXNet."""
        return cast(values, self.dtype)

    @staticmethod
    def _assigned(value: Any) -> _Values:
        return value._read() if isinstance(value, NDArray) else as_values(value)

    # Arithmetic.

    def _operand(self, other: Any) -> Any:
        if isinstance(other, NDArray):
            return other._read()
        if is_number(other):
            return other
        if hasattr(other, "__array__") or hasattr(other, "__dlpack__"):
            return as_values(other)
        raise TypeError(f"type {type(other)} not supported")

    def _binary(self, name: str, other: Any, *, reflected: bool = False) -> NDArray:
        one, two = self._read(), self._operand(other)
        return self._local(apply(name, two, one) if reflected else apply(name, one, two))

    def _update(self, mode: StoreMode, value: Any) -> Self:
        self._write(
            self._layout, value if isinstance(value, NDArray) else self._operand(value), mode
        )
        return self

    # Copies and conversions.

    def copy(self) -> NDArray:
        """A local copy with the same context."""
        return self._local(self._fetch())

    def __copy__(self) -> NDArray:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> NDArray:
        return self.copy()

    def copyto(self, other: NDArray | Context) -> NDArray:
        """Copies the values.

        Args:
            other: an array of the same shape, which is overwritten; or a context for a new one.

        Returns:
            The array that was written, or a new local array.

        Raises:
            BroadcastError: where the shapes differ.
            TypeError: where `other` is neither.
        """
        if isinstance(other, Context):
            return self._local(self._fetch(), other)
        if not isinstance(other, NDArray):
            raise TypeError(f"copyto does not support type {type(other)}")
        if other.shape != self.shape:
            raise BroadcastError(
                f"copyto needs equal shapes, but copies {self.shape} to {other.shape}"
            )
        other._write(other._layout, self, "assign")
        return other

    def as_in_context(self, context: Context) -> NDArray:
        """The array itself if it is on that context, else a local copy labelled so."""
        return self if self.context == context else self.copyto(context)

    def as_in_ctx(self, ctx: Context) -> NDArray:
        """Same as `as_in_context`."""
        return self.as_in_context(ctx)

    def to_device(self, device: Context) -> NDArray:
        """Same as `as_in_context`, by the name that MXNet 2.0 gives it."""
        return self.as_in_context(device)

    def astype(self, dtype: Any, copy: bool = True) -> NDArray:
        """A local array of another dtype.

        Args:
            dtype: what a parameter's dtype can be.
            copy: False gives the array itself where it has that dtype.
        """
        wanted = dtype_of(dtype)
        if not copy and wanted == self.dtype:
            return self
        return self._local(cast(self._fetch(), wanted))

    def tostype(self, stype: str) -> NDArray:
        """A local array of another storage type, 'default' or 'row_sparse'.

        Raises:
            ValueError: for any other; 'csr' is not supported.
        """
        if stype == "default":
            return self.copy()
        if stype == "row_sparse":
            # Here, since the local arrays are built on this module.
            from paramd.ndarray.row_sparse import from_dense

            return from_dense(self._read(), self.context)
        raise ValueError(f"stype is 'default' or 'row_sparse', but got {stype!r}")

    def reshape(self, *shape: Any) -> NDArray:
        """A local array with the same elements in another shape.

        A local array whose elements lie in a row shares them with the result, as in MXNet; the
        values of a parameter's handle are fetched.

        Args:
            shape: numbers or one tuple, with MXNet's codes: 0 keeps an axis, -1 is what is left,
                -2 all axes that are left, -3 the product of two, -4 splits one into the next two.

        Raises:
            ValueError: where the elements do not fit.
        """
        asked = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        return self._local(self._read().reshape(resolve_shape(self.shape, tuple(asked))))

    def detach(self) -> NDArray:
        """Another handle of the same storage: there are no gradients to detach it from."""
        return self._view(self._layout)

    def wait_to_read(self) -> None:
        """Returns at once: every call has done its work when it returns."""

    def wait_to_write(self) -> None:
        """Returns at once: every call has done its work when it returns."""

    def _local(self, values: _Values, context: Context | None = None) -> NDArray:
        # Here, since the local arrays are built on this module.
        from paramd.ndarray.local import wrap

        return wrap(values, context or self.context)


def _index_arrays(key: Any) -> Any:
    """The NumPy index of one that holds arrays, lists or NDArrays."""
    if isinstance(key, tuple):
        return tuple(_index_array(item) for item in key)
    return _index_array(key)


def _index_array(item: Any) -> Any:
    if is_basic(item):
        return item
    if isinstance(item, NDArray):
        values = item._read()
    elif isinstance(item, list) or hasattr(item, "__array__") or hasattr(item, "__dlpack__"):
        values = as_values(item)
    else:
        raise ValueError(f"NDArray does not support slicing with key {item} of type {type(item)}.")
    # MXNet's arrays are of float32 by default, also those of indices.
    return values if values.dtype.kind in "biu" else cast(values, np.dtype(np.int64))
