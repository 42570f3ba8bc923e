"""What the CUDA runtime's calls raise in CuPy."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ILLEGAL_ADDRESS",
    "INVALID_DEVICE",
    "MEMORY_ALLOCATION",
    "NO_DEVICE",
    "CUDARuntimeError",
]

MEMORY_ALLOCATION: Final = 2
NO_DEVICE: Final = 100
INVALID_DEVICE: Final = 101
ILLEGAL_ADDRESS: Final = 700

_TEXTS: Final = {
    MEMORY_ALLOCATION: "cudaErrorMemoryAllocation: out of memory",
    NO_DEVICE: "cudaErrorNoDevice: no CUDA-capable device is detected",
    INVALID_DEVICE: "cudaErrorInvalidDevice: invalid device ordinal",
    ILLEGAL_ADDRESS: "cudaErrorIllegalAddress: an illegal memory access was encountered",
}


class CUDARuntimeError(RuntimeError):
    """A call failed.

    Attributes:
        status: cudaError_t.
    """

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_TEXTS.get(status, f"cudaError {status}"))
