"""Arrays in the server's main memory."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from paramd.context import Context
from paramd.errors import MemoryLimitError
from paramd.spec import Region, Shape
from paramd_server.arrays.backend import Buffer, BufferHold, HostArray, region_slices
from paramd_server.arrays.memory import MemoryAccount, SpareBuffers, format_bytes
from paramd_server.arrays.update_kernels import update_array, warm_up_kernel

__all__ = ["NumpyBackend", "NumpyBuffer"]

# ufuncs of the write modes that compute.
_UFUNCS: Final[dict[str, Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.true_divide,
}


class NumpyBuffer:
    """An array in main memory, counted in an account until it is garbage."""

    __slots__ = ("__weakref__", "array", "context", "hold", "readers")

    def __init__(self, array: HostArray, context: Context) -> None:
        self.array = array
        self.context = context
        self.readers = 0
        self.hold: BufferHold | None = None

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


class NumpyBackend:
    """CPU contexts, all of them the same main memory.

    Args:
        account: counts what is allocated.
        spares: where freed buffers wait to be used again.
        device_type: the type of the contexts.
    """

    def __init__(
        self, account: MemoryAccount, spares: SpareBuffers, *, device_type: str = "cpu"
    ) -> None:
        self._account = account
        self._spares = spares
        self._device_type = device_type

    @property
    def device_types(self) -> Sequence[str]:
        """Only its own."""
        return (self._device_type,)

    def num_devices(self, device_type: str) -> int | None:
        """None: `cpu(7)` is main memory like `cpu(0)`."""
        return None if device_type == self._device_type else 0

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
        """The same memory under another context."""
        assert isinstance(staged, NumpyBuffer)
        staged.context = context
        return staged

    def host(self, buffer: Buffer, region: Region | None = None) -> HostArray:
        """The buffer's own memory, or a view of a part of it."""
        assert isinstance(buffer, NumpyBuffer)
        return buffer.array if region is None else buffer.array[region_slices(region)]

    def write(
        self, buffer: Buffer, value: HostArray, *, region: Region | None = None, mode: str
    ) -> None:
        """Writes in place, broadcasting and casting."""
        assert isinstance(buffer, NumpyBuffer)
        target = buffer.array if region is None else buffer.array[region_slices(region)]
        _combine(target, value, mode)

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copies and casts."""
        assert isinstance(source, NumpyBuffer)
        assert isinstance(target, NumpyBuffer)
        _combine(target.array, source.array, "assign")

    def take_rows(self, buffer: Buffer, ids: HostArray, out: HostArray) -> None:
        """Gathers rows in one pass."""
        assert isinstance(buffer, NumpyBuffer)
        # mode='clip' spares a second check of every id and a buffer; the ids are in range.
        np.take(buffer.array, ids, axis=0, out=out, mode="clip")

    def put_rows(self, buffer: Buffer, ids: HostArray, rows: HostArray, *, mode: str) -> None:
        """Writes rows in place."""
        assert isinstance(buffer, NumpyBuffer)
        if mode == "assign":
            with np.errstate(all="ignore"):
                buffer.array[ids] = rows.astype(buffer.dtype, copy=False)
        else:
            current = buffer.array[ids]
            _combine(current, rows, mode)
            buffer.array[ids] = current

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
        gradient: HostArray,
        states: Sequence[Buffer],
        constants: Sequence[float],
        *,
        rounded: Buffer | None = None,
        ids: HostArray | None = None,
        lazy: bool = True,
    ) -> None:
        """One pass over memory, without the GIL."""
        assert isinstance(weight, NumpyBuffer)
        assert rounded is None or isinstance(rounded, NumpyBuffer)
        update_array(
            update,
            weight.array,
            gradient,
            [self.host(state) for state in states],
            constants,
            rounded=None if rounded is None else rounded.array,
            ids=ids,
            lazy=lazy,
        )

    def _reserve(self, shape: Shape, dtype: np.dtype[Any]) -> int:
        size = math.prod(shape) * dtype.itemsize
        # NumPy holds no array, not even an empty one, whose other dimensions overflow.
        if math.prod(each for each in shape if each) * dtype.itemsize > sys.maxsize:
            raise MemoryLimitError(f"no array has shape {shape}")
        self._account.reserve(size)
        if self._account.used_bytes + self._spares.held_bytes > self._account.limit_bytes:
            self._spares.drop()
        return size

    def _allocate(self, size: int, *, zero: bool) -> HostArray:
        try:
            return np.zeros(size, np.uint8) if zero else self._spares.take(size)
        except MemoryError as err:
            self._account.release(size)
            raise MemoryLimitError(f"the system has no {format_bytes(size)} of memory") from err

    def _wrap(
        self, flat: HostArray, shape: Shape, dtype: np.dtype[Any], context: Context
    ) -> NumpyBuffer:
        buffer = NumpyBuffer(flat.view(dtype).reshape(shape), context)
        weakref.finalize(buffer, _give_back, self._account, self._spares, flat).atexit = False
        return buffer


def _give_back(account: MemoryAccount, spares: SpareBuffers, flat: HostArray) -> None:
    account.release(flat.nbytes)
    spares.give(flat)


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
