"""What the driver of an emulated machine says."""

from __future__ import annotations

from paramd_server.arrays.cuda.driver import Driver, DriverError, Gpu
from tests.support.emulated_cuda.emulator import DEVICE_NAME, Emulator
from tests.support.emulated_cuda.runtime import CUDA_VERSION

__all__ = ["emulated_driver"]


def emulated_driver(emulator: Emulator) -> Driver:
    """What `find_driver` would find.

    Raises:
        DriverError: where the machine has no devices.
    """
    if not emulator.memories:
        raise DriverError("the emulated machine has no GPU")
    gpus = (Gpu(DEVICE_NAME, memory.total_bytes) for memory in emulator.memories)
    return Driver(CUDA_VERSION, tuple(gpus))
