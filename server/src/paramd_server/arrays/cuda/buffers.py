"""Arrays in the memory of a GPU."""

from __future__ import annotations

import math
import sys
import weakref
from typing import Any

import numpy as np

from paramd.context import Context
from paramd.errors import MemoryLimitError
from paramd.spec import Shape
from paramd_server.arrays.backend import BufferHold
from paramd_server.arrays.cuda.device import Device
from paramd_server.arrays.memory import MemoryAccount

__all__ = ["CudaBuffer", "new_buffer"]


class CudaBuffer:
    """An array on a GPU, contiguous, counted in the GPU's account until it is garbage.

    What the compute stream still has to do with it then is done before the memory is used again.

    Attributes:
        device: where it is.
        address: of its first element there; 0 where it has none.
        size: its number of elements.
    """

    __slots__ = (
        "__weakref__",
        "address",
        "context",
        "device",
        "dtype",
        "hold",
        "nbytes",
        "readers",
        "shape",
        "size",
    )

    def __init__(
        self, device: Device, address: int, shape: Shape, dtype: np.dtype[Any], context: Context
    ) -> None:
        self.device = device
        self.address = address
        self.shape = shape
        self.dtype = dtype
        self.context = context
        self.size = math.prod(shape)
        self.nbytes = self.size * dtype.itemsize
        self.readers = 0
        self.hold: BufferHold | None = None


def new_buffer(device: Device, shape: Shape, dtype: np.dtype[Any], context: Context) -> CudaBuffer:
    """A buffer with any content. Raises MemoryLimitError."""
    # What NumPy could not hold could not be read.
    if math.prod(each for each in shape if each) * dtype.itemsize > sys.maxsize:
        raise MemoryLimitError(f"no array has shape {shape}")
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return CudaBuffer(device, 0, shape, dtype, context)
    memory = device.allocate(size)
    buffer = CudaBuffer(device, int(memory.ptr), shape, dtype, context)
    # Nobody else refers to the memory, which is free once this has run.
    weakref.finalize(buffer, _give_back, [memory], device.account, size).atexit = False
    return buffer


def _give_back(memory: list[Any], account: MemoryAccount, size: int) -> None:
    memory.clear()
    account.release(size)
