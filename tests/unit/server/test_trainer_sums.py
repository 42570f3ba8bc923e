"""What a round makes of the gradients of its workers, bit for bit, for every optimizer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from paramd.optimizer import NAMES
from paramd_server.arrays.backend import host_array
from tests.support.plain_trainers import Array, Gradient, Plant

SHAPE = (3, 5)
TABLE = (9, 2)
NUM_WORKERS = 3
MORE: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "wd": 0.1},
    "nag": {"momentum": 0.9},
    "rmsprop": {"centered": True},
    "dcasgd": {"momentum": 0.9},
    "signum": {"wd_lh": 0.1},
}
# The rows that each worker sends in a step; None: a dense gradient of the table.
ROWS: Sequence[Sequence[Sequence[int] | None]] = (
    ([0, 3, 8], [3, 4], [8]),
    ([], [5], []),
    ([0, 1], None, [1, 7]),
    ([], [], []),
    (None, None, None),
)


def gradient(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Numbers whose sum depends on the order, and zeros of both signs."""
    value = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 2, shape)
    value[rng.random(shape) < 0.3] = -0.0
    value[rng.random(shape) < 0.1] = 0.0
    return value.astype(dtype)


def as_dense(each: Gradient) -> Array:
    if not isinstance(each, tuple):
        return each
    dense = np.zeros(TABLE, each[1].dtype)
    dense[np.asarray(each[0], int)] = each[1]
    return dense


def summed(gradients: Sequence[Gradient]) -> Gradient:
    """NumPy's sum in the order of the ranks; of rows, where all are."""
    if all(isinstance(each, tuple) for each in gradients):
        rows: dict[int, Array] = {}
        for each in gradients:
            for row, value in zip(*each, strict=True):
                rows[row] = rows[row] + value if row in rows else value
        ids = sorted(rows)
        none = np.empty((0, *TABLE[1:]), gradients[0][1].dtype)
        return ids, np.stack([rows[row] for row in ids]) if ids else none
    total = as_dense(gradients[0])
    for each in gradients[1:]:
        total = total + as_dense(each)
    return total


def make(dtype: str) -> Plant:
    plant = Plant()
    for prefix in ("round", "alone"):
        plant.create(f"{prefix}_w", SHAPE, dtype=np.dtype(dtype))
        plant.create(f"{prefix}_t", TABLE, dtype=np.dtype(dtype), grad_stype="row_sparse")
        for name in (f"{prefix}_w", f"{prefix}_t"):
            with plant.registry.hold([name]) as (parameter,):
                (buffer,) = parameter.copies.values()
                value = np.random.default_rng(1).standard_normal(buffer.shape)
                host_array(parameter.backend(buffer.context), buffer)[...] = value.astype(dtype)
    return plant


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_round_is_what_one_optimizer_makes_of_the_sum(name: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    plant = make(dtype)
    arguments = {
        "learning_rate": 0.1,
        "multi_precision": dtype == "float16",
        "clip_gradient": 2.0,
        **MORE.get(name, {}),
    }
    settings: dict[str, Any] = {"optimizer": name, "optimizer_params": arguments}
    shared = plant.sync("round_w", "round_t", num_workers=NUM_WORKERS, **settings)
    alone = plant.trainer("alone_w", "alone_t", name="alone", **settings)
    for rank in range(NUM_WORKERS):
        plant.join(shared, f"w{rank}")
    orders = list(itertools.permutations(range(NUM_WORKERS)))
    for clock, rows in enumerate(ROWS):
        dense = [gradient(rng, SHAPE, dtype) for _ in range(NUM_WORKERS)]
        tables: list[Gradient] = [
            gradient(rng, TABLE, dtype)
            if ids is None
            else (ids, gradient(rng, (len(ids), *TABLE[1:]), dtype))
            for ids in rows
        ]
        for rank in orders[(clock + 1) % len(orders)]:
            plant.push(
                shared,
                f"w{rank}",
                clock,
                batch_size=4,
                round_w=dense[rank].copy(),
                round_t=tables[rank],
            )
        plant.push(alone, "alone", batch_size=4, alone_w=summed(dense), alone_t=summed(tables))
        for kind in "wt":
            ours, theirs = plant.value(f"round_{kind}"), plant.value(f"alone_{kind}")
            assert np.isfinite(theirs).all()
            assert ours.tobytes() == theirs.tobytes(), f"{kind} after step {clock + 1}"
    assert shared.updates.counts == {
        name.replace("alone", "round"): count for name, count in alone.updates.counts.items()
    }
