"""The table in shared memory in which a server says where values are: its words, for both sides.

All words have 64 bits. Those of the table come first, then `SLOT_WORDS` for each slot, which is one
copy of one parameter. A slot's sequence is odd while the copy is being changed, and rises by 2 with
each change. A reader reads it until it is even, then the other words of the slot, then the values;
where it is the same afterwards, nothing changed meanwhile. That takes a processor on which stores
become visible in the order in which they are made, and loads are made in theirs: x86-64.
"""

from __future__ import annotations

import platform
from enum import IntEnum
from typing import Final

__all__ = [
    "HEADER_WORDS",
    "MAGIC",
    "NO_STEP",
    "SLOT_WORDS",
    "TableWord",
    "SlotWord",
    "is_supported",
]

# The letters of paramd, and the version of the table.
MAGIC: Final = 0x706172616D640001
HEADER_WORDS: Final = 16
# Two lines of a cache, so that slots do not slow each other down.
SLOT_WORDS: Final = 16
# Instead of the number of a trainer: the values are of no step.
NO_STEP: Final = (1 << 64) - 1


class TableWord(IntEnum):
    """The words of the table itself."""

    MAGIC = 0
    NUM_SLOTS = 1
    # Of the server, as in versions.
    EPOCH = 2


class SlotWord(IntEnum):
    """The words of a slot."""

    SEQUENCE = 0
    # The number of the segment; 0 where the values cannot be read in shared memory.
    SEGMENT = 1
    # Of the first byte of the values in it.
    OFFSET = 2
    # Another number for each shape and dtype of each parameter.
    LAYOUT = 3
    # Of the parameter's version.
    COUNTER = 4
    # The trainer and the number of the step that the values are of; NO_STEP where of none.
    STEP_TRAINER = 5
    STEP_NUMBER = 6


def is_supported() -> bool:
    """Whether this machine's processor keeps the order that readers of the table rely on."""
    return platform.machine().lower() in ("x86_64", "amd64")
