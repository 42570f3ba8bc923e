"""The account of the server's memory, and the spare buffers that it keeps warm."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from paramd.errors import MemoryLimitError

__all__ = ["MemoryAccount", "SpareBuffers", "format_bytes"]

# A buffer below this size comes from malloc's own pools; keeping it would gain nothing.
_MIN_SPARE_BYTES = 1 << 20


def format_bytes(size: int) -> str:
    """A size for people: '1.5 GiB'."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


class MemoryAccount:
    """Counts bytes of values, gradients and writes in flight against a limit.

    Args:
        limit_bytes: the most that may be reserved at a time.
        name: whose limit it is, for messages.
    """

    def __init__(self, limit_bytes: int, *, name: str = "") -> None:
        self.limit_bytes = limit_bytes
        self.name = name
        # Re-entrant: the garbage collector may release a buffer while this thread reserves one.
        self._lock = threading.RLock()
        self._used_bytes = 0  # guarded by _lock
        self._committed = threading.local()

    @property
    def used_bytes(self) -> int:
        """What is reserved now."""
        return self._used_bytes

    def reserve(self, size: int) -> None:
        """Takes a number of bytes.

        Raises:
            MemoryLimitError: where the limit leaves no room; nothing is taken then.
        """
        with self._lock:
            over = self._used_bytes + size > self.limit_bytes
            if over and not getattr(self._committed, "depth", 0):
                limit = format_bytes(self.limit_bytes) + (f" of {self.name}" if self.name else "")
                raise MemoryLimitError(
                    f"{format_bytes(size)} more than the {format_bytes(self._used_bytes)} in use "
                    f"would exceed the memory limit of {limit}"
                )
            self._used_bytes += size

    @contextmanager
    def committed(self) -> Iterator[None]:
        """Lets this thread exceed the limit while the block runs.

        For what has been decided for the whole cluster, and cannot be refused here any more.
        """
        self._committed.depth = getattr(self._committed, "depth", 0) + 1
        try:
            yield
        finally:
            self._committed.depth -= 1

    def release(self, size: int) -> None:
        """Gives bytes back."""
        with self._lock:
            self._used_bytes -= size


class SpareBuffers:
    """Keeps freed buffers for a moment, since a fresh one costs a page fault for every 4 KiB.

    Each size has at most one spare, and one that nobody takes for `idle_s` seconds goes, so that
    a server at rest holds its state and nothing else.
    """

    def __init__(self, *, idle_s: float = 2.0) -> None:
        self._idle_s = idle_s
        self._lock = threading.RLock()
        self._spares: dict[int, tuple[np.ndarray[Any, Any], float]] = {}  # guarded by _lock

    @property
    def held_bytes(self) -> int:
        """The size of all spares."""
        with self._lock:
            return sum(self._spares)

    def take(self, size: int) -> np.ndarray[Any, Any]:
        """A flat buffer of that many bytes, with any content."""
        with self._lock:
            spare = self._spares.pop(size, None)
        return np.empty(size, np.uint8) if spare is None else spare[0]

    def take_zeros(self, size: int) -> np.ndarray[Any, Any]:
        """A flat buffer of zeros, whose pages the system provides when they are first written."""
        return np.zeros(size, np.uint8)

    def give(self, flat: np.ndarray[Any, Any]) -> None:
        """Takes back a buffer that nobody refers to any more."""
        if flat.nbytes >= _MIN_SPARE_BYTES:
            with self._lock:
                self._spares[flat.nbytes] = (flat, time.monotonic())

    def trim(self) -> None:
        """Frees what has not been used for a while. Called now and then."""
        oldest = time.monotonic() - self._idle_s
        with self._lock:
            for size in [size for size, (_, since) in self._spares.items() if since < oldest]:
                del self._spares[size]

    def drop(self) -> None:
        """Frees everything."""
        with self._lock:
            self._spares.clear()
