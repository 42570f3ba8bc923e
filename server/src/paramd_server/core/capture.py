"""The state of a server at one moment, taken without stopping what goes on.

Everything is locked only while references are taken. What they refer to is read afterwards, by
another thread, while writers go on: see `held_buffers`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from paramd_server.arrays.devices import Devices
from paramd_server.core.gate import Gate
from paramd_server.core.held_buffers import BufferHolds, ParameterLock, Scratch
from paramd_server.core.registry import Registry
from paramd_server.core.snapshot import SavedSection, Section, SnapshotError

__all__ = ["CapturedState", "Standstill", "capture", "no_scratch"]


@dataclass(frozen=True)
class Standstill:
    """Holds a server still for a moment: nothing is half done then, and nobody can begin anything.

    Attributes:
        gate: through which changes go whose answers are remembered.
        locks: gives the locks of the trainers, always in one order.
        registry: the parameters, whose locks come after those.
    """

    gate: Gate
    locks: Callable[[], Iterable[ParameterLock]]
    registry: Registry

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Waits for the changes under way, and lets no other one begin while the block runs."""
        with self.gate.exclusive(), ExitStack() as stack:
            for lock in self.locks():
                stack.enter_context(lock)
            stack.enter_context(self.registry.hold_all())
            yield


class CapturedState:
    """What `capture` took. Whoever has it releases it at the end."""

    def __init__(
        self, holds: BufferHolds, finishes: Mapping[str, Callable[[], SavedSection]], mark: Any
    ) -> None:
        self._holds = holds
        self._finishes = finishes
        self.mark = mark

    def sections(self) -> dict[str, SavedSection]:
        """The states of the sections by name, in their order: called once, and takes its time.

        Raises:
            SnapshotError: where something could not be kept, or `cancel` was called.
        """
        return {name: finish() for name, finish in self._finishes.items()}

    def cancel(self, why: str) -> None:
        """Makes whoever reads it fail soon, with a SnapshotError."""
        self._holds.fail(SnapshotError(why))

    def set_pace(self, share: float) -> None:
        """Has this thread read for a share of the time only, so that others lose less by it."""
        self._holds.set_pace(share)

    def check(self) -> None:
        """Raises SnapshotError where it was cancelled, or something could not be kept."""
        self._holds.check()

    def release(self) -> None:
        """Lets go of everything. Idempotent."""
        self._finishes = {}
        self._holds.release()


def no_scratch() -> Scratch:
    """For a capture during which nobody writes."""
    raise OSError("there is no scratch file")


def capture(
    sections: Sequence[Section],
    *,
    standstill: Standstill,
    devices: Devices,
    scratch: Callable[[], Scratch] = no_scratch,
    mark: Callable[[], Any] | None = None,
) -> CapturedState:
    """Takes the state of one moment.

    Args:
        sections: of the server.
        standstill: holds it still.
        devices: where its buffers are.
        scratch: makes the file in which writers set aside what they overwrite in place.
        mark: called at that moment, with everything held; what it gives is kept in `mark` of the
            result. A coordinator appends to its log there.

    Raises:
        RuntimeError: where the calling thread is in the middle of a change.
        What `mark` raises; nothing is held then.
    """
    holds = BufferHolds(devices, scratch)
    finishes: dict[str, Callable[[], SavedSection]] = {}
    marked: Any = None
    collects = gc.isenabled()
    # Looking through all objects of a large server would take far longer than the moment does.
    gc.disable()
    try:
        with standstill():
            for section in sections:
                if section.name in finishes:
                    raise ValueError(f"two sections have the name {section.name!r}")
                finishes[section.name] = section.capture(holds)
            if mark is not None:
                marked = mark()
    except BaseException:
        holds.release()
        raise
    finally:
        if collects:
            gc.enable()
    return CapturedState(holds, finishes, marked)
