"""What a snapshot keeps of a parameter of which a server holds a part."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from paramd.context import cpu
from paramd.spec import FirstValue, InitializeEntry, InitializerSpec, ParameterSpec, Part, Shape
from paramd_server.arrays.devices import Devices
from paramd_server.arrays.memory import MemoryAccount
from paramd_server.core.held_buffers import BufferHolds, Scratch
from paramd_server.core.initialization import initialize
from paramd_server.core.registry import Registry
from paramd_server.core.snapshot import ArraysReader, SavedSection, SnapshotError, restore_sections
from paramd_server.core.snapshot_parameters import ParametersSection

ONE = InitializerSpec("one")
PART = Part((10, 5), 1, 3, 3)


class Memory:
    """The parameters of a snapshot in memory, the document through JSON."""

    def __init__(self, saved: SavedSection) -> None:
        self.documents: Mapping[str, dict[str, Any]] = {
            "parameters": json.loads(json.dumps(saved.document))
        }
        self.stored = {
            each.key: np.concatenate([block.reshape(-1) for block in each.blocks()])
            .reshape(each.shape)
            .astype(each.dtype)
            for each in saved.arrays
        }

    @property
    def parameter(self) -> dict[str, Any]:
        (document,) = self.documents["parameters"]["parameters"]
        assert isinstance(document, dict)
        return document

    def arrays(self, section: str) -> ArraysReader:
        assert section == "parameters"
        return self

    def describe(self, key: str) -> tuple[Shape, np.dtype[Any]]:
        return self.stored[key].shape, self.stored[key].dtype

    def read(self, key: str, target: np.ndarray[Any, Any]) -> None:
        target[...] = self.stored[key]

    def unread(self) -> Sequence[str]:
        return ()


def _no_scratch() -> Scratch:
    pytest.fail("nothing is written meanwhile")


def saved(registry: Registry) -> Memory:
    holds = BufferHolds(registry.devices, _no_scratch)
    memory = Memory(ParametersSection(registry).capture(holds)())
    holds.release()
    return memory


def empty() -> Registry:
    return Registry(Devices(MemoryAccount(4 << 20)), 9, lambda spec: None)


def hold(registry: Registry, part: Part | None, init: InitializerSpec = ONE) -> None:
    shape = None if part is None else part.local_shape
    registry.declare([(ParameterSpec("w", shape, part=part, allow_deferred_init=True), ())])
    entry = InitializeEntry("w", init, 2**64 - 1, 3)
    initialize(registry, [entry], (cpu(1), cpu(0)), force_reinit=False)


@pytest.mark.parametrize("part", [PART, None])
def test_parts_and_what_they_are_computed_from_are_kept(part: Part | None) -> None:
    registry, other = empty(), empty()
    init = InitializerSpec("normal", {"sigma": 2.0})
    hold(registry, part, init)
    restore_sections([ParametersSection(other)], saved(registry))
    assert other.describe(["w"]) == registry.describe(["w"])
    (info,) = other.describe(["w"])
    assert info.state == ("deferred" if part is None else "initialized")
    assert info.declared.part == info.current.part == part
    assert info.first_value == FirstValue(init, 2**64 - 1, 3, (cpu(1), cpu(0)))


def test_a_snapshot_of_before_there_were_parts_is_taken_up() -> None:
    registry, other = empty(), empty()
    hold(registry, PART)
    memory = saved(registry)
    document = memory.parameter
    del document["first_value"], document["declared"]["part"], document["current"]["part"]
    restore_sections([ParametersSection(other)], memory)
    (info,) = other.describe(["w"])
    assert (info.current.part, info.first_value, info.state) == (None, None, "initialized")


@pytest.mark.parametrize(
    "damage",
    [
        {"begin": 4},
        {"begin": -1},
        {"count": 2},
        {"count": 0},
        {"step": 0},
        {"step": -3},
        {"step": "many"},
        {"shape": [10, 6]},
        {"shape": []},
        {"shape": [10, 0]},
        {"shape": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("spec", ["declared", "current"])
def test_a_part_that_is_none_is_refused(spec: str, damage: dict[str, Any]) -> None:
    registry, other = empty(), empty()
    hold(registry, PART)
    memory = saved(registry)
    memory.parameter[spec]["part"].update(damage)
    with pytest.raises(SnapshotError, match="parameter 'w'"):
        restore_sections([ParametersSection(other)], memory)
    assert len(other) == 0
