"""Allocation on the devices, in the order of streams, as CuPy's MemoryPool does it."""

from __future__ import annotations

import functools
import gc
from collections import deque
from collections.abc import Callable

from tests.support.emulated_cuda.device_memory import (
    POISON,
    UNIT,
    Chunk,
    DeviceMemory,
    Segment,
    guards_intact,
)
from tests.support.emulated_cuda.emulator import Emulator, current
from tests.support.emulated_cuda.scheduler import Operation

__all__ = ["MemoryPointer", "MemoryPool", "OutOfMemoryError"]


class OutOfMemoryError(MemoryError):
    """A device has no room, whatever its pool gave back."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        super().__init__(
            f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes)."
        )


class MemoryPointer:
    """An allocation; its memory returns to the pool when the object goes.

    Attributes:
        ptr: address of its first byte; 0 for no bytes.
        device_id: where it is.
    """

    # As CuPy's: no further attributes, no weak references.
    __slots__ = ("_release", "_released", "device_id", "ptr")

    def __init__(
        self,
        ptr: int,
        device_id: int,
        released: deque[Callable[[], None]],
        release: Callable[[], None] | None,
    ) -> None:
        self.ptr = ptr
        self.device_id = device_id
        self._released = released
        self._release = release

    def __del__(self) -> None:
        if self._release is not None:
            self._released.append(self._release)


class MemoryPool:
    """Keeps freed memory for the stream that it was allocated for. Counts for the current device.

    Freed memory is poisoned in the order of that stream, and is handed out again at once.
    """

    def __init__(self) -> None:
        self._pools: dict[int, _DevicePool] = {}
        self._emulator = current()

    def malloc(self, size: int) -> MemoryPointer:
        """Allocates for the current stream, which may not be the null stream.

        Raises:
            OutOfMemoryError: where the device has no room.
        """
        emulator, pool = self._emulator, self._current()
        stream = emulator.current_stream()
        scheduler = emulator.scheduler
        if stream is None:
            raise emulator.faults.record("malloc without a current stream, for the null stream")
        if size == 0:
            return MemoryPointer(0, pool.memory.device, scheduler.released, None)
        with scheduler.settled():
            chunk = pool.malloc(size, stream)
        if chunk is None:
            # Not under the lock: finalizers of whatever may run.
            gc.collect()
            with scheduler.settled():
                chunk = pool.malloc(size, stream)
                total = pool.total_bytes
            if chunk is None:
                raise OutOfMemoryError(size, total)
        return MemoryPointer(
            chunk.address,
            pool.memory.device,
            scheduler.released,
            functools.partial(pool._release, chunk),
        )

    def free_all_blocks(self) -> None:
        """Gives the device what is free and not split."""
        with self._emulator.scheduler.settled():
            self._current().free_all_blocks()

    def used_bytes(self) -> int:
        """That pointers have."""
        with self._emulator.scheduler.settled():
            return self._current().used_bytes

    def total_bytes(self) -> int:
        """That the pool has of the device."""
        with self._emulator.scheduler.settled():
            return self._current().total_bytes

    def free_bytes(self) -> int:
        """That the pool has and no pointer."""
        with self._emulator.scheduler.settled():
            return self._current().total_bytes - self._current().used_bytes

    def _current(self) -> _DevicePool:
        device = self._emulator.device
        return self._pools.setdefault(device, _DevicePool(self._emulator, device))

    def __del__(self) -> None:
        for pool in self._pools.values():
            self._emulator.scheduler.released.append(pool.close)


class _DevicePool:
    """That of one device. Guarded by the scheduler's lock."""

    def __init__(self, emulator: Emulator, device: int) -> None:
        self.memory: DeviceMemory = emulator.memories[device]
        self.used_bytes = 0
        self.total_bytes = 0
        self._emulator = emulator
        # By stream; what was freed last is last.
        self._free: dict[int, list[Chunk]] = {}
        self._closed = False

    def malloc(self, size: int, stream: int) -> Chunk | None:
        """An allocation, now in use; None where there is no room."""
        units = -(-size // UNIT)
        chunk = self._reused(units, stream) or self._new(units, stream)
        if chunk is None:
            return None
        chunk.size = size
        self.used_bytes += units * UNIT
        self.memory.add(chunk)
        return chunk

    def _reused(self, units: int, stream: int) -> Chunk | None:
        """The smallest that fits and, of these, the one freed last."""
        free = self._free.get(stream, [])
        fitting = [chunk for chunk in reversed(free) if chunk.units >= units]
        if not fitting:
            return None
        chunk = min(fitting, key=lambda chunk: chunk.units)
        free.remove(chunk)
        if chunk.units > units:
            free.append(chunk.split(units))
        return chunk

    def _new(self, units: int, stream: int) -> Chunk | None:
        queue = self._emulator.scheduler.queue(stream)
        assert queue is not None
        chunk = self.memory.allocate(units, queue)
        if chunk is None:
            self.free_all_blocks()
            chunk = self.memory.allocate(units, queue)
        if chunk is not None:
            self.total_bytes += units * UNIT
        return chunk

    def _release(self, chunk: Chunk) -> None:
        """Makes an allocation free, for the next one on its stream."""
        self.memory.remove(chunk)
        self.used_bytes -= chunk.units * UNIT
        chunk.segment.unpainted += 1
        paint = functools.partial(self._paint, chunk.segment, chunk.first, chunk.units, chunk.size)
        self._emulator.scheduler.append(chunk.queue, Operation(paint))
        chunk.size = 0
        free = self._free.setdefault(chunk.queue.ptr, [])
        if chunk.following in free:
            free.remove(chunk.following)
            chunk.merge()
        if chunk.previous in free:
            chunk = chunk.previous
            free.remove(chunk)
            chunk.merge()
        free.append(chunk)
        if self._closed:
            self.free_all_blocks()

    def free_all_blocks(self) -> None:
        """Gives the device each segment that is one free chunk."""
        for free in self._free.values():
            for chunk in [one for one in free if one.units == one.segment.units]:
                free.remove(chunk)
                self.memory.free(chunk.segment)
                self.total_bytes -= chunk.units * UNIT

    def close(self) -> None:
        """From now on nothing is kept."""
        self._closed = True
        self.free_all_blocks()

    def _paint(self, segment: Segment, first: int, units: int, size: int) -> None:
        """Poisons what was freed, when its stream comes to it."""
        extent = segment.extent(first, units)
        intact = guards_intact(extent, size)
        extent[:] = POISON
        with self._emulator.scheduler.lock:
            segment.unpainted -= 1
        if not intact:
            raise self._emulator.faults.record(
                f"somebody wrote before or behind {size} bytes on device {segment.device}"
            )
