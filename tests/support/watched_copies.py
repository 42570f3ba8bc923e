"""Copies in shared memory under watch: as a process of the host sees them, at every moment."""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np
import pytest

from paramd.context import Context, cpu
from paramd.wire.directory import HEADER_WORDS, NO_STEP, SLOT_WORDS, SlotWord
from paramd_server.arrays.backend import Buffer, host_array
from paramd_server.arrays.directory import Slot
from paramd_server.arrays.numpy_backend import NumpyBackend
from paramd_server.arrays.shared_memory import Place
from paramd_server.core.registry import Registry
from paramd_server.core.sharing import Found, Sharing

__all__ = ["WatchedCopies"]

Array = np.ndarray[Any, Any]
# Of the backend of main memory, with the places of the buffers that each writes to.
_WRITERS = {"fill": (0,), "write": (0,), "copy": (1,), "put_rows": (0,)}


class WatchedCopies:
    """Finds copies, and sees to it that whoever trusts a slot is right to do so.

    While a slot's sequence is even, no write may go to its memory, and its bytes stay what they
    were; this fails with the test otherwise.

    Args:
        registry: of the parameters.
        patch: has the writes of the host's backend and the changes of slots reported.

    Attributes:
        events: ('begin' or 'end', number of the slot), and ('write', all slots that are odd then).
    """

    def __init__(self, registry: Registry, patch: pytest.MonkeyPatch) -> None:
        self.registry = registry
        self.sharing = Sharing(registry)
        self.memory = registry.devices.shared_memory
        self.events: list[tuple[str, Any]] = []
        self._words = _mapped(self.sharing.directory.descriptor()).cast("Q")
        self._segments: dict[int, memoryview] = {}
        # By number: what was found, and the bytes while the slot can be trusted.
        self._found: dict[int, Found] = {}
        self._trusted: dict[int, bytes] = {}
        self._complaints: list[str] = []
        for name, written in _WRITERS.items():
            patch.setattr(NumpyBackend, name, self._reporting(name, written))
        patch.setattr(NumpyBackend, "update", self._reporting_update())
        begin, end = Slot.begin, Slot._end

        def begun(slot: Slot) -> None:
            self._check_bytes(slot.number)
            self._trusted.pop(slot.number, None)
            begin(slot)
            self.events.append(("begin", slot.number))

        def ended(slot: Slot) -> None:
            end(slot)
            self.events.append(("end", slot.number))
            self._trust(slot.number)

        patch.setattr(Slot, "begin", begun)
        patch.setattr(Slot, "_end", ended)

    def locate(self, name: str, context: Context | None = None) -> Found:
        """Finds a copy, as a process of the host has it found."""
        found = self.sharing.locate(name, context, cpu(), None)
        if found.slot is not None:
            self._found[found.slot] = found
            self._trust(found.slot)
        return found

    def word(self, found: Found, which: SlotWord) -> int:
        """A word of a copy's slot."""
        assert found.slot is not None
        return self._word(found.slot, which)

    def is_found(self, found: Found) -> bool:
        """Whether a reader who has found the copy before can read it still."""
        return self.word(found, SlotWord.LAYOUT) == found.layout and bool(
            self.word(found, SlotWord.SEGMENT)
        )

    def read(self, found: Found) -> Array:
        """What such a reader reads."""
        assert self.is_found(found)
        assert self.word(found, SlotWord.SEQUENCE) % 2 == 0
        segment, offset = self.word(found, SlotWord.SEGMENT), self.word(found, SlotWord.OFFSET)
        shape, dtype = found.head.shape, found.head.dtype
        assert shape is not None
        count = int(np.prod(shape))
        return np.frombuffer(self._segment(segment), dtype, count, offset).reshape(shape).copy()

    def check(self) -> None:
        """Every slot can be trusted, and says and leads to what the parameter has."""
        assert self._complaints == []
        for number, found in self._found.items():
            assert self._word(number, SlotWord.SEQUENCE) % 2 == 0, found
            self._check_bytes(number)
            if not self.is_found(found):
                continue
            with self.registry.hold([found.head.name]) as (parameter,):
                assert found.head.context is not None
                buffer = parameter.copies[found.head.context]
                assert (parameter.shape, parameter.current.dtype) == (
                    found.head.shape,
                    found.head.dtype,
                )
                assert self.word(found, SlotWord.COUNTER) == parameter.counter, found
                trainer = self.word(found, SlotWord.STEP_TRAINER)
                step = None if trainer == NO_STEP else (trainer, self.word(found, 6))  # type: ignore[arg-type]
                assert step == parameter.step, found
                expected = host_array(parameter.backend(buffer.context), buffer)
                assert self.read(found).tobytes() == expected.tobytes(), found

    def _complain(self, why: str) -> None:
        # Who changes the values may catch it.
        self._complaints.append(why)
        raise AssertionError(why)

    def odd(self) -> set[int]:
        """The slots that nobody trusts now."""
        return {number for number in self._found if self._word(number, SlotWord.SEQUENCE) % 2 == 1}

    def _word(self, number: int, which: SlotWord) -> int:
        return int(self._words[HEADER_WORDS + number * SLOT_WORDS + which])

    def _segment(self, number: int) -> memoryview:
        if number not in self._segments:
            found = self.memory.descriptor(number)
            assert found is not None, f"segment {number} is gone, and a slot leads to it"
            self._segments[number] = _mapped(found[0])
        return self._segments[number]

    def _bytes(self, number: int) -> bytes:
        segment = self._word(number, SlotWord.SEGMENT)
        if not segment or number not in self._found:
            return b""
        head, offset = self._found[number].head, self._word(number, SlotWord.OFFSET)
        # Of another layout more or fewer bytes count: as many as both have.
        assert head.shape is not None
        size = int(np.prod(head.shape)) * head.dtype.itemsize
        return bytes(self._segment(segment)[offset : offset + size])

    def _trust(self, number: int) -> None:
        self._trusted[number] = self._bytes(number)

    def _check_bytes(self, number: int) -> None:
        if number in self._trusted and self._bytes(number) != self._trusted[number]:
            self._complain(f"slot {number} was to be trusted while its values were changed")

    def _check_place(self, place: Place | None) -> None:
        for number in self._trusted:
            published = Place(
                self._word(number, SlotWord.SEGMENT), self._word(number, SlotWord.OFFSET)
            )
            if place == published:
                self._complain(f"slot {number} is to be trusted, and is being written to")
        self.events.append(("write", self.odd()))

    def _report(self, backend: NumpyBackend, buffers: list[Buffer]) -> None:
        for buffer in buffers:
            self._check_place(self.memory.locate(backend.array(buffer)))

    def _reporting(self, name: str, written: tuple[int, ...]) -> Any:
        original = getattr(NumpyBackend, name)

        def method(backend: NumpyBackend, *arguments: Any, **options: Any) -> Any:
            self._report(backend, [arguments[each] for each in written])
            return original(backend, *arguments, **options)

        return method

    def _reporting_update(self) -> Any:
        original = NumpyBackend.update

        def update(backend: NumpyBackend, *arguments: Any, **options: Any) -> None:
            _, weight, _, states, *_ = arguments
            rounded = options.get("rounded")
            self._report(backend, [weight, *states, *([] if rounded is None else [rounded])])
            original(backend, *arguments, **options)

        return update


def _mapped(descriptor: int) -> memoryview:
    with os.fdopen(descriptor, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED))
