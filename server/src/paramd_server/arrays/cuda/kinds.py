"""GPU contexts and pinned host memory, as kinds of devices.

What they say is learnt from the driver. CuPy and the kernels are loaded when somebody asks for a
context.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Final

from paramd.context import Context
from paramd_server.arrays.backend import ArrayBackend, DeviceStatus
from paramd_server.arrays.cuda.driver import Driver, DriverError, Gpu, find_driver, version_text
from paramd_server.arrays.kinds import BackendKind, Found, HostMemory

__all__ = [
    "CUDA_KINDS",
    "Cupy",
    "GpuKind",
    "PinnedKind",
    "default_gpu_limit",
    "find_cupy",
    "usable_gpus",
]

# The part of a GPU's memory that buffers may take when nothing else is said.
_DEFAULT_SHARE: Final = 0.9
_OLDEST_CUDA: Final = 12
_OLDEST_CUPY: Final = 13
_MAYBE_CUDA: Final = range(11, 20)
_INSTALL: Final = "pip install 'paramd-server[cuda12x]'"


@dataclass(frozen=True)
class Cupy:
    """The CuPy that is installed.

    Attributes:
        distribution: its name, such as 'cupy-cuda12x'; '' where that cannot be told.
        version: such as '14.2.0'; '' likewise.
        cuda_major: of the CUDA that it was built for; None where its name does not tell.
    """

    distribution: str = ""
    version: str = ""
    cuda_major: int | None = None


def find_cupy() -> Cupy | None:
    """Looks for CuPy, without importing it."""
    if sys.modules.get("cupy") is None and importlib.util.find_spec("cupy") is None:
        return None
    found = []
    for major in (None, *_MAYBE_CUDA):
        name = "cupy" if major is None else f"cupy-cuda{major}x"
        try:
            found.append(Cupy(name, metadata.version(name), major))
        except metadata.PackageNotFoundError:
            continue
    # Of several, each has overwritten the files of the one before.
    return found[0] if len(found) == 1 else Cupy()


def usable_gpus(
    driver: Callable[[], Driver] = find_driver, cupy: Callable[[], Cupy | None] = find_cupy
) -> Sequence[Gpu]:
    """The GPUs that can be used, as far as it can be told without loading CuPy.

    Args:
        driver: looks for the driver; raises DriverError.
        cupy: looks for CuPy.

    Raises:
        DriverError: where there is none, with why.
    """
    found, installed = driver(), cupy()
    if trouble := _trouble(found, installed):
        raise DriverError(f"the machine has {_listed(found.gpus)}, but {trouble}")
    return found.gpus


def _trouble(driver: Driver, cupy: Cupy | None) -> str:
    """What keeps the GPUs of a driver from being used; '' where nothing does."""
    oldest = _OLDEST_CUDA * 1000
    if driver.version < oldest:
        return (
            f"its driver is for CUDA {version_text(driver.version)}, and a driver for CUDA "
            f"{version_text(oldest)} or newer is needed"
        )
    if cupy is None:
        return f"CuPy is not installed: {_INSTALL}"
    called = f"CuPy {cupy.version} ({cupy.distribution})"
    release = re.match(r"\d+", cupy.version)
    if release is not None and int(release[0]) < _OLDEST_CUPY:
        return f"{called} is too old, {_OLDEST_CUPY}.0 or newer is needed: {_INSTALL}"
    if cupy.cuda_major is not None and driver.version < cupy.cuda_major * 1000:
        return (
            f"{called} needs a driver for CUDA {cupy.cuda_major}.0 or newer, and this one is for "
            f"CUDA {version_text(driver.version)}"
        )
    return ""


def _listed(gpus: Sequence[Gpu]) -> str:
    names = ", ".join(gpu.name for gpu in gpus)
    return f"one GPU ({names})" if len(gpus) == 1 else f"{len(gpus)} GPUs ({names})"


def default_gpu_limit(total_bytes: int) -> int:
    """The most bytes that buffers take on a GPU with so many, where nothing else is said."""
    return int(total_bytes * _DEFAULT_SHARE)


class GpuKind:
    """The GPUs.

    Args:
        gpus: looks which can be used; raises DriverError.
    """

    device_type = "gpu"

    def __init__(self, gpus: Callable[[], Sequence[Gpu]] = usable_gpus) -> None:
        self._gpus = gpus

    def look(self, memory: HostMemory) -> Found:
        """Looks what the machine has, without loading anything large. Never raises."""
        try:
            gpus = self._gpus()
        except DriverError as err:
            return Found(0, why_none=str(err))
        devices = [
            DeviceStatus(
                Context("gpu", index),
                gpu.name,
                used_bytes=0,
                limit_bytes=memory.gpu_memory_limit or default_gpu_limit(gpu.total_bytes),
                total_bytes=gpu.total_bytes,
            )
            for index, gpu in enumerate(gpus)
        ]
        return Found(len(gpus), devices)

    def open(self, memory: HostMemory) -> ArrayBackend:
        """Loads CuPy and makes the backend of all GPUs.

        Raises:
            DeviceError: where it cannot be made.
        """
        from paramd_server.arrays.cuda.backend import open_gpus

        return open_gpus(memory)


class PinnedKind:
    """Host memory that GPUs reach directly: the same for any number of a context.

    Args:
        gpus: looks which can be used; raises DriverError.
    """

    device_type = "cpu_pinned"

    def __init__(self, gpus: Callable[[], Sequence[Gpu]] = usable_gpus) -> None:
        self._gpus = gpus

    def look(self, memory: HostMemory) -> Found:
        """Looks whether there is a GPU that can be used. Never raises."""
        try:
            self._gpus()
        except DriverError as err:
            return Found(0, why_none=str(err))
        return Found(None)

    def open(self, memory: HostMemory) -> ArrayBackend:
        """Loads CuPy and makes the backend.

        Raises:
            DeviceError: where it cannot be made.
        """
        from paramd_server.arrays.cuda.pinned import open_pinned

        return open_pinned(memory)


CUDA_KINDS: Final[Sequence[BackendKind]] = (GpuKind(), PinnedKind())
