"""One GPU: its streams, its memory and its kernels.

Everything that touches buffers runs on the compute stream, which gives the order, so that freed
memory may be given out again at once. Uploads have a stream of their own and go to slots only (see
`transfers`); downloads have one, too, and wait for the compute stream. All threads share them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np

from paramd.errors import MemoryLimitError
from paramd_server.arrays.cuda.runtime import Kernel, Runtime
from paramd_server.arrays.cuda.source import kernel_source
from paramd_server.arrays.memory import MemoryAccount, format_bytes

__all__ = ["Device", "KernelKey", "settle"]

_log = logging.getLogger(__name__)

# A kernel, its mode, and its dtypes by role.
KernelKey = tuple[str, str, tuple[tuple[str, np.dtype[Any]], ...]]

_THREADS: Final = 256
# Enough for the largest GPU, and little for a small one to start.
_MAX_BLOCKS: Final = 4096
# How long the pool keeps what is free once nothing is allocated any more.
_IDLE_S: Final = 5.0
# Geometries of one axis: a value that follows its target, and one that all the target gets.
_FOLLOWING: Final = (1 << 62, 1, 1)
_REPEATING: Final = (1 << 62, 1, 0)
_GEOMETRY_BYTES: Final = 24


class Device:
    """A GPU that is in use.

    Args:
        runtime: that reaches it.
        index: its number.
        account: that counts its buffers.

    Raises:
        MemoryLimitError: where it has no room at all.
        Runtime.CudaError: where it cannot be used.

    Attributes:
        index: its number.
        name: of the product.
        total_bytes: what it has.
        account: that counts its buffers.
        compute: the stream that gives the order.
        uploads: the stream to slots.
        downloads: the stream to the host.
    """

    def __init__(self, runtime: Runtime, index: int, account: MemoryAccount) -> None:
        self.runtime = runtime
        self.index = index
        self.account = account
        self.name = runtime.device_name(index)
        with runtime.use(index):
            self.total_bytes = runtime.total_bytes()
            self.compute = runtime.stream()
            self.uploads = runtime.stream()
            self.downloads = runtime.stream()
            self._computed = runtime.event()
            self._pool = runtime.pool()
        self._kernels: dict[KernelKey, Kernel] = {}
        self._last_allocation = time.monotonic()
        self._own_bytes = 0
        self._geometries = self.reserve(2 * _GEOMETRY_BYTES)

    @property
    def following(self) -> int:
        """Where the geometry of a value lies whose elements go with those of its target."""
        return int(self._geometries.ptr)

    @property
    def repeating(self) -> int:
        """Where the geometry of a value lies that is one element for all of its target."""
        return int(self._geometries.ptr) + _GEOMETRY_BYTES

    def geometries(self) -> np.ndarray[Any, Any]:
        """What is to be written where `following` points, once, when the device is opened."""
        return np.array([_FOLLOWING, _REPEATING], np.int64)

    def use(self) -> AbstractContextManager[Any]:
        """Makes it the thread's current device for a block."""
        return self.runtime.use(self.index)

    def reserve(self, size: int) -> Any:
        """Device memory that stays, which no account counts. Raises MemoryLimitError."""
        with self.use():
            memory = self._malloc(size)
        self._own_bytes += size
        return memory

    def allocate(self, size: int) -> Any:
        """Device memory with any content, counted until `account.release` is told.

        Args:
            size: in bytes, positive.

        Returns:
            What has its address as `ptr`, and gives it back when it is garbage.

        Raises:
            MemoryLimitError: where the limit or the device leaves no room; nothing is taken then.
        """
        self.account.reserve(size)
        try:
            with self.use():
                held = self._pool.total_bytes() - self._own_bytes - self.account.used_bytes + size
                if held < size:
                    # It will be new memory.
                    self._keep_to_limit(size)
                memory = self._malloc(size)
                self._keep_to_limit(0)
        except BaseException:
            self.account.release(size)
            raise
        return memory

    def _keep_to_limit(self, size: int) -> None:
        if self._pool.total_bytes() + size - self._own_bytes > self.account.limit_bytes:
            self._pool.free_all_blocks()

    def _malloc(self, size: int) -> Any:
        self._last_allocation = time.monotonic()
        with self.compute:
            try:
                return self._pool.malloc(size)
            except self.runtime.OutOfMemoryError:
                self._pool.free_all_blocks()
            try:
                return self._pool.malloc(size)
            except self.runtime.OutOfMemoryError as err:
                raise MemoryLimitError(
                    f"gpu({self.index}) has no {format_bytes(size)} of memory left"
                ) from err

    def trim(self) -> None:
        """Frees what the pool holds, where nothing was allocated for a while."""
        if time.monotonic() - self._last_allocation > _IDLE_S:
            with self.use():
                self._pool.free_all_blocks()

    def after_compute(self, stream: Any) -> None:
        """Lets a stream, of any device, wait for what the compute stream has been given so far."""
        # One event does for all threads: recorded once more before this waits, it means more.
        self._computed.record(self.compute)
        stream.wait_event(self._computed)

    def wait(self, event: Any) -> None:
        """Waits for an event. Raises CudaError where anything on the device has failed."""
        try:
            event.synchronize()
        except self.runtime.CudaError:
            _log.exception("gpu(%d) failed in what it was given before", self.index)
            raise

    def load(self, keys: Iterable[KernelKey]) -> None:
        """Makes kernels ready. Raises what the compiler raises."""
        with self.use():
            for key in keys:
                self._kernel(key)

    def launch(self, key: KernelKey, count: int, args: Sequence[Any]) -> None:
        """Puts a kernel on the compute stream; this is the thread's current device.

        Args:
            key: of the kernel.
            count: how many elements it does, positive.
            args: NumPy scalars.
        """
        blocks = min(-(-count // _THREADS), _MAX_BLOCKS)
        self._kernel(key)((blocks,), (_THREADS,), tuple(args), stream=self.compute)

    def _kernel(self, key: KernelKey) -> Kernel:
        kernel = self._kernels.get(key)
        if kernel is None:
            # Two threads may both do it; either result is as good.
            name, mode, types = key
            source = kernel_source(name, dict(types), mode=mode)
            kernel = self._kernels[key] = self.runtime.load(source)
        return kernel


def settle(device: int, events: Iterable[Any]) -> None:
    """Waits for events, for a finalizer: where the device has failed, it says so in the log."""
    for event in events:
        try:
            event.synchronize()
        except Exception:
            # Nobody could take it here, and who uses the device next gets it, too.
            _log.exception("gpu(%d) failed in what it was given before", device)
