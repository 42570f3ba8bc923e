"""CuPy, as far as it is used here: its lowest layer, by our own words.

The only module that imports CuPy, and only when a context that needs it is asked for. Nothing here
waits for a device but where a caller synchronizes an event or a stream.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

from paramd_server.arrays.cuda.source import KernelSource
from paramd_server.arrays.kinds import DeviceError

__all__ = ["Kernel", "Runtime", "load_runtime"]

# Called with (blocks,), (threads,) and the arguments, and `stream=`.
Kernel = Callable[..., None]

# cudaErrorMemoryAllocation
_NO_MEMORY: Final = 2


class Runtime:
    """The calls of the CUDA runtime. Sizes are bytes, addresses are numbers.

    What takes a stream only puts work into it. The stream's device is the thread's current one
    then; see `use`.

    Args:
        cupy: the module.

    Attributes:
        CudaError: what calls raise, also when an earlier one has failed on the device since.
        OutOfMemoryError: what the `malloc` of a pool raises.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._calls = cupy.cuda.runtime
        self.CudaError: type[Exception] = cupy.cuda.runtime.CUDARuntimeError
        self.OutOfMemoryError: type[Exception] = cupy.cuda.memory.OutOfMemoryError

    def describe(self) -> str:
        """The versions of CuPy, of the CUDA runtime and of the driver's CUDA."""
        versions = (self._calls.runtimeGetVersion(), self._calls.driverGetVersion())
        runtime, driver = (f"{each // 1000}.{each % 1000 // 10}" for each in versions)
        return f"CuPy {self._cupy.__version__}, CUDA {runtime}, driver for CUDA {driver}"

    def num_devices(self) -> int:
        """How many devices there are. Raises CudaError."""
        count: int = self._calls.getDeviceCount()
        return count

    def device_name(self, device: int) -> str:
        """The product's name."""
        name = self._calls.getDeviceProperties(device)["name"]
        return name.decode(errors="replace") if isinstance(name, bytes) else str(name)

    def total_bytes(self) -> int:
        """The memory of the current device."""
        total: int = self._calls.memGetInfo()[1]
        return total

    def use(self, device: int) -> AbstractContextManager[Any]:
        """Makes a device the thread's current one for a block."""
        block: AbstractContextManager[Any] = self._cupy.cuda.Device(device)
        return block

    def stream(self) -> Any:
        """A stream on the current device that does not wait for the default one."""
        return self._cupy.cuda.Stream(non_blocking=True)

    def event(self) -> Any:
        """An event on the current device; who waits for it sleeps."""
        return self._cupy.cuda.Event(block=True, disable_timing=True)

    def pool(self) -> Any:
        """A pool of device memory; what is freed is given out again in the order of a stream."""
        return self._cupy.cuda.MemoryPool()

    def pinned_pool(self) -> Any:
        """A pool of host memory that devices reach; see `pinned_memory`."""
        return self._cupy.cuda.PinnedMemoryPool()

    def pinned_memory(self, pool: Any, size: int) -> Any:
        """Host memory with the buffer protocol. Raises MemoryError."""
        try:
            return pool.malloc(size)
        except self.CudaError as err:
            if getattr(err, "status", None) != _NO_MEMORY:
                raise
            raise MemoryError(str(err)) from err

    def upload(self, stream: Any, target: int, source: int, size: int) -> None:
        """Copies from pinned host memory."""
        self._calls.memcpyAsync(target, source, size, self._calls.memcpyHostToDevice, stream.ptr)

    def download(self, stream: Any, target: int, source: int, size: int) -> None:
        """Copies to pinned host memory."""
        self._calls.memcpyAsync(target, source, size, self._calls.memcpyDeviceToHost, stream.ptr)

    def copy(self, stream: Any, target: int, source: int, size: int) -> None:
        """Copies within the device."""
        self._calls.memcpyAsync(target, source, size, self._calls.memcpyDeviceToDevice, stream.ptr)

    def copy_between(
        self,
        stream: Any,
        target: int,
        target_device: int,
        source: int,
        source_device: int,
        size: int,
    ) -> None:
        """Copies from one device to another."""
        self._calls.memcpyPeerAsync(target, target_device, source, source_device, size, stream.ptr)

    def clear(self, stream: Any, target: int, size: int) -> None:
        """Sets bytes to 0."""
        self._calls.memsetAsync(target, 0, size, stream.ptr)

    def load(self, source: KernelSource) -> Kernel:
        """Compiles a kernel for the current device and loads it there. Raises what CuPy raises."""
        module = self._cupy.RawModule(code=source.code, options=source.options, backend="nvrtc")
        kernel: Kernel = module.get_function(source.function)
        return kernel


def load_runtime() -> tuple[Runtime, int]:
    """The runtime, and how many devices it finds: at least one.

    Raises:
        DeviceError: where CuPy or the CUDA runtime cannot be used; says which, and why.
    """
    # Compiled kernels stay in memory, so that a read-only container is enough.
    os.environ.setdefault("CUPY_CACHE_IN_MEMORY", "1")
    try:
        import cupy
    except (ImportError, OSError, RuntimeError) as err:
        # Some messages of CuPy are a page long; the first line says it.
        said = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise DeviceError(f"CuPy cannot be loaded: {said}") from err
    runtime = Runtime(cupy)
    try:
        count = runtime.num_devices()
    except runtime.CudaError as err:
        raise DeviceError(f"the CUDA runtime finds no device: {err}") from err
    if count < 1:
        raise DeviceError("the CUDA runtime finds no device")
    return runtime, count
