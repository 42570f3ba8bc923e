"""What is done with the buffers of one GPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from paramd.spec import Region
from paramd.wire.dtypes import DTYPES
from paramd_server.arrays.backend import HostArray
from paramd_server.arrays.cuda.buffers import CudaBuffer
from paramd_server.arrays.cuda.device import Device, KernelKey
from paramd_server.arrays.cuda.geometry import (
    Layout,
    Piece,
    RowPiece,
    Strides,
    aligned,
    contiguous_strides,
    merged_axes,
    region_layout,
    row_pieces,
    value_pieces,
)
from paramd_server.arrays.cuda.pinned import PinnedMemory, lease
from paramd_server.arrays.cuda.runtime import Runtime
from paramd_server.arrays.cuda.transfers import (
    Download,
    Fed,
    Rows,
    Slot,
    TransferSizes,
    TransferSlots,
    pack,
)
from paramd_server.arrays.cuda.updating import Updater
from paramd_server.arrays.memory import MemoryAccount

__all__ = ["Gpu", "finite_kernel"]

# Those that kernels know; what has another is cast on its way.
_KNOWN: Final = frozenset(DTYPES.values())
_WORDS: Final = (16, 8, 4, 2, 1)
_FLAG_BYTES: Final = 4
# Bytes of a geometry for each axis.
_AXIS_BYTES: Final = 24


def finite_kernel(dtype: np.dtype[Any]) -> KernelKey:
    """The kernel that looks for what is not finite."""
    return "all_finite", "", (("VALUE", dtype),)


def _combine_kernel(target: np.dtype[Any], value: np.dtype[Any], mode: str) -> KernelKey:
    return "combine", mode, (("TARGET", target), ("VALUE", value))


class Gpu:
    """A GPU in use, with all that it takes to work with its buffers without allocating.

    Args:
        runtime: that reaches it.
        index: its number.
        account: that counts its buffers.
        pinned: where pinned memory comes from.
        host_account: that counts it.
        sizes: of transfers.

    Raises:
        MemoryLimitError: where the host or the device has no room for what transfers need.
        Exception: what CuPy raises where the device cannot be used, or nothing compiled for it.

    Attributes:
        device: its streams and its memory.
        updater: of weights on it.
    """

    def __init__(
        self,
        runtime: Runtime,
        index: int,
        account: MemoryAccount,
        *,
        pinned: PinnedMemory,
        host_account: MemoryAccount,
        sizes: TransferSizes,
    ) -> None:
        self.device = Device(runtime, index, account)
        with self.device.use():
            staging = lease(sizes.slots * sizes.slot_bytes, pinned, host_account)
            self._slots = TransferSlots(self.device, staging, sizes)
            self.updater = Updater(self.device, self._slots)
            # Who finds out now that nothing can be compiled has a context less, and no damage.
            self.device.load([finite_kernel(np.dtype(np.float32))])
            geometries = self.device.geometries()
            with self._slots.taken() as slot:
                slot.view(0, geometries.size, geometries.dtype)[:] = geometries.reshape(-1)
                self._slots.upload(slot, geometries.nbytes)
                runtime.copy(
                    self.device.compute, self.device.following, slot.device, geometries.nbytes
                )

    def clear(self, buffer: CudaBuffer) -> None:
        """Fills a buffer with zeros."""
        if buffer.nbytes:
            with self.device.use():
                self.device.runtime.clear(self.device.compute, buffer.address, buffer.nbytes)

    def write(self, buffer: CudaBuffer, target: Layout, value: HostArray, mode: str) -> None:
        """Writes what broadcasts to a part of a buffer."""
        if math.prod(target.shape) == 0:
            return
        dtype = value.dtype if value.dtype in _KNOWN else buffer.dtype
        room = self._slots.slot_bytes - aligned(len(target.shape) * _AXIS_BYTES)
        with self.device.use():
            for piece in value_pieces(value, target, room // dtype.itemsize):
                with self._slots.taken() as slot:
                    self._write_piece(slot, buffer, piece, dtype, mode)

    def _write_piece(
        self, slot: Slot, buffer: CudaBuffer, piece: Piece, dtype: np.dtype[Any], mode: str
    ) -> None:
        shape, (strides, value_strides) = merged_axes(
            piece.target.shape, piece.target.strides, piece.strides
        )
        geometry, offset = self._geometry(slot, shape, strides, value_strides)
        packed = slot.view(offset, piece.value.size, dtype)
        pack(piece.value, packed.reshape(piece.value.shape))
        self._slots.upload(slot, offset + packed.nbytes)
        value = slot.device + offset
        if mode == "assign" and dtype == buffer.dtype and geometry == self.device.following:
            address = buffer.address + piece.target.base * dtype.itemsize
            self.device.runtime.copy(self.device.compute, address, value, packed.nbytes)
            return
        self._combine(
            _combine_kernel(buffer.dtype, dtype, mode),
            (buffer.address, piece.target.base),
            (value, 0),
            (geometry, len(shape), math.prod(shape)),
        )

    def _geometry(
        self, slot: Slot, shape: Strides, strides: Strides, value_strides: Strides
    ) -> tuple[int, int]:
        """Where a geometry is, and how much of the pinned chunk it takes for that."""
        if strides == (1,) and value_strides == (1,):
            return self.device.following, 0
        if strides == (1,) and value_strides == (0,):
            return self.device.repeating, 0
        numbers = (*shape, *strides, *value_strides)
        slot.view(0, len(numbers), np.dtype(np.int64))[:] = numbers
        return slot.device, aligned(len(numbers) * np.dtype(np.int64).itemsize)

    def _combine(
        self,
        kernel: KernelKey,
        target: tuple[int, int],
        value: tuple[int, int],
        geometry: tuple[int, int, int],
    ) -> None:
        """Launches it: addresses with their first elements, then geometry, axes and elements."""
        where, ndim, count = geometry
        self.device.launch(
            kernel,
            count,
            (
                *(np.uintp(target[0]), np.uintp(value[0]), np.uintp(where), np.int32(ndim)),
                *(np.int64(target[1]), np.int64(-value[1]), np.int64(0), np.int64(count)),
            ),
        )

    def take_part(self, buffer: CudaBuffer, region: Region, part: CudaBuffer) -> None:
        """Copies a region into a buffer that has its shape."""
        if part.size == 0:
            return
        layout = region_layout(buffer.shape, region)
        packed = contiguous_strides(layout.shape)
        shape, (strides, value_strides) = merged_axes(layout.shape, packed, layout.strides)
        with self.device.use():
            if value_strides == (1,):
                source = buffer.address + layout.base * buffer.dtype.itemsize
                self.device.runtime.copy(self.device.compute, part.address, source, part.nbytes)
                return
            with self._slots.taken() as slot:
                geometry, used = self._geometry(slot, shape, strides, value_strides)
                self._slots.upload(slot, used)
                self._combine(
                    _combine_kernel(part.dtype, buffer.dtype, "assign"),
                    (part.address, 0),
                    (buffer.address, layout.base),
                    (geometry, len(shape), part.size),
                )

    def copy(self, source: CudaBuffer, target: CudaBuffer) -> None:
        """Copies and casts a buffer, from whatever GPU, to one on this one."""
        if target.size == 0:
            return
        if source.device is not self.device:
            self._copy_from_another(source, target)
            return
        with self.device.use():
            self._cast(source.address, source.dtype, target, 0, target.size)

    def _cast(
        self, source: int, dtype: np.dtype[Any], target: CudaBuffer, begin: int, count: int
    ) -> None:
        if dtype == target.dtype:
            address = target.address + begin * dtype.itemsize
            self.device.runtime.copy(self.device.compute, address, source, count * dtype.itemsize)
            return
        kernel = _combine_kernel(target.dtype, dtype, "assign")
        geometry = (self.device.following, 1, count)
        self._combine(kernel, (target.address, begin), (source, 0), geometry)

    def _copy_from_another(self, source: CudaBuffer, target: CudaBuffer) -> None:
        origin, device = source.device, self.device
        with origin.use():
            origin.after_compute(device.compute)
        copy = functools.partial(device.runtime.copy_between, device.compute)
        with device.use():
            if source.dtype == target.dtype:
                copy(target.address, device.index, source.address, origin.index, source.nbytes)
            else:
                itemsize = source.dtype.itemsize
                step = self._slots.slot_bytes // itemsize
                for begin in range(0, source.size, step):
                    count = min(step, source.size - begin)
                    address = source.address + begin * itemsize
                    with self._slots.taken() as slot:
                        copy(slot.device, device.index, address, origin.index, count * itemsize)
                        self._cast(slot.device, source.dtype, target, begin, count)
            # What writes to the source next, or has its memory next, does so after this.
            device.after_compute(origin.compute)

    def take_rows(self, buffer: CudaBuffer, ids: HostArray, row_size: int, out: HostArray) -> None:
        """Gathers rows into contiguous host memory."""
        row_bytes = row_size * buffer.dtype.itemsize
        if row_bytes == 0 or len(ids) == 0:
            return
        word = next(each for each in _WORDS if row_bytes % each == 0)
        target = out.reshape(-1).view(np.uint8)
        slot_bytes = self._slots.slot_bytes

        def downloads() -> Iterator[Download]:
            for piece in row_pieces(len(ids), row_bytes // word, word, slot_bytes):
                start = functools.partial(self._start_rows, buffer, ids, piece, word, row_bytes)
                begin, end = piece.begin * word, (piece.begin + piece.count) * word
                yield Download(start, target[begin:end])

        with self.device.use():
            self._slots.download(downloads())

    def _start_rows(
        self,
        buffer: CudaBuffer,
        ids: HostArray,
        piece: RowPiece,
        word: int,
        row_bytes: int,
        slot: Slot,
    ) -> int:
        used = self._slots.put_ids(slot, ids, piece)
        self._slots.upload(slot, used)
        out = slot.device + used
        numbers = (piece.first, row_bytes // word, piece.begin, piece.count)
        self.device.launch(
            ("take_rows", "", (("WORD", np.dtype(f"V{word}")),)),
            piece.count,
            (
                *(np.uintp(each) for each in (out, buffer.address, slot.device)),
                *(np.int64(each) for each in numbers),
            ),
        )
        return out

    def put_rows(
        self, buffer: CudaBuffer, ids: HostArray, rows: HostArray | CudaBuffer, mode: str
    ) -> None:
        """Writes rows, from the host or from this device."""
        row_size = math.prod(buffer.shape[1:])
        if row_size == 0 or len(ids) == 0:
            return
        dtype = rows.dtype if rows.dtype in _KNOWN else buffer.dtype
        kernel = ("put_rows", mode, (("TARGET", buffer.dtype), ("VALUE", dtype)))

        def launch(fed: Fed) -> None:
            addresses = (buffer.address, fed.values, fed.ids)
            numbers = (fed.first, row_size, fed.begin, fed.count)
            args = (*map(np.uintp, addresses), *map(np.int64, numbers))
            self.device.launch(kernel, fed.count, args)

        values = rows.address if isinstance(rows, CudaBuffer) else rows
        with self.device.use():
            self._slots.feed_rows(Rows(ids, row_size), values, dtype, launch)

    def flat(self, buffer: CudaBuffer, begin: int, end: int) -> HostArray:
        """Elements in fresh host memory."""
        out: HostArray = np.empty(max(end - begin, 0), buffer.dtype)
        target = out.view(np.uint8)
        source = buffer.address + begin * buffer.dtype.itemsize
        step = self._slots.slot_bytes

        def downloads() -> Iterator[Download]:
            for first in range(0, target.size, step):
                address = source + first
                yield Download(functools.partial(_already, address), target[first : first + step])

        with self.device.use():
            self._slots.download(downloads())
        return out

    def all_finite(self, buffer: CudaBuffer) -> bool:
        """Tells whether it holds neither NaN nor infinity."""
        if buffer.size == 0:
            return True
        found = np.zeros(1, np.int32)

        def start(slot: Slot) -> int:
            self.device.runtime.clear(self.device.compute, slot.device, _FLAG_BYTES)
            args = (np.uintp(buffer.address), np.int64(0), np.int64(buffer.size))
            kernel = finite_kernel(buffer.dtype)
            self.device.launch(kernel, buffer.size, (*args, np.uintp(slot.device)))
            return slot.device

        with self.device.use():
            self._slots.download([Download(start, found.view(np.uint8))])
        return not found[0]


def _already(address: int, _: Slot) -> int:
    """What is to be downloaded lies there already."""
    return address
