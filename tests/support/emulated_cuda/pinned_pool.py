"""Pinned host memory, as CuPy's PinnedMemoryPool has it.

Nothing orders its reuse: what was freed may be handed out at once, so it is poisoned at once, and a
copy that is still queued on it is a fault.
"""

from __future__ import annotations

import ctypes
import functools
from collections import defaultdict
from typing import Any, ClassVar

from tests.support.emulated_cuda.device_memory import POISON, UNIT
from tests.support.emulated_cuda.emulator import Emulator, current
from tests.support.emulated_cuda.errors import CUDARuntimeError
from tests.support.emulated_cuda.pinned_memory import PinnedBlock

__all__ = ["PinnedMemoryPointer", "PinnedMemoryPool"]


class PinnedMemoryPointer:
    """An allocation, with the buffer protocol; back in its pool when the object goes.

    Attributes:
        ptr: address of its first byte.
    """

    ptr: int
    _pool: PinnedMemoryPool | None = None
    _block: PinnedBlock

    def size(self) -> int:
        """Bytes of the buffer: what was asked for, rounded up as CuPy does."""
        return ctypes.sizeof(self)  # type: ignore[arg-type]

    def __del__(self) -> None:
        if self._pool is not None:
            self._pool._release(self._block)


@functools.cache
def _pointer_type(capacity: int) -> type[ctypes.Array[ctypes.c_byte]]:
    """Only types of ctypes have the buffer protocol without being arrays of NumPy."""
    members = {"_type_": ctypes.c_byte, "_length_": capacity}
    return type("PinnedMemoryPointer", (PinnedMemoryPointer, ctypes.Array), members)


def _empty() -> Any:
    pointer: Any = _pointer_type(0)()
    pointer.ptr = 0
    return pointer


class PinnedMemoryPool:
    """Keeps freed memory for allocations of the same size."""

    _unit: ClassVar[int] = UNIT

    def __init__(self) -> None:
        self._emulator: Emulator = current()
        self._free: defaultdict[int, list[PinnedBlock]] = defaultdict(list)

    def malloc(self, size: int) -> Any:
        """Allocates.

        Returns:
            A `PinnedMemoryPointer` of at least `size` bytes.

        Raises:
            CUDARuntimeError: where the host has no room.
        """
        if size == 0:
            return _empty()
        capacity = -(-size // self._unit) * self._unit
        with self._emulator.scheduler.settled():
            block = self._take(capacity)
            block.size = size
        pointer: Any = _pointer_type(capacity).from_address(block.address)
        pointer.ptr, pointer._block, pointer._pool = block.address, block, self
        return pointer

    def _take(self, capacity: int) -> PinnedBlock:
        if self._free[capacity]:
            return self._free[capacity].pop()
        try:
            return self._emulator.pinned.allocate(capacity)
        except CUDARuntimeError:
            self._free_all_blocks()
            return self._emulator.pinned.allocate(capacity)

    def _release(self, block: PinnedBlock) -> None:
        """Takes memory back. Called by finalizers: takes no lock."""
        # What a process leaves undone when it ends hurts nobody.
        if block.pending and self._emulator.on:
            self._emulator.faults.record(
                f"{block.size} bytes of pinned memory went while {block.pending} copies of it "
                f"were queued, which nobody has waited for"
            )
        block.memory[:] = POISON
        self._emulator.scheduler.released.append(functools.partial(self._keep, block))

    def _keep(self, block: PinnedBlock) -> None:
        self._free[block.memory.size].append(block)
        block.size = 0

    def free_all_blocks(self) -> None:
        """Gives the host what is free."""
        with self._emulator.scheduler.settled():
            self._free_all_blocks()

    def n_free_blocks(self) -> int:
        """How many pieces wait to be used again."""
        with self._emulator.scheduler.settled():
            return sum(map(len, self._free.values()))

    def _free_all_blocks(self) -> None:
        for blocks in self._free.values():
            for block in blocks:
                self._emulator.pinned.free(block)
            blocks.clear()
