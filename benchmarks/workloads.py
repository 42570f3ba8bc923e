"""What is moved: the same for every system, whoever moves it.

NumPy and the standard library only: the peers' programs use it in their own environments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

__all__ = [
    "LATENCY_BYTES",
    "MOVING_SECTIONS",
    "ROW",
    "Ids",
    "Workload",
    "id_sets",
    "latency_counts",
    "latency_seconds",
    "size_name",
    "table_rows",
    "workloads",
]

Ids = np.ndarray[Any, np.dtype[np.int64]]

MOVING_SECTIONS: Final = ("dense", "rows", "bulk", "steps")
"""The sections whose calls are timed one by one."""
ROW: Final = 64
"""Elements of a row, float32."""
LATENCY_BYTES: Final = 4 << 10
"""What a client pulls at a time in the section `latency`."""

_SIZES_KB: Final = (4, 64, 1 << 10, 16 << 10, 64 << 10, 256 << 10)
_QUICK_SIZES_KB: Final = (4, 1 << 10)
_ROW_COUNTS: Final = (100, 1_000, 10_000, 100_000)
_QUICK_ROW_COUNTS: Final = (100, 1_000)
_STEP_SIZES_KB: Final = (64, 64 << 10)
_QUICK_STEP_SIZES_KB: Final = (64,)
_BULK_COUNT: Final = 200
_BULK_BYTES: Final = 64 << 10
_OPTIMIZERS: Final = ("sgd", "adam")
_CLIENTS: Final = (1, 2, 4, 8, 16, 32)
_QUICK_CLIENTS: Final = (1, 2)
# Calls of fewer bytes are timed in bursts.
_SMALL: Final = 4 << 20
# What is counted of a case moves about so many bytes.
_BYTES_A_CASE: Final = 400 << 20


@dataclass(frozen=True)
class Workload:
    """Something to move, and the ways to move it.

    Attributes:
        section: 'dense', 'rows', 'bulk' or 'steps'.
        name: 'N KB' or 'N MB' of a tensor, 'N rows', 'N x M KB' of tensors, 'OPTIMIZER N MB'.
        calls: what is timed: 'pull', 'push' and 'push+pull'; of steps 'update', a push that is
            applied to the value, and 'step', which also brings the new value back.
        size_bytes: that the values of one pull, push or update have.
        count: how many rows, or tensors in one call.
        optimizer: of a step.
    """

    section: str
    name: str
    calls: tuple[str, ...]
    size_bytes: int
    count: int = 1
    optimizer: str = ""

    def case(self, call: str) -> str:
        """What one line of the table says."""
        return f"{call} {self.name}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one tensor, or of the pulled rows, as float32."""
        if self.section == "rows":
            return (self.count, ROW)
        return (self.size_bytes // self.count // 4,)

    def repeats(self, *, quick: bool) -> int:
        """Enough for a median, within about a second a case."""
        return 3 if quick else int(np.clip(_BYTES_A_CASE / self.size_bytes, 9, 200))

    def burst(self, *, quick: bool) -> int:
        """How many calls are made in a turn: see `in_turn`."""
        return 1 if quick or self.size_bytes >= _SMALL else 10


def workloads(sections: Collection[str], *, quick: bool) -> Iterator[Workload]:
    """Those of some sections, in the order in which they are measured."""
    if "dense" in sections:
        for kilobytes in _QUICK_SIZES_KB if quick else _SIZES_KB:
            size = kilobytes << 10
            yield Workload("dense", size_name(size), ("pull", "push", "push+pull"), size)
    if "rows" in sections:
        for count in _QUICK_ROW_COUNTS if quick else _ROW_COUNTS:
            yield Workload("rows", f"{count:,} rows", ("pull", "push"), count * ROW * 4, count)
    if "bulk" in sections:
        name = f"{_BULK_COUNT} x {size_name(_BULK_BYTES)}"
        size = _BULK_COUNT * _BULK_BYTES
        yield Workload("bulk", name, ("pull", "push"), size, _BULK_COUNT)
    if "steps" in sections:
        for optimizer in _OPTIMIZERS:
            for kilobytes in _QUICK_STEP_SIZES_KB if quick else _STEP_SIZES_KB:
                name = f"{optimizer} {size_name(kilobytes << 10)}"
                calls = ("update", "step")
                yield Workload("steps", name, calls, kilobytes << 10, optimizer=optimizer)


def table_rows(*, quick: bool) -> int:
    """Rows of the table that rows are pulled from and pushed to."""
    return 10_000 if quick else 1_000_000


def id_sets(workload: Workload, *, quick: bool) -> list[Ids]:
    """Sorted random row ids, each once, in sets that a case uses one after the other."""
    generator = np.random.default_rng(workload.count)
    rows = table_rows(quick=quick)
    return [
        np.sort(generator.choice(rows, workload.count, replace=False)).astype(np.int64)
        for _ in range(3 if quick else 16)
    ]


def latency_counts(*, quick: bool) -> tuple[int, ...]:
    """How many clients pull at a time."""
    return _QUICK_CLIENTS if quick else _CLIENTS


def latency_seconds(*, quick: bool) -> float:
    """How long so many clients go on pulling."""
    return 0.1 if quick else 1.0


def size_name(size: int) -> str:
    """'64 KB' or '256 MB', of whole ones."""
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB"
