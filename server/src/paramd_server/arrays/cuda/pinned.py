"""Host memory that GPUs reach directly: staging, and the contexts 'cpu_pinned'."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from typing import Any

import numpy as np

from paramd.errors import MemoryLimitError
from paramd_server.arrays.backend import ArrayBackend, HostArray
from paramd_server.arrays.cuda.runtime import Runtime, load_runtime
from paramd_server.arrays.kinds import DeviceError, HostMemory
from paramd_server.arrays.memory import MemoryAccount, format_bytes
from paramd_server.arrays.numpy_backend import NumpyBackend

__all__ = ["Lease", "PinnedBackend", "PinnedMemory", "is_leased", "lease", "open_pinned"]

_DEVICE_TYPE = "cpu_pinned"


class PinnedMemory:
    """Pinned memory, which costs milliseconds to make: what was freed is kept for some seconds.

    It is `FlatMemory` to a NumpyBackend.

    Args:
        runtime: that makes it.
        idle_s: how long what nobody takes is kept.
    """

    def __init__(self, runtime: Runtime, *, idle_s: float = 5.0) -> None:
        self._runtime = runtime
        self._idle_s = idle_s
        self._pool = runtime.pinned_pool()
        # What came back, and when. No lock: the garbage collector gives back at any point, also
        # inside of a block that holds ours.
        self._returned: deque[tuple[HostArray, float]] = deque()
        self._lock = threading.Lock()
        self._idle: dict[int, list[tuple[HostArray, float]]] = {}  # guarded by _lock

    @property
    def held_bytes(self) -> int:
        """The size of what it keeps to be used again."""
        with self._lock:
            self._collect()
            return sum(size * len(idle) for size, idle in self._idle.items())

    def take(self, size: int) -> HostArray:
        """uint8 of shape (size,), with any content. Raises MemoryError."""
        with self._lock:
            self._collect()
            idle = self._idle.get(size)
            if idle:
                return idle.pop()[0]
        if size == 0:
            return np.empty(0, np.uint8)
        try:
            memory = self._runtime.pinned_memory(self._pool, size)
        except MemoryError:
            self.drop()
            memory = self._runtime.pinned_memory(self._pool, size)
        return np.frombuffer(memory, np.uint8, size)

    def take_zeros(self, size: int) -> HostArray:
        """uint8 zeros of shape (size,). Raises MemoryError."""
        flat = self.take(size)
        flat[:] = 0
        return flat

    def give(self, flat: HostArray) -> None:
        """Takes back memory from `take`, to which nobody refers any more."""
        if flat.nbytes:
            self._returned.append((flat, time.monotonic()))

    def trim(self) -> None:
        """Frees what nobody has taken for a while. Called now and then."""
        self._free(time.monotonic() - self._idle_s)

    def drop(self) -> None:
        """Frees all that it keeps."""
        self._free(math.inf)

    def _free(self, before: float) -> None:
        with self._lock:
            self._collect()
            kept = {
                size: [each for each in idle if each[1] > before]
                for size, idle in self._idle.items()
            }
            self._idle = {size: idle for size, idle in kept.items() if idle}
        # What no array refers to any more lies in the pool.
        self._pool.free_all_blocks()

    def _collect(self) -> None:
        while self._returned:
            flat, since = self._returned.popleft()
            self._idle.setdefault(flat.nbytes, []).append((flat, since))


class Lease:
    """Pinned memory that arrays share: it goes back when the last of them does.

    `np.asarray(lease)` is the memory, uint8.
    """

    __slots__ = ("__array_interface__", "__weakref__")

    def __init__(self, flat: HostArray) -> None:
        self.__array_interface__: dict[str, Any] = flat.__array_interface__


def lease(size: int, memory: PinnedMemory, account: MemoryAccount) -> Lease:
    """Takes pinned memory, counted in an account while anybody refers to it.

    Args:
        size: in bytes.
        memory: where it comes from.
        account: of host memory.

    Raises:
        MemoryLimitError: where there is no room; nothing is taken then.
    """
    account.reserve(size)
    if account.used_bytes + memory.held_bytes > account.limit_bytes:
        memory.drop()
    try:
        flat = memory.take(size)
    except MemoryError as err:
        account.release(size)
        raise MemoryLimitError(f"the system has no {format_bytes(size)} of pinned memory") from err
    except BaseException:
        account.release(size)
        raise
    leased = Lease(flat)
    weakref.finalize(leased, _give_back, account, memory, flat).atexit = False
    return leased


def is_leased(array: HostArray) -> bool:
    """Whether an array lies in memory from `lease`."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, Lease)


def _give_back(account: MemoryAccount, memory: PinnedMemory, flat: HostArray) -> None:
    account.release(flat.nbytes)
    memory.give(flat)


class PinnedBackend(NumpyBackend):
    """Arrays in pinned memory, which the CPU computes with.

    Args:
        account: that counts it, like all host memory.
        memory: where it comes from.
    """

    def __init__(self, account: MemoryAccount, memory: PinnedMemory) -> None:
        super().__init__(account, memory, device_type=_DEVICE_TYPE)
        self._pinned = memory

    def trim(self) -> None:
        """Frees pinned memory that nobody has taken for a while."""
        self._pinned.trim()


def open_pinned(memory: HostMemory) -> ArrayBackend:
    """The backend of the contexts 'cpu_pinned'.

    Args:
        memory: whose account counts the buffers.

    Raises:
        DeviceError: where there is no CuPy or no GPU, or it gives no pinned memory.
    """
    runtime, _ = load_runtime()
    pinned = PinnedMemory(runtime)
    try:
        pinned.give(pinned.take(1))
    except (MemoryError, runtime.CudaError) as err:
        raise DeviceError(f"{runtime.describe()} has no pinned memory: {err}") from err
    return PinnedBackend(memory.account, pinned)
