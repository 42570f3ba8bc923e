"""The arithmetic of every optimizer in this process, beside a NumPy copy in the same run.

Bytes are counted once for each element read and once for each element written: SGD reads the
weight and the gradient and writes the weight, 12 bytes an element in float32. A copy counts 8.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Final

import numpy as np

from benchmarks.timing import Spread, in_turn
from paramd.context import cpu
from paramd.optimizer import (
    DCASGD,
    LAMB,
    NAG,
    SGD,
    AdaDelta,
    AdaGrad,
    Adam,
    AdamW,
    Ftrl,
    Optimizer,
    RMSProp,
    Signum,
)
from paramd_server.arrays.memory import MemoryAccount, SpareBuffers
from paramd_server.arrays.numpy_backend import NumpyBackend
from paramd_server.core.optimizers import rule_for

__all__ = ["UpdateLine", "report_updates", "row_update_lines", "update_lines"]

_ELEMENTS: Final = 16 << 20
_QUICK_ELEMENTS: Final = 1 << 18
_CASES: Final[tuple[tuple[str, Optimizer, str], ...]] = (
    ("sgd", SGD(wd=1e-4), "f4"),
    ("sgd, momentum", SGD(momentum=0.9, wd=1e-4), "f4"),
    ("adam", Adam(wd=1e-4), "f4"),
    ("adamw", AdamW(), "f4"),
    ("nag, momentum", NAG(momentum=0.9, wd=1e-4), "f4"),
    ("signum", Signum(wd=1e-4), "f4"),
    ("adagrad", AdaGrad(wd=1e-4), "f4"),
    ("rmsprop", RMSProp(wd=1e-4), "f4"),
    ("rmsprop, centered", RMSProp(centered=True, wd=1e-4), "f4"),
    ("adadelta", AdaDelta(wd=1e-4), "f4"),
    ("ftrl", Ftrl(wd=1e-4), "f4"),
    ("lamb", LAMB(wd=1e-4), "f4"),
    ("dcasgd", DCASGD(wd=1e-4), "f4"),
    ("adam, float64", Adam(wd=1e-4), "f8"),
    ("adam, float16", Adam(wd=1e-4), "f2"),
    ("adam, float16, multi_precision", Adam(wd=1e-4, multi_precision=True), "f2"),
)


@dataclass(frozen=True)
class UpdateLine:
    """One line of the table.

    Attributes:
        case: the optimizer.
        update: times of one update.
        copy: times of a NumPy copy of as many float32.
        update_bytes: that an update reads and writes.
        copy_bytes: that a copy reads and writes.
    """

    case: str
    update: Spread
    copy: Spread
    update_bytes: int
    copy_bytes: int

    @property
    def ratio(self) -> float:
        """The bandwidth of the update, as a part of the copy's."""
        speed = self.update_bytes / self.update.median_ms
        return speed / (self.copy_bytes / self.copy.median_ms)


def update_lines(*, quick: bool) -> list[UpdateLine]:
    """Dense updates of one weight: 16 million elements, or few."""
    size = _QUICK_ELEMENTS if quick else _ELEMENTS
    return [_line(case, optimizer, dtype, size, quick=quick) for case, optimizer, dtype in _CASES]


def _copying(size: int) -> tuple[Callable[[], object], int]:
    source, target = np.ones(size, np.float32), np.ones(size, np.float32)
    return partial(np.copyto, target, source), 2 * source.nbytes


def _line(case: str, optimizer: Optimizer, dtype: str, size: int, *, quick: bool) -> UpdateLine:
    backend = NumpyBackend(MemoryAccount(1 << 40), SpareBuffers())
    rule, counter = rule_for(optimizer), count(1)
    weight = backend.zeros((size,), np.dtype(dtype), cpu())
    backend.write(weight, np.ones((), dtype), mode="assign")
    gradient, states = np.full(size, 0.5, dtype), rule.create_states(weight, backend)
    numbers = {"learning_rate": 0.01, "weight_decay": optimizer.wd, "rescale": 1 / 32}

    def update() -> None:
        rule.update(backend, weight, gradient, states, ids=None, count=next(counter), **numbers)

    copy, copy_bytes = _copying(size)
    spreads = in_turn({"update": update, "copy": copy}, repeats=3 if quick else 15)
    written = weight.nbytes + sum(state.nbytes for state in states.values())
    # Beside a master copy the weight itself is written only.
    read = written - (weight.nbytes if "master" in states else 0) + gradient.nbytes
    return UpdateLine(case, spreads["update"], spreads["copy"], read + written, copy_bytes)


def row_update_lines(*, quick: bool) -> list[UpdateLine]:
    """AdaGrad on 100,000 rows of 64 float32 out of a million, or on few, beside a copy of them."""
    num_rows, touched, width = (10_000, 1_000, 64) if quick else (1_000_000, 100_000, 64)
    backend = NumpyBackend(MemoryAccount(1 << 40), SpareBuffers())
    rule, counter = rule_for(AdaGrad()), count(1)
    weight = backend.zeros((num_rows, width), np.dtype("f4"), cpu())
    backend.write(weight, np.ones((), "f4"), mode="assign")
    states = rule.create_states(weight, backend)
    ids = np.sort(np.random.default_rng(0).choice(num_rows, touched, replace=False))
    gradient = np.full((touched, width), 0.5, np.float32)

    def update() -> None:
        rule.update(
            backend,
            weight,
            gradient,
            states,
            ids=ids,
            count=next(counter),
            learning_rate=0.01,
            weight_decay=0.0,
            rescale=1.0,
        )

    copy, copy_bytes = _copying(gradient.size)
    spreads = in_turn({"update": update, "copy": copy}, repeats=3 if quick else 25)
    case = f"adagrad, {touched:,} rows of {width}"
    return [UpdateLine(case, spreads["update"], spreads["copy"], 5 * gradient.nbytes, copy_bytes)]


def report_updates(lines: list[UpdateLine]) -> str:
    """The table, in Markdown."""
    rows = [
        "| optimizer | update, ms | GB/s | NumPy copy, GB/s | ratio |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for line in lines:
        speed, copied = (
            size / spread.median_ms / 1e6
            for size, spread in ((line.update_bytes, line.update), (line.copy_bytes, line.copy))
        )
        rows.append(
            f"| {line.case} | {line.update.median_ms:.3f} "
            f"({line.update.low_ms:.3f}-{line.update.high_ms:.3f}) | {speed:.1f} | {copied:.1f} "
            f"| {line.ratio:.2f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions")
    quick = parser.parse_args().quick
    print(report_updates([*update_lines(quick=quick), *row_update_lines(quick=quick)]))


if __name__ == "__main__":
    main()
