"""Steps by the gradient buffers, as plain objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paramd.compression import TwoBit, expand
from paramd.context import Context, cpu
from paramd.errors import (
    DTypeMismatchError,
    InvalidArgumentError,
    NonFiniteGradientError,
    StaleGradientError,
    TrainerNotFoundError,
)
from paramd.spec import TensorHead
from paramd.trainer_spec import StepOptions
from paramd_server.arrays.backend import host_array
from paramd_server.core.attributes import cast
from paramd_server.core.gradient_writing import GradientStage
from paramd_server.core.training.trainer import StoredTrainer
from tests.support.plain_trainers import Array, Plant, full

BOTH = (cpu(0), cpu(1))


@pytest.fixture
def plant() -> Plant:
    plant = Plant()
    plant.create("w", (2, 3), contexts=BOTH)
    plant.create("t", (5, 2), contexts=BOTH, grad_stype="row_sparse")
    plant.create("frozen", (2,), contexts=BOTH, grad_req="null")
    return plant


def write(plant: Plant, name: str, value: Array, *contexts: Context) -> None:
    """Pushes a gradient into buffers."""
    for context in contexts:
        stage = GradientStage(plant.registry, context)
        (place,) = stage.place(
            TensorHead(name, value.shape, value.dtype, context=context, mode="by_grad_req")
        )
        place[...] = value
        stage.commit()


def write_rows(plant: Plant, ids: list[int], value: Array, context: Context) -> None:
    stage = GradientStage(plant.registry, context)
    head = TensorHead(
        "t",
        (5, 2),
        value.dtype,
        stype="row_sparse",
        num_rows=len(ids),
        context=context,
        mode="by_grad_req",
    )
    for place, array in zip(stage.place(head), (np.array(ids, np.int64), value), strict=True):
        place[...] = array
    stage.commit()


def gradient(plant: Plant, name: str, context: Context) -> Array:
    with plant.registry.hold([name]) as (parameter,):
        return host_array(parameter.backend(context), parameter.gradients[context]).copy()


def step(plant: Plant, trainer: StoredTrainer, **options: Any) -> bool:
    options = {"batch_size": 1.0, **options}
    skipped, position = plant.buffers.update(
        trainer, StepOptions(trainer.spec.name, **options), plant.operation("client")
    )
    assert position == 0
    return skipped


def test_buffers_are_summed_over_the_contexts(plant: Plant) -> None:
    trainer = plant.trainer("w", "t", "frozen")
    write(plant, "w", full(1), cpu(0))
    write(plant, "w", full(2), cpu(1))
    write_rows(plant, [0, 3], full(1, (2, 2)), cpu(0))
    write_rows(plant, [3, 4], full(2, (2, 2)), cpu(1))
    assert not step(plant, trainer, batch_size=2.0)
    for context in BOTH:
        np.testing.assert_array_equal(plant.value("w", context), full(-1.5))
        np.testing.assert_array_equal(plant.value("t", context)[:, 0], [-0.5, 0, 0, -1.5, -1])
        assert not plant.value("frozen", context).any()
    # The buffers stay as they were.
    np.testing.assert_array_equal(gradient(plant, "w", cpu(0)), full(1))
    assert trainer.info().num_steps == 1


def test_each_buffer_is_written_between_two_steps(plant: Plant) -> None:
    trainer = plant.trainer("w")
    write(plant, "w", full(1), cpu(0))
    with pytest.raises(StaleGradientError, match=r"`w` on context cpu\(1\)"):
        step(plant, trainer)
    write(plant, "w", full(1), cpu(1))
    step(plant, trainer)
    with pytest.raises(StaleGradientError):
        step(plant, trainer)
    before = plant.values()
    assert not step(plant, trainer, ignore_stale_grad=True)
    assert plant.values() == before


@pytest.mark.parametrize("policy", ["apply", "skip", "error"])
def test_buffers_that_are_not_finite(plant: Plant, policy: str) -> None:
    trainer = plant.trainer("w", "t", non_finite=policy)
    write(plant, "w", full(1), *BOTH)
    write_rows(plant, [1], full(np.nan, (1, 2)), cpu(0))
    write_rows(plant, [1], full(1, (1, 2)), cpu(1))
    before = plant.values()
    if policy == "error":
        with pytest.raises(NonFiniteGradientError, match="'t'"):
            step(plant, trainer, zero_grad=True)
        np.testing.assert_array_equal(gradient(plant, "w", cpu(0)), full(1))
    else:
        assert step(plant, trainer, zero_grad=True) == (policy == "skip")
        assert not gradient(plant, "w", cpu(0)).any()
    assert (plant.values() == before) == (policy != "apply")
    info = trainer.info()
    assert (info.num_non_finite, info.num_skipped) == (1, int(policy == "skip"))
    if policy == "error":
        # What was fresh is fresh: the step can be made again.
        write_rows(plant, [1], full(1, (1, 2)), cpu(0))
        step(plant, trainer)
        np.testing.assert_array_equal(plant.value("w"), full(-2))


def test_gradients_are_cleared_with_the_step(plant: Plant) -> None:
    trainer = plant.trainer("w", "t")
    write(plant, "w", full(1), *BOTH)
    for context in BOTH:
        write_rows(plant, [1], full(1, (1, 2)), context)
    step(plant, trainer, zero_grad=True)
    np.testing.assert_array_equal(plant.value("w"), full(-2))
    for context in BOTH:
        assert not gradient(plant, "w", context).any()
        with plant.registry.hold(["t"]) as (parameter,):
            assert len(parameter.sparse_gradients[context].ids) == 0


def test_a_step_that_fails_changes_nothing(plant: Plant) -> None:
    trainer = plant.trainer("w", "t")
    write(plant, "w", full(1), *BOTH)
    cast(plant.registry, ["t"], np.dtype("i8"))
    before = plant.values()
    with pytest.raises(DTypeMismatchError, match="'t'"):
        step(plant, trainer, ignore_stale_grad=True)
    assert plant.values() == before
    assert trainer.info().num_steps == 0


def test_the_sum_goes_into_every_buffer(plant: Plant) -> None:
    trainer = plant.trainer("w", "t", update_each_copy=True)
    write(plant, "w", full(1), cpu(0))
    write(plant, "w", full(2), cpu(1))
    write_rows(plant, [0], full(1, (1, 2)), cpu(0))
    write_rows(plant, [4], full(2, (1, 2)), cpu(1))
    plant.buffers.allreduce(trainer)
    for context in BOTH:
        np.testing.assert_array_equal(gradient(plant, "w", context), full(3))
        with plant.registry.hold(["t"]) as (parameter,):
            assert parameter.sparse_gradients[context].ids.tolist() == [0, 4]
    step(plant, trainer, reduced=True)
    for context in BOTH:
        np.testing.assert_array_equal(plant.value("w", context), full(-3))
        np.testing.assert_array_equal(plant.value("t", context)[:, 0], [-1, 0, 0, 0, -2])


def test_a_distributed_trainer_has_no_buffers(plant: Plant) -> None:
    trainer = plant.sync("w")
    write(plant, "w", full(1), *BOTH)
    with pytest.raises(InvalidArgumentError, match="grads="):
        step(plant, trainer)


def test_a_trainer_that_is_gone(plant: Plant) -> None:
    trainer = plant.trainer("w")
    write(plant, "w", full(1), *BOTH)
    plant.trainers.delete("t")
    with pytest.raises(TrainerNotFoundError):
        step(plant, trainer)
    with pytest.raises(TrainerNotFoundError):
        plant.buffers.allreduce(trainer)


def test_compression_carries_over_what_is_lost(plant: Plant) -> None:
    bare = plant.account.used_bytes
    trainer = plant.trainer("w", two_bit_threshold=0.5)
    codec = TwoBit(0.5)
    residuals: dict[Context, Array | None] = dict.fromkeys(BOTH)
    expected = full(0)
    for value in (0.3, 0.3, -0.1, 0.9):
        for context in BOTH:
            mine = full(value * (1 + context.device_id))
            write(plant, "w", mine, context)
            packed, residuals[context] = codec.compress(mine, residuals[context])
            expected -= expand(packed, (2, 3), np.dtype("f4"), 0.5)
        step(plant, trainer)
        np.testing.assert_array_equal(plant.value("w"), expected)
    plant.trainers.delete("t")
    del trainer
    assert plant.account.used_bytes <= bare + 2 * 24, "residuals are gone; the buffers are written"


def test_memory_that_is_short_changes_nothing() -> None:
    plant = Plant(200_000)
    plant.create("w", (4000,), contexts=BOTH)
    trainer = plant.trainer("w", optimizer="adam", optimizer_params={})
    write(plant, "w", full(1, (4000,)), *BOTH)
    number = 0
    while plant.account.used_bytes + 40_000 < plant.account.limit_bytes:
        plant.create(f"ballast{number}", (1000,), grad_req="null")
        number += 1
    used, before = plant.account.used_bytes, plant.values()
    with pytest.raises(MemoryError, match="'w'"):
        step(plant, trainer)
    assert (plant.account.used_bytes, plant.values()) == (used, before)
    plant.registry.delete([f"ballast{each}" for each in range(number)])
    step(plant, trainer)
    assert trainer.info().num_steps == 1
