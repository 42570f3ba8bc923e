"""What processes of the same host find of a parameter, while it is changed in every way."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from paramd.context import cpu
from paramd.errors import ContextWithoutCopyError, ParameterNotFoundError, ShapeMismatchError
from paramd.spec import (
    ParameterSpec,
    Part,
    Selector,
)
from paramd.wire.directory import NO_STEP, SlotWord
from paramd_server.arrays.directory import Directory
from paramd_server.core import attributes, sharing
from paramd_server.core.capture import no_scratch
from paramd_server.core.held_buffers import BufferHolds
from paramd_server.core.reading import open_values
from tests.support.plain_trainers import Plant, full
from tests.support.shared_plant import CHANGES, V_SHAPE, SharedPlant
from tests.support.watched_copies import WatchedCopies


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedPlant]:
    made = SharedPlant(monkeypatch)
    yield made
    made.watched.check()


@pytest.mark.parametrize("change", CHANGES)
def test_slots_are_odd_during_a_change_and_right_after_it(plant: SharedPlant, change: str) -> None:
    names, make = CHANGES[change]
    slots = plant.slots(*names)
    before = {found.slot: plant.watched.word(found, SlotWord.SEQUENCE) for found in _all(plant)}
    make(plant)
    events = plant.watched.events
    for found in _all(plant):
        rose = plant.watched.word(found, SlotWord.SEQUENCE) > before[found.slot]
        assert rose == (found.slot in slots), found
    # All that change together are odd before the first is touched, and until the last is ready.
    kinds = [kind for kind, _ in events]
    first_end = kinds.index("end")
    assert {slot for kind, slot in events[:first_end] if kind == "begin"} == slots
    writes = [odd for kind, odd in events[:first_end] if kind == "write"]
    assert all(odd in (set(), slots) for odd in writes), writes


def _all(plant: SharedPlant) -> list[sharing.Found]:
    return list(plant.found.values())


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_found_again_after_a_change(plant: SharedPlant, change: str) -> None:
    CHANGES[change][1](plant)
    for (name, context), found in plant.found.items():
        with plant.registry.hold(plant.registry.names()) as parameters:
            there = {each.name: each for each in parameters}.get(name)
        if there is None or context not in there.copies:
            assert not plant.watched.is_found(found)
            with pytest.raises((ParameterNotFoundError, ContextWithoutCopyError)):
                plant.watched.locate(name, context)
            continue
        again = plant.watched.locate(name, context)
        np.testing.assert_array_equal(plant.watched.read(again), plant.value(name, context))
        assert again.head.dtype == there.current.dtype


@pytest.mark.parametrize("change", ["a cast", "a load of another dtype", "other contexts"])
def test_who_knows_another_layout_reads_nothing(plant: SharedPlant, change: str) -> None:
    CHANGES[change][1](plant)
    found = plant.found["w", cpu(1)]
    assert not plant.watched.is_found(found)
    # Nor when it is in shared memory again.
    again = plant.watched.locate("w", cpu(1))
    assert plant.watched.is_found(again)
    assert not plant.watched.is_found(found)


def test_marks_of_steps_are_told(plant: SharedPlant) -> None:
    trainer = plant.follow()
    found = plant.found["w", cpu(0)]
    assert plant.watched.word(found, SlotWord.STEP_TRAINER) == NO_STEP
    for number, mark in ((0, trainer.mark_first), (5, trainer.mark_restored)):
        trainer.tally.num_steps = number
        mark(plant.registry)
        assert plant.watched.word(found, SlotWord.STEP_TRAINER) != NO_STEP
        assert plant.watched.word(found, SlotWord.STEP_NUMBER) == number
        plant.watched.check()


@pytest.mark.parametrize("restart", ["attach", "anew"])
def test_a_parameter_that_is_declared_again(plant: SharedPlant, restart: str) -> None:
    found = plant.found["v", cpu(0)]
    if restart == "anew":
        plant.registry.delete(["v"])
        plant.create("v", V_SHAPE, init="one")
        assert not plant.watched.is_found(found)
    else:
        plant.registry.declare([(ParameterSpec("v", shape=V_SHAPE), ["shape"])])
        assert plant.watched.is_found(found)
    again = plant.watched.locate("v")
    np.testing.assert_array_equal(plant.watched.read(again), plant.value("v"))
    assert not plant.watched.is_found(found) or restart == "attach"


def test_a_change_that_fails_leaves_the_slots_as_they_were(plant: SharedPlant) -> None:
    plant.watched.check()
    with pytest.raises(ParameterNotFoundError):
        plant.registry.delete(["w", "none"])
    with pytest.raises(ParameterNotFoundError):
        attributes.cast(plant.registry, ["w", "none"], np.dtype("f8"))
    assert plant.watched.odd() == set()
    assert plant.watched.is_found(plant.found["w", cpu(0)])


def test_a_float16_weight_with_a_float32_copy_is_right(plant: SharedPlant) -> None:
    """The weight is written as what the update is rounded to, and not as what it updates."""
    plant.create("half", (2, 3), dtype=np.dtype("f2"))
    found = plant.watched.locate("half")
    params = {"learning_rate": 1.0, "momentum": 0.9, "multi_precision": True}
    trainer = plant.trainer("half", optimizer_params=params)
    for _ in range(2):
        plant.push(trainer, "a", half=full(1, dtype="f2"))
        plant.watched.check()
    np.testing.assert_array_equal(plant.watched.read(found), plant.value("half"))


# Where it is moved to when it is asked for first


def test_a_reader_of_the_old_buffer_reads_on(monkeypatch: pytest.MonkeyPatch) -> None:
    plant = Plant()
    plant.create("w", (2, 3), init="one")
    watched = WatchedCopies(plant.registry, monkeypatch)
    with open_values(plant.registry, [Selector("w")], cpu()) as (reading,):
        found = watched.locate("w")
        trainer = plant.trainer("w")
        plant.push(trainer, "a", w=full(1))
        (part,) = reading.parts
        assert part.tolist() == [1] * 6
    assert watched.read(found).tolist() == [[0] * 3] * 2
    watched.check()


@pytest.mark.parametrize("stype", ["default", "row_sparse"])
def test_a_snapshot_of_the_old_buffer_is_of_its_moment(
    monkeypatch: pytest.MonkeyPatch, stype: str
) -> None:
    plant = Plant()
    plant.create("w", (5, 3), init="one", stype=stype, grad_stype=stype)
    watched = WatchedCopies(plant.registry, monkeypatch)
    holds = BufferHolds(plant.registry.devices, no_scratch)
    with plant.registry.hold(["w"]) as (parameter,):
        buffer = parameter.copies[cpu()]
        holds.add(buffer)
    found = watched.locate("w")
    gradient: Any = full(1, (5, 3)) if stype == "default" else ([0, 4], full(1, (2, 3)))
    plant.push(plant.trainer("w"), "a", w=gradient)
    held = holds.find(buffer, by_rows=stype != "default")
    pieces = [piece.copy() for piece in held.read(parameter.lock)]
    assert b"".join(piece.tobytes() for piece in pieces) == np.ones((5, 3), "f4").tobytes()
    assert watched.read(found)[0].tolist() == [0] * 3
    holds.release()
    watched.check()


def test_where_memory_is_refused_there_is_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 1 << 20
    plant = Plant(memory_limit=6 * size)
    plant.create("big", (size,), init="one", grad_req="null")
    watched = WatchedCopies(plant.registry, monkeypatch)
    used = plant.account.used_bytes
    found = watched.locate("big")
    assert (found.slot, found.head.shape) == (None, (size,))
    assert plant.account.used_bytes == used
    assert (plant.value("big") == 1).all()
    # It is as it was for those who write, too; and found when there is room.
    plant.account.limit_bytes = 20 * size
    again = watched.locate("big")
    assert (watched.read(again) == 1).all()
    assert plant.account.used_bytes == used


def test_there_are_no_more_slots_than_the_table_has(monkeypatch: pytest.MonkeyPatch) -> None:
    few = functools.partial(Directory, num_slots=2)
    monkeypatch.setattr(sharing, "Directory", few)
    plant = Plant()
    for name in "abc":
        plant.create(name, (2,))
    watched = WatchedCopies(plant.registry, monkeypatch)
    first, second, third = (watched.locate(name) for name in "abc")
    assert (first.slot, second.slot, third.slot) == (0, 1, None)
    plant.registry.delete(["a"])
    again = watched.locate("c")
    assert again.slot == first.slot
    assert not watched.is_found(first)
    assert watched.is_found(again)
    watched.check()


def test_what_is_not_there_is_not_found(plant: SharedPlant) -> None:
    with pytest.raises(ParameterNotFoundError):
        plant.watched.locate("none")
    with pytest.raises(ContextWithoutCopyError):
        plant.watched.locate("w", cpu(5))
    with pytest.raises(ShapeMismatchError):
        plant.watched.sharing.locate("w", cpu(0), cpu(), Part((4, 3), 2, 2, 1))
