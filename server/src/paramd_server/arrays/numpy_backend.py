"""Arrays in host memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np

from paramd.context import Context
from paramd.errors import MemoryLimitError
from paramd.spec import Region, Shape, region_slices
from paramd_server.arrays.backend import (
    Buffer,
    BufferHold,
    DeviceStatus,
    HostArray,
    Pieces,
    Values,
    region_shape,
)
from paramd_server.arrays.memory import MemoryAccount, format_bytes
from paramd_server.arrays.update_kernels import is_finite, update_array, warm_up_kernel

__all__ = ["FlatMemory", "NumpyBackend", "NumpyBuffer"]

# Before smaller ones nobody looks how much is kept: what is, goes within seconds by itself.
_LARGE_BYTES: Final = 256 << 10

# ufuncs of the write modes that compute.
_UFUNCS: Final[dict[str, Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.true_divide,
}


class NumpyBuffer:
    """An array in main memory, counted in an account until it is garbage.

    Args:
        flat: its memory, which goes back to where it came from.
        shape: dimensions.
        dtype: element type.
        context: that it is on.
        account: in which it is counted already.
        memory: that it came from.
    """

    __slots__ = ("__weakref__", "_account", "_flat", "_memory", "array", "context", "hold",
                 "readers")  # fmt: skip

    def __init__(
        self,
        flat: HostArray,
        shape: Shape,
        dtype: np.dtype[Any],
        context: Context,
        account: MemoryAccount,
        memory: FlatMemory,
    ) -> None:
        self._flat = flat
        self._account = account
        self._memory = memory
        self.array = flat.view(dtype).reshape(shape)
        self.context = context
        self.readers = 0
        self.hold: BufferHold | None = None

    def __del__(self) -> None:
        # No weakref.finalize, which costs every small call several times this.
        self._account.release(self._flat.nbytes)
        self._memory.give(self._flat)

    @property
    def shape(self) -> Shape:
        """Dimensions."""
        shape: Shape = self.array.shape
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.array.nbytes


class FlatMemory(Protocol):
    """Where flat host memory comes from, and goes when nobody refers to it any more."""

    @property
    def held_bytes(self) -> int:
        """The size of what it keeps to be used again."""

    def take(self, size: int) -> HostArray:
        """uint8 of shape (size,), with any content. Raises MemoryError."""

    def take_zeros(self, size: int) -> HostArray:
        """uint8 zeros of shape (size,). Raises MemoryError."""

    def give(self, flat: HostArray) -> None:
        """Takes memory back."""

    def drop(self) -> None:
        """Frees what it keeps."""


class NumpyBackend:
    """Contexts in host memory, all of one type the same memory.

    Args:
        account: counts what is allocated.
        memory: where it comes from.
        device_type: the type of the contexts.
        others: what else keeps memory that is of the same account.
    """

    def __init__(
        self,
        account: MemoryAccount,
        memory: FlatMemory,
        *,
        device_type: str = "cpu",
        others: Sequence[FlatMemory] = (),
    ) -> None:
        self._account = account
        self._memory = memory
        self._device_type = device_type
        self._kept = (memory, *others)

    @property
    def device_types(self) -> Sequence[str]:
        """Only its own."""
        return (self._device_type,)

    def num_devices(self, device_type: str) -> int | None:
        """None: `cpu(7)` is main memory like `cpu(0)`."""
        return None if device_type == self._device_type else 0

    def accounts(self) -> Sequence[MemoryAccount]:
        """None of its own."""
        return ()

    def statuses(self) -> Sequence[DeviceStatus]:
        """None: host memory is counted by the server's account."""
        return ()

    def trim(self) -> None:
        """Nothing to do: who made the memory trims it."""

    def empty(self, shape: Shape, dtype: np.dtype[Any], context: Context) -> Buffer:
        """A buffer with any content."""
        size = self._reserve(shape, dtype)
        flat = self._allocate(size, zero=False)
        return self._wrap(flat, shape, dtype, context)

    def zeros(self, shape: Shape, dtype: np.dtype[Any], context: Context) -> Buffer:
        """A buffer of zeros, whose pages the system provides when they are first written."""
        size = self._reserve(shape, dtype)
        flat = self._allocate(size, zero=True)
        return self._wrap(flat, shape, dtype, context)

    def adopt(self, staged: Buffer, context: Context) -> Buffer:
        """The same memory under another context, or a copy where it is of another kind."""
        assert isinstance(staged, NumpyBuffer)
        if staged.context.device_type != self._device_type:
            adopted = self.empty(staged.shape, staged.dtype, context)
            self.write(adopted, staged.array, mode="assign")
            return adopted
        staged.context = context
        return staged

    def array(self, buffer: Buffer) -> HostArray:
        """The buffer's own memory, in its shape."""
        assert isinstance(buffer, NumpyBuffer)
        return buffer.array

    def part(self, buffer: Buffer, region: Region) -> Buffer:
        """Copies a region."""
        copied = self.empty(region_shape(region), buffer.dtype, buffer.context)
        np.copyto(self.array(copied), self.array(buffer)[region_slices(region)])
        return copied

    def flat(self, buffer: Buffer, begin: int = 0, end: int | None = None) -> HostArray:
        """A view of the buffer's own memory."""
        return self.array(buffer).reshape(-1)[begin:end]

    def pieces(self, buffer: Buffer, begin: int = 0, end: int | None = None) -> Pieces:
        """One: a view of the buffer's own memory."""
        return _one(self.flat(buffer, begin, end))

    def fill(self, buffer: Buffer, begin: int, values: HostArray) -> None:
        """Copies and casts."""
        _combine(self.flat(buffer, begin, begin + values.size), values.reshape(-1), "assign")

    def write(
        self, buffer: Buffer, value: HostArray, *, region: Region | None = None, mode: str
    ) -> None:
        """Writes in place, broadcasting and casting."""
        target = self.array(buffer)
        _combine(target if region is None else target[region_slices(region)], value, mode)

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copies and casts."""
        _combine(self.array(target), self.array(source), "assign")

    def take_rows(
        self, buffer: Buffer, ids: HostArray, out: HostArray, *, row_size: int | None = None
    ) -> None:
        """Gathers rows in one pass."""
        array = self.array(buffer)
        if row_size is not None:
            whole = array.size // row_size
            array = array.reshape(-1)[: whole * row_size].reshape(whole, row_size)
            out = out.reshape(len(ids), row_size)
        # mode='clip' spares a second check of every id and a buffer; the ids are in range.
        np.take(array, ids, axis=0, out=out, mode="clip")

    def row_memory(self, shape: Shape, dtype: np.dtype[Any]) -> HostArray:
        """Any memory does."""
        return np.empty(shape, dtype)

    def put_rows(self, buffer: Buffer, ids: HostArray, rows: Values, *, mode: str) -> None:
        """Writes rows in place."""
        array, rows = self.array(buffer), self._values(rows)
        if mode == "assign":
            with np.errstate(all="ignore"):
                array[ids] = rows.astype(buffer.dtype, copy=False)
        else:
            current = array[ids]
            _combine(current, rows, mode)
            array[ids] = current

    def all_finite(self, buffer: Buffer) -> bool:
        """One pass over memory, without the GIL."""
        return is_finite(self.array(buffer))

    def warm_up(
        self,
        update: str,
        dtype: np.dtype[Any],
        *,
        state_dtypes: Sequence[np.dtype[Any]],
        rounded: np.dtype[Any] | None,
    ) -> None:
        """Compiles, if need be."""
        warm_up_kernel(update, dtype, state_dtypes=state_dtypes, rounded=rounded)

    def update(
        self,
        update: str,
        weight: Buffer,
        gradient: Values,
        states: Sequence[Buffer],
        constants: Sequence[float],
        *,
        rounded: Buffer | None = None,
        ids: HostArray | None = None,
        lazy: bool = True,
    ) -> None:
        """One pass over memory, without the GIL."""
        update_array(
            update,
            self.array(weight),
            self._values(gradient),
            [self.array(state) for state in states],
            constants,
            rounded=None if rounded is None else self.array(rounded),
            ids=ids,
            lazy=lazy,
        )

    def _values(self, values: Values) -> HostArray:
        return values if isinstance(values, np.ndarray) else self.array(values)

    def _reserve(self, shape: Shape, dtype: np.dtype[Any]) -> int:
        size = math.prod(shape) * dtype.itemsize
        # NumPy holds no array, not even an empty one, whose other dimensions overflow.
        others = size or math.prod(each for each in shape if each) * dtype.itemsize
        if others > sys.maxsize:
            raise MemoryLimitError(f"no array has shape {shape}")
        self._account.reserve(size)
        if size >= _LARGE_BYTES:
            kept_bytes = sum(memory.held_bytes for memory in self._kept)
            if self._account.used_bytes + kept_bytes > self._account.limit_bytes:
                for memory in self._kept:
                    memory.drop()
        return size

    def _allocate(self, size: int, *, zero: bool) -> HostArray:
        try:
            return self._memory.take_zeros(size) if zero else self._memory.take(size)
        except MemoryError as err:
            self._account.release(size)
            raise MemoryLimitError(f"the system has no {format_bytes(size)} of memory") from err
        except BaseException:
            # A device that has failed gives no pinned memory, either.
            self._account.release(size)
            raise

    def _wrap(
        self, flat: HostArray, shape: Shape, dtype: np.dtype[Any], context: Context
    ) -> NumpyBuffer:
        return NumpyBuffer(flat, shape, dtype, context, self._account, self._memory)


def _one(array: HostArray) -> Pieces:
    yield array


def _combine(target: HostArray, value: HostArray, mode: str) -> None:
    # Overflow, NaN to integer and the like follow the C cast, silently, as in MXNet.
    with np.errstate(all="ignore"):
        if mode == "assign":
            np.copyto(target, value, casting="unsafe")
        else:
            ufunc = _UFUNCS[mode]
            # As in MXNet the value is cast first: 1 + 0.6 in int32 is 1.
            value = value.astype(target.dtype, copy=False)
            if mode == "subtract" and target.dtype == value.dtype == np.bool_:
                # NumPy has no difference of truth values; as numbers they would give this.
                ufunc = np.logical_xor
            ufunc(target, value, out=target, casting="unsafe")
