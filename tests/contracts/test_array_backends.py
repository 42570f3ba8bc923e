"""Every array backend keeps the contract in array_backend.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paramd.context import Context, cpu
from paramd_server.arrays.backend import ArrayBackend
from paramd_server.arrays.memory import MemoryAccount, SpareBuffers
from paramd_server.arrays.numpy_backend import NumpyBackend
from tests.contracts.array_backend import ArrayBackendContract


class TestNumpyBackend(ArrayBackendContract):
    """Main memory."""

    @property
    def context(self) -> Context:
        return cpu(3)

    def make_backend(self, account: MemoryAccount, spares: SpareBuffers) -> ArrayBackend:
        return NumpyBackend(account, spares)

    def test_what_is_read_is_the_memory_itself(self, backend: ArrayBackend) -> None:
        buffer = backend.zeros((4,), np.dtype("f4"), cpu())
        (piece,) = backend.pieces(buffer, 1, 3)
        assert np.shares_memory(backend.flat(buffer), piece)

    def test_adopting_costs_nothing(self, backend: ArrayBackend, account: MemoryAccount) -> None:
        staged = backend.empty((1 << 18,), np.dtype("f4"), cpu())
        used = account.used_bytes
        adopted = backend.adopt(staged, cpu(7))
        assert adopted.context == cpu(7)
        assert account.used_bytes == used

    def test_memory_that_fails_to_come_is_not_counted(
        self, account: MemoryAccount, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(size: int) -> np.ndarray[Any, Any]:
            raise RuntimeError("the device has failed")

        spares = SpareBuffers()
        monkeypatch.setattr(spares, "take", fail)
        with pytest.raises(RuntimeError, match="has failed"):
            NumpyBackend(account, spares).empty((1 << 18,), np.dtype("f4"), cpu())
        assert account.used_bytes == 0
