"""Slots that data goes through on its way to a GPU and back, without allocating anything."""

from __future__ import annotations

import queue
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from paramd_server.arrays.backend import HostArray
from paramd_server.arrays.cuda.device import Device, settle
from paramd_server.arrays.cuda.geometry import ID_BYTES, RowPiece, aligned, row_pieces
from paramd_server.arrays.cuda.pinned import Lease, is_leased

__all__ = ["Download", "Fed", "Rows", "Slot", "TransferSizes", "TransferSlots", "pack", "pack_flat"]


@dataclass(frozen=True)
class TransferSizes:
    """How much is under way at a time.

    Attributes:
        slots: of each device, at least 2.
        slot_bytes: of each slot, in pinned and in device memory.
        piece_bytes: of what `ArrayBackend.pieces` gives at a time, at least 1 MiB but in tests.
    """

    slots: int = 4
    slot_bytes: int = 8 << 20
    piece_bytes: int = 4 << 20


class Slot:
    """A chunk of pinned memory and one of device memory, of the same size.

    Attributes:
        host: the pinned chunk, uint8.
        device: address of the device chunk.
        done: after its last use.
    """

    def __init__(self, host: HostArray, device: int, runtime: Any) -> None:
        self.host = host
        self.device = device
        self.host_address: Final[int] = host.ctypes.data
        self.uploaded = runtime.event()
        self.done = runtime.event()

    def view(self, offset: int, count: int, dtype: np.dtype[Any]) -> HostArray:
        """Elements of the pinned chunk."""
        view: HostArray = self.host[offset : offset + count * dtype.itemsize].view(dtype)
        return view


@dataclass(frozen=True)
class Fed:
    """What a launch gets, by its addresses on the device.

    Attributes:
        begin: its first element, counted over all.
        count: of its elements.
        values: of the first element; 0 where there are none.
        ids: of the first row; 0 where there are none.
        first: that row, counted over all.
    """

    begin: int
    count: int
    values: int = 0
    ids: int = 0
    first: int = 0


@dataclass(frozen=True)
class Rows:
    """Which rows of a table packed rows are.

    Attributes:
        ids: int64, contiguous.
        size: elements of a row, positive.
    """

    ids: HostArray
    size: int


@dataclass(frozen=True)
class Download:
    """A part of what comes back.

    Attributes:
        start: puts work on the compute stream that makes it, given the slot, and says at which
            address it will be.
        target: where it goes, uint8: straight there, where that is pinned memory.
    """

    start: Callable[[Slot], int]
    target: HostArray


class TransferSlots:
    """The slots of a device. Whoever has one gives it back without waiting for anybody else.

    A thread that waits for a slot holds none, so that threads cannot wait for each other in turn.

    Args:
        device: on which they are.
        lease: the pinned memory of all of them.
        sizes: how many, how large.

    Raises:
        MemoryLimitError: where the device has no room for them.
    """

    def __init__(self, device: Device, lease: Lease, sizes: TransferSizes) -> None:
        self._device = device
        self.slot_bytes = sizes.slot_bytes
        self._memory = device.reserve(sizes.slots * sizes.slot_bytes)
        # The slot that was given back first comes first: it is the likeliest to be done.
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        host = np.asarray(lease)
        slots = []
        with device.use():
            for begin in range(0, sizes.slots * sizes.slot_bytes, sizes.slot_bytes):
                chunk = host[begin : begin + sizes.slot_bytes]
                slots.append(Slot(chunk, int(self._memory.ptr) + begin, device.runtime))
        for slot in slots:
            self._free.put(slot)
        # Pinned memory may only go when nothing under way needs it.
        weakref.finalize(self, _settle, device.index, slots).atexit = False

    @contextmanager
    def taken(self) -> Iterator[Slot]:
        """A slot for a block, which puts its work with it on the compute stream.

        It may be somebody else's as soon as the block ends: who takes it waits for that work.
        """
        slot = self._free.get()
        try:
            self._device.wait(slot.done)
            yield slot
        finally:
            try:
                slot.done.record(self._device.compute)
            finally:
                # Also where the device has failed, or others would wait for it forever.
                self._free.put(slot)

    def upload(self, slot: Slot, size: int) -> None:
        """Copies the begin of a slot to the device, before what the compute stream gets next."""
        device = self._device
        device.runtime.upload(device.uploads, slot.device, slot.host_address, size)
        slot.uploaded.record(device.uploads)
        device.compute.wait_event(slot.uploaded)

    def feed(self, values: HostArray, dtype: np.dtype[Any], launch: Callable[[Fed], None]) -> None:
        """Feeds launches with the elements of an array, in C order.

        Args:
            values: in host memory, of any strides.
            dtype: that they have on the device.
            launch: puts what uses them on the compute stream.
        """
        step = self.slot_bytes // dtype.itemsize
        for begin in range(0, values.size, step):
            count = min(step, values.size - begin)
            with self.taken() as slot:
                pack_flat(values, begin, slot.view(0, count, dtype))
                self.upload(slot, count * dtype.itemsize)
                launch(Fed(begin, count, values=slot.device))

    def feed_rows(
        self,
        rows: Rows,
        values: HostArray | int | None,
        dtype: np.dtype[Any],
        launch: Callable[[Fed], None],
    ) -> None:
        """Feeds launches with the ids of rows, and with their elements where there are some.

        Args:
            rows: which ones.
            values: (len(ids), *row) in host memory, of any strides; or where they lie on the
                device; None for no values.
            dtype: that they have on the device.
            launch: puts what uses them on the compute stream.
        """
        host = isinstance(values, np.ndarray)
        element_bytes = dtype.itemsize if host else 0
        for piece in row_pieces(len(rows.ids), rows.size, element_bytes, self.slot_bytes):
            with self.taken() as slot:
                used = self.put_ids(slot, rows.ids, piece)
                address = 0
                if isinstance(values, np.ndarray):
                    pack_flat(values, piece.begin, slot.view(used, piece.count, dtype))
                    address = slot.device + used
                    used += piece.count * dtype.itemsize
                elif values is not None:
                    address = values + piece.begin * dtype.itemsize
                self.upload(slot, used)
                launch(Fed(piece.begin, piece.count, address, slot.device, piece.first))

    def put_ids(self, slot: Slot, ids: HostArray, piece: RowPiece) -> int:
        """Writes the ids of some rows to the begin of a pinned chunk; gives where they end."""
        count = piece.last - piece.first
        slot.view(0, count, ids.dtype)[:] = ids[piece.first : piece.last]
        return aligned(count * ID_BYTES)

    def download(self, parts: Iterable[Download]) -> None:
        """Copies to host memory, one part while the one before is still on its way.

        Args:
            parts: each no larger than a slot.
        """
        under_way: deque[tuple[Slot, HostArray]] = deque()
        try:
            for part in parts:
                slot = self._take_if_free() if under_way else self._free.get()
                if slot is None:
                    self._finish(under_way)
                    slot = self._free.get()
                under_way.append((slot, part.target))
                self._start(slot, part)
                if len(under_way) > 1:
                    self._finish(under_way)
            while under_way:
                self._finish(under_way)
        finally:
            for slot, _ in under_way:
                self._free.put(slot)

    def _take_if_free(self) -> Slot | None:
        try:
            return self._free.get_nowait()
        except queue.Empty:
            return None

    def _start(self, slot: Slot, part: Download) -> None:
        device = self._device
        device.wait(slot.done)
        address = part.start(slot)
        device.after_compute(device.downloads)
        to = part.target.ctypes.data if is_leased(part.target) else slot.host_address
        device.runtime.download(device.downloads, to, address, part.target.nbytes)
        slot.done.record(device.downloads)

    def _finish(self, under_way: deque[tuple[Slot, HostArray]]) -> None:
        slot, target = under_way[0]
        self._device.wait(slot.done)
        if not is_leased(target):
            target[:] = slot.host[: target.nbytes]
        under_way.popleft()
        self._free.put(slot)


def _settle(device: int, slots: list[Slot]) -> None:
    settle(device, (slot.done for slot in slots))


def pack(source: HostArray, target: HostArray) -> None:
    """Copies and casts within host memory, silently.

    Args:
        source: of the shape of the target, of any strides.
        target: contiguous.
    """
    if source.dtype == target.dtype and source.dtype.kind == "V":
        # NumPy copies what it does not know one element at a time.
        bits = f"u{source.dtype.itemsize}"
        source, target = source.view(bits), target.view(bits)
    with np.errstate(all="ignore"):
        np.copyto(target, source, casting="unsafe")


def pack_flat(source: HostArray, begin: int, target: HostArray) -> None:
    """Copies and casts elements of a flattened array.

    Args:
        source: of any strides.
        begin: its first element that is copied.
        target: one-dimensional, as long as what is copied.
    """
    if source.flags.c_contiguous:
        pack(source.reshape(-1)[begin : begin + target.size], target)
    else:
        pack(source.flat[begin : begin + target.size], target)
