"""Steps of a trainer beside bare pushes and pulls of the same bytes, in one run.

A bare push puts a gradient into its buffer; a step pushes it and updates the value, and can bring
the new value back. One client makes them; no two calls overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from tqdm import tqdm

import paramd
from benchmarks.timing import Spread, in_turn

__all__ = ["StepLine", "report_steps", "row_step_lines", "step_lines"]

_KVSTORES: Final = ("local", "dist_async")
_OPTIMIZERS: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    ("sgd", "sgd", {"learning_rate": 1e-3}),
    ("sgd, momentum", "sgd", {"learning_rate": 1e-3, "momentum": 0.9}),
    ("adam", "adam", {"learning_rate": 1e-3}),
)
_WIDTH: Final = 64


@dataclass(frozen=True)
class StepLine:
    """One line of the table.

    Attributes:
        case: optimizer, kvstore and size.
        push: times of a push into the gradient buffer.
        pull: times of a pull of the values.
        update: times of a step: a push with an update.
        step: times of a step that also brings the values back.
        num_rows: touched by a row_sparse step; 0 of a dense one.
    """

    case: str
    push: Spread
    pull: Spread
    update: Spread
    step: Spread
    num_rows: int = 0

    @property
    def ratio(self) -> float:
        """How much longer than the bare push a push with an update takes."""
        return self.update.median_ms / self.push.median_ms

    @property
    def step_ratio(self) -> float:
        """How much longer than a bare push and a bare pull a step takes that does both."""
        return self.step.median_ms / (self.push.median_ms + self.pull.median_ms)

    @property
    def rows_per_second(self) -> float:
        """Rows that are pushed and updated in a second."""
        return self.num_rows / self.update.median_ms * 1e3


def step_lines(*, quick: bool) -> Iterator[StepLine]:
    """Dense steps of one parameter of 64 MB, or of 1 MB."""
    megabytes = 1 if quick else 64
    shape = (megabytes << 18,)
    gradient, out = np.full(shape, 1e-3, np.float32), np.ones(shape, np.float32)
    params = paramd.ParameterDict()
    params.get("stepped", shape=shape, init="zeros")
    params.initialize()
    grads, outs = {"stepped": gradient}, {"stepped": out}
    cases = [(*optimizer, kvstore) for optimizer in _OPTIMIZERS for kvstore in _KVSTORES]
    for title, name, arguments, kvstore in tqdm(cases, desc="steps", leave=False, disable=None):
        trainer = paramd.Trainer(params, name, arguments, kvstore)
        spreads = in_turn(
            {
                "push": partial(params.push, grads),
                "pull": partial(params.pull, out=outs),
                "update": partial(trainer.step, 1, grads=grads),
                "step": partial(trainer.step, 1, grads=grads, pull=True, out=outs),
            },
            repeats=3 if quick else 15,
        )
        yield _line(f"{title}, {kvstore}, {megabytes} MB", spreads)
        trainer.delete()
    paramd.current_session().delete("stepped")


def row_step_lines(*, quick: bool) -> Iterator[StepLine]:
    """AdaGrad on 100,000 rows of 64 float32 out of a million, or on few."""
    num_rows, touched = (10_000, 1_000) if quick else (1_000_000, 100_000)
    table = paramd.Parameter(
        "stepped_table",
        shape=(num_rows, _WIDTH),
        init="zeros",
        stype="row_sparse",
        grad_stype="row_sparse",
    )
    table.initialize()
    params = paramd.current_session().parameters("stepped_table")
    ids = np.sort(np.random.default_rng(0).choice(num_rows, touched, replace=False))
    grads = {"stepped_table": (ids, np.full((touched, _WIDTH), 1e-3, np.float32))}
    for kvstore in tqdm(_KVSTORES, desc="row steps", leave=False, disable=None):
        trainer = paramd.Trainer([table], "adagrad", {"learning_rate": 1e-3}, kvstore)

        def step(trainer: paramd.Trainer = trainer) -> None:
            trainer.step(1, grads=grads)
            table.row_sparse_data(ids)

        spreads = in_turn(
            {
                "push": partial(params.push, grads),
                "pull": partial(table.row_sparse_data, ids),
                "update": partial(trainer.step, 1, grads=grads),
                "step": step,
            },
            repeats=3 if quick else 15,
        )
        yield _line(f"adagrad, {kvstore}, {touched:,} rows", spreads, num_rows=touched)
        trainer.delete()
    paramd.current_session().delete("stepped_table")


def _line(case: str, spreads: dict[str, Spread], *, num_rows: int = 0) -> StepLine:
    push, pull, update, step = (spreads[name] for name in ("push", "pull", "update", "step"))
    return StepLine(case, push, pull, update, step, num_rows)


def report_steps(lines: list[StepLine]) -> str:
    """The table, in Markdown."""
    rows = [
        "| step | push, ms | push + update, ms | / push | pull, ms | push + update + pull, ms "
        "| / (push + pull) | rows/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in lines:
        speed = f"{line.rows_per_second:,.0f}" if line.num_rows else "-"
        rows.append(
            f"| {line.case} | {line.push.median_ms:.3f} | {line.update.median_ms:.3f} "
            f"({line.update.low_ms:.3f}-{line.update.high_ms:.3f}) | {line.ratio:.2f} "
            f"| {line.pull.median_ms:.3f} | {line.step.median_ms:.3f} "
            f"({line.step.low_ms:.3f}-{line.step.high_ms:.3f}) | {line.step_ratio:.2f} | {speed} |"
        )
    return "\n".join(rows)
