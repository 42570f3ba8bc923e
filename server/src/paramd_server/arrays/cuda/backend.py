"""Arrays on the GPUs of a machine."""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from paramd.context import Context
from paramd.errors import ContextNotAvailableError, MemoryLimitError
from paramd.spec import Region, Shape
from paramd_server.arrays.backend import (
    Buffer,
    DeviceStatus,
    HostArray,
    Pieces,
    Values,
    region_shape,
)
from paramd_server.arrays.cuda.buffers import CudaBuffer, new_buffer
from paramd_server.arrays.cuda.device import KernelKey
from paramd_server.arrays.cuda.geometry import Layout, contiguous_strides, region_layout
from paramd_server.arrays.cuda.gpu import Gpu, finite_kernel
from paramd_server.arrays.cuda.kinds import default_gpu_limit
from paramd_server.arrays.cuda.pieces import PieceReader
from paramd_server.arrays.cuda.pinned import PinnedMemory, lease
from paramd_server.arrays.cuda.runtime import Runtime, load_runtime
from paramd_server.arrays.cuda.transfers import TransferSizes
from paramd_server.arrays.cuda.updating import Step, update_kernels
from paramd_server.arrays.kinds import HostMemory
from paramd_server.arrays.memory import MemoryAccount, format_bytes
from paramd_server.arrays.numpy_backend import NumpyBuffer

__all__ = ["CudaBackend", "open_gpus"]

_DEVICE_TYPE: Final = "gpu"

_SIZES: Final = TransferSizes()

_log = logging.getLogger(__name__)


class CudaBackend:
    """All GPUs of the machine; each is opened when one of its buffers is asked for first.

    Args:
        runtime: that reaches them.
        num_gpus: how many there are.
        memory: of the host, and the limit of each GPU.
        sizes: of transfers.
    """

    def __init__(
        self,
        runtime: Runtime,
        num_gpus: int,
        memory: HostMemory,
        sizes: TransferSizes = _SIZES,
    ) -> None:
        self._runtime = runtime
        self._memory = memory
        self._sizes = sizes
        self._pinned = PinnedMemory(runtime)
        # What a GPU may have is known when it is opened, unless it was said.
        limit = memory.gpu_memory_limit or sys.maxsize
        self._accounts = [MemoryAccount(limit, name=f"gpu({i})") for i in range(num_gpus)]
        self._opening = threading.Lock()
        # Both are guarded by _opening for writing; entries stay.
        self._gpus: dict[int, Gpu] = {}
        self._warm: dict[KernelKey, None] = {}

    @property
    def device_types(self) -> Sequence[str]:
        """'gpu'."""
        return (_DEVICE_TYPE,)

    def num_devices(self, device_type: str) -> int | None:
        """How many GPUs there are."""
        return len(self._accounts) if device_type == _DEVICE_TYPE else 0

    def accounts(self) -> Sequence[MemoryAccount]:
        """One for each GPU, by its number."""
        return tuple(self._accounts)

    def statuses(self) -> Sequence[DeviceStatus]:
        """The GPUs that are open."""
        return [
            DeviceStatus(
                Context(_DEVICE_TYPE, index),
                gpu.device.name,
                gpu.device.account.used_bytes,
                gpu.device.account.limit_bytes,
                gpu.device.total_bytes,
            )
            for index, gpu in sorted(self._gpus.items())
        ]

    def trim(self) -> None:
        """Frees memory of the GPUs and pinned memory that was not needed for some seconds."""
        self._pinned.trim()
        for gpu in list(self._gpus.values()):
            gpu.device.trim()

    def empty(self, shape: Shape, dtype: np.dtype[Any], context: Context) -> CudaBuffer:
        """A buffer with any content.

        Raises:
            MemoryLimitError: where there is no room.
            ContextNotAvailableError: where the GPU is asked for first, and cannot be used.
        """
        return new_buffer(self._open(context.device_id).device, shape, dtype, context)

    def zeros(self, shape: Shape, dtype: np.dtype[Any], context: Context) -> CudaBuffer:
        """A buffer of zeros. Raises as `empty` does."""
        buffer = self.empty(shape, dtype, context)
        self._gpu(buffer).clear(buffer)
        return buffer

    def adopt(self, staged: Buffer, context: Context) -> CudaBuffer:
        """A copy on the GPU."""
        assert isinstance(staged, NumpyBuffer)
        adopted = self.empty(staged.shape, staged.dtype, context)
        self.write(adopted, staged.array, mode="assign")
        return adopted

    def part(self, buffer: Buffer, region: Region) -> CudaBuffer:
        """Copies a region on the GPU."""
        source = _own(buffer)
        part = new_buffer(source.device, region_shape(region), source.dtype, source.context)
        self._gpu(source).take_part(source, region, part)
        return part

    def flat(self, buffer: Buffer, begin: int = 0, end: int | None = None) -> HostArray:
        """Copies to the host."""
        source = _own(buffer)
        return self._gpu(source).flat(source, begin, source.size if end is None else end)

    def pieces(self, buffer: Buffer, begin: int = 0, end: int | None = None) -> Pieces:
        """Copies to pinned memory, while the piece before is being sent."""
        source = _own(buffer)
        end = source.size if end is None else end
        if begin >= end:
            return _nothing(source.dtype)
        return PieceReader(
            source,
            begin,
            end,
            memory=self._pinned,
            account=self._memory.account,
            piece_bytes=self._sizes.piece_bytes,
        )

    def fill(self, buffer: Buffer, begin: int, values: HostArray) -> None:
        """Writes to the GPU, which casts."""
        target = _own(buffer)
        layout = Layout(values.shape, contiguous_strides(values.shape), begin)
        self._gpu(target).write(target, layout, values, "assign")

    def write(
        self, buffer: Buffer, value: HostArray, *, region: Region | None = None, mode: str
    ) -> None:
        """Writes to the GPU, which broadcasts and casts."""
        target = _own(buffer)
        self._gpu(target).write(target, region_layout(target.shape, region), value, mode)

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copies and casts within a GPU, or from one to another."""
        written = _own(target)
        self._gpu(written).copy(_own(source), written)

    def take_rows(
        self, buffer: Buffer, ids: HostArray, out: HostArray, *, row_size: int | None = None
    ) -> None:
        """Gathers rows on the GPU and copies them to the host."""
        table = _own(buffer)
        if row_size is None:
            row_size = math.prod(table.shape[1:])
        self._gpu(table).take_rows(table, _contiguous(ids), row_size, out)

    def row_memory(self, shape: Shape, dtype: np.dtype[Any]) -> HostArray:
        """Pinned memory, counted as the host's while anybody refers to it."""
        size = math.prod(shape) * dtype.itemsize
        flat = np.asarray(lease(max(size, 1), self._pinned, self._memory.account))[:size]
        return flat.view(dtype).reshape(shape)

    def put_rows(self, buffer: Buffer, ids: HostArray, rows: Values, *, mode: str) -> None:
        """Writes rows to the GPU, or within it."""
        table = _own(buffer)
        self._gpu(table).put_rows(table, _contiguous(ids), _on_device(rows, table), mode)

    def all_finite(self, buffer: Buffer) -> bool:
        """One pass on the GPU."""
        return self._gpu(_own(buffer)).all_finite(_own(buffer))

    def warm_up(
        self,
        update: str,
        dtype: np.dtype[Any],
        *,
        state_dtypes: Sequence[np.dtype[Any]],
        rounded: np.dtype[Any] | None,
    ) -> None:
        """Compiles, now for the GPUs that are open, later for others when they are opened."""
        kernels = update_kernels(update, dtype, state_dtypes=state_dtypes, rounded=rounded)
        kernels.append(finite_kernel(rounded or dtype))
        with self._opening:
            self._warm.update(dict.fromkeys(kernels))
            for gpu in self._gpus.values():
                gpu.device.load(kernels)

    def update(
        self,
        update: str,
        weight: Buffer,
        gradient: Values,
        states: Sequence[Buffer],
        constants: Sequence[float],
        *,
        rounded: Buffer | None = None,
        ids: HostArray | None = None,
        lazy: bool = True,
    ) -> None:
        """Feeds the gradient to kernels; all else is on the GPU."""
        target = _own(weight)
        if target.size == 0:
            return
        gpu = self._gpu(target)
        step = Step(
            update,
            target,
            _on_device(gradient, target),
            [_own(state) for state in states],
            constants,
            None if rounded is None else _own(rounded),
            None if ids is None else _contiguous(ids),
            lazy,
        )
        with gpu.device.use():
            gpu.updater.run(step)

    def _gpu(self, buffer: CudaBuffer) -> Gpu:
        return self._gpus[buffer.device.index]

    def _open(self, index: int) -> Gpu:
        gpu = self._gpus.get(index)
        if gpu is not None:
            return gpu
        with self._opening:
            gpu = self._gpus.get(index)
            if gpu is None:
                gpu = self._opened(index)
                self._gpus[index] = gpu
            return gpu

    def _opened(self, index: int) -> Gpu:
        account = self._accounts[index]
        try:
            gpu = Gpu(
                self._runtime,
                index,
                account,
                pinned=self._pinned,
                host_account=self._memory.account,
                sizes=self._sizes,
            )
            gpu.device.load(self._warm)
        except MemoryLimitError:
            raise
        except Exception as err:
            _log.exception("gpu(%d) cannot be used", index)
            raise ContextNotAvailableError(
                f"the server cannot use context gpu({index}): {err}"
            ) from err
        if not self._memory.gpu_memory_limit:
            account.limit_bytes = default_gpu_limit(gpu.device.total_bytes)
        limit = format_bytes(account.limit_bytes)
        _log.info("gpu(%d) is %s, for %s of buffers", index, gpu.device.name, limit)
        return gpu


def _nothing(dtype: np.dtype[Any]) -> Pieces:
    yield np.empty(0, dtype)


def _own(buffer: Buffer) -> CudaBuffer:
    assert isinstance(buffer, CudaBuffer)
    return buffer


def _on_device(values: Values, target: CudaBuffer) -> HostArray | CudaBuffer:
    if isinstance(values, np.ndarray):
        return values
    buffer = _own(values)
    assert buffer.device is target.device
    return buffer


def _contiguous(ids: HostArray) -> HostArray:
    return np.ascontiguousarray(ids, np.int64)


def open_gpus(memory: HostMemory) -> CudaBackend:
    """The backend of the contexts 'gpu', none of which it has touched yet.

    Args:
        memory: of the host, and the limit of each GPU.

    Raises:
        DeviceError: where CuPy cannot be loaded, or the CUDA runtime finds no GPU.
    """
    runtime, num_gpus = load_runtime()
    _log.info("%d GPUs, by %s", num_gpus, runtime.describe())
    return CudaBackend(runtime, num_gpus, memory)
