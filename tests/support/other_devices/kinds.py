"""NumPy under other names: kinds of devices that no file of the server knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from paramd_server.arrays.kinds import Found, HostMemory
from paramd_server.arrays.numpy_backend import NumpyBackend

__all__ = ["NUMPY_KINDS", "NumpyKind"]


class _NumberedBackend(NumpyBackend):
    """Has only so many devices, all of them main memory."""

    def __init__(self, memory: HostMemory, device_type: str, count: int) -> None:
        super().__init__(memory.account, memory.spares, device_type=device_type)
        self._count = count

    def num_devices(self, device_type: str) -> int:
        return self._count if device_type in self.device_types else 0


@dataclass(frozen=True)
class NumpyKind:
    """Main memory, as another type of device.

    Attributes:
        device_type: of its contexts.
        count: how many there are.
    """

    device_type: str
    count: int

    def look(self, _memory: HostMemory) -> Found:
        return Found(self.count)

    def open(self, memory: HostMemory) -> NumpyBackend:
        return _NumberedBackend(memory, self.device_type, self.count)


NUMPY_KINDS: Final = (NumpyKind("gpu", 2), NumpyKind("cpu_shared", 16))
