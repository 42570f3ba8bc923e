"""Snapshots of plain objects, in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from paramd.spec import Shape
from paramd_server.arrays.devices import Devices
from paramd_server.arrays.memory import MemoryAccount
from paramd_server.core.capture import CapturedState, Standstill, capture, no_scratch
from paramd_server.core.gate import Gate
from paramd_server.core.held_buffers import ParameterLock, Scratch
from paramd_server.core.registry import Registry
from paramd_server.core.snapshot import ArraysReader, SavedSection, Section

_MIB = 1 << 20


class MemorySnapshot:
    """A snapshot in memory, through JSON."""

    def __init__(self, saved: Mapping[str, SavedSection]) -> None:
        documents = {name: section.document for name, section in saved.items()}
        self.documents: dict[str, dict[str, Any]] = json.loads(json.dumps(documents))
        self.stored = {
            f"{name}/{array.key}": np.frombuffer(
                # Each piece is valid until the next one is asked for.
                b"".join(block.tobytes() for block in array.blocks()),
                array.dtype,
            ).reshape(array.shape)
            for name, section in saved.items()
            for array in section.arrays
        }
        self.left = list(self.stored)

    def arrays(self, section: str) -> ArraysReader:
        return _Arrays(self, section)

    def unread(self) -> Sequence[str]:
        return self.left


class _Arrays:
    def __init__(self, memory: MemorySnapshot, section: str) -> None:
        self.memory = memory
        self.section = section

    def describe(self, key: str) -> tuple[Shape, np.dtype[Any]]:
        array = self.memory.stored[f"{self.section}/{key}"]
        return array.shape, array.dtype

    def read(self, key: str, target: np.ndarray[Any, Any]) -> None:
        name = f"{self.section}/{key}"
        assert (target.shape, target.dtype) == self.describe(key)
        target[...] = self.memory.stored[name]
        self.memory.left.remove(name)


def captured(
    sections: Sequence[Section],
    registry: Registry | None = None,
    *,
    gate: Gate | None = None,
    locks: Callable[[], Sequence[ParameterLock]] = list,
    scratch: Callable[[], Scratch] = no_scratch,
) -> CapturedState:
    """The state of sections right now, not read yet."""
    if registry is None:
        registry = Registry(Devices(MemoryAccount(_MIB)), 9, lambda _spec: None)
    return capture(
        sections,
        standstill=Standstill(gate or Gate(), locks, registry),
        devices=registry.devices,
        scratch=scratch,
    )


def saved(sections: Sequence[Section], registry: Registry | None = None) -> MemorySnapshot:
    """The state of sections right now."""
    state = captured(sections, registry)
    try:
        return MemorySnapshot(state.sections())
    finally:
        state.release()
