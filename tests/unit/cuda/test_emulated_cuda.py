"""The stand-in for CuPy does what CUDA may do, and shows what is used wrongly."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import paramd
from paramd_server.arrays.cuda.driver import DriverError
from tests.support.emulated_cuda import EmulationFault, Emulator, have_compiler, install
from tests.support.emulated_cuda.device_memory import POISON
from tests.support.emulated_cuda.driver import emulated_driver
from tests.support.server_process import ServerProcess, server_environment

needs_compiler = pytest.mark.skipif(not have_compiler(), reason="no compiler for C++")

OPTIONS = ("--fmad=false", "--std=c++14")
SCALE = """
extern "C" __global__ void scale(T* values, long long count, T factor) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  for (; i < count; i += (long long)blockDim.x * gridDim.x) values[i] *= factor;
}
"""
# Each is only right where there are as many threads as elements, or where they run in order.
NO_STRIDES = """
extern "C" __global__ void scale(T* values, long long count, T factor) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < count) values[i] *= factor;
}
"""
IN_ORDER = """
extern "C" __global__ void scale(T* values, long long count, T factor) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  for (; i < count; i += (long long)blockDim.x * gridDim.x)
    values[i] = i == 0 ? factor : values[i - 1] + 1;
}
"""
STORE = """
extern "C" __global__ void store(unsigned char* bytes, long long at) { bytes[at] = 1; }
"""


@pytest.fixture
def machine() -> Iterator[Emulator]:
    """Nothing runs before somebody waits for it."""
    with install(seed=0, memory_bytes=1 << 20, pinned_bytes=1 << 20) as emulator:
        yield emulator


@pytest.fixture
def cupy(machine: Emulator) -> ModuleType:
    return importlib.import_module("cupy")


class Lane:
    """A stream of a device, with a pool and pinned memory."""

    def __init__(self, cupy: ModuleType, device: int = 0) -> None:
        self.cupy = cupy
        self.runtime = cupy.cuda.runtime
        self.device = device
        with cupy.cuda.Device(device):
            self.stream = cupy.cuda.Stream(non_blocking=True)
            self.pool = cupy.cuda.MemoryPool()
        self.pinned_pool = cupy.cuda.PinnedMemoryPool()

    def malloc(self, size: int) -> Any:
        with self.cupy.cuda.Device(self.device), self.stream:
            return self.pool.malloc(size)

    def event(self) -> Any:
        with self.cupy.cuda.Device(self.device):
            return self.cupy.cuda.Event(block=True, disable_timing=True)

    def pinned(self, values: np.ndarray[Any, Any]) -> tuple[Any, np.ndarray[Any, Any]]:
        """Pinned memory with values, and an array that is this memory."""
        memory = self.pinned_pool.malloc(values.nbytes)
        array = np.frombuffer(memory, values.dtype, values.size)
        array[:] = values
        return memory, array

    def up(self, target: Any, source: Any, size: int, stream: Any = None) -> None:
        kind = self.runtime.memcpyHostToDevice
        self.runtime.memcpyAsync(target.ptr, source.ptr, size, kind, (stream or self.stream).ptr)

    def down(self, target: Any, source: Any, size: int, stream: Any = None) -> None:
        kind = self.runtime.memcpyDeviceToHost
        self.runtime.memcpyAsync(target.ptr, source.ptr, size, kind, (stream or self.stream).ptr)

    def uploaded(self, values: np.ndarray[Any, Any]) -> Any:
        """Device memory with values."""
        memory = self.malloc(values.nbytes)
        source, _ = self.pinned(values)
        self.up(memory, source, values.nbytes)
        self.stream.synchronize()
        return memory

    def downloaded(self, memory: Any, like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What device memory holds after all that is in the stream."""
        target, array = self.pinned(np.zeros_like(like))
        self.down(target, memory, like.nbytes)
        self.stream.synchronize()
        return array.copy()


@pytest.fixture
def lane(cupy: ModuleType) -> Lane:
    return Lane(cupy)


@contextlib.contextmanager
def fault(machine: Emulator, match: str) -> Iterator[None]:
    """One fault is found, and raised."""
    with pytest.raises(EmulationFault, match=match):
        yield
    assert len(machine.faults) == 1
    machine.faults.clear()


VALUES = np.arange(1, 101, dtype=np.float32)
SIZE = VALUES.nbytes


# Streams and events


def test_a_copy_runs_when_its_stream_is_waited_for_and_not_before(lane: Lane) -> None:
    source, _ = lane.pinned(VALUES)
    target, array = lane.pinned(np.zeros_like(VALUES))
    memory = lane.malloc(SIZE)
    lane.up(memory, source, SIZE)
    lane.down(target, memory, SIZE)
    # What was there before, which may have been right by chance, is not either.
    assert np.isnan(array).all()
    lane.stream.synchronize()
    np.testing.assert_array_equal(array, VALUES)


def test_a_missing_wait_shows_as_wrong_data(cupy: ModuleType, lane: Lane) -> None:
    source, _ = lane.pinned(VALUES)
    target, array = lane.pinned(np.zeros_like(VALUES))
    memory = lane.malloc(SIZE)
    downloads = cupy.cuda.Stream(non_blocking=True)
    lane.up(memory, source, SIZE)
    lane.down(target, memory, SIZE, downloads)
    downloads.synchronize()
    assert np.isnan(array).all()
    lane.stream.synchronize()
    assert np.isnan(array).all()


def test_a_wait_for_an_event_orders_two_streams(cupy: ModuleType, lane: Lane) -> None:
    source, _ = lane.pinned(VALUES)
    target, array = lane.pinned(np.zeros_like(VALUES))
    memory = lane.malloc(SIZE)
    downloads = cupy.cuda.Stream(non_blocking=True)
    lane.up(memory, source, SIZE)
    downloads.wait_event(lane.stream.record())
    lane.down(target, memory, SIZE, downloads)
    downloads.synchronize()
    np.testing.assert_array_equal(array, VALUES)


def test_an_event_recorded_too_early_orders_nothing(cupy: ModuleType, lane: Lane) -> None:
    source, _ = lane.pinned(VALUES)
    target, array = lane.pinned(np.zeros_like(VALUES))
    memory = lane.malloc(SIZE)
    downloads = cupy.cuda.Stream(non_blocking=True)
    event = lane.stream.record()
    lane.up(memory, source, SIZE)
    downloads.wait_event(event)
    lane.down(target, memory, SIZE, downloads)
    downloads.synchronize()
    assert np.isnan(array).all()
    lane.stream.synchronize()


def test_a_wait_means_the_event_as_it_was_then(cupy: ModuleType, lane: Lane) -> None:
    source, _ = lane.pinned(VALUES)
    target, array = lane.pinned(np.zeros_like(VALUES))
    memory = lane.malloc(SIZE)
    downloads = cupy.cuda.Stream(non_blocking=True)
    event = lane.event()
    event.record(lane.stream)
    downloads.wait_event(event)
    lane.up(memory, source, SIZE)
    event.record(lane.stream)
    lane.down(target, memory, SIZE, downloads)
    downloads.synchronize()
    assert np.isnan(array).all()
    lane.stream.synchronize()


def test_waiting_for_an_event_runs_nothing_that_comes_after_it(lane: Lane) -> None:
    source, _ = lane.pinned(VALUES)
    memory = lane.uploaded(np.zeros_like(VALUES))
    early, early_array = lane.pinned(np.zeros_like(VALUES))
    late, late_array = lane.pinned(np.zeros_like(VALUES))
    lane.up(memory, source, SIZE)
    lane.down(early, memory, SIZE)
    event = lane.stream.record()
    lane.down(late, memory, SIZE)
    event.synchronize()
    np.testing.assert_array_equal(early_array, VALUES)
    assert np.isnan(late_array).all()
    lane.stream.synchronize()


def test_streams_that_wait_for_each_other_a_thousand_times(cupy: ModuleType, lane: Lane) -> None:
    memory = lane.malloc(2000)
    streams = [lane.stream, cupy.cuda.Stream(non_blocking=True)]
    for number in range(2000):
        this, other = streams[number % 2], streams[1 - number % 2]
        this.wait_event(other.record())
        lane.runtime.memsetAsync(memory.ptr + number, number % 251, 2000 - number, this.ptr)
    lane.stream.wait_event(streams[1].record())
    found = lane.downloaded(memory, np.zeros(2000, np.uint8))
    np.testing.assert_array_equal(found, np.arange(2000) % 251)


def test_pinned_memory_that_is_written_too_early_gives_wrong_data(lane: Lane) -> None:
    source, array = lane.pinned(VALUES)
    memory = lane.malloc(SIZE)
    lane.up(memory, source, SIZE)
    array[:] = 7
    np.testing.assert_array_equal(lane.downloaded(memory, VALUES), np.full_like(VALUES, 7))


def test_memory_that_is_not_pinned_is_read_at_once(lane: Lane) -> None:
    source = VALUES.copy()
    memory = lane.malloc(SIZE)
    lane.runtime.memcpyAsync(memory.ptr, source.ctypes.data, SIZE, 1, lane.stream.ptr)
    source[:] = 7
    np.testing.assert_array_equal(lane.downloaded(memory, VALUES), VALUES)


def test_asking_an_event_again_and_again_ends(lane: Lane) -> None:
    event = lane.event()
    assert event.done
    source, _ = lane.pinned(VALUES)
    memory = lane.malloc(SIZE)
    lane.up(memory, source, SIZE)
    event.record(lane.stream)
    asked = 0
    while not event.done:
        asked += 1
    assert asked < 3
    assert event.done


def test_seeds_make_different_work_run_early() -> None:
    def progress(seed: int) -> list[int]:
        with install(seed=seed, eagerness=0.5):
            lane = Lane(importlib.import_module("cupy"))
            memory = lane.malloc(64)
            target, array = lane.pinned(np.zeros(64, np.uint8))
            seen = []
            for number in range(1, 20):
                lane.runtime.memsetAsync(memory.ptr, number, 64, lane.stream.ptr)
                lane.down(target, memory, 64)
                seen.append(int(array[0]))
            lane.stream.synchronize()
            return seen

    assert progress(1) == progress(1)
    assert len({tuple(progress(seed)) for seed in range(8)}) > 1


def test_threads_share_streams(lane: Lane) -> None:
    memory = lane.malloc(8 * 64)
    wrong: list[int] = []

    def work(number: int) -> None:
        offset = number * 64
        target, array = lane.pinned(np.zeros(64, np.uint8))
        with lane.cupy.cuda.Device(0):
            event = lane.cupy.cuda.Event(disable_timing=True)
        for value in range(50):
            lane.runtime.memsetAsync(memory.ptr + offset, value, 64, lane.stream.ptr)
            lane.runtime.memcpyAsync(target.ptr, memory.ptr + offset, 64, 2, lane.stream.ptr)
            event.record(lane.stream)
            event.synchronize()
            wrong.extend(array[array != value].tolist())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Memory


def test_new_memory_holds_nothing_of_use(lane: Lane) -> None:
    assert np.isnan(lane.downloaded(lane.malloc(SIZE), VALUES)).all()


def test_freed_memory_is_handed_out_again_before_its_work_has_run(lane: Lane) -> None:
    source, _ = lane.pinned(VALUES)
    target, array = lane.pinned(np.zeros_like(VALUES))
    memory = lane.malloc(SIZE)
    before = memory.ptr
    lane.up(memory, source, SIZE)
    lane.down(target, memory, SIZE)
    del memory
    memory = lane.malloc(SIZE)
    assert memory.ptr == before
    assert np.isnan(lane.downloaded(memory, VALUES)).all()
    np.testing.assert_array_equal(array, VALUES)


def test_memory_freed_under_another_stream_shows_as_wrong_data(
    cupy: ModuleType, lane: Lane
) -> None:
    memory = lane.uploaded(VALUES)
    target, array = lane.pinned(np.zeros_like(VALUES))
    downloads = cupy.cuda.Stream(non_blocking=True)
    lane.down(target, memory, SIZE, downloads)
    del memory
    lane.stream.synchronize()
    downloads.synchronize()
    assert np.isnan(array).all()


def test_memory_goes_back_to_the_stream_it_was_for(cupy: ModuleType, lane: Lane) -> None:
    memory = lane.malloc(1000)
    before = memory.ptr
    del memory
    with cupy.cuda.Stream(non_blocking=True):
        assert lane.pool.malloc(1000).ptr != before
    assert lane.malloc(1000).ptr == before


def test_a_pool_splits_and_joins_what_is_free(lane: Lane) -> None:
    whole = lane.malloc(4096)
    start = whole.ptr
    del whole
    first, second = lane.malloc(1024), lane.malloc(1024)
    assert first.ptr == start
    assert (lane.pool.used_bytes(), lane.pool.total_bytes()) == (2048, 4096)
    lane.pool.free_all_blocks()
    assert lane.pool.total_bytes() == 4096
    del first, second
    assert lane.malloc(4096).ptr == start
    assert lane.pool.total_bytes() == 4096
    lane.pool.free_all_blocks()
    assert lane.pool.total_bytes() == 0


def test_a_device_has_no_more_memory_than_it_has(
    machine: Emulator, cupy: ModuleType, lane: Lane
) -> None:
    held = [lane.malloc(512 << 10), lane.malloc(256 << 10)]
    assert cupy.cuda.runtime.memGetInfo() == (256 << 10, 1 << 20)
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match="Out of memory"):
        lane.malloc((256 << 10) + 1)
    with cupy.cuda.Device(1):
        assert cupy.cuda.runtime.memGetInfo() == (1 << 20, 1 << 20)
    # What the pool only keeps makes room.
    held.pop(0)
    held.append(lane.malloc(700 << 10))
    assert lane.pool.total_bytes() == (700 << 10) + (256 << 10)
    machine.memories[0].other_bytes = 1 << 20
    with pytest.raises(MemoryError):
        lane.malloc(64 << 10)


def test_memory_of_a_pool_that_is_gone_returns_to_the_device(
    machine: Emulator, cupy: ModuleType, lane: Lane
) -> None:
    memory = lane.malloc(512)
    del lane.pool
    assert machine.memories[0].allocated_bytes == 512
    del memory
    assert cupy.cuda.runtime.memGetInfo() == (1 << 20, 1 << 20)


def test_pinned_memory_is_poisoned_and_reused_at_once(lane: Lane) -> None:
    source, array = lane.pinned(VALUES)
    before = source.ptr
    assert len(memoryview(source)) == 512
    del source
    np.testing.assert_array_equal(array, VALUES)
    del array
    again = lane.pinned_pool.malloc(SIZE)
    assert again.ptr == before
    assert np.isnan(np.frombuffer(again, np.float32, VALUES.size)).all()


def test_pinned_memory_has_a_limit(cupy: ModuleType, lane: Lane) -> None:
    memory = lane.pinned_pool.malloc(768 << 10)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="MemoryAllocation") as raised:
        lane.pinned_pool.malloc(512 << 10)
    assert raised.value.status == 2
    del memory
    assert cupy.cuda.alloc_pinned_memory(0).ptr == 0
    assert lane.pinned_pool.n_free_blocks() == 1
    lane.pinned_pool.malloc(512 << 10)
    assert lane.pinned_pool.n_free_blocks() == 1


# What is used wrongly


def test_pinned_memory_that_goes_while_it_is_copied_is_a_fault(
    machine: Emulator, lane: Lane
) -> None:
    source, array = lane.pinned(VALUES)
    memory = lane.malloc(SIZE)
    lane.up(memory, source, SIZE)
    del source, array
    assert "1 copies of it were queued" in machine.faults.pop()
    lane.stream.synchronize()


def test_ranges_of_copies_are_checked(machine: Emulator, cupy: ModuleType, lane: Lane) -> None:
    source, _ = lane.pinned(VALUES)
    memory = lane.malloc(SIZE)
    copy, handle = cupy.cuda.runtime.memcpyAsync, lane.stream.ptr
    for arguments, match in [
        ((memory.ptr, source.ptr, SIZE + 1, 1), "not in an allocation on device 0"),
        ((memory.ptr + 4, source.ptr, SIZE, 1), "not in an allocation on device 0"),
        ((memory.ptr - 1, source.ptr, 1, 1), "not in an allocation on device 0"),
        ((source.ptr, memory.ptr, SIZE, 1), "not in an allocation on device 0"),
        ((memory.ptr, source.ptr + 4, SIZE, 1), "not in an allocation of pinned memory"),
        ((memory.ptr, memory.ptr, SIZE, 1), "memory of the host is due"),
        ((memory.ptr, source.ptr, SIZE, 3), "not in an allocation on device 0"),
        ((memory.ptr + 4, memory.ptr, SIZE - 4, 3), "onto themselves"),
        ((memory.ptr, source.ptr, SIZE, 0), "kind 0"),
    ]:
        with fault(machine, match):
            copy(*arguments, handle)
    with fault(machine, "not in an allocation on device 0"):
        cupy.cuda.runtime.memsetAsync(memory.ptr, 0, SIZE + 1, handle)
    gone = memory.ptr
    del memory
    with fault(machine, "not in an allocation on device 0"):
        copy(gone, source.ptr, SIZE, 1, handle)


def test_the_null_stream_and_whole_devices_are_not_for_use(
    machine: Emulator, cupy: ModuleType, lane: Lane
) -> None:
    memory = lane.malloc(SIZE)
    for wrong in (
        cupy.cuda.runtime.deviceSynchronize,
        cupy.cuda.Device(0).synchronize,
        cupy.cuda.Stream,
        cupy.cuda.Event,
        lambda: lane.pool.malloc(1),
        lambda: cupy.cuda.runtime.memsetAsync(memory.ptr, 0, 1, 0),
        lambda: cupy.cuda.runtime.memsetAsync(memory.ptr, 0, 1, 12345),
    ):
        with fault(machine, "."):
            wrong()


def test_devices_are_kept_apart(machine: Emulator, cupy: ModuleType, lane: Lane) -> None:
    other = Lane(cupy, 1)
    memory, far = lane.malloc(SIZE), other.malloc(SIZE)
    with fault(machine, "not in an allocation on device 1"):
        cupy.cuda.runtime.memsetAsync(memory.ptr, 0, SIZE, other.stream.ptr)
    with fault(machine, "recorded in a stream of device 1"):
        lane.event().record(other.stream)
    with fault(machine, "made current while device 0"), other.stream:
        pass
    peer = cupy.cuda.runtime.memcpyPeerAsync
    with fault(machine, "not in an allocation on device 0"):
        peer(far.ptr, 0, memory.ptr, 1, SIZE, lane.stream.ptr)
    memory = lane.uploaded(VALUES)
    peer(far.ptr, 1, memory.ptr, 0, SIZE, other.stream.ptr)
    np.testing.assert_array_equal(other.downloaded(far, VALUES), VALUES)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="InvalidDevice"):
        cupy.cuda.Device(2).__enter__()


def test_a_fault_that_was_swallowed_is_raised_at_the_end() -> None:
    def swallow() -> None:
        with install(seed=4):
            cupy = importlib.import_module("cupy")
            with contextlib.suppress(Exception):
                cupy.cuda.runtime.deviceSynchronize()

    with pytest.raises(EmulationFault, match=r"seed 4: .* stops all threads"):
        swallow()


def test_a_device_that_fails_says_so_at_every_turn(
    machine: Emulator, cupy: ModuleType, lane: Lane
) -> None:
    other = Lane(cupy, 1)
    memory, event = lane.malloc(SIZE), lane.event()
    cupy.cuda.runtime.memsetAsync(memory.ptr, 0, SIZE, lane.stream.ptr)
    event.record(lane.stream)
    machine.fail(0)
    for call in (
        event.synchronize,
        lane.stream.synchronize,
        lambda: event.done,
        lambda: cupy.cuda.runtime.memsetAsync(memory.ptr, 0, SIZE, lane.stream.ptr),
    ):
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="IllegalAddress") as raised:
            call()
        assert raised.value.status == 700
    other.stream.synchronize()


# Kernels


def scaled(lane: Lane, code: str, *, count: int = VALUES.size, grid: int = 2) -> Any:
    """What a kernel makes of VALUES with the factor 2."""
    module = lane.cupy.RawModule(code=code, options=("-DT=float", *OPTIONS), backend="nvrtc")
    kernel = module.get_function("scale")
    memory = lane.uploaded(VALUES)
    args = (np.uintp(memory.ptr), np.int64(count), np.float32(2))
    kernel((grid,), (64,), args, stream=lane.stream)
    return lane.downloaded(memory, VALUES)


def found_with_seeds(code: str) -> list[Any]:
    found = []
    for seed in range(8):
        with install(seed=seed):
            found.append(scaled(Lane(importlib.import_module("cupy")), code))
    return found


@needs_compiler
def test_a_kernel_runs_in_its_turn(lane: Lane) -> None:
    np.testing.assert_array_equal(scaled(lane, SCALE), VALUES * 2)


@needs_compiler
def test_a_kernel_with_strides_does_not_depend_on_the_launch() -> None:
    for seed, found in enumerate(found_with_seeds(SCALE)):
        np.testing.assert_array_equal(found, VALUES * 2, err_msg=f"seed {seed}")


@needs_compiler
@pytest.mark.parametrize("code", [NO_STRIDES, IN_ORDER], ids=["threads", "order"])
def test_a_kernel_that_depends_on_the_launch_is_found_by_some_seed(code: str) -> None:
    assert len({found.tobytes() for found in found_with_seeds(code)}) > 1


@needs_compiler
def test_types_of_arguments_are_checked(lane: Lane) -> None:
    module = lane.cupy.RawModule(code=SCALE, options=("-DT=float", *OPTIONS))
    kernel = module.get_function("scale")
    memory = lane.malloc(SIZE)
    good = (np.uintp(memory.ptr), np.int64(1), np.float32(2))
    for position, wrong in [
        (0, memory.ptr),
        (0, np.int64(memory.ptr)),
        (1, 1),
        (1, np.int32(1)),
        (1, np.float64(1)),
        (2, 2.0),
        (2, np.float64(2)),
        (2, np.asarray(2, np.float32)),
    ]:
        args = (*good[:position], wrong, *good[position + 1 :])
        with pytest.raises(TypeError, match=f"argument {position} of scale: expected np"):
            kernel((1,), (1,), args, stream=lane.stream)
    with pytest.raises(TypeError, match="3 parameters, given 2"):
        kernel((1,), (1,), good[:2], stream=lane.stream)
    for grid, block in [((0,), (1,)), ((1,), (1025,)), ((1, 1), (1,))]:
        with pytest.raises(ValueError, match="must be one number"):
            kernel(grid, block, good, stream=lane.stream)


@needs_compiler
def test_a_kernel_that_writes_beside_its_memory_is_a_fault(machine: Emulator, lane: Lane) -> None:
    module = lane.cupy.RawModule(code=STORE, options=OPTIONS)
    kernel = module.get_function("store")
    memory = lane.malloc(1 << 16)
    for at in (-1, 1 << 16):
        kernel((1,), (1,), (np.uintp(memory.ptr), np.int64(at)), stream=lane.stream)
        with fault(machine, "store wrote before or behind"):
            lane.stream.synchronize()
        # As it was before.
        ctypes.memset(memory.ptr + at, POISON, 1)
    # Too far to be seen at once.
    kernel((1,), (1,), (np.uintp(memory.ptr), np.int64((1 << 16) + 5000)), stream=lane.stream)
    lane.stream.synchronize()
    del memory
    with fault(machine, "somebody wrote before or behind 65536 bytes"):
        lane.stream.synchronize()


@needs_compiler
def test_addresses_and_streams_of_launches_are_checked(
    machine: Emulator, cupy: ModuleType, lane: Lane
) -> None:
    module = cupy.RawModule(code=SCALE, options=("-DT=float", *OPTIONS))
    kernel = module.get_function("scale")
    memory, source = lane.malloc(SIZE), lane.pinned_pool.malloc(SIZE)
    rest = (np.int64(1), np.float32(2))
    for address in (source.ptr, memory.ptr + SIZE, 16):
        with fault(machine, "argument 0 of scale"):
            kernel((1,), (1,), (np.uintp(address), *rest), stream=lane.stream)
    args = (np.uintp(memory.ptr), *rest)
    with fault(machine, "null stream"):
        kernel((1,), (1,), args)
    with fault(machine, "while device 1 is current"), cupy.cuda.Device(1):
        kernel((1,), (1,), args, stream=lane.stream)


# The module


def test_the_module_is_there_while_it_is_installed_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cupy"]:
        monkeypatch.delitem(sys.modules, name)
    real, part = ModuleType("cupy"), ModuleType("cupyx")
    monkeypatch.setitem(sys.modules, "cupy", real)
    monkeypatch.setitem(sys.modules, "cupyx", part)
    with install() as machine:
        cupy = importlib.import_module("cupy")
        assert cupy is not real
        assert "cupyx" not in sys.modules
        assert importlib.util.find_spec("cupy.cuda") is not None
        assert importlib.import_module("cupy.cuda.runtime") is cupy.cuda.runtime
        assert cupy.cuda.runtime.getDeviceCount() == len(machine.memories) == 2
        assert cupy.cuda.runtime.getDeviceProperties(1)["name"] == b"Emulated"
        with pytest.raises(RuntimeError, match="installed already"), install():
            pass
    assert sys.modules["cupy"] is real
    assert sys.modules["cupyx"] is part
    assert "cupy.cuda" not in sys.modules
    with pytest.raises(RuntimeError, match="not installed"):
        cupy.cuda.runtime.getDeviceCount()


def test_what_was_imported_shows_the_machine_that_is_installed_now() -> None:
    with install(num_devices=1):
        cupy = importlib.import_module("cupy")
    with install(num_devices=3):
        assert importlib.import_module("cupy") is cupy
        assert cupy.cuda.runtime.getDeviceCount() == 3


def test_a_machine_without_devices() -> None:
    with install(num_devices=0) as machine:
        cupy = importlib.import_module("cupy")
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="NoDevice"):
            cupy.cuda.runtime.getDeviceCount()
        with pytest.raises(DriverError, match="no GPU"):
            emulated_driver(machine)


def test_the_driver_names_the_devices() -> None:
    with install(num_devices=2, memory_bytes=1 << 22) as machine:
        found = emulated_driver(machine)
        assert [(gpu.name, gpu.total_bytes) for gpu in found.gpus] == [("Emulated", 1 << 22)] * 2


# A server


@contextlib.contextmanager
def emulated_server(directory: Path, **machine: str) -> Iterator[ServerProcess]:
    port_file, log_file = directory / "server.json", directory / "server.log"
    command = [sys.executable, "-m", "tests.support.emulated_cuda.server"]
    command += ["--listen", "127.0.0.1:0", "--port-file", str(port_file)]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            env=server_environment(machine),
            cwd=Path(__file__).parents[3],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    server = ServerProcess(process, port_file, log_file)
    try:
        server.await_start()
        yield server
    finally:
        server.end()
        print(server.log)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory, so that a kernel is compiled once."""
    return str(tmp_path_factory.mktemp("kernels"))


@needs_compiler
@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_a_server_has_the_devices_of_its_environment(
    tmp_path: Path, kernels: str, seed: str
) -> None:
    values = np.arange(1000, dtype=np.float32)
    with emulated_server(
        tmp_path,
        EMULATED_CUDA_DEVICES="3",
        EMULATED_CUDA_MEMORY=str(1 << 27),
        EMULATED_CUDA_SEED=seed,
        EMULATED_CUDA_CACHE=kernels,
    ) as server:
        with paramd.connect(server.address) as session:
            assert session.num_gpus() == 3
            weight = paramd.Parameter("weight", shape=(1000,))
            weight.initialize(ctx=[paramd.gpu(0), paramd.gpu(2)])
            weight.set_data(values)
            np.testing.assert_array_equal(weight.data(paramd.gpu(2)).asnumpy(), values)
        server.terminate()
        assert server.await_end() == 0
        assert server.trouble() == []
