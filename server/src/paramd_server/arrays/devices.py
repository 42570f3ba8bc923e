"""All the backends of a server, by context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paramd.context import Context
from paramd.errors import ContextNotAvailableError
from paramd.spec import Shape
from paramd_server.arrays.backend import ArrayBackend, Buffer
from paramd_server.arrays.memory import MemoryAccount, SpareBuffers
from paramd_server.arrays.numpy_backend import NumpyBackend

__all__ = ["Devices"]

_HOST = Context("cpu", 0)


class Devices:
    """The contexts that a server has.

    Args:
        account: counts every buffer.
        extra: backends beside main memory.
    """

    def __init__(self, account: MemoryAccount, extra: Sequence[ArrayBackend] = ()) -> None:
        self.account = account
        self.spares = SpareBuffers()
        self._host = NumpyBackend(account, self.spares)
        self._backends: dict[str, ArrayBackend] = {}
        for backend in (self._host, *extra):
            for device_type in backend.device_types:
                self._backends[device_type] = backend

    @property
    def device_types(self) -> tuple[str, ...]:
        """The device types of which there are contexts."""
        return tuple(self._backends)

    @property
    def num_gpus(self) -> int:
        """The number of GPU contexts."""
        backend = self._backends.get("gpu")
        return 0 if backend is None else backend.num_devices("gpu") or 0

    def backend(self, context: Context) -> ArrayBackend:
        """The backend of a context.

        Raises:
            ContextNotAvailableError: where the server has no such context.
        """
        backend = self._backends.get(context.device_type)
        if backend is not None:
            count = backend.num_devices(context.device_type)
            if count is None or context.device_id < count:
                return backend
        has = ", ".join(
            f"{name}(0..)"
            if each.num_devices(name) is None
            else f"{name}(0..{each.num_devices(name)})"
            for name, each in self._backends.items()
        )
        raise ContextNotAvailableError(f"the server has no context {context}; it has {has}")

    def stage(self, shape: Shape, dtype: np.dtype[Any]) -> Buffer:
        """A host buffer for what comes in. Raises MemoryLimitError."""
        return self._host.empty(shape, dtype, _HOST)

    def as_dtype(self, staged: Buffer, dtype: np.dtype[Any]) -> Buffer:
        """A staged buffer cast to a dtype; itself if it has it. Raises MemoryLimitError."""
        if staged.dtype == dtype:
            return staged
        cast = self.stage(staged.shape, dtype)
        self._host.copy(staged, cast)
        return cast

    def staged_array(self, staged: Buffer) -> np.ndarray[Any, Any]:
        """The memory of a buffer from `stage`, to be filled."""
        return self._host.host(staged)
