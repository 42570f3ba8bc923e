"""A snapshot of some number of shards, taken up by another number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from paramd import optimizer as optimizers
from paramd.context import Context, cpu
from paramd.placement import home_shard, layout_of
from paramd.spec import InitializeEntry, InitializerSpec, ParameterSpec, Shape
from paramd.trainer_spec import TrainerSpec
from paramd_server.arrays.backend import host_array
from paramd_server.core.initialization import initialize
from paramd_server.core.resharding import Resharded
from paramd_server.core.snapshot import Section, SnapshotError, restore_sections
from paramd_server.core.snapshot_parameters import ParametersSection
from paramd_server.core.training.sections import MembersSection, TrainersSection
from tests.support.plain_trainers import Plant
from tests.support.snapshots import MemorySnapshot, captured

SPLIT = 40
# Split, whole, of rows by number, of one row, of one axis, of too few rows to be spread over more.
SHAPES: Mapping[str, tuple[Shape, str]] = {
    "dense": ((23, 3), "default"),
    "small": ((5, 2), "default"),
    "table": ((17, 4), "row_sparse"),
    "one": ((1,), "default"),
    "flat": ((101,), "default"),
    "two rows": ((2, 60), "default"),
}
CONTEXTS = (cpu(0), cpu(2))


class Part(MemorySnapshot):
    """A part in memory."""

    def describe(self, name: str) -> tuple[Shape, np.dtype[Any]]:
        return self.stored[name].shape, self.stored[name].dtype

    def rows(self, name: str) -> Iterator[np.ndarray[Any, Any]]:
        array = self.stored[name]
        if not array.size:
            return
        matrix = array.reshape(len(array) if array.ndim else 1, -1)
        for begin in range(0, len(matrix), 3):
            yield matrix[begin : begin + 3]


def sections_of(plant: Plant) -> list[Section]:
    return [
        ParametersSection(plant.registry),
        MembersSection(plant.members),
        TrainersSection(plant.registry, plant.trainers),
    ]


def whole_value(name: str, context: Context) -> np.ndarray[Any, Any]:
    shape, _ = SHAPES[name]
    random = np.random.default_rng([len(name), context.device_id])
    return random.integers(1, 100, shape).astype("f4")


def rows_of(array: np.ndarray[Any, Any], part: Any) -> np.ndarray[Any, Any]:
    if part is None:
        return array
    return array[part.begin : part.begin + part.count * part.step : part.step]


def shard_of(shard: int, num_shards: int) -> Plant:
    """A shard with its parts of all parameters, and a trainer that has stepped."""
    plant = Plant()
    names = []
    for name, (shape, stype) in SHAPES.items():
        layout = layout_of(name, shape, stype, num_shards, SPLIT)
        if shard not in layout.shards:
            continue
        names.append(name)
        part = layout.parts.get(shard)
        local = shape if part is None else part.local_shape
        declared = ParameterSpec(
            name, local, stype=stype, grad_stype=stype, grad_req="add", part=part
        )
        plant.registry.declare([(declared, ())])
        entry = InitializeEntry(name, InitializerSpec("zero"), 1, 0)
        initialize(plant.registry, [entry], CONTEXTS, force_reinit=False)
        with plant.registry.hold([name]) as (parameter,):
            for context in CONTEXTS:
                host = host_array(parameter.backend(context), parameter.copies[context])
                host[...] = rows_of(whole_value(name, context), part)
            if stype == "row_sparse":
                context = CONTEXTS[1]
                gradient = parameter.sparse_gradients[context]
                ids = np.arange(0, SHAPES[name][0][0], 3)
                step, begin = (1, 0) if part is None else (part.step, part.begin)
                mine = ids[ids % step == begin % step]
                parameter.sparse_gradients[context] = gradient.replaced(
                    (mine - begin) // step,
                    np.repeat(mine[:, None], shape[1], 1).astype("f4"),
                    plant.registry.devices,
                )
            else:
                host = host_array(parameter.backend(CONTEXTS[0]), parameter.gradients[CONTEXTS[0]])
                host[...] = -rows_of(whole_value(name, cpu(7)), part)
    if names:
        optimizer = optimizers.create("adam", learning_rate=0.5)
        spec = TrainerSpec("t", tuple(SHAPES), optimizer)
        plant.trainers.declare(spec, elsewhere=SHAPES.keys() - set(names))
        trainer = plant.trainers.lead("t")
        gradients: dict[str, Any] = {}
        for name in names:
            with plant.registry.hold([name]) as (parameter,):
                part = parameter.current.part
                pushed = rows_of(whole_value(name, cpu(9)), part)
            sparse = SHAPES[name][1] == "row_sparse"
            gradients[name] = (np.arange(len(pushed)), pushed) if sparse else pushed
        plant.push(trainer, "a", **gradients)
    return plant


def saved(plants: Sequence[Plant]) -> list[Part]:
    parts = []
    for plant in plants:
        state = captured(sections_of(plant), plant.registry)
        parts.append(Part(state.sections()))
        state.release()
    return parts


def taken_up(parts: Sequence[Part], num_shards: int) -> list[Plant]:
    plants = []
    for shard in range(num_shards):
        source = Resharded(parts, shard=shard, num_shards=num_shards, split_elements=SPLIT)
        json.dumps(source.documents)
        for trainer in source.documents["trainers"]["trainers"]:
            # These shards all think that they are the coordinator.
            trainer["progress"].setdefault("participants", _NOBODY)
        plant = Plant()
        restore_sections(sections_of(plant), source)
        plants.append(plant)
    return plants


_NOBODY = {"gathered": False, "lost": {}, "clocks": {}}


def everything(plant: Plant) -> dict[str, Any]:
    """Values, gradients and states of one shard."""
    found: dict[str, Any] = {}
    for name in sorted(plant.registry.names()):
        with plant.registry.hold([name]) as (parameter,):
            found[name] = (parameter.current.shape, parameter.current.part, parameter.counter)
            for kind in ("copies", "gradients"):
                for context, buffer in getattr(parameter, kind).items():
                    host = host_array(parameter.backend(context), buffer)
                    found[f"{name} {kind} {context}"] = host.tobytes()
            for context, gradient in parameter.sparse_gradients.items():
                rows = host_array(parameter.backend(context), gradient.rows)
                found[f"{name} rows {context}"] = (gradient.ids.tolist(), rows.tobytes())
    for trainer in plant.trainers.all():
        for name, entry in trainer.updates.stepped().items():
            found[f"{name} stepped"] = (entry.count, entry.counter)
            for context, states in entry.states.items():
                for state, buffer in states.items():
                    host = host_array(plant.registry.devices.backend(context), buffer)
                    found[f"{name} {state} {context}"] = host.tobytes()
    return found


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_every_shard_gets_what_it_would_have_held(before: int, after: int) -> None:
    parts = saved([shard_of(shard, before) for shard in range(before)])
    for shard, plant in enumerate(taken_up(parts, after)):
        assert everything(plant) == everything(shard_of(shard, after)), shard


def test_part_that_lacks_rows_is_found() -> None:
    parts = saved([shard_of(shard, 2) for shard in range(2)])
    other = parts[1].documents["parameters"]["parameters"]
    other[:] = [each for each in other if each["declared"]["name"] != "dense"]
    if home_shard("dense", 2) == 1:
        parts.reverse()
    with pytest.raises(SnapshotError, match=r"'dense'.*rows are missing"):
        Resharded(parts, shard=0, num_shards=1, split_elements=SPLIT)


def test_parameter_without_a_shape_stays_on_its_home() -> None:
    plants = [Plant(), Plant()]
    home = home_shard("later", 2)
    spec = ParameterSpec("later", shape=(0, 5), allow_deferred_init=True)
    plants[home].registry.declare([(spec, ())])
    parts = saved(plants)
    for num_shards in (1, 3):
        for shard in range(num_shards):
            source = Resharded(parts, shard=shard, num_shards=num_shards, split_elements=SPLIT)
            plant = Plant()
            restore_sections(sections_of(plant), source)
            there = ["later"] if shard == home_shard("later", num_shards) else []
            assert plant.registry.names() == there
            if there:
                (info,) = plant.registry.describe(["later"])
                assert info.current.shape == (0, 5)
