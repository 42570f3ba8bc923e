"""What the rest of the server asks of a kind of device.

Values come and go as NumPy arrays in host memory; where an array itself lives is the backend's
affair. Nothing outside `paramd_server.arrays` knows which backends exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from paramd.context import Context
from paramd.spec import Region, Shape

__all__ = ["ArrayBackend", "Buffer", "BufferHold", "HostArray", "region_slices"]

HostArray = np.ndarray[Any, Any]


class BufferHold(Protocol):
    """Keeps buffers as they were at one moment, for a snapshot that is being written."""

    @property
    def active(self) -> bool:
        """Whether anybody still needs what is held."""

    def keep(self, buffer: Buffer, rows: HostArray | None, *, by_rows: bool) -> None:
        """Sets aside what is about to be overwritten in place. Never fails.

        Args:
            buffer: that is held; the lock of its parameter is held too.
            rows: which rows, int64; None for all of it.
            by_rows: whether it is a table, of which mostly a few rows are written.
        """


class Buffer(Protocol):
    """One array on one device. Its memory is given back when the last reference goes.

    Attributes:
        readers: how many reads refer to it now; guarded by the lock of the parameter that owns
            it. Nobody writes in place while it is not 0.
        hold: the snapshot under way that needs its content as it is; guarded likewise. Who writes
            in place tells it before.
    """

    readers: int
    hold: BufferHold | None

    @property
    def shape(self) -> Shape:
        """Dimensions."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""

    @property
    def context(self) -> Context:
        """Where it is."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""


class ArrayBackend(Protocol):
    """Arrays on one kind of device."""

    @property
    def device_types(self) -> Sequence[str]:
        """The device types of its contexts, such as 'cpu'."""

    def num_devices(self, device_type: str) -> int | None:
        """How many contexts of a type there are; None where any number stands for the same."""

    def empty(self, shape: Shape, dtype: np.dtype[Any], context: Context) -> Buffer:
        """A buffer with any content. Raises MemoryLimitError."""

    def zeros(self, shape: Shape, dtype: np.dtype[Any], context: Context) -> Buffer:
        """A buffer of zeros. Raises MemoryLimitError."""

    def adopt(self, staged: Buffer, context: Context) -> Buffer:
        """Turns a host buffer, which the caller gives up, into one on a context of this kind."""

    def host(self, buffer: Buffer, region: Region | None = None) -> HostArray:
        """The content, or a part of it, in host memory; of a part, perhaps with strides.

        It may share the buffer's memory: for reading only, while the caller holds the buffer.
        """

    def write(
        self, buffer: Buffer, value: HostArray, *, region: Region | None = None, mode: str
    ) -> None:
        """Writes in place, broadcasting and casting; mode is a key of paramd.wire.tensors.MODES."""

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copies all of one buffer of this backend into another, casting."""

    def take_rows(self, buffer: Buffer, ids: HostArray, out: HostArray) -> None:
        """Gathers rows (all ids in range) into a host array of shape (len(ids), *row)."""

    def put_rows(self, buffer: Buffer, ids: HostArray, rows: HostArray, *, mode: str) -> None:
        """Writes rows in place; the ids are unique and in range."""

    def warm_up(
        self,
        update: str,
        dtype: np.dtype[Any],
        *,
        state_dtypes: Sequence[np.dtype[Any]],
        rounded: np.dtype[Any] | None,
    ) -> None:
        """Does what the first `update` with these dtypes would otherwise have to do."""

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
        """Updates a weight and its states in place. It cannot fail, once it is warm.

        Args:
            update: a key of paramd_server.arrays.updates.UPDATES.
            weight: of a float dtype.
            gradient: of the dtype of `weight`, or of `rounded` where there is one; of the shape
                of the weight, or of (len(ids), *row).
            states: of the weight's shape, as `Update.states` has them; of the weight's dtype or
                float32.
            constants: as `Update.constants` has them.
            rounded: a buffer like the weight that gets the new weight too, in its dtype.
            ids: the rows that have a gradient, int64, sorted, unique, in range; None for all.
            lazy: whether the other rows stay as they are; if not, their gradient is 0.
        """


def region_slices(region: Region) -> tuple[slice, ...]:
    """The slices that select a region of an array that has it."""
    slices = []
    for begin, count, step in region:
        end: int | None = begin + count * step
        if count == 0:
            begin, end = 0, 0
        elif end is not None and end < 0:
            # A negative end would count from the back.
            end = None
        slices.append(slice(begin, end, step))
    return tuple(slices)
