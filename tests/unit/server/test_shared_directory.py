"""The table in shared memory that says where values are."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from paramd.wire.directory import (
    HEADER_WORDS,
    MAGIC,
    NO_STEP,
    SLOT_WORDS,
    SlotWord,
    TableWord,
    is_supported,
)
from paramd_server.arrays.directory import Directory, Slot
from paramd_server.arrays.shared_memory import Place, SharedMemory

EPOCH = (1 << 63) + 5


@contextmanager
def mapped(directory: Directory) -> Iterator[memoryview]:
    """The words as somebody sees them who was given the descriptor."""
    descriptor = directory.descriptor()
    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED) as mapping:
        os.close(descriptor)
        with memoryview(mapping) as octets, octets.cast("Q") as words:
            yield words


def new_slot(directory: Directory) -> Slot:
    slot = directory.slot()
    assert slot is not None
    return slot


def word(words: memoryview, slot: Slot, which: SlotWord) -> int:
    return int(words[HEADER_WORDS + slot.number * SLOT_WORDS + which])


def test_the_table_says_what_it_is() -> None:
    directory = Directory(EPOCH, num_slots=4)
    with mapped(directory) as words:
        assert len(words) == HEADER_WORDS + 4 * SLOT_WORDS
        assert words[TableWord.MAGIC] == MAGIC
        assert words[TableWord.NUM_SLOTS] == 4
        assert words[TableWord.EPOCH] == EPOCH


def test_a_slot_is_odd_while_its_copy_changes() -> None:
    directory = Directory(EPOCH)
    slot, other = new_slot(directory), new_slot(directory)
    with mapped(directory) as words:
        assert word(words, slot, SlotWord.SEGMENT) == 0
        slot.begin()
        slot.renew_layout()
        assert word(words, slot, SlotWord.SEQUENCE) % 2 == 1
        # A change within a change ends with it.
        slot.begin()
        slot.publish(Place(7, 4096), 3, (2, 9))
        found = [word(words, slot, each) for each in SlotWord]
        assert found == [2, 7, 4096, slot.layout, 3, 2, 9]
        slot.begin()
        slot.publish(Place(8, 0), 4, None)
        assert word(words, slot, SlotWord.SEQUENCE) == 4
        assert word(words, slot, SlotWord.STEP_TRAINER) == NO_STEP
        slot.begin()
        slot.hide()
        assert (word(words, slot, SlotWord.SEQUENCE), word(words, slot, SlotWord.SEGMENT)) == (6, 0)
        assert word(words, other, SlotWord.SEQUENCE) == 0


def test_a_slot_that_is_used_again_is_not_taken_for_the_one_before() -> None:
    directory = Directory(EPOCH, num_slots=1)
    slot = new_slot(directory)
    slot.begin()
    slot.renew_layout()
    slot.publish(Place(1, 0), 1, None)
    assert directory.slot() is None
    with mapped(directory) as words:
        before = [word(words, slot, each) for each in SlotWord]
        slot.withdraw()
        again = new_slot(directory)
        assert again.number == slot.number
        after = [word(words, again, each) for each in SlotWord]
        assert after[SlotWord.SEQUENCE] > before[SlotWord.SEQUENCE]
        assert after[SlotWord.LAYOUT] != before[SlotWord.LAYOUT]
        assert after[SlotWord.SEGMENT] == 0


@pytest.mark.skipif(not is_supported(), reason="needs x86-64's order of loads and stores")
def test_a_reader_in_another_process_never_takes_a_torn_value() -> None:
    """It copies, and looks whether the slot is as before; what it then takes is one value."""
    code = """
import mmap, sys
import numpy as np
from paramd.wire.directory import HEADER_WORDS, SlotWord
table, values, size = map(int, sys.argv[1:])
words = memoryview(mmap.mmap(table, 0, prot=mmap.PROT_READ)).cast('Q')
array = np.frombuffer(mmap.mmap(values, 0, prot=mmap.PROT_READ), np.uint8)
out = np.empty(size, np.uint8)
at, taken, seen = HEADER_WORDS + SlotWord.SEQUENCE, 0, set()
print('ready', flush=True)
while taken < 3000:
    before = words[at]
    if before % 2:
        continue
    offset = words[HEADER_WORDS + SlotWord.OFFSET]
    np.copyto(out, array[offset:offset + size])
    if words[at] != before:
        continue
    taken += 1
    assert (out == out[0]).all(), 'torn'
    seen.add(int(out[0]))
print(len(seen))
"""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    generator, size = random.Random(seed), 20_000
    directory, memory = Directory(EPOCH), SharedMemory()
    both = memory.take(2 << 20)
    both[:] = 0
    place = memory.locate(both)
    assert place is not None
    slot = new_slot(directory)
    slot.begin()
    slot.publish(place, 0, None)
    found = memory.descriptor(place.segment)
    assert found is not None
    values, _ = found
    table = directory.descriptor()
    command = [sys.executable, "-c", code, str(table), str(values), str(size)]
    ended = threading.Event()
    with subprocess.Popen(
        command, pass_fds=(table, values), stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"

        def wait() -> None:
            reader.wait(60)
            ended.set()

        threading.Thread(target=wait).start()
        counter = 0
        while not ended.is_set():
            counter += 1
            slot.begin()
            # In place, or elsewhere: as writers do.
            offset = generator.choice((0, 1 << 20))
            np.copyto(both[offset : offset + size], counter % 251)
            slot.publish(Place(place.segment, place.offset + offset), counter, None)
            ended.wait(generator.choice((0, 0.0001)))
        assert int(reader.stdout.read()) > 3
    assert reader.returncode == 0
    os.close(values)
    os.close(table)
