"""Launches of kernels, as CuPy's RawModule does them."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.support.emulated_cuda.compiler import Kernel, compile_kernel
from tests.support.emulated_cuda.device_memory import Chunk
from tests.support.emulated_cuda.emulator import Emulator, current
from tests.support.emulated_cuda.runtime import queue_of
from tests.support.emulated_cuda.scheduler import Operation
from tests.support.emulated_cuda.streams import Stream

__all__ = ["RawKernel", "RawModule"]

# More threads than that are emulated by fewer, each of which does more.
_MOST_THREADS = 1 << 14
# Of the guards, on each side.
_GUARDS_SEEN = 4096


class RawModule:
    """CUDA C++ text that is compiled when a kernel is asked for.

    Args:
        code: the text.
        options: of the compiler.
        backend: 'nvrtc'.
    """

    def __init__(self, *, code: str, options: tuple[str, ...] = (), backend: str = "nvrtc") -> None:
        if backend != "nvrtc" or type(options) is not tuple:
            raise TypeError(f"expected backend 'nvrtc' and a tuple, given {backend!r}, {options!r}")
        self._code = code
        self._options = options

    def get_function(self, name: str) -> RawKernel:
        """Compiles. Raises `CompileError`."""
        return RawKernel(compile_kernel(self._code, name, self._options))


class RawKernel:
    """A kernel that can be launched on any device."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        *,
        stream: Stream | None = None,
    ) -> None:
        """Puts a launch into a stream.

        The numbers of blocks and threads, and the order of the threads, are chosen by chance: a
        kernel goes through its elements in strides of whatever grid it gets.

        Raises:
            TypeError: where `args` are not what the kernel takes.
            EmulationFault: for addresses of no allocation, or a stream of another device.
        """
        emulator = current()
        self._kernel.check(grid, block, args)
        handle = emulator.current_stream() if stream is None else stream.ptr
        queue = queue_of(emulator, handle or 0)
        if queue.device != emulator.device:
            raise emulator.faults.record(
                f"{self._kernel.name} is launched in a stream of device {queue.device} while "
                f"device {emulator.device} is current"
            )
        chunks = self._chunks(emulator, queue.device, args)
        with emulator.scheduler.lock:
            geometry = _geometry(emulator.scheduler.random, grid[0], block[0])
        run = functools.partial(self._run, emulator, geometry, tuple(args), chunks)
        emulator.scheduler.enqueue(queue, Operation(run))

    def _chunks(self, emulator: Emulator, device: int, args: Sequence[Any]) -> list[Chunk]:
        """The allocations that pointers lead to."""
        chunks = []
        for number, value in enumerate(args):
            if type(value) is not np.uintp or value == 0:
                continue
            with emulator.scheduler.settled():
                chunk = emulator.memories[device].find(int(value), 0)
            if chunk is None:
                raise emulator.faults.record(
                    f"argument {number} of {self._kernel.name}: {value:#x} is not in an allocation "
                    f"on device {device}"
                )
            chunks.append(chunk)
        return chunks

    def _run(
        self,
        emulator: Emulator,
        geometry: tuple[int, int, int],
        args: tuple[Any, ...],
        chunks: Sequence[Chunk],
    ) -> None:
        grid, block, order = geometry
        self._kernel((grid,), (block,), args, order=order)
        with emulator.scheduler.lock:
            # Of memory that is free by now, or not poisoned yet, nothing can be told.
            seen = [chunk for chunk in chunks if chunk.size and not chunk.segment.unpainted]
            intact = all(chunk.guards_intact(_GUARDS_SEEN) for chunk in seen)
        if not intact:
            raise emulator.faults.record(
                f"{self._kernel.name} wrote before or behind what it was given, with the arguments "
                f"{args}"
            )


def _geometry(chosen: random.Random, grid: int, block: int) -> tuple[int, int, int]:
    """Number of blocks, threads of each, and the order (see `Kernel`)."""
    order = chosen.getrandbits(32)
    few = chosen.choice([(1, 1, 0), (min(grid, 3), min(block, 5), order), (grid, block, order)])
    return few if few[0] * few[1] <= _MOST_THREADS else (min(grid, 7), min(block, 32), order)
