"""The table in shared memory that says where the values of parameters are now.

Its words, and how it is read, stand in `paramd.wire.directory`.
"""

from __future__ import annotations

import itertools
import os
import threading
from typing import Final

from paramd.wire.directory import (
    HEADER_WORDS,
    MAGIC,
    NO_STEP,
    SLOT_WORDS,
    SlotWord,
    TableWord,
)
from paramd_server.arrays.shared_memory import Place, sealed_memory

__all__ = ["Directory", "Slot"]

_WORD_BYTES: Final = 8
_NUM_SLOTS: Final = 1 << 16


class Directory:
    """The slots that there are, and which of them are taken.

    Args:
        epoch: of the server.
        num_slots: the most copies that can be found; the others are only sent.

    Attributes:
        size: of the table, in bytes.

    Raises:
        OSError: where the system gives no such memory.
    """

    def __init__(self, epoch: int, *, num_slots: int = _NUM_SLOTS) -> None:
        self.size = size = (HEADER_WORDS + num_slots * SLOT_WORDS) * _WORD_BYTES
        self._descriptor, mapping = sealed_memory("paramd-directory", size)
        self._words = memoryview(mapping).cast("Q")
        self._lock = threading.Lock()
        self._num_slots = num_slots
        self._unused = 0  # guarded by _lock
        self._withdrawn: list[int] = []  # guarded by _lock
        self._layouts = itertools.count(1)
        self._words[TableWord.NUM_SLOTS] = num_slots
        self._words[TableWord.EPOCH] = epoch
        self._words[TableWord.MAGIC] = MAGIC

    def descriptor(self) -> int:
        """A duplicate of the table's descriptor, which the caller closes."""
        return os.dup(self._descriptor)

    def slot(self) -> Slot | None:
        """A slot in which nothing is found yet; None where all are taken."""
        with self._lock:
            if self._withdrawn:
                number = self._withdrawn.pop()
            elif self._unused < self._num_slots:
                number = self._unused
                self._unused += 1
            else:
                return None
        return Slot(self, number)

    def close(self) -> None:
        """Gives up the descriptor; who has the table mapped can go on reading it."""
        os.close(self._descriptor)

    def _give_back(self, number: int) -> None:
        with self._lock:
            self._withdrawn.append(number)


class Slot:
    """The place of one copy in the directory. Guarded by the lock of its parameter.

    Args:
        directory: that it is in.
        number: which one.
    """

    __slots__ = ("_directory", "_first", "layout", "number")

    def __init__(self, directory: Directory, number: int) -> None:
        self._directory = directory
        self._first = HEADER_WORDS + number * SLOT_WORDS
        self.number = number
        self.layout = 0

    def begin(self) -> None:
        """Says that the copy is being changed; until `publish` or `hide` nobody trusts it."""
        self._directory._words[self._first + SlotWord.SEQUENCE] |= 1

    def publish(self, place: Place, counter: int, step: tuple[int, int] | None) -> None:
        """Says where the copy is, and that it is as it should be.

        Args:
            place: where.
            counter: of the parameter's version.
            step: the trainer and number of the step that it is of.
        """
        words, first = self._directory._words, self._first
        words[first + SlotWord.SEGMENT] = place.segment
        words[first + SlotWord.OFFSET] = place.offset
        words[first + SlotWord.COUNTER] = counter
        trainer, number = (NO_STEP, 0) if step is None else step
        words[first + SlotWord.STEP_TRAINER] = trainer
        words[first + SlotWord.STEP_NUMBER] = number
        self._end()

    def hide(self) -> None:
        """Says that the copy cannot be read in shared memory."""
        self._directory._words[self._first + SlotWord.SEGMENT] = 0
        self._end()

    def renew_layout(self) -> None:
        """Says that the copy has another shape or dtype, or is another parameter's."""
        self.layout = next(self._directory._layouts)
        self._directory._words[self._first + SlotWord.LAYOUT] = self.layout

    def withdraw(self) -> None:
        """Gives the slot up: what was found there is found no more."""
        self.begin()
        self.renew_layout()
        self.hide()
        self._directory._give_back(self.number)

    def _end(self) -> None:
        words, at = self._directory._words, self._first + SlotWord.SEQUENCE
        # From odd to the next even number.
        words[at] = (words[at] | 1) + 1
