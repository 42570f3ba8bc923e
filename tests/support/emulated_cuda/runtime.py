"""cupy.cuda.runtime: copies, and questions about the machine.

Every range is checked when a copy is asked for. What it reads and writes is what lies there when
its turn in the stream comes.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, Final

from tests.support.emulated_cuda.device_memory import POISON, Chunk
from tests.support.emulated_cuda.emulator import DEVICE_NAME, Emulator, current
from tests.support.emulated_cuda.errors import NO_DEVICE, CUDARuntimeError
from tests.support.emulated_cuda.pinned_memory import PinnedBlock
from tests.support.emulated_cuda.scheduler import Operation, Queue

__all__ = ["CUDA_VERSION", "FUNCTIONS", "queue_of"]

CUDA_VERSION: Final = 12_060

_HOST_TO_DEVICE: Final = 1
_DEVICE_TO_HOST: Final = 2
_DEVICE_TO_DEVICE: Final = 3


def queue_of(emulator: Emulator, stream: int) -> Queue:
    """That of a stream's handle.

    Raises:
        EmulationFault: where there is no such stream, or it is the null stream.
    """
    queue = emulator.scheduler.queue(stream)
    if queue is None:
        raise emulator.faults.record(
            "the null stream is used" if stream == 0 else f"there is no stream {stream:#x}"
        )
    return queue


def _on_device(
    emulator: Emulator, address: int, size: int, device: int, queue: Queue | None = None
) -> Chunk:
    """The allocation that has a range, on a device that is the stream's, where that is given."""
    with emulator.scheduler.settled():
        chunk = emulator.memories[device].find(address, size)
    if chunk is None:
        raise emulator.faults.record(
            f"{size} bytes from {address:#x} are not in an allocation on device {device}"
        )
    if queue is not None and queue.device != device:
        raise emulator.faults.record(
            f"memory of device {device} is used in a stream of device {queue.device}"
        )
    return chunk


def _on_host(emulator: Emulator, address: int, size: int) -> PinnedBlock | None:
    """The pinned memory that has a range; None for other memory of the host."""
    with emulator.scheduler.settled():
        for memory in emulator.memories:
            if memory.find(address, 1) is not None:
                raise emulator.faults.record(
                    f"{address:#x} lies on device {memory.device}, and memory of the host is due"
                )
        block = emulator.pinned.find(address)
        if block is not None and address + size > block.address + block.size:
            raise emulator.faults.record(
                f"{size} bytes from {address:#x} are not in an allocation of pinned memory"
            )
        return block


def _copy(target: int, source: int, size: int, kind: int, stream: int) -> None:
    """Is `memcpyAsync`."""
    emulator = current()
    queue = queue_of(emulator, stream)
    if size == 0:
        return
    run = functools.partial(ctypes.memmove, target, source, size)
    if kind == _DEVICE_TO_DEVICE:
        if abs(target - source) < size:
            raise emulator.faults.record(f"{size} bytes are copied onto themselves")
        held = [_on_device(emulator, each, size, queue.device) for each in (target, source)]
        _enqueue(emulator, queue, run, *held)
    elif kind in (_HOST_TO_DEVICE, _DEVICE_TO_HOST):
        near, far = (target, source) if kind == _HOST_TO_DEVICE else (source, target)
        chunk = _on_device(emulator, near, size, queue.device)
        block = _on_host(emulator, far, size)
        with emulator.scheduler.lock:
            if kind == _DEVICE_TO_HOST and block is not None and not block.pending:
                # Nobody may read it before the copy has been waited for, so nobody misses this.
                ctypes.memset(far, POISON, size)
        _enqueue_with_host(emulator, queue, run, chunk, block)
    else:
        raise emulator.faults.record(f"memcpyAsync of kind {kind}: expected 1, 2 or 3")


def _enqueue_with_host(
    emulator: Emulator,
    queue: Queue,
    run: Callable[[], object],
    chunk: Chunk,
    block: PinnedBlock | None,
) -> None:
    """Copies from or to the host."""
    if block is None:
        # CUDA returns when it needs memory that is not pinned no more.
        emulator.scheduler.run(emulator.scheduler.now(queue))
        run()
        return
    with emulator.scheduler.lock:
        block.pending += 1

    def copy() -> None:
        run()
        with emulator.scheduler.lock:
            block.pending -= 1

    _enqueue(emulator, queue, copy, chunk)


def _enqueue(emulator: Emulator, queue: Queue, run: Callable[[], object], *chunks: Chunk) -> None:
    """Puts work into a stream, and keeps the memory that it is about mapped until it has run."""
    segments = [chunk.segment for chunk in chunks]

    def operation() -> None:
        run()
        segments.clear()

    emulator.scheduler.enqueue(queue, Operation(operation))


def _copy_between(
    target: int, target_device: int, source: int, source_device: int, size: int, stream: int
) -> None:
    """Is `memcpyPeerAsync`."""
    emulator = current()
    queue = queue_of(emulator, stream)
    if size == 0:
        return
    if queue.device not in (target_device, source_device):
        raise emulator.faults.record(
            f"a copy between devices {source_device} and {target_device} is put into a stream of "
            f"device {queue.device}"
        )
    held = (
        _on_device(emulator, target, size, target_device),
        _on_device(emulator, source, size, source_device),
    )
    _enqueue(emulator, queue, functools.partial(ctypes.memmove, target, source, size), *held)


def _set(address: int, value: int, size: int, stream: int) -> None:
    """Is `memsetAsync`."""
    emulator = current()
    queue = queue_of(emulator, stream)
    if size == 0:
        return
    chunk = _on_device(emulator, address, size, queue.device)
    _enqueue(emulator, queue, functools.partial(ctypes.memset, address, value, size), chunk)


def _device_count() -> int:
    count = len(current().memories)
    if count == 0:
        raise CUDARuntimeError(NO_DEVICE)
    return count


def _device_properties(device: int) -> dict[str, Any]:
    emulator = current()
    emulator.check_device(device)
    return {
        "name": DEVICE_NAME.encode(),
        "totalGlobalMem": emulator.memories[device].total_bytes,
        "multiProcessorCount": 4,
        "maxThreadsPerBlock": 1024,
        "warpSize": 32,
        "major": 9,
        "minor": 0,
    }


def _memory_information() -> tuple[int, int]:
    """Is `memGetInfo`: free and total bytes of the current device."""
    emulator = current()
    emulator.check_device(emulator.device)
    with emulator.scheduler.settled():
        memory = emulator.memories[emulator.device]
        return memory.free_bytes, memory.total_bytes


def _synchronize_device() -> None:
    """Is `deviceSynchronize`."""
    raise current().faults.record("deviceSynchronize stops all threads: wait for an event")


# By the names that CuPy gives them.
FUNCTIONS: Final[dict[str, Any]] = {
    "memcpyHostToHost": 0,
    "memcpyHostToDevice": _HOST_TO_DEVICE,
    "memcpyDeviceToHost": _DEVICE_TO_HOST,
    "memcpyDeviceToDevice": _DEVICE_TO_DEVICE,
    "memcpyAsync": _copy,
    "memcpyPeerAsync": _copy_between,
    "memsetAsync": _set,
    "getDevice": lambda: current().device,
    "getDeviceCount": _device_count,
    "getDeviceProperties": _device_properties,
    "memGetInfo": _memory_information,
    "runtimeGetVersion": lambda: CUDA_VERSION,
    "driverGetVersion": lambda: CUDA_VERSION,
    "deviceSynchronize": _synchronize_device,
    "CUDARuntimeError": CUDARuntimeError,
}
