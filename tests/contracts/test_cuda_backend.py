"""GPU backends keep the contract in array_backend.py, on GPUs and on what stands in for them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from paramd.context import Context, cpu_pinned, gpu
from paramd_server.arrays.backend import ArrayBackend
from paramd_server.arrays.cuda.backend import CudaBackend
from paramd_server.arrays.cuda.pinned import open_pinned
from paramd_server.arrays.cuda.runtime import load_runtime
from paramd_server.arrays.cuda.transfers import TransferSizes
from paramd_server.arrays.kinds import HostMemory
from paramd_server.arrays.memory import MemoryAccount, SpareBuffers
from tests.contracts.array_backend import ALL_DTYPES, LIMIT, MODES, ArrayBackendContract
from tests.support.emulated_cuda import have_compiler, install
from tests.support.gpus import gpu_or_skip

# So that the limit of host memory in the tests has room for what transfers need.
SIZES = TransferSizes(slots=3, slot_bytes=1 << 20, piece_bytes=1 << 20)

# Each dtype with several others, in either role and every mode.
PAIRS = [
    (mode, value, target)
    for i, mode in enumerate(MODES)
    for j, value in enumerate(ALL_DTYPES)
    for k, target in enumerate(ALL_DTYPES)
    if (i + j + k) % 4 == 0 or value == target
]


class CudaBackendContract(ArrayBackendContract):
    """The contract on GPUs."""

    @pytest.fixture(autouse=True)
    @abstractmethod
    def machine(self, request: pytest.FixtureRequest) -> Iterator[None] | None:
        """The machine that the backend finds."""

    @property
    def context(self) -> Context:
        return gpu(0)

    def make_backend(self, account: MemoryAccount, spares: SpareBuffers) -> ArrayBackend:
        runtime, count = load_runtime()
        return CudaBackend(runtime, count, HostMemory(account, spares, LIMIT), SIZES)


@pytest.mark.gpu
class TestCudaBackend(CudaBackendContract):
    """A GPU."""

    @pytest.fixture(autouse=True)
    def machine(self, request: pytest.FixtureRequest) -> None:
        gpu_or_skip()


@pytest.mark.gpu
class TestPinnedBackend(TestCudaBackend):
    """Host memory that a GPU reaches."""

    @property
    def context(self) -> Context:
        return cpu_pinned(0)

    def make_backend(self, account: MemoryAccount, spares: SpareBuffers) -> ArrayBackend:
        return open_pinned(HostMemory(account, spares))


@pytest.mark.skipif(not have_compiler(), reason="needs g++, which compiles kernels for the host")
class TestCudaBackendEmulated(CudaBackendContract):
    """What stands in for two GPUs, the second of which is used."""

    @pytest.fixture(autouse=True)
    def machine(self, request: pytest.FixtureRequest) -> Iterator[None]:
        # Nothing runs before somebody waits for it.
        with install(num_devices=2, memory_bytes=LIMIT + (64 << 20), seed=0):
            yield

    @property
    def context(self) -> Context:
        return gpu(1)

    @pytest.mark.parametrize(("mode", "value", "target"), PAIRS, ids=str)
    def test_computes_with_any_pair_of_dtypes(
        self, backend: ArrayBackend, mode: str, value: np.dtype[Any], target: np.dtype[Any]
    ) -> None:
        """A part of the pairs, of which each takes a second to compile; a GPU does them all."""
        super().test_computes_with_any_pair_of_dtypes(backend, mode, value, target)


class TestCudaBackendEmulatedEagerly(TestCudaBackendEmulated):
    """The same, where things run in other orders."""

    @pytest.fixture(autouse=True)
    def machine(self, request: pytest.FixtureRequest) -> Iterator[None]:
        # Another seed for each test, the same each time.
        seed = sum(request.node.nodeid.encode())
        with install(num_devices=2, memory_bytes=LIMIT + (64 << 20), seed=seed):
            yield


class TestPinnedBackendEmulated(TestCudaBackendEmulated):
    """What stands in for host memory that a GPU reaches."""

    @property
    def context(self) -> Context:
        return cpu_pinned(2)

    def make_backend(self, account: MemoryAccount, spares: SpareBuffers) -> ArrayBackend:
        return open_pinned(HostMemory(account, spares))
