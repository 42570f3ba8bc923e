"""Carrying out what the coordinator has decided, one record after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from paramd import optimizer as optimizers
from paramd.context import cpu
from paramd.trainer_spec import StepOptions, TrainerSpec
from paramd_server.arrays.backend import host_array
from paramd_server.core.cluster.follower import Follower
from paramd_server.core.training.buffers import BufferSteps
from paramd_server.core.training.followed import FollowedTrainer
from paramd_server.core.training.records import (
    Record,
    SnapshotRecord,
    SnapshotResult,
    UpdateRecord,
)
from paramd_server.core.training.updates import ParameterRate
from tests.support.plain_trainers import full
from tests.unit.server.test_followed_trainer import FollowerPlant, record


@pytest.fixture
def plant() -> FollowerPlant:
    return FollowerPlant()


def _follower(plant: FollowerPlant, seen: list[Record] | None = None, **more: float) -> Follower:
    return Follower(
        plant.trainers,
        plant.operations,
        BufferSteps(plant.registry),
        (lambda _record: None) if seen is None else seen.append,
        3,
        **more,
    )


def test_records_move_it_on(plant: FollowerPlant) -> None:
    trainer, follower = plant.followed(), _follower(plant)
    assert follower.position == 3
    for number in (1, 2):
        operation = plant.operation("a")
        plant.offer(trainer, operation)
        follower.carry_out(3 + number, record(number, operation))
    assert follower.position == 5
    np.testing.assert_array_equal(plant.value("w"), full(-2))
    assert trainer.wait(operation, 0.0).position == 5


def test_trainers_that_are_not_here_concern_it_not(plant: FollowerPlant) -> None:
    follower = _follower(plant)
    follower.carry_out(4, record(1, plant.operation("a")))
    assert follower.position == 4


def test_what_fails_is_logged_and_passed(
    plant: FollowerPlant, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, follower = plant.followed(), _follower(plant)

    def fail(*_args: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(trainer, "carry_out", fail)
    follower.carry_out(4, record(1, plant.operation("a")))
    assert "record 4 could not be carried out" in caplog.text
    assert follower.position == 4


def test_snapshots_are_told_of_at_their_place(plant: FollowerPlant) -> None:
    trainer = plant.followed()
    values: list[tuple[int, float]] = []
    seen: list[Record] = []

    def snapshot(each: SnapshotRecord | SnapshotResult) -> None:
        values.append((follower.position, float(plant.value("w")[0, 0])))
        seen.append(each)

    follower = Follower(plant.trainers, plant.operations, BufferSteps(plant.registry), snapshot)
    records: Sequence[Record] = [
        SnapshotRecord(1, ""),
        record(1, plant.operation("a")),
        SnapshotResult(1, "", b"{}", (1,)),
    ]
    plant.offer(trainer, records[1].pushes[0].operation)  # type: ignore[union-attr]
    for position, each in enumerate(records, 1):
        follower.carry_out(position, each)
    assert values == [(1, 0.0), (3, -1.0)]
    assert seen == [records[0], records[2]]


def test_old_pushes_are_named_and_dropped(plant: FollowerPlant) -> None:
    trainer, operation = plant.followed(), plant.operation("a")
    plant.offer(trainer, operation)
    assert _follower(plant).old_pushes() == []
    follower = _follower(plant, old_s=-1.0)
    assert follower.old_pushes() == [("t", operation)]
    follower.drop([("other", operation)], 1e12)
    assert trainer.knows(operation)
    follower.drop([("t", operation)], 0.0)
    assert trainer.knows(operation), "its worker has been heard of since"
    follower.drop([("t", operation)], 1e12)
    assert not trainer.knows(operation)
    assert follower.old_pushes() == []


def _local(plant: FollowerPlant) -> FollowedTrainer:
    spec = TrainerSpec("l", ("w", "b"), optimizers.create("sgd", learning_rate=1.0))
    plant.trainers.declare(spec)
    found = plant.trainers.find("l")
    assert isinstance(found, FollowedTrainer)
    return found


def _fill(plant: FollowerPlant, value: float) -> None:
    with plant.registry.hold(["w", "b"]) as parameters:
        for parameter in parameters:
            gradient = parameter.gradients[cpu(0)]
            parameter.backend(cpu(0)).write(
                gradient, np.full(parameter.shape, value, "f4"), mode="assign"
            )
            parameter.fresh_gradients.add(cpu(0))


@pytest.mark.parametrize("skipped", [False, True])
def test_a_step_by_the_buffers(plant: FollowerPlant, skipped: bool) -> None:
    trainer, follower = _local(plant), _follower(plant)
    options = StepOptions("l", 1.0)
    _fill(plant, 2.0)
    part = BufferSteps(plant.registry).stage(trainer, options)
    assert part.names == ("w", "b")
    np.testing.assert_array_equal(plant.value("w"), full(0))
    operation = plant.operation("a")
    rates = {} if skipped else dict.fromkeys(part.names, ParameterRate(1.0, 1))
    update = UpdateRecord("l", operation, 1, skipped, 1.0, True, False, rates)
    follower.carry_out(4, update)
    np.testing.assert_array_equal(plant.value("w"), full(0 if skipped else -2))
    result = trainer.wait(operation, 0.0)
    assert (result.state, result.skipped, result.position) == ("committed", skipped, 4)
    assert trainer.info().num_steps == 1
    with plant.registry.hold(["w"]) as (parameter,):
        # zero_grad is part of the step.
        assert not host_array(parameter.backend(cpu(0)), parameter.gradients[cpu(0)]).any()


def test_a_step_by_the_buffers_of_deleted_parameters(plant: FollowerPlant) -> None:
    trainer, follower = _local(plant), _follower(plant)
    _fill(plant, 2.0)
    plant.registry.delete(["b"])
    rates = dict.fromkeys(("w", "b"), ParameterRate(1.0, 1))
    operation = plant.operation("a")
    follower.carry_out(4, UpdateRecord("l", operation, 1, False, 1.0, False, False, rates))
    np.testing.assert_array_equal(plant.value("w"), full(-2))
    assert trainer.wait(operation, 0.0).state == "committed"
