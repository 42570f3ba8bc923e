"""Parameters that processes of the same host have found, and every way to change them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest

from paramd import optimizer as optimizers
from paramd.context import cpu
from paramd.spec import (
    InitializeEntry,
    InitializerSpec,
    LoadOptions,
    TensorHead,
)
from paramd.trainer_spec import StagedPart, StepOptions, TrainerSpec
from paramd.wire.directory import SlotWord
from paramd_server.core import attributes
from paramd_server.core.initialization import initialize
from paramd_server.core.loading import LoadStage
from paramd_server.core.operations import OperationWindow
from paramd_server.core.training.buffers import BufferSteps
from paramd_server.core.training.followed import FollowedTrainer
from paramd_server.core.training.pushes import Push
from paramd_server.core.training.records import Alone, CommittedPush, StepRecord, UpdateRecord
from paramd_server.core.training.trainer import World
from paramd_server.core.training.trainers import Trainers
from paramd_server.core.training.updates import ParameterRate
from paramd_server.core.value_writing import FirstValueStage, ValueStage
from paramd_server.core.workers import Workers
from paramd_server.core.writing import TensorStage, WriteStage
from paramd_server.rpc.training_servicer import STEP_ANSWERS
from tests.support.plain_trainers import Array, Plant, full
from tests.support.watched_copies import WatchedCopies

__all__ = ["CHANGES", "V_SHAPE", "SharedPlant"]

CONTEXTS: Final = (cpu(0), cpu(1))
V_SHAPE: Final = (4,)
TABLE_SHAPE: Final = (10, 3)
ROWS: Final = ([2, 7], np.full((2, 3), 5, "f4"))


class SharedPlant(Plant):
    """What a server works with: 'w' on two contexts, 'v', and a 'table' of rows, all of them found.

    Attributes:
        watched: sees what becomes of them.
        found: by name and context.
    """

    watched: WatchedCopies

    def __init__(self, patch: pytest.MonkeyPatch, memory_limit: int = 64 << 20) -> None:
        super().__init__(memory_limit)
        self.create("w", (2, 3), contexts=CONTEXTS)
        self.create("v", V_SHAPE)
        self.create("table", TABLE_SHAPE, stype="row_sparse", grad_stype="row_sparse")
        self.watched = WatchedCopies(self.registry, patch)
        self.found = {
            (name, context): self.watched.locate(name, context)
            for name, context in (("w", cpu(0)), ("w", cpu(1)), ("v", cpu(0)), ("table", cpu(0)))
        }
        self.watched.events.clear()

    def slots(self, *names: str) -> set[int]:
        """Of the copies of some parameters."""
        return {
            found.slot
            for (name, _), found in self.found.items()
            if name in names and found.slot is not None
        }

    def send(self, stage: TensorStage, name: str, *arrays: Array, **head: Any) -> None:
        """One tensor: a value, or ids and rows."""
        described = TensorHead(name, head.pop("shape", arrays[-1].shape), arrays[-1].dtype, **head)
        for place, array in zip(stage.place(described), arrays, strict=True):
            place[...] = array

    def write(self, stage: WriteStage, name: str, *arrays: Array, **head: Any) -> None:
        self.send(stage, name, *arrays, **{"mode": "assign", **head})
        stage.commit()

    def set(self, name: str, *arrays: Array, **head: Any) -> None:
        self.write(ValueStage(self.registry), name, *arrays, **head)

    def set_rows(self, name: str, mode: str) -> None:
        ids, rows = ROWS
        self.set(
            name,
            np.array(ids),
            rows,
            shape=TABLE_SHAPE,
            stype="row_sparse",
            num_rows=2,
            mode=mode,
        )

    def reinitialize(self, init: str) -> None:
        entry = InitializeEntry("w", InitializerSpec(init), 1, 0)
        initialize(self.registry, [entry], list(CONTEXTS), force_reinit=True)

    def load(self, value: Array, **options: Any) -> None:
        stage = LoadStage(self.registry, LoadOptions(("w",), **options))
        self.write(stage, "w", value, mode="")

    def push_gradients(self, value: float, *names: str) -> None:
        """Fills the buffers of dense parameters."""
        with self.registry.hold(names) as parameters:
            for parameter in parameters:
                for context, buffer in parameter.gradients.items():
                    gradient = np.full(parameter.shape, value, "f4")
                    parameter.backend(context).write(buffer, gradient, mode="assign")
                    parameter.fresh_gradients.add(context)

    def step_once(self, **settings: Any) -> None:
        """A local trainer's step, by a push of all that there is."""
        trainer = self.trainer("w", "v", "table", **settings)
        self.push(trainer, "a", w=full(1), v=full(1, V_SHAPE), table=ROWS)

    def follow(self) -> FollowedTrainer:
        """The trainer of a shard that is not the coordinator; its steps are marked."""
        world = World(
            self.registry, self.members, OperationWindow(), STEP_ANSWERS, Workers(), shard=1
        )
        trainers = Trainers(world)
        rule = optimizers.create("sgd", learning_rate=1.0)
        trainers.declare(TrainerSpec("f", ("w", "v"), rule, distributed=True, staleness=0))
        found = trainers.find("f")
        assert isinstance(found, FollowedTrainer)
        found.place([], [0])
        return found


# What changes, and of which parameters


def _round(plant: SharedPlant) -> None:
    trainer = plant.sync("w", "v")
    for worker in "ab":
        plant.join(trainer, worker)
    for worker in "ab":
        plant.push(trainer, worker, w=full(1), v=full(1, V_SHAPE))


def _rounds(plant: SharedPlant) -> None:
    trainer = plant.sync("w", "v", optimizer="adam")
    plant.join(trainer, "a")
    for clock in range(3):
        plant.push(trainer, "a", clock, w=full(1), v=full(1, V_SHAPE))
        plant.watched.check()


def _update(plant: SharedPlant, **options: Any) -> None:
    trainer = plant.trainer("w", "v", optimizer_params={"learning_rate": 1.0, "momentum": 0.9})
    plant.push_gradients(2.0, "w", "v")
    plant.buffers.update(trainer, StepOptions("t", 1.0, **options), plant.operation("a"), ())


def _followed_step(plant: SharedPlant) -> None:
    trainer, operation = plant.follow(), plant.operation("a")
    sent = {"w": full(1), "v": full(1, V_SHAPE)}
    taken, wrong = plant.stage(trainer, sent)  # type: ignore[arg-type]
    trainer.submit(Push(operation, StepOptions("f", 1.0, clock=0), taken, wrong))
    rate = ParameterRate(1.0, 1)
    committed = (CommittedPush(operation, 1, False, 1.0),)
    trainer.carry_out(StepRecord("f", 1, 1, committed, {"w": rate, "v": rate}), 1)
    assert trainer.tally.num_lost_steps == 0


def _step_on_several_shards(plant: SharedPlant) -> None:
    """Only 'w' is pushed; what is of which step is told of both."""
    trainer = plant.sync("w", "v")
    trainer.place([], [1])
    plant.join(trainer, "a")
    taken, wrong = plant.stage(trainer, {"w": full(1)})
    options = StepOptions("t", 1.0, clock=0, ignore_stale_grad=True)
    parts = (StagedPart(1, 9, ("w",)),)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Alone, "hold", lambda _commits, _parts: True)
        trainer.submit(Push(plant.operation("a"), options, taken, wrong, parts))
    assert plant.watched.word(plant.found["v", cpu(0)], SlotWord.STEP_NUMBER) == 1


def _followed_update(plant: SharedPlant) -> None:
    trainer = plant.follow()
    plant.push_gradients(2.0, "w", "v")
    rates = dict.fromkeys(("w", "v"), ParameterRate(1.0, 1))
    record = UpdateRecord("f", plant.operation("a"), 1, False, 1.0, True, False, rates)
    BufferSteps(plant.registry).carry_out(trainer, record, 1)


def _set_two(plant: SharedPlant) -> None:
    stage = ValueStage(plant.registry)
    plant.send(stage, "w", full(3), mode="assign")
    plant.send(stage, "v", full(3, V_SHAPE), mode="assign")
    stage.commit()


def _set_two_in_place(plant: SharedPlant) -> None:
    stage = ValueStage(plant.registry)
    plant.send(stage, "w", full(3), mode="add")
    plant.send(stage, "v", full(3, V_SHAPE), mode="add")
    stage.commit()


def _first_value(plant: SharedPlant) -> None:
    stage = FirstValueStage(plant.registry, CONTEXTS, force_reinit=True)
    plant.write(stage, "w", full(7))


Change = Callable[[SharedPlant], None]
W, V, TABLE = frozenset("w"), frozenset("v"), frozenset(["table"])
REGION: Final = ((0, 1, 1), (1, 2, 1))
CHANGES: Final[dict[str, tuple[frozenset[str], Change]]] = {
    "a whole value": (W, lambda plant: plant.set("w", full(3))),
    "a whole value of another dtype": (W, lambda plant: plant.set("w", full(3, dtype="f8"))),
    "a whole value of one copy": (W, lambda plant: plant.set("w", full(3), context=cpu(1))),
    "one number": (W, lambda plant: plant.set("w", full(3, ()), context=cpu(0))),
    "a region": (W, lambda plant: plant.set("w", full(3, (1, 2)), region=REGION)),
    "an addition": (W, lambda plant: plant.set("w", full(3), mode="add")),
    "two values": (W | V, _set_two),
    "two additions": (W | V, _set_two_in_place),
    "rows": (TABLE, lambda plant: plant.set_rows("table", "assign_rows")),
    "an addition of rows": (TABLE, lambda plant: plant.set_rows("table", "add")),
    "a first value": (W, _first_value),
    "zeros anew": (W, lambda plant: plant.reinitialize("zero")),
    "ones anew": (W, lambda plant: plant.reinitialize("one")),
    "a load": (W, lambda plant: plant.load(full(4))),
    "a load of another dtype": (
        W,
        lambda plant: plant.load(full(4, dtype="f8"), cast_dtype=True, dtype_source="saved"),
    ),
    "a cast": (W | V, lambda p: attributes.cast(p.registry, ["w", "v"], np.dtype("f8"))),
    "a cast to the same": (W, lambda p: attributes.cast(p.registry, ["w"], np.dtype("f4"))),
    "other contexts": (W, lambda p: attributes.reset_contexts(p.registry, ["w"], [cpu(1)])),
    "a shape": (W, lambda plant: attributes.set_shape(plant.registry, ["w"], (2, 3))),
    "a step": (W | V | TABLE, lambda plant: plant.step_once()),
    "a step with states": (W | V | TABLE, lambda plant: plant.step_once(optimizer="adam")),
    "a round of two": (W | V, _round),
    "three rounds": (W | V, _rounds),
    "a step on several shards": (W | V, _step_on_several_shards),
    "a step by the buffers": (W | V, _update),
    "a step that clears the buffers": (W | V, lambda p: _update(p, zero_grad=True)),
    "a step that was committed elsewhere": (W | V, _followed_step),
    "a step by the buffers that was committed elsewhere": (W | V, _followed_update),
    "a deletion": (W | V, lambda plant: plant.registry.delete(["w", "v"])),
}
