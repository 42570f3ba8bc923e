"""GPU backends for tests, over the stand-in for CuPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from paramd.context import Context, gpu
from paramd_server.arrays.backend import Buffer
from paramd_server.arrays.cuda.backend import CudaBackend
from paramd_server.arrays.cuda.runtime import load_runtime
from paramd_server.arrays.cuda.transfers import TransferSizes
from paramd_server.arrays.kinds import HostMemory
from paramd_server.arrays.memory import MemoryAccount, SpareBuffers

__all__ = ["HOST_LIMIT", "SMALL", "filled", "new_backend"]

# Chunks that small arrays fill many times, and fewer slots than threads.
SMALL = TransferSizes(slots=2, slot_bytes=4096, piece_bytes=8192)
HOST_LIMIT = 1 << 20


def new_backend(
    *,
    host_limit: int = HOST_LIMIT,
    gpu_limit: int = 0,
    sizes: TransferSizes = SMALL,
    account: MemoryAccount | None = None,
) -> CudaBackend:
    """A backend on what is installed in the place of CuPy.

    Args:
        host_limit: of the account of host memory.
        gpu_limit: of each GPU; 0 for nine tenths of it.
        sizes: of transfers.
        account: of host memory, instead of a new one.
    """
    runtime, count = load_runtime()
    account = account or MemoryAccount(host_limit)
    return CudaBackend(runtime, count, HostMemory(account, SpareBuffers(), gpu_limit), sizes)


def filled(
    backend: CudaBackend, value: np.ndarray[Any, Any], context: Context | None = None
) -> Buffer:
    """A buffer of a value, by default on gpu(0)."""
    buffer = backend.empty(value.shape, value.dtype, context or gpu(0))
    backend.write(buffer, value, mode="assign")
    return buffer
