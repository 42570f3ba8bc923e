"""Host memory that processes of the same machine can map, read-only, and find values in.

Memory is anonymous (memfd_create): nothing depends on the size of /dev/shm, and nothing is left
when the last process that has it ends. It is sealed, so that whoever is given a descriptor can
neither write to it nor change its size (fcntl(2), F_SEAL_FUTURE_WRITE; Linux 5.1).
"""

from __future__ import annotations

import bisect
import errno
import fcntl
import logging
import mmap
import os
import resource
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

__all__ = ["Place", "Segment", "SharedMemory", "sealed_memory"]

_log = logging.getLogger(__name__)

HostArray = np.ndarray[Any, Any]

_F_SEAL_FUTURE_WRITE: Final = 0x0010
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | _F_SEAL_FUTURE_WRITE
# Smaller ones share segments: a descriptor and a mapping for each would be too much.
_ARENA_BUFFER_BYTES: Final = 256 << 10
_ARENA_BYTES: Final = 4 << 20
# What processors move at a time, so that neighbours do not slow each other down.
_ALIGNMENT: Final = 64


def sealed_memory(name: str, size: int) -> tuple[int, mmap.mmap]:
    """Memory that only its owner writes to.

    Args:
        name: for whoever looks at the maps of the process.
        size: in bytes, positive.

    Returns:
        The descriptor, which can be given to others, and the owner's mapping.

    Raises:
        OSError: where the system has no memory, no descriptors, or no such seals.
    """
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        mapping = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, mapping


@dataclass(frozen=True)
class Place:
    """Where a buffer lies.

    Attributes:
        segment: the number of its segment.
        offset: of its first byte.
    """

    segment: int
    offset: int


@dataclass
class Segment:
    """One piece of memory with a descriptor.

    Attributes:
        number: which no other segment of the process has, or had.
        descriptor: to be given to others.
        mapping: of this process.
        base: the address of its first byte in this process.
        size: in bytes.
        free: of an arena, the ranges (offset, size) that are free, in order; None where it is one
            buffer.
    """

    number: int
    descriptor: int
    mapping: mmap.mmap
    base: int
    size: int
    free: list[tuple[int, int]] | None = None


@dataclass
class _Spare:
    """A segment whose buffer is garbage."""

    segment: Segment
    since: float = field(default_factory=time.monotonic)


class SharedMemory:
    """Flat host memory for buffers, as `FlatMemory` has it, in segments that can be shared.

    A large buffer has a segment of its own, small ones share arenas. Segments that nobody needs are
    kept for a moment, since fresh memory costs a page fault for every 4 KiB on both sides.

    Args:
        idle_s: how long a large segment is kept.
        max_segments: the most that it makes; by default as many as take half of the descriptors
            that the process may have. Beyond them memory is not shared.
    """

    def __init__(self, *, idle_s: float = 2.0, max_segments: int | None = None) -> None:
        self._idle_s = idle_s
        if max_segments is None:
            # Each has two: Python's mmap keeps one of its own. Half of all are for connections.
            max_segments = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
        self._max_segments = max_segments
        # Called when segments have been given up, with no lock held but by any thread: it must not
        # wait for anything.
        self.on_freed: Callable[[], None] = _nothing
        # What came back. No lock: the garbage collector gives back at any point, also inside of a
        # block that holds ours. The arrays themselves, so that no other memory has their address.
        self._returned: deque[HostArray] = deque()
        self._lock = threading.Lock()
        # All that follow are guarded by _lock.
        self._segments: dict[int, Segment] = {}
        self._bases: list[tuple[int, int]] = []
        self._spares: dict[int, list[_Spare]] = {}
        self._next = 1
        self._has_complained = False

    @property
    def held_bytes(self) -> int:
        """The size of the large segments that are kept to be used again."""
        with self._lock:
            self._collect()
            return sum(size * len(spares) for size, spares in self._spares.items())

    def take(self, size: int) -> HostArray:
        """uint8 of shape (size,), with any content. Raises MemoryError."""
        return self._take(size, zero=False)

    def take_zeros(self, size: int) -> HostArray:
        """uint8 zeros of shape (size,). Raises MemoryError."""
        return self._take(size, zero=True)

    def give(self, flat: HostArray) -> None:
        """Takes back memory from `take`, to which nobody refers any more."""
        if flat.nbytes:
            self._returned.append(flat)

    def trim(self) -> None:
        """Frees what nobody has taken for a while. Called now and then."""
        self._free(time.monotonic() - self._idle_s)

    def drop(self) -> None:
        """Frees everything that is kept."""
        self._free(float("inf"))

    def locate(self, array: HostArray) -> Place | None:
        """Where a contiguous array lies; None where it is not in shared memory."""
        address = array.ctypes.data
        with self._lock:
            index = bisect.bisect_right(self._bases, (address, self._next)) - 1
            if index < 0:
                return None
            segment = self._segments[self._bases[index][1]]
        offset = address - segment.base
        inside = offset + array.nbytes <= segment.size
        return Place(segment.number, offset) if inside else None

    def descriptor(self, number: int) -> tuple[int, int] | None:
        """A duplicate of a segment's descriptor, which the caller closes, and the segment's size.

        None where there is no such segment any more.
        """
        with self._lock:
            segment = self._segments.get(number)
            return None if segment is None else (os.dup(segment.descriptor), segment.size)

    def numbers(self) -> list[int]:
        """The segments that there are."""
        with self._lock:
            return list(self._segments)

    def _take(self, size: int, *, zero: bool) -> HostArray:
        if size == 0:
            return np.empty(0, np.uint8)
        with self._lock:
            self._collect()
            try:
                if size <= _ARENA_BUFFER_BYTES:
                    flat, is_zero = self._small(size), False
                else:
                    flat, is_zero = self._large(size)
            except OSError as err:
                self._complain(err)
                return np.zeros(size, np.uint8) if zero else np.empty(size, np.uint8)
        if zero and not is_zero:
            flat[:] = 0
        return flat

    def _small(self, size: int) -> HostArray:
        wanted = _aligned(size)
        for segment in self._segments.values():
            offset = None if segment.free is None else _take_range(segment.free, wanted)
            if offset is not None:
                return _array(segment, offset, size)
        arena = self._new_segment(_ARENA_BYTES)
        arena.free = [(wanted, _ARENA_BYTES - wanted)]
        return _array(arena, 0, size)

    def _large(self, size: int) -> tuple[HostArray, bool]:
        """A segment's array, and whether it is zero since nobody has touched it."""
        spares = self._spares.get(size)
        if spares:
            segment = spares.pop().segment
            if not spares:
                del self._spares[size]
            return _array(segment, 0, size), False
        return _array(self._new_segment(size), 0, size), True

    def _new_segment(self, size: int) -> Segment:
        if len(self._segments) >= self._max_segments:
            raise OSError(errno.EMFILE, f"there are {len(self._segments)} segments already")
        descriptor, mapping = sealed_memory("paramd-values", size)
        base = np.frombuffer(mapping, np.uint8).ctypes.data
        segment = Segment(self._next, descriptor, mapping, base, size)
        self._next += 1
        self._segments[segment.number] = segment
        bisect.insort(self._bases, (base, segment.number))
        return segment

    def _collect(self) -> None:
        while self._returned:
            flat = self._returned.popleft()
            address, size = flat.ctypes.data, flat.nbytes
            index = bisect.bisect_right(self._bases, (address, self._next)) - 1
            segment = self._segments[self._bases[index][1]] if index >= 0 else None
            offset = 0 if segment is None else address - segment.base
            if segment is None or offset + size > segment.size:
                # Ordinary memory, because there was no other when it was taken.
                continue
            if segment.free is None:
                self._spares.setdefault(size, []).append(_Spare(segment))
            else:
                _give_range(segment.free, offset, _aligned(size))

    def _free(self, before: float) -> None:
        with self._lock:
            self._collect()
            there = len(self._segments)
            for size, spares in list(self._spares.items()):
                kept = [each for each in spares if each.since > before]
                for each in spares:
                    if each.since <= before:
                        self._remove(each.segment)
                if kept:
                    self._spares[size] = kept
                else:
                    del self._spares[size]
            for arena in [each for each in self._segments.values() if each.free is not None]:
                if arena.free == [(0, arena.size)]:
                    self._remove(arena)
            freed = len(self._segments) < there
        if freed:
            self.on_freed()

    def _remove(self, segment: Segment) -> None:
        del self._segments[segment.number]
        self._bases.remove((segment.base, segment.number))
        # It stays mapped while an array refers to it, here or in another process.
        os.close(segment.descriptor)

    def _complain(self, err: OSError) -> None:
        if not self._has_complained:
            self._has_complained = True
            _log.warning("values are not shared from now on, but only sent: %s", err)


def _nothing() -> None:
    """Nobody is to be told."""


def _array(segment: Segment, offset: int, size: int) -> HostArray:
    return np.frombuffer(segment.mapping, np.uint8, size, offset)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _take_range(free: list[tuple[int, int]], size: int) -> int | None:
    """Takes the first range that is large enough, or a part of it; gives where it begins."""
    for index, (offset, length) in enumerate(free):
        if length >= size:
            if length == size:
                del free[index]
            else:
                free[index] = (offset + size, length - size)
            return offset
    return None


def _give_range(free: list[tuple[int, int]], offset: int, size: int) -> None:
    """Puts a range back, and joins it with its neighbours."""
    index = bisect.bisect(free, (offset, size))
    free.insert(index, (offset, size))
    if index + 1 < len(free) and offset + size == free[index + 1][0]:
        free[index] = (offset, size + free.pop(index + 1)[1])
    if index and sum(free[index - 1]) == offset:
        free[index - 1] = (free[index - 1][0], free[index - 1][1] + free.pop(index)[1])
