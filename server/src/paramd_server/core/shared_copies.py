"""Where processes of the same host find the copies of a parameter, while these are changed.

A copy that such a process has asked for has a slot in the directory (see `paramd.wire.directory`).
Whoever changes values, or what is said of them, does it inside of `changing`: the slots of all that
change say so before the first is touched, until the last is as it should be. A reader that finds
the slots of several parameters unchanged has read them all at one moment.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final

from paramd.context import Context
from paramd_server.arrays.backend import Buffer
from paramd_server.arrays.devices import Devices
from paramd_server.arrays.directory import Directory, Slot
from paramd_server.arrays.shared_memory import Place

if TYPE_CHECKING:
    from paramd_server.core.stored_parameter import StoredParameter

__all__ = ["SharedCopies", "changing"]


class SharedCopies:
    """The slots of one parameter's copies. Guarded by the parameter's lock.

    Args:
        directory: that they are in.
        devices: know where buffers lie.
    """

    def __init__(self, directory: Directory, devices: Devices) -> None:
        self._directory = directory
        self._devices = devices
        self._slots: dict[Context, Slot] = {}
        # What each slot says.
        self._published: dict[Context, tuple[Buffer, Place | None]] = {}
        self._form: object = None

    def __contains__(self, context: Context) -> bool:
        return context in self._slots

    def slot(self, parameter: StoredParameter, context: Context) -> Slot | None:
        """The slot of a copy, made when it is asked for first; None where there is none left."""
        slot = self._slots.get(context)
        if slot is None:
            slot = self._directory.slot()
            if slot is None:
                return None
            self._slots[context] = slot
            slot.begin()
            slot.renew_layout()
            self.publish(parameter)
        return slot

    def begin(self) -> None:
        """Says that the copies are being changed."""
        for slot in self._slots.values():
            slot.begin()

    def publish(self, parameter: StoredParameter) -> None:
        """Says where the copies are now, and that they are as they should be."""
        current = parameter.current
        # With the contexts: which copy is meant where none is named depends on them.
        contexts = tuple(parameter.copies)
        form = (current.shape, current.dtype, current.stype, current.part, contexts)
        for context, slot in list(self._slots.items()):
            buffer = None if parameter.deleted else parameter.copies.get(context)
            if buffer is None:
                slot.withdraw()
                del self._slots[context]
                self._published.pop(context, None)
                continue
            if form != self._form:
                slot.renew_layout()
            place = self._place(context, buffer)
            if place is None:
                slot.hide()
            else:
                slot.publish(place, parameter.counter, parameter.step)
        self._form = form

    def _place(self, context: Context, buffer: Buffer) -> Place | None:
        known = self._published.get(context)
        if known is None or known[0] is not buffer:
            known = self._published[context] = buffer, self._devices.place(buffer)
        return known[1]


def changing(parameters: Iterable[StoredParameter]) -> AbstractContextManager[None]:
    """Lets nobody trust the copies of locked parameters while the block changes some of them."""
    shared = [(each, each.shared) for each in parameters if each.shared is not None]
    return _Change(shared) if shared else _NOBODY_READS


class _Change:
    """See `changing`. A class, because generators cost small writes several times as much."""

    __slots__ = ("_shared",)

    def __init__(self, shared: list[tuple[StoredParameter, SharedCopies]]) -> None:
        self._shared = shared

    def __enter__(self) -> None:
        for _, copies in self._shared:
            copies.begin()

    def __exit__(self, *_failure: object) -> None:
        # Also after a failure: what is there then is what is said of it.
        for parameter, copies in self._shared:
            copies.publish(parameter)


_NOBODY_READS: Final = nullcontext()
