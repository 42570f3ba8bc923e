"""Host memory that others can map, and only read."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from paramd_server.arrays import shared_memory
from paramd_server.arrays.backend import HostArray
from paramd_server.arrays.shared_memory import SharedMemory

MIB = 1 << 20
SIZES = (1, 63, 64, 4096, 256 << 10, (256 << 10) + 1, 3 * MIB)


def seen_by_others(memory: SharedMemory, array: HostArray) -> bytes:
    """What somebody reads who was given the descriptor."""
    place = memory.locate(array)
    assert place is not None
    found = memory.descriptor(place.segment)
    assert found is not None
    descriptor, _ = found
    try:
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED) as mapping:
            return mapping[place.offset : place.offset + array.nbytes]
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("size", SIZES)
def test_others_see_what_is_written(size: int) -> None:
    memory = SharedMemory()
    array, other = memory.take(size), memory.take(size)
    array[:], other[:] = 7, 9
    assert seen_by_others(memory, array) == b"\7" * size
    part = array[size // 2 :]
    assert seen_by_others(memory, part) == b"\7" * part.size
    assert seen_by_others(memory, other) == b"\11" * size


def test_others_can_neither_write_nor_resize() -> None:
    memory = SharedMemory()
    place = memory.locate(memory.take(MIB))
    assert place is not None
    found = memory.descriptor(place.segment)
    assert found is not None
    descriptor, _ = found
    try:
        for prot in (mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_WRITE):
            with pytest.raises(PermissionError):
                mmap.mmap(descriptor, 0, prot=prot, flags=mmap.MAP_SHARED)
        for attack in (
            lambda: os.pwrite(descriptor, b"x", 0),
            lambda: os.ftruncate(descriptor, 0),
            lambda: os.ftruncate(descriptor, 2 * MIB),
        ):
            with pytest.raises(PermissionError):
                attack()
        # By its name in /proc neither, which is how a read-only descriptor becomes another one.
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        try:
            with pytest.raises(PermissionError):
                mmap.mmap(again, 0, prot=mmap.PROT_WRITE, flags=mmap.MAP_SHARED)
        finally:
            os.close(again)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("size", SIZES)
def test_zeros_are_zero_also_where_memory_is_used_again(size: int) -> None:
    memory = SharedMemory()
    for _ in range(3):
        array = memory.take_zeros(size)
        assert not array.any()
        array[:] = 1
        memory.give(array)
        del array


def test_what_is_given_back_is_used_again_for_a_while() -> None:
    memory = SharedMemory(idle_s=3600)
    array = memory.take(MIB)
    place = memory.locate(array)
    memory.give(array)
    assert memory.held_bytes == MIB
    memory.trim()
    assert memory.locate(memory.take(MIB)) == place
    assert memory.held_bytes == 0


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_left_when_all_is_given_back(size: int) -> None:
    # What other tests have left would be closed meanwhile.
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    memory = SharedMemory(idle_s=0)
    for _ in range(3):
        arrays = [memory.take(size) for _ in range(5)]
        for array in arrays:
            memory.give(array)
        del array, arrays
        memory.drop()
        assert memory.numbers() == []
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_who_has_it_mapped_can_go_on_reading_what_was_freed() -> None:
    memory = SharedMemory(idle_s=0)
    array = memory.take(MIB)
    array[:] = 5
    place = memory.locate(array)
    assert place is not None
    found = memory.descriptor(place.segment)
    assert found is not None
    descriptor, _ = found
    mapping = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
    os.close(descriptor)
    memory.give(array)
    del array
    memory.drop()
    assert memory.descriptor(place.segment) is None
    assert mapping[:3] == b"\5\5\5"
    assert memory.locate(memory.take(MIB)) != place


def test_many_small_buffers_share_few_segments_and_never_overlap() -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    generator = random.Random(seed)
    memory = SharedMemory(idle_s=0)
    alive: dict[int, HostArray] = {}
    for number in range(3000):
        size = generator.choice((0, 1, 100, 4096, 50_000, 200_000, 300_000))
        array = memory.take(size)
        array[:] = number % 251
        alive[number] = array
        if len(alive) > 40:
            gone = generator.choice(list(alive))
            assert (alive[gone] == gone % 251).all()
            memory.give(alive.pop(gone))
    for number, array in alive.items():
        assert (array == number % 251).all()
    assert len(memory.numbers()) < 40
    for array in alive.values():
        memory.give(array)
    alive.clear()
    memory.drop()
    assert memory.numbers() == []


def test_ordinary_memory_is_nowhere() -> None:
    memory = SharedMemory()
    memory.take(100)
    assert memory.locate(np.zeros(10, np.uint8)) is None


def test_without_descriptors_memory_is_ordinary(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(name: str, size: int) -> tuple[int, mmap.mmap]:
        raise OSError(errno.EMFILE, "Too many open files")

    memory = SharedMemory()
    monkeypatch.setattr(shared_memory, "sealed_memory", refuse)
    arrays = [memory.take_zeros(size) for size in SIZES]
    assert all(memory.locate(array) is None for array in arrays)
    assert not any(array.any() for array in arrays)
    for array in arrays:
        memory.give(array)
    memory.drop()
    assert len(caplog.records) == 1
    assert "Too many open files" in caplog.text


def test_threads_take_and_give_at_the_same_time() -> None:
    memory, wrong = SharedMemory(idle_s=0), []

    def work(number: int) -> None:
        for size in SIZES * 20:
            array = memory.take(size)
            array[:] = number
            if not (array == number).all() or memory.locate(array) is None:
                wrong.append(size)
            memory.give(array)
            del array
            memory.trim()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    memory.drop()
    assert memory.numbers() == []


def test_a_killed_process_leaves_nothing_in_shared_memory() -> None:
    code = (
        "from paramd_server.arrays.shared_memory import SharedMemory\n"
        "memory = SharedMemory()\n"
        "array = memory.take(1 << 20)\n"
        "array[:] = 1\n"
        "print('ready', flush=True)\n"
        "input()\n"
    )
    before = set(Path("/dev/shm").iterdir())
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    assert set(Path("/dev/shm").iterdir()) <= before
