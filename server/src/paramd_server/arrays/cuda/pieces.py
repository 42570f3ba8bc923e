"""The content of a buffer on its way to a client, one piece after the other."""

from __future__ import annotations

import weakref
from collections.abc import Generator
from typing import Any, Final

import numpy as np

from paramd_server.arrays.backend import HostArray
from paramd_server.arrays.cuda.buffers import CudaBuffer
from paramd_server.arrays.cuda.device import settle
from paramd_server.arrays.cuda.pinned import Lease, PinnedMemory, lease
from paramd_server.arrays.memory import MemoryAccount

__all__ = ["PieceReader"]

_MIN_LEASE_BYTES: Final = 4096


class PieceReader(Generator[HostArray]):
    """An iterator over pieces, the next of which is copied while the last is being sent.

    It has pinned memory of its own for two pieces, or for the only one, so that a client that
    takes its time keeps nobody else waiting. Closed or garbage, it waits for what is under way;
    the memory goes back when the last of its arrays goes, too.

    Args:
        buffer: that nobody writes to.
        begin: the first element.
        end: after the last one, which is not `begin`.
        memory: pinned memory.
        account: that counts it.
        piece_bytes: of the largest piece.

    Raises:
        MemoryLimitError: where there is no room.
    """

    def __init__(
        self,
        buffer: CudaBuffer,
        begin: int,
        end: int,
        *,
        memory: PinnedMemory,
        account: MemoryAccount,
        piece_bytes: int,
    ) -> None:
        self._buffer = buffer
        step = max(piece_bytes // buffer.dtype.itemsize, 1)
        self._bounds = [*range(begin, end, step), end]
        self._next = 0
        size = min(end - begin, step) * buffer.dtype.itemsize
        # Few sizes, so that the memory of one reader does for the next.
        size = max(1 << (size - 1).bit_length(), _MIN_LEASE_BYTES)
        device = buffer.device
        self._leases: list[Lease] = []
        with device.use():
            try:
                for _ in range(min(len(self._bounds) - 1, 2)):
                    self._leases.append(lease(size, memory, account))
            except BaseException:
                # At once, not when the error's traceback has gone.
                self._leases.clear()
                raise
            self._events = [device.runtime.event() for _ in self._leases]
            # What is under way keeps the buffer and the memory.
            self._finish = weakref.finalize(
                self, _settle, device.index, list(self._events), (buffer, list(self._leases))
            )
            self._finish.atexit = False
            device.after_compute(device.downloads)
            self._ask(0)

    def send(self, _: None) -> HostArray:
        """The next piece; the one before is no longer valid."""
        index = self._next
        if index >= len(self._bounds) - 1:
            self.close()
            raise StopIteration
        buffer, device = self._buffer, self._buffer.device
        device.wait(self._events[index % 2])
        if index + 2 < len(self._bounds):
            # Into the memory of the piece before, which is no longer needed.
            with device.use():
                self._ask(index + 1)
        self._next += 1
        nbytes = self._nbytes(index)
        memory: HostArray = np.asarray(self._leases[index % 2])
        piece: HostArray = memory[:nbytes].view(buffer.dtype)
        return piece

    def throw(self, *raised: Any) -> HostArray:
        """Ends it with an exception."""
        self.close()
        return super().throw(*raised)

    def close(self) -> None:
        """Waits for what is under way, and gives back what it has."""
        self._next = len(self._bounds)
        self._finish()
        self._leases.clear()

    def _nbytes(self, index: int) -> int:
        begin, end = self._bounds[index], self._bounds[index + 1]
        size: int = (end - begin) * self._buffer.dtype.itemsize
        return size

    def _ask(self, index: int) -> None:
        buffer, device = self._buffer, self._buffer.device
        host: HostArray = np.asarray(self._leases[index % 2])
        source = buffer.address + self._bounds[index] * buffer.dtype.itemsize
        device.runtime.download(device.downloads, host.ctypes.data, source, self._nbytes(index))
        self._events[index % 2].record(device.downloads)


def _settle(device: int, events: list[Any], _kept: tuple[CudaBuffer, list[Lease]]) -> None:
    settle(device, events)
