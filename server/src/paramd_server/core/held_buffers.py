"""The content that buffers had at one moment, while writers go on.

Most buffers are written whole: a writer that finds one held writes to another one and publishes
that. A table of rows would be copied for the sake of a few, so it is written in place, and what
is overwritten is set aside before, row by row: in memory while much of it is free, then in a
scratch file. The same is done with any buffer of which no second one fits into the memory limit, so
that no write fails because a buffer is held.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import numpy as np

from paramd.errors import MemoryLimitError
from paramd_server.arrays.backend import ArrayBackend, Buffer, HostArray
from paramd_server.arrays.devices import Devices
from paramd_server.core.snapshot import SnapshotError

__all__ = ["BufferHolds", "HeldBuffer", "Scratch"]

_PIECE_BYTES: Final = 1 << 20
# What is set aside at a time: of tables, one or several rows; of others, or of a wide row, this.
_MIN_UNIT_BYTES: Final = 256
_MAX_UNIT_BYTES: Final = 64 << 10
_MIN_REST_S: Final = 0.002
# What is set aside takes no more than this of what is free, so that writers find room.
_SPARE_SHARE: Final = 0.5

IntArray = np.ndarray[Any, np.dtype[np.int64]]
ParameterLock = AbstractContextManager[Any]


class Scratch(Protocol):
    """A file that nobody else sees, and that is gone when it is closed."""

    def append(self, data: HostArray) -> int:
        """Writes a contiguous array; gives where it begins. Raises OSError."""

    def read(self, offset: int, target: HostArray) -> None:
        """Fills a contiguous array from a place on. Raises OSError."""

    def close(self) -> None:
        """Lets go of it. Idempotent."""


class BufferHolds:
    """All that one snapshot holds.

    Args:
        devices: of the buffers.
        scratch: makes the scratch file when it is needed first.
    """

    def __init__(self, devices: Devices, scratch: Callable[[], Scratch]) -> None:
        self._devices = devices
        self._make_scratch = scratch
        self._lock = threading.Lock()
        # All that follow are guarded by _lock.
        self._scratch: Scratch | None = None
        self._held: dict[int, HeldBuffer] = {}
        self._buffers: dict[int, Buffer] = {}
        self._reserved = 0
        self._failure: SnapshotError | None = None
        self._released = False
        self._failed = threading.Event()
        # Of whoever reads alone.
        self._share = 1.0
        self._worked_s = 0.0

    @property
    def active(self) -> bool:
        """See BufferHold."""
        return not self._released and self._failure is None

    def add(self, buffer: Buffer) -> None:
        """Holds a buffer from now on. Called with the lock of its parameter held."""
        buffer.hold = self
        self._buffers[id(buffer)] = buffer

    def find(self, buffer: Buffer, *, by_rows: bool) -> HeldBuffer:
        """A buffer that is held, to be read."""
        with self._lock:
            held = self._held.get(id(buffer))
            if held is None:
                backend = self._devices.backend(buffer.context)
                held = self._held[id(buffer)] = HeldBuffer(self, buffer, backend, by_rows=by_rows)
            return held

    def keep(self, buffer: Buffer, rows: HostArray | None, *, by_rows: bool) -> None:
        """See BufferHold. Where it cannot be done, it is the snapshot that fails."""
        if not self.active:
            return
        try:
            self.find(buffer, by_rows=by_rows).keep(rows)
        except (OSError, MemoryError) as err:
            self.fail(
                SnapshotError(f"what was about to be overwritten could not be set aside: {err}")
            )

    def fail(self, failure: SnapshotError) -> None:
        """Makes every read from now on fail; writers go on without regard to what is held."""
        with self._lock:
            if self._failure is None:
                self._failure = failure
        self._failed.set()

    def check(self) -> None:
        """Raises what `fail` was told."""
        if self._failure is not None:
            raise self._failure

    def set_pace(self, share: float) -> None:
        """Has this thread, which reads, work for a share of the time only.

        Args:
            share: of one processor, above 0; from 1 on it does not rest.
        """
        self._share, self._worked_s = share, time.thread_time()

    def rest(self) -> None:
        """Rests for as long as the pace asks for, and not once the snapshot has failed."""
        if self._share >= 1:
            return
        worked_s = time.thread_time()
        rest_s = (worked_s - self._worked_s) * (1 / self._share - 1)
        # Shorter ones would be longer than they say.
        if rest_s > _MIN_REST_S:
            self._worked_s = worked_s
            self._failed.wait(rest_s)

    def reserve(self, size: int) -> None:
        """Counts memory until all is released. Raises MemoryLimitError."""
        self._devices.account.reserve(size)
        with self._lock:
            self._reserved += size

    def reserve_spare(self, size: int) -> bool:
        """Counts memory that nobody will miss; False where there is none."""
        account = self._devices.account
        if (account.limit_bytes - account.used_bytes) * _SPARE_SHARE < self._reserved + size:
            return False
        try:
            self.reserve(size)
        except MemoryLimitError:
            return False
        return True

    def scratch(self) -> Scratch:
        """The scratch file. Raises OSError."""
        with self._lock:
            if self._scratch is None:
                self._scratch = self._make_scratch()
            return self._scratch

    def let_go(self, buffer: Buffer) -> None:
        """Lets go of one buffer."""
        if buffer.hold is self:
            buffer.hold = None
        with self._lock:
            self._held.pop(id(buffer), None)
            self._buffers.pop(id(buffer), None)

    def release(self) -> None:
        """Lets go of everything. Idempotent."""
        with self._lock:
            self._released = True
            buffers, self._buffers = list(self._buffers.values()), {}
            self._held.clear()
            scratch, self._scratch = self._scratch, None
            reserved, self._reserved = self._reserved, 0
        for buffer in buffers:
            if buffer.hold is self:
                buffer.hold = None
        if scratch is not None:
            scratch.close()
        self._devices.account.release(reserved)


class HeldBuffer:
    """The content of one buffer at the moment at which it was held.

    Args:
        holds: what it is one of.
        buffer: itself.
        backend: of the buffer.
        by_rows: whether single rows of it are written in place.
    """

    def __init__(
        self, holds: BufferHolds, buffer: Buffer, backend: ArrayBackend, *, by_rows: bool
    ) -> None:
        self.shape, self.dtype, self.context = buffer.shape, buffer.dtype, buffer.context
        self._holds = holds
        # Refers to the memory, too, which would otherwise be a spare that the next write fills.
        self._buffer: Buffer | None = buffer
        self.nbytes = buffer.nbytes
        self._backend = backend
        self._size = math.prod(buffer.shape)
        self._row_size = max(1, math.prod(buffer.shape[1:]))
        self._unit = _unit_size(self._row_size, buffer.dtype.itemsize, by_rows=by_rows)
        self._num_units = -(-self._size // self._unit)
        # All that follow are guarded by the parameter's lock. The units below have been read for
        # good.
        self._next = 0
        # Where the others have been set aside: 1 + the place in memory, -1 - the offset in the
        # scratch file, or 0.
        self._places: IntArray | None = None
        self._kept: HostArray = np.empty((0, self._unit), self.dtype)
        self._num_kept = 0

    def peek(self, lock: ParameterLock) -> Iterator[HostArray]:
        """As `read`, and it can be read again."""
        yield from self._pieces(lock, last=False)

    def read(self, lock: ParameterLock) -> Iterator[HostArray]:
        """The content as flat pieces of at most about 1 MiB, after which nothing is held any more.

        Each piece is valid until the next one is asked for.

        Args:
            lock: of the parameter.

        Raises:
            SnapshotError: where the content could not be kept, or the snapshot was given up.
        """
        yield from self._pieces(lock, last=True)
        self.release()

    def release(self) -> None:
        """Lets go of the buffer."""
        buffer, self._buffer = self._buffer, None
        self._next = self._num_units
        self._kept = self._kept[:0].copy()
        if buffer is not None:
            self._holds.let_go(buffer)

    def keep(self, rows: HostArray | None) -> None:
        """Sets aside what is about to be overwritten. Raises OSError, MemoryLimitError."""
        if self._next == self._num_units:
            return
        if self._places is None:
            self._holds.reserve(8 * self._num_units)
            self._places = np.zeros(self._num_units, np.int64)
        units = self._units_of(rows)
        units = units[(units >= self._next) & (self._places[units] == 0)]
        step = max(1, _PIECE_BYTES // self._unit_bytes)
        for begin in range(0, len(units), step):
            some = units[begin : begin + step]
            if self._has_room(len(some)):
                place = self._num_kept
                self._num_kept += len(some)
                self._kept[place : self._num_kept] = self._gather(some)
                self._places[some] = np.arange(place + 1, self._num_kept + 1)
            else:
                offset = self._holds.scratch().append(self._gather(some))
                self._places[some] = -1 - offset - np.arange(len(some)) * self._unit_bytes

    def _has_room(self, num_units: int) -> bool:
        """Whether some more units can be set aside in memory."""
        if not self._holds.reserve_spare(num_units * self._unit_bytes):
            return False
        if not len(self._kept):
            try:
                # No more than address space: the system gives memory where it is written.
                self._kept = np.empty((self._num_units, self._unit), self.dtype)
            except MemoryError:
                return False
        return True

    @property
    def _unit_bytes(self) -> int:
        return self._unit * self.dtype.itemsize

    def _units_of(self, rows: HostArray | None) -> IntArray:
        if rows is None:
            return np.arange(self._next, self._num_units)
        rows = np.asarray(rows, np.int64)
        if self._unit == self._row_size:
            return rows
        if self._unit % self._row_size == 0:
            return np.unique(rows // (self._unit // self._row_size))
        # A row has several units, of which it shares the first and the last with its neighbours.
        first = rows * self._row_size // self._unit
        last = ((rows + 1) * self._row_size - 1) // self._unit
        width = int((last - first).max(initial=0)) + 1
        return np.unique(np.minimum(first[:, None] + np.arange(width), last[:, None]))

    def _gather(self, units: IntArray) -> HostArray:
        assert self._buffer is not None
        taken = np.empty((len(units), self._unit), self.dtype)
        whole = self._size // self._unit
        count = int(np.searchsorted(units, whole))
        self._backend.take_rows(self._buffer, units[:count], taken[:count], row_size=self._unit)
        if count < len(units):
            rest = self._backend.flat(self._buffer, whole * self._unit)
            taken[-1, : len(rest)], taken[-1, len(rest) :] = rest, 0
        return taken

    def _pieces(self, lock: ParameterLock, *, last: bool) -> Iterator[HostArray]:
        step = max(1, _PIECE_BYTES // self._unit_bytes)
        piece = np.empty((min(step, self._num_units), self._unit), self.dtype)
        for begin in range(0, self._num_units, step):
            self._holds.rest()
            self._holds.check()
            end = min(begin + step, self._num_units)
            target = piece[: end - begin].reshape(-1)
            with lock:
                part = self._read(begin * self._unit, min(end * self._unit, self._size))
                target[: len(part)] = part
                places = None if self._places is None else self._places[begin:end].copy()
                if last:
                    self._next = end
            # Again: what a writer could not set aside is in the piece as it wrote it.
            self._holds.check()
            if places is not None:
                self._restore(piece, places)
            yield target[: len(part)]

    def _read(self, begin: int, end: int) -> HostArray:
        if self._buffer is None:
            # Released, by whoever gave the snapshot up: `check` says why.
            return np.empty(0, self.dtype)
        return self._backend.flat(self._buffer, begin, end)

    def _restore(self, piece: HostArray, places: IntArray) -> None:
        """Puts what was set aside back into a piece."""
        units = np.flatnonzero(places > 0)
        if units.size:
            piece[units] = self._kept[places[units] - 1]
        units = np.flatnonzero(places < 0)
        if not units.size:
            return
        units = units[np.argsort(-places[units], kind="stable")]
        offsets = -1 - places[units]
        ends = [*(np.flatnonzero(np.diff(offsets) != self._unit_bytes) + 1), len(units)]
        scratch, begin = self._holds.scratch(), 0
        for end in ends:
            run = np.empty((end - begin, self._unit), self.dtype)
            try:
                scratch.read(int(offsets[begin]), run)
            except OSError as err:
                raise SnapshotError(f"what was set aside cannot be read again: {err}") from err
            piece[units[begin:end]] = run
            begin = end


def _unit_size(row_size: int, itemsize: int, *, by_rows: bool) -> int:
    """How many elements are set aside together."""
    if not by_rows or row_size * itemsize > _MAX_UNIT_BYTES:
        return max(1, _MAX_UNIT_BYTES // itemsize)
    return row_size * max(1, _MIN_UNIT_BYTES // (row_size * itemsize))
