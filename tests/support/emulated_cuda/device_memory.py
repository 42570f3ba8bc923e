"""Memory of the emulated devices: who has which addresses, and what lies beside.

It is host memory, in units of 512 bytes as CuPy's pool has them, each with room for guards: bytes
that belong to nobody lie before and behind every allocation. All that nobody has written holds
`POISON`, which floating point reads as NaN and signed integers as -1.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support.emulated_cuda.scheduler import Queue

__all__ = ["POISON", "Chunk", "DeviceMemory", "Segment"]

UNIT = 512
POISON = 0xFF
_GUARD = 64
_STRIDE = UNIT + 2 * _GUARD
_ALIGNMENT = 128
# On each side of a segment, so that a row of the poisoned id -1 is seldom somebody else's memory.
_MARGIN = 1 << 14


class Segment:
    """What one cudaMalloc would give.

    Attributes:
        device: that it lies on.
        units: its size.
        unpainted: how many of its chunks were freed and are not poisoned yet.
    """

    def __init__(self, device: int, units: int) -> None:
        self.device = device
        self.units = units
        self.unpainted = 0
        memory = np.full(units * _STRIDE + _ALIGNMENT + 2 * _MARGIN, POISON, np.uint8)
        skipped = _MARGIN + -memory.ctypes.data % _ALIGNMENT
        self._bytes = memory[skipped : skipped + units * _STRIDE]
        self._address = self._bytes.ctypes.data

    def address(self, unit: int) -> int:
        """Where an allocation begins that has this unit as its first."""
        return self._address + unit * _STRIDE + _GUARD

    def extent(self, first: int, units: int) -> np.ndarray[Any, Any]:
        """All bytes of some units, guards included."""
        return self._bytes[first * _STRIDE : (first + units) * _STRIDE]


@dataclass(eq=False)
class Chunk:
    """A run of units of a segment, in use or free. Guarded by the scheduler's lock.

    Attributes:
        segment: that it is of.
        first: of its units.
        units: how many.
        queue: of the stream whose order its uses follow.
        size: bytes that were asked for; 0 while it is free.
        previous: the chunk before, in the same segment.
        following: the chunk behind.
    """

    segment: Segment
    first: int
    units: int
    queue: Queue
    size: int = 0
    previous: Chunk | None = None
    following: Chunk | None = None

    @property
    def address(self) -> int:
        """Of its first byte."""
        return self.segment.address(self.first)

    def split(self, units: int) -> Chunk:
        """Keeps its first units.

        Returns:
            The chunk of the others.
        """
        rest = Chunk(
            self.segment,
            self.first + units,
            self.units - units,
            self.queue,
            0,
            self,
            self.following,
        )
        if self.following is not None:
            self.following.previous = rest
        self.units, self.following = units, rest
        return rest

    def merge(self) -> None:
        """Takes in the chunk behind."""
        assert self.following is not None
        self.units += self.following.units
        self.following = self.following.following
        if self.following is not None:
            self.following.previous = self

    def guards_intact(self, most: int | None = None) -> bool:
        """Whether nobody wrote before or behind it.

        Args:
            most: how many bytes to look at on each side; None for all.
        """
        return guards_intact(self.segment.extent(self.first, self.units), self.size, most)


def guards_intact(extent: np.ndarray[Any, Any], size: int, most: int | None = None) -> bool:
    """Whether nobody wrote beside an allocation of `size` bytes in an extent."""
    behind = extent[_GUARD + size :][:most]
    return bool((extent[:_GUARD] == POISON).all() and (behind == POISON).all())


class DeviceMemory:
    """What one device has. Guarded by the scheduler's lock.

    Attributes:
        device: its number.
        total_bytes: of the device.
        other_bytes: that other processes have, as tests like it.
        allocated_bytes: that pools have.
    """

    def __init__(self, device: int, total_bytes: int) -> None:
        self.device = device
        self.total_bytes = total_bytes
        self.other_bytes = 0
        self.allocated_bytes = 0
        self._starts: list[int] = []
        self._chunks: dict[int, Chunk] = {}

    @property
    def free_bytes(self) -> int:
        """That nobody has."""
        return max(0, self.total_bytes - self.other_bytes - self.allocated_bytes)

    def allocate(self, units: int, queue: Queue) -> Chunk | None:
        """A segment, as one chunk; None where there is no room."""
        if units * UNIT > self.free_bytes:
            return None
        self.allocated_bytes += units * UNIT
        return Chunk(Segment(self.device, units), 0, units, queue)

    def free(self, segment: Segment) -> None:
        """Gives a segment back to the device."""
        self.allocated_bytes -= segment.units * UNIT

    def add(self, chunk: Chunk) -> None:
        """Makes the addresses of a chunk valid."""
        bisect.insort(self._starts, chunk.address)
        self._chunks[chunk.address] = chunk

    def remove(self, chunk: Chunk) -> None:
        """Makes them invalid."""
        del self._starts[bisect.bisect_left(self._starts, chunk.address)]
        del self._chunks[chunk.address]

    def find(self, address: int, size: int) -> Chunk | None:
        """The allocation that has all of `size` bytes from an address."""
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        chunk = self._chunks[self._starts[at]]
        return chunk if address + max(1, size) <= chunk.address + chunk.size else None
