"""All the backends of a server, by context."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from paramd.context import Context
from paramd.errors import ContextNotAvailableError
from paramd.spec import Shape
from paramd_server.arrays.backend import ArrayBackend, Buffer, DeviceStatus
from paramd_server.arrays.cuda.kinds import CUDA_KINDS
from paramd_server.arrays.kinds import (
    BackendKind,
    DeviceError,
    Found,
    HostMemory,
    registered_kinds,
)
from paramd_server.arrays.memory import MemoryAccount, SpareBuffers
from paramd_server.arrays.numpy_backend import NumpyBackend
from paramd_server.arrays.shared_memory import Place, SharedMemory

__all__ = ["Devices"]

_log = logging.getLogger(__name__)

_HOST = Context("cpu", 0)
# Elements that go from one kind of device to another at a time.
_BLOCK = 1 << 20


class Devices:
    """The contexts that a server has.

    Args:
        account: counts every buffer in host memory.
        gpu_memory_limit: the most bytes that buffers take on each GPU; 0 for nine tenths of it.
        kinds: of devices beside main memory; by default those of CUDA, and what was registered.
    """

    def __init__(
        self,
        account: MemoryAccount,
        *,
        gpu_memory_limit: int = 0,
        kinds: Iterable[BackendKind] | None = None,
    ) -> None:
        self.account = account
        self.spares = SpareBuffers()
        self._memory = HostMemory(account, self.spares, gpu_memory_limit)
        # For values that processes of the same host read where they are. Everything else, and
        # values that nobody reads in that way, is in ordinary memory, whose first touch costs less.
        self.shared_memory = SharedMemory()
        self._host = NumpyBackend(account, self.spares, others=(self.shared_memory,))
        self._shared = NumpyBackend(account, self.shared_memory, others=(self.spares,))
        if kinds is None:
            kinds = (*CUDA_KINDS, *registered_kinds())
        self._kinds = {kind.device_type: kind for kind in kinds}
        self._opening = threading.Lock()
        # Both are guarded by _opening for writing; entries stay.
        self._found: dict[str, Found] = {}
        self._opened: dict[str, ArrayBackend] = {"cpu": self._host}

    @property
    def device_types(self) -> tuple[str, ...]:
        """The device types of which there are contexts."""
        return tuple(name for name in ("cpu", *self._kinds) if self._count(name) != 0)

    @property
    def num_gpus(self) -> int:
        """The number of GPU contexts."""
        return self._count("gpu") or 0

    def statuses(self) -> list[DeviceStatus]:
        """The devices that have a name and a size, as they are now."""
        statuses = {}
        for device_type in self._kinds:
            for status in self._look(device_type).devices:
                statuses[status.context] = status
        for backend in self._distinct():
            for status in backend.statuses():
                statuses[status.context] = status
        return list(statuses.values())

    @property
    def least_device_limit(self) -> int:
        """The smallest limit of the devices that have one; 0 where there are none."""
        return min((status.limit_bytes for status in self.statuses()), default=0)

    def backend(self, context: Context) -> ArrayBackend:
        """The backend of a context, made when it is asked for first.

        Raises:
            ContextNotAvailableError: where the server has no such context.
        """
        device_type = context.device_type
        backend = self._opened.get(device_type)
        if backend is not None:
            count = backend.num_devices(device_type)
        else:
            count = self._count(device_type)
        if count is not None and context.device_id >= count:
            raise ContextNotAvailableError(
                f"the server has no context {context}; it has {self._has()}"
                f"{self._why_none(device_type)}"
            )
        return self._open(context) if backend is None else backend

    def stage(self, shape: Shape, dtype: np.dtype[Any], *, shared: bool = False) -> Buffer:
        """A host buffer for what comes in. Raises MemoryLimitError.

        Args:
            shape: its dimensions.
            dtype: of its elements.
            shared: whether what adopts it is read by other processes of the host.
        """
        backend = self._shared if shared else self._host
        return backend.empty(shape, dtype, _HOST)

    def place(self, buffer: Buffer) -> Place | None:
        """Where a buffer lies in shared memory; None where it does not."""
        if self.backend(buffer.context) is not self._host:
            return None
        return self.shared_memory.locate(self._host.array(buffer))

    def share(self, buffer: Buffer) -> Buffer | None:
        """A copy of a buffer in shared memory; None where its context is not of main memory.

        Raises:
            MemoryLimitError.
        """
        if self.backend(buffer.context) is not self._host:
            return None
        shared = self._shared.empty(buffer.shape, buffer.dtype, buffer.context)
        self._host.copy(buffer, shared)
        return shared

    def another(self, buffer: Buffer) -> Buffer:
        """A buffer like another one, in memory of the same kind, with any content.

        Raises:
            MemoryLimitError.
        """
        backend = self.backend(buffer.context)
        if self.place(buffer) is not None:
            backend = self._shared
        return backend.empty(buffer.shape, buffer.dtype, buffer.context)

    def as_dtype(self, staged: Buffer, dtype: np.dtype[Any]) -> Buffer:
        """A staged buffer cast to a dtype; itself if it has it. Raises MemoryLimitError."""
        if staged.dtype == dtype:
            return staged
        cast = self.stage(staged.shape, dtype)
        self._host.copy(staged, cast)
        return cast

    def staged_array(self, staged: Buffer) -> np.ndarray[Any, Any]:
        """The memory of a host buffer: one from `stage`, to be filled, or from `on_host`."""
        return self._host.array(staged)

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copies all of one buffer into another of the same size, wherever they are, casting.

        It cannot fail.
        """
        read, written = self.backend(source.context), self.backend(target.context)
        if read is written:
            read.copy(source, target)
            return
        size = math.prod(source.shape)
        for begin in range(0, size, _BLOCK):
            end = min(begin + _BLOCK, size)
            written.fill(target, begin, read.flat(source, begin, end))

    def on_host(self, buffer: Buffer) -> Buffer:
        """A host buffer of the same content: itself, where it is one. Raises MemoryLimitError."""
        if self.backend(buffer.context) is self._host:
            return buffer
        staged = self.stage(buffer.shape, buffer.dtype)
        self.copy(buffer, staged)
        return staged

    @contextmanager
    def committed(self) -> Iterator[None]:
        """Lets this thread exceed the limits of all accounts; see `MemoryAccount.committed`."""
        with ExitStack() as stack:
            stack.enter_context(self.account.committed())
            for backend in self._distinct():
                for account in backend.accounts():
                    stack.enter_context(account.committed())
            yield

    def trim(self) -> None:
        """Frees what is kept for later and has not been used for a while."""
        self.spares.trim()
        self.shared_memory.trim()
        for backend in self._distinct():
            try:
                backend.trim()
            except Exception:
                # A device that has failed must not end the housekeeping of the others.
                _log.exception("what %s keeps was not freed", "/".join(backend.device_types))

    def _distinct(self) -> list[ArrayBackend]:
        return list({id(backend): backend for backend in list(self._opened.values())}.values())

    def _look(self, device_type: str) -> Found:
        found = self._found.get(device_type)
        if found is None:
            with self._opening:
                found = self._found.get(device_type)
                if found is None:
                    found = self._kinds[device_type].look(self._memory)
                    self._found[device_type] = found
        return found

    def _count(self, device_type: str) -> int | None:
        if device_type in self._kinds:
            return self._look(device_type).count
        return None if device_type in self._opened else 0

    def _open(self, context: Context) -> ArrayBackend:
        device_type = context.device_type
        with self._opening:
            backend = self._opened.get(device_type)
            if backend is not None:
                return backend
            try:
                backend = self._kinds[device_type].open(self._memory)
            except DeviceError as err:
                failure = err
            else:
                self._opened[device_type] = backend
                return backend
        _log.warning("context %s cannot be used: %s", context, failure)
        raise ContextNotAvailableError(
            f"the server cannot use context {context}: {failure}; without it, it has "
            f"{self._has(without=device_type)}"
        ) from failure

    def _has(self, without: str = "") -> str:
        names = []
        for device_type in ("cpu", *self._kinds):
            count = self._count(device_type)
            if count != 0 and device_type != without:
                last = "" if count is None else count - 1
                names.append(f"{device_type}(0..{last})")
        return ", ".join(names)

    def _why_none(self, device_type: str) -> str:
        why = self._look(device_type).why_none if device_type in self._kinds else ""
        return f" ({why})" if why else ""
