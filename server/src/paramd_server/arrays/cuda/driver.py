"""What the NVIDIA driver of this machine says, asked of its library directly.

Neither CuPy nor a CUDA toolkit is needed for it, and no context is made on any GPU, which would
take some hundred megabytes of its memory. See https://docs.nvidia.com/cuda/cuda-driver-api/.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["Driver", "DriverError", "Gpu", "find_driver", "version_text"]

_LIBRARY: Final = "libcuda.so.1"
_CONTROL_DEVICE: Final = Path("/dev/nvidiactl")
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_MAX_NAME_BYTES: Final = 256
# CUresult of the driver's API.
_STUB_LIBRARY: Final = 34
_NO_DEVICE: Final = 100


class DriverError(Exception):
    """There is no driver that works, or it has no GPU for this process; the message says why."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: of the product.
        total_bytes: of its memory.
    """

    name: str
    total_bytes: int


@dataclass(frozen=True)
class Driver:
    """A driver that works.

    Attributes:
        version: the newest CUDA that it can run, 1000 * major + 10 * minor.
        gpus: those that this process may use, at least one, in the order of their numbers.
    """

    version: int
    gpus: tuple[Gpu, ...]


def version_text(version: int) -> str:
    """'12.4' for 12040."""
    return f"{version // 1000}.{version % 1000 // 10}"


def find_driver(
    *,
    load: Callable[[str], Any] = ctypes.CDLL,
    control_device: Path = _CONTROL_DEVICE,
) -> Driver:
    """Asks the driver for its version and its GPUs.

    Args:
        load: gives a shared library by its name.
        control_device: of the driver, without access to which it finds no GPU.

    Raises:
        DriverError: where there is nothing to work with.
    """
    try:
        library = load(_LIBRARY)
    except OSError as err:
        raise DriverError(f"no NVIDIA driver: {err}") from err
    try:
        return _ask(library)
    except _CallError as err:
        raise DriverError(_explain(err, control_device)) from err
    except AttributeError as err:
        raise DriverError(f"{_LIBRARY} is no NVIDIA driver that is known: {err}") from err


class _CallError(Exception):
    """A call gave something else than CUDA_SUCCESS."""

    def __init__(self, function: str, result: int, name: str) -> None:
        super().__init__(f"{function} gave {name or 'error'} ({result})")
        self.result = result


def _ask(library: Any) -> Driver:
    def call(function: str, *arguments: Any) -> None:
        result = getattr(library, function)(*arguments)
        if result != 0:
            raise _CallError(function, result, _name_of(library, result))

    call("cuInit", ctypes.c_uint(0))
    version, count = ctypes.c_int(), ctypes.c_int()
    call("cuDriverGetVersion", ctypes.byref(version))
    call("cuDeviceGetCount", ctypes.byref(count))
    if count.value < 1:
        raise _CallError("cuDeviceGetCount", _NO_DEVICE, "no device")
    gpus = []
    for index in range(count.value):
        device, total = ctypes.c_int(), ctypes.c_size_t()
        name = ctypes.create_string_buffer(_MAX_NAME_BYTES)
        call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
        call("cuDeviceGetName", name, ctypes.c_int(len(name)), device)
        call("cuDeviceTotalMem_v2", ctypes.byref(total), device)
        gpus.append(Gpu(name.value.decode(errors="replace"), total.value))
    return Driver(version.value, tuple(gpus))


def _name_of(library: Any, result: int) -> str:
    """The name of a CUresult; '' where the driver does not know it either."""
    text = ctypes.c_char_p()
    if library.cuGetErrorName(ctypes.c_int(result), ctypes.byref(text)) != 0 or not text.value:
        return ""
    return text.value.decode(errors="replace")


def _explain(err: _CallError, control_device: Path) -> str:
    if err.result == _STUB_LIBRARY:
        return (
            f"no NVIDIA driver: the {_LIBRARY} that was found is the stub of a CUDA toolkit, to be "
            "linked against"
        )
    if err.result == _NO_DEVICE:
        whys = ["the NVIDIA driver has no GPU for this process"]
        if _VISIBLE in os.environ:
            whys.append(f"{_VISIBLE} is {os.environ[_VISIBLE]!r}")
    else:
        whys = [f"the NVIDIA driver does not work: {err}"]
    if not control_device.exists():
        whys.append(f"there is no {control_device}, as in a container that was given no GPU")
    elif not os.access(control_device, os.R_OK | os.W_OK):
        whys.append(f"this user may not open {control_device}")
    return "; ".join(whys)
