"""What the rest of the server asks of a kind of device.

Values come and go as NumPy arrays in host memory; where an array itself lives is the backend's
affair. Nothing outside `paramd_server.arrays` knows which backends exist.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from paramd.context import Context
from paramd.spec import Region, Shape
from paramd_server.arrays.memory import MemoryAccount

__all__ = [
    "ArrayBackend",
    "Buffer",
    "BufferHold",
    "DeviceStatus",
    "HostArray",
    "Pieces",
    "Values",
    "flat_range",
    "host_array",
    "region_shape",
]

HostArray = np.ndarray[Any, Any]
# Whoever has them closes them when no more are wanted.
Pieces = Generator[HostArray]


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


# A host array, or a buffer on the context of the buffer that it goes to.
Values = HostArray | Buffer


@dataclass(frozen=True)
class DeviceStatus:
    """One device, described.

    Attributes:
        context: that stands for it.
        name: of the product.
        used_bytes: what buffers take there now.
        limit_bytes: what they may take at most.
        total_bytes: what the device has.
    """

    context: Context
    name: str
    used_bytes: int
    limit_bytes: int
    total_bytes: int


class ArrayBackend(Protocol):
    """Arrays on one kind of device.

    Each method has done its work when it returns, as far as its caller can tell: what it gives in
    host memory is complete, what it was given there may change, and whatever is asked of the same
    buffer next finds it done.
    """

    @property
    def device_types(self) -> Sequence[str]:
        """The device types of its contexts, such as 'cpu'."""

    def num_devices(self, device_type: str) -> int | None:
        """How many contexts of a type there are; None where any number stands for the same."""

    def accounts(self) -> Sequence[MemoryAccount]:
        """What counts its buffers, where that is not the server's account of host memory."""

    def statuses(self) -> Sequence[DeviceStatus]:
        """The devices that have a name and a size, as they are now."""

    def trim(self) -> None:
        """Frees what it keeps for later and has not needed for a while. Called now and then."""

    def empty(self, shape: Shape, dtype: np.dtype[Any], context: Context) -> Buffer:
        """A buffer with any content. Raises MemoryLimitError."""

    def zeros(self, shape: Shape, dtype: np.dtype[Any], context: Context) -> Buffer:
        """A buffer of zeros. Raises MemoryLimitError."""

    def adopt(self, staged: Buffer, context: Context) -> Buffer:
        """Turns a host buffer into one on a context of this kind.

        Args:
            staged: from `Devices.stage`. The caller gives it up, but for reading its memory until
                the result is written to.
            context: of the result, which may be the staged buffer itself.

        Raises:
            MemoryLimitError: where the device has no room; the staged buffer is as it was then.
        """

    def part(self, buffer: Buffer, region: Region) -> Buffer:
        """A new buffer on the same context with a copy of a region. Raises MemoryLimitError."""

    def flat(self, buffer: Buffer, begin: int = 0, end: int | None = None) -> HostArray:
        """Elements of the flattened content in host memory, one-dimensional and contiguous.

        They may share the buffer's memory: for reading only, while the caller holds the buffer
        and nobody writes to it. Meant for blocks of some megabytes.

        Args:
            buffer: of this backend.
            begin: the first element.
            end: after the last one; None for all that follow.
        """

    def pieces(self, buffer: Buffer, begin: int = 0, end: int | None = None) -> Pieces:
        """The flattened content in contiguous host arrays one after the other, to be sent.

        Nobody writes to the buffer until the last piece has been taken.

        Args:
            buffer: of this backend.
            begin: the first element.
            end: after the last one; None for all that follow.

        Returns:
            The pieces. Each is valid until the next is asked for; what is not more than 1 MiB is
            one piece.

        Raises:
            MemoryLimitError: here, not later, where there is no room for a piece.
        """

    def fill(self, buffer: Buffer, begin: int, values: HostArray) -> None:
        """Writes elements of the flattened buffer from `begin` on, casting. It cannot fail."""

    def write(
        self, buffer: Buffer, value: HostArray, *, region: Region | None = None, mode: str
    ) -> None:
        """Writes in place, broadcasting and casting. It cannot fail.

        Args:
            buffer: of this backend.
            value: that broadcasts to the buffer, or to the region.
            region: which part of it; None for all.
            mode: a key of paramd.wire.tensors.MODES.
        """

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copies all of one buffer of this backend into another, casting. It cannot fail."""

    def take_rows(
        self, buffer: Buffer, ids: HostArray, out: HostArray, *, row_size: int | None = None
    ) -> None:
        """Gathers rows into a host array. It cannot fail.

        Args:
            buffer: of this backend.
            ids: int64, all in range.
            out: C-contiguous, of the buffer's dtype, for len(ids) rows.
            row_size: how many elements of the flattened buffer make a row; by default those of
                its first axis do.
        """

    def row_memory(self, shape: Shape, dtype: np.dtype[Any]) -> HostArray:
        """Host memory of which `take_rows` fills any contiguous part without a detour.

        Raises:
            MemoryLimitError: where there is no room.
        """

    def put_rows(self, buffer: Buffer, ids: HostArray, rows: Values, *, mode: str) -> None:
        """Writes rows in place. It cannot fail.

        Args:
            buffer: of this backend.
            ids: int64, unique and in range.
            rows: of shape (len(ids), *row), of any dtype.
            mode: 'assign', 'add' or 'subtract'.
        """

    def all_finite(self, buffer: Buffer) -> bool:
        """Tells whether a buffer of floats holds neither NaN nor infinity."""

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
        gradient: Values,
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
                of the weight, or of (len(ids), *row). A host array is copied where it is not
                contiguous.
            states: of the weight's shape, as `Update.states` has them; of the weight's dtype or
                float32.
            constants: as `Update.constants` has them.
            rounded: a buffer like the weight that gets the new weight too, in its dtype.
            ids: the rows that have a gradient, int64, sorted, unique, in range; None for all.
            lazy: whether the other rows stay as they are; if not, their gradient is 0.
        """


def region_shape(region: Region) -> Shape:
    """The shape of what a region selects."""
    return tuple(count for _, count, _ in region)


def flat_range(region: Region, shape: Shape) -> tuple[int, int] | None:
    """The elements that a region selects, where they follow each other in memory.

    Args:
        region: which an array of that shape has.
        shape: of the array, C-contiguous.

    Returns:
        The first element of the flattened array and the one after the last; None where there are
        gaps, or another order.
    """
    if any(count == 0 for _, count, _ in region):
        return 0, 0
    begin, length, whole = 0, 1, True
    stride = 1
    for (first, count, step), size in zip(reversed(region), reversed(shape), strict=True):
        if count > 1 and (step != 1 or not whole):
            return None
        begin += first * stride
        length *= count
        # What lies before may only be one element, unless all of this axis is taken.
        whole = whole and count == size
        stride *= size
    return begin, begin + length


def host_array(backend: ArrayBackend, buffer: Buffer) -> HostArray:
    """All of a buffer in host memory, in its shape; see `ArrayBackend.flat`."""
    return backend.flat(buffer).reshape(buffer.shape)
