"""All pinned host memory of the emulated machine."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support.emulated_cuda.device_memory import POISON
from tests.support.emulated_cuda.errors import MEMORY_ALLOCATION, CUDARuntimeError

__all__ = ["PinnedBlock", "PinnedMemory"]


@dataclass(eq=False)
class PinnedBlock:
    """A piece of pinned memory. Guarded by the scheduler's lock.

    Attributes:
        memory: its bytes.
        size: that were asked for; 0 while it is free.
        pending: how many copies are queued on it.
    """

    memory: np.ndarray[Any, Any]
    size: int = 0
    pending: int = 0

    @property
    def address(self) -> int:
        """Of its first byte."""
        return int(self.memory.ctypes.data)


class PinnedMemory:
    """All pinned memory of the process. Guarded by the scheduler's lock.

    Attributes:
        limit_bytes: how much the host lets be pinned.
        allocated_bytes: how much is.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.allocated_bytes = 0
        self._starts: list[int] = []
        self._blocks: dict[int, PinnedBlock] = {}

    def allocate(self, capacity: int) -> PinnedBlock:
        """Pins memory.

        Raises:
            CUDARuntimeError: where that would be too much.
        """
        if self.allocated_bytes + capacity > self.limit_bytes:
            raise CUDARuntimeError(MEMORY_ALLOCATION)
        self.allocated_bytes += capacity
        block = PinnedBlock(np.full(capacity, POISON, np.uint8))
        bisect.insort(self._starts, block.address)
        self._blocks[block.address] = block
        return block

    def free(self, block: PinnedBlock) -> None:
        """Gives it back to the host."""
        self.allocated_bytes -= block.memory.size
        del self._starts[bisect.bisect_left(self._starts, block.address)]
        del self._blocks[block.address]

    def find(self, address: int) -> PinnedBlock | None:
        """The block that has an address, in use or free; None for other host memory."""
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        block = self._blocks[self._starts[at]]
        return block if address < block.address + block.memory.size else None
