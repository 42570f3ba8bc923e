"""Memory of GPUs and pinned memory: what is counted, what is kept, what happens where it ends."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest

from paramd.context import cpu_pinned, gpu
from paramd.errors import ContextNotAvailableError, MemoryLimitError
from paramd_server.arrays.cuda.backend import CudaBackend, open_gpus
from paramd_server.arrays.cuda.pinned import PinnedMemory, lease, open_pinned
from paramd_server.arrays.cuda.runtime import load_runtime
from paramd_server.arrays.cuda.transfers import TransferSizes
from paramd_server.arrays.kinds import DeviceError, HostMemory
from paramd_server.arrays.memory import MemoryAccount, SpareBuffers
from tests.support.cuda_backends import HOST_LIMIT, SMALL, filled, new_backend
from tests.support.emulated_cuda import DEVICE_NAME, Emulator, have_compiler, install

pytestmark = pytest.mark.skipif(not have_compiler(), reason="needs g++ for kernels on the host")

TOTAL = 16 << 20
# What a device has beside its buffers: slots and sums.
OWN = 1 << 20
MIB = 1 << 20
BYTE = np.dtype("u1")


@pytest.fixture
def machine() -> Iterator[Emulator]:
    with install(num_devices=2, memory_bytes=TOTAL, pinned_bytes=4 * MIB, seed=1) as emulator:
        yield emulator


@pytest.fixture
def memory() -> HostMemory:
    return HostMemory(MemoryAccount(HOST_LIMIT), SpareBuffers())


def allocated(machine: Emulator, index: int = 0) -> int:
    """What pools have of a device."""
    return machine.memories[index].allocated_bytes


class TestDevices:
    def test_a_gpu_is_untouched_until_it_is_used(self, machine: Emulator) -> None:
        backend = new_backend()
        assert backend.num_devices("gpu") == 2
        assert [each.used_bytes for each in backend.accounts()] == [0, 0]
        assert (allocated(machine), machine.pinned.allocated_bytes) == (0, 0)
        assert backend.statuses() == []
        kept = backend.empty((10,), BYTE, gpu(1))
        (status,) = backend.statuses()
        assert (status.context, status.name) == (gpu(1), DEVICE_NAME)
        assert (status.used_bytes, status.total_bytes) == (kept.nbytes, TOTAL)
        assert status.limit_bytes == TOTAL * 9 // 10
        assert allocated(machine, 0) == 0

    def test_the_limit_that_is_set_holds_for_each_gpu(self, machine: Emulator) -> None:
        backend = new_backend(gpu_limit=3 * MIB)
        kept = [backend.empty((3 * MIB,), BYTE, context) for context in (gpu(0), gpu(1))]
        assert [status.limit_bytes for status in backend.statuses()] == [3 * MIB] * 2
        for buffer, context in zip(kept, (gpu(0), gpu(1)), strict=True):
            with pytest.raises(
                MemoryLimitError, match=rf"memory limit .* of gpu\({context.device_id}\)"
            ):
                backend.empty((1,), BYTE, context)
            assert buffer.nbytes == 3 * MIB

    def test_what_is_decided_exceeds_the_limit(self, machine: Emulator) -> None:
        backend = new_backend(gpu_limit=MIB)
        with backend.accounts()[0].committed():
            kept = backend.zeros((2 * MIB,), BYTE, gpu(0))
        assert not backend.flat(kept).any()

    def test_no_host_memory_for_transfers_leaves_the_gpu_closed(self, machine: Emulator) -> None:
        account = MemoryAccount(SMALL.slots * SMALL.slot_bytes)
        backend = new_backend(account=account)
        account.reserve(1)
        with pytest.raises(MemoryLimitError):
            backend.empty((1,), BYTE, gpu(0))
        assert (account.used_bytes, backend.accounts()[0].used_bytes) == (1, 0)
        account.release(1)
        assert backend.empty((1,), BYTE, gpu(0)).nbytes == 1

    def test_no_pinned_memory_for_transfers_is_told(self, machine: Emulator) -> None:
        account = MemoryAccount(64 * MIB)
        backend = new_backend(account=account, sizes=TransferSizes(slots=4, slot_bytes=2 * MIB))
        with pytest.raises(MemoryLimitError, match="8 MiB of pinned memory"):
            backend.empty((1,), BYTE, gpu(0))
        assert account.used_bytes == 0

    def test_no_device_memory_for_transfers_is_told(self, machine: Emulator) -> None:
        machine.memories[0].other_bytes = TOTAL
        account = MemoryAccount(HOST_LIMIT)
        backend = new_backend(account=account)
        with pytest.raises(MemoryLimitError, match=r"gpu\(0\) has no"):
            backend.empty((1,), BYTE, gpu(0))
        assert backend.empty((1,), BYTE, gpu(1)).nbytes == 1
        machine.memories[0].other_bytes = 0
        assert backend.empty((1,), BYTE, gpu(0)).nbytes == 1

    def test_a_gpu_that_compiles_nothing_is_not_available(
        self, machine: Emulator, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend = new_backend()
        broken = mock.patch.object(
            type(backend._runtime), "load", side_effect=RuntimeError("libnvrtc.so is not there")
        )
        with (
            caplog.at_level(logging.ERROR),
            broken,
            pytest.raises(ContextNotAvailableError, match=r"gpu\(0\): libnvrtc"),
        ):
            backend.empty((1,), BYTE, gpu(0))
        assert "gpu(0) cannot be used" in caplog.text
        assert backend.statuses() == []
        assert backend.accounts()[0].used_bytes == 0


class TestBuffers:
    def test_want_of_memory_leaves_everything_as_it_was(self, machine: Emulator) -> None:
        backend = new_backend()
        value = np.arange(MIB, dtype="u1")
        kept = filled(backend, value)
        machine.memories[0].other_bytes = 9 * MIB
        account = backend.accounts()[0]
        # There is room for it by the account, and not on the device.
        with pytest.raises(MemoryLimitError, match=r"gpu\(0\) has no 8 MiB"):
            backend.zeros((8 * MIB,), BYTE, gpu(0))
        # Nor is there by the account.
        with pytest.raises(MemoryLimitError, match="limit"):
            backend.zeros((TOTAL,), BYTE, gpu(0))
        assert account.used_bytes == MIB
        np.testing.assert_array_equal(backend.flat(kept), value)
        machine.memories[0].other_bytes = 0
        assert not backend.flat(backend.zeros((8 * MIB,), BYTE, gpu(0))).any()

    def test_freed_memory_is_used_again(self, machine: Emulator) -> None:
        backend = new_backend()
        for number in range(5):
            buffer = filled(backend, np.full(MIB, number, "u1"))
            assert (backend.flat(buffer) == number).all()
            del buffer
            if number == 0:
                before = allocated(machine)
        assert allocated(machine) == before

    def test_free_memory_is_no_hindrance_where_it_does_not_fit(self, machine: Emulator) -> None:
        backend = new_backend(gpu_limit=8 * MIB)
        for count, size in ((8, MIB), (4, 2 * MIB), (1, 8 * MIB)):
            buffers = [backend.empty((size,), BYTE, gpu(0)) for _ in range(count)]
            assert backend.accounts()[0].used_bytes == 8 * MIB
            assert allocated(machine) <= 8 * MIB + OWN
            del buffers

    def test_free_pieces_that_are_too_small_make_room(self, machine: Emulator) -> None:
        backend = new_backend(gpu_limit=8 * MIB)
        buffers = [backend.empty((MIB,), BYTE, gpu(0)) for _ in range(8)]
        # Half of it is free, in pieces of which none does.
        del buffers[::2]
        kept = backend.empty((2 * MIB,), BYTE, gpu(0))
        assert backend.accounts()[0].used_bytes == 6 * MIB
        assert allocated(machine) <= 8 * MIB + OWN
        assert (len(buffers), kept.nbytes) == (4, 2 * MIB)

    def test_the_last_reference_gives_back_while_work_is_queued(self, machine: Emulator) -> None:
        backend = new_backend()
        source = filled(backend, np.full(MIB, 5, "u1"))
        target = backend.empty((MIB,), BYTE, gpu(0))
        backend.copy(source, target)
        del source
        # Takes the memory of the source, and has it after the copy has been made.
        other = backend.zeros((MIB,), BYTE, gpu(0))
        assert (backend.flat(target) == 5).all()
        assert not backend.flat(other).any()

    def test_what_is_idle_is_given_back_to_the_device(self, machine: Emulator) -> None:
        backend = new_backend()
        buffer = backend.empty((4 * MIB,), BYTE, gpu(0))
        del buffer
        backend.trim()
        held = allocated(machine)
        assert held >= 4 * MIB
        with mock.patch.object(time, "monotonic", return_value=sys.maxsize):
            backend.trim()
        assert allocated(machine) <= held - 4 * MIB

    @pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
    def test_empty_and_single_buffers_do_all_that_others_do(
        self, machine: Emulator, shape: tuple[int, ...]
    ) -> None:
        backend = new_backend()
        value = np.ones(shape, "f4")
        buffer, other = filled(backend, value), backend.zeros(shape, np.dtype("f8"), gpu(1))
        backend.write(buffer, np.array(2, "i8"), mode="multiply")
        backend.fill(buffer, 0, value)
        backend.copy(buffer, other)
        backend.update("sgd", buffer, value, [], [1.0, np.inf, 1.0, 0.0])
        part = backend.part(buffer, tuple((0, count, 1) for count in shape))
        assert backend.all_finite(part)
        np.testing.assert_array_equal(backend.flat(part), (value - 1).reshape(-1))
        np.testing.assert_array_equal(
            np.concatenate([piece.copy() for piece in backend.pieces(other)]), value.reshape(-1)
        )
        assert backend.accounts()[0].used_bytes == 2 * 4 * value.size


class TestPinnedMemory:
    def test_memory_is_kept_and_taken_again(self, machine: Emulator) -> None:
        memory = PinnedMemory(load_runtime()[0])
        first = memory.take(1000)
        address = first.ctypes.data
        first[:] = 7
        memory.give(first)
        del first
        assert memory.held_bytes == 1000
        again = memory.take_zeros(1000)
        assert again.ctypes.data == address
        assert (again.size, memory.held_bytes) == (1000, 0)
        assert not again.any()

    def test_what_is_kept_goes_when_it_is_idle_or_dropped(self, machine: Emulator) -> None:
        memory = PinnedMemory(load_runtime()[0], idle_s=5.0)
        for free in ("trim", "drop"):
            with mock.patch.object(time, "monotonic", return_value=100.0):
                memory.give(memory.take(MIB))
            assert machine.pinned.allocated_bytes == MIB
            with mock.patch.object(time, "monotonic", return_value=104.0):
                memory.trim()
                assert memory.held_bytes == MIB
            with mock.patch.object(time, "monotonic", return_value=106.0):
                getattr(memory, free)()
            assert (memory.held_bytes, machine.pinned.allocated_bytes) == (0, 0)

    def test_what_is_kept_makes_room_for_what_is_needed(self, machine: Emulator) -> None:
        memory = PinnedMemory(load_runtime()[0])
        memory.give(memory.take(3 * MIB))
        taken = memory.take(2 * MIB)
        assert taken.nbytes == 2 * MIB
        with pytest.raises(MemoryError):
            memory.take(3 * MIB)

    def test_a_lease_is_counted_while_arrays_refer_to_it(self, machine: Emulator) -> None:
        memory, account = PinnedMemory(load_runtime()[0]), MemoryAccount(8 * MIB)
        array: np.ndarray[Any, Any] = np.asarray(lease(MIB, memory, account))[5:100:2]
        gc.collect()
        assert (account.used_bytes, memory.held_bytes) == (MIB, 0)
        del array
        assert (account.used_bytes, memory.held_bytes) == (0, MIB)
        with pytest.raises(MemoryLimitError, match="of pinned memory"):
            lease(5 * MIB, memory, account)
        assert account.used_bytes == 0

    def test_what_is_kept_counts_when_the_account_has_no_room(self, machine: Emulator) -> None:
        memory, account = PinnedMemory(load_runtime()[0]), MemoryAccount(2 * MIB)
        memory.give(memory.take(MIB))
        kept = lease(3 * MIB // 2, memory, account)
        assert memory.held_bytes == 0
        assert np.asarray(kept).nbytes == 3 * MIB // 2

    def test_buffers_of_pinned_contexts_are_pinned_and_counted(
        self, machine: Emulator, memory: HostMemory
    ) -> None:
        backend = open_pinned(memory)
        buffer = backend.zeros((1000,), np.dtype("f4"), cpu_pinned(3))
        assert machine.pinned.find(backend.flat(buffer).ctypes.data) is not None
        assert memory.account.used_bytes == buffer.nbytes
        del buffer
        assert memory.account.used_bytes == 0
        with mock.patch.object(time, "monotonic", return_value=sys.maxsize):
            backend.trim()
        assert machine.pinned.allocated_bytes == 0


class TestOpening:
    def test_gpus_are_opened_for_the_server(self, machine: Emulator, memory: HostMemory) -> None:
        backend = open_gpus(memory)
        assert isinstance(backend, CudaBackend)
        assert backend.num_devices("gpu") == 2

    @pytest.mark.parametrize("open_backend", [open_gpus, open_pinned])
    def test_a_machine_without_gpus_has_no_backend(
        self, memory: HostMemory, open_backend: Any
    ) -> None:
        with install(num_devices=0), pytest.raises(DeviceError, match="no CUDA-capable device"):
            open_backend(memory)

    @pytest.mark.parametrize("open_backend", [open_gpus, open_pinned])
    def test_a_server_without_cupy_has_no_backend(
        self, memory: HostMemory, open_backend: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # So that it cannot be imported, whether it is installed or not.
        monkeypatch.setitem(sys.modules, "cupy", None)
        with pytest.raises(DeviceError, match=r"CuPy cannot be loaded: .*cupy"):
            open_backend(memory)

    def test_no_pinned_memory_is_no_backend(self, memory: HostMemory) -> None:
        with install(pinned_bytes=0), pytest.raises(DeviceError, match="no pinned memory"):
            open_pinned(memory)
