"""`make bench`: paramd beside the raw gRPC floor, training beside bare pushes, shards beside one.

Prints tables, and writes bench-results/results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import grpc
import numpy as np
from tqdm import tqdm

import paramd
from benchmarks.floor import ROW, Floor
from benchmarks.serving import paramd_server, started
from benchmarks.shards import ShardLine, aim_verdict, report_shards, shard_lines
from benchmarks.snapshots import SnapshotFigures, measure_snapshots, report_snapshots
from benchmarks.steps import StepLine, report_steps, row_step_lines, step_lines
from benchmarks.timing import Call, Spread, in_turn
from benchmarks.updates import UpdateLine, report_updates, row_update_lines, update_lines
from benchmarks.workers import WorkerLine, report_workers, worker_lines

SIZES_KB = (4, 64, 1 << 10, 16 << 10, 64 << 10, 256 << 10)
QUICK_SIZES_KB = (4, 1 << 10)
NUM_ROWS = (100, 1_000, 10_000, 100_000)
QUICK_NUM_ROWS = (100, 1_000)


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    case: str
    floor: Spread
    paramd: Spread
    memcpy_ms: float | None

    @property
    def ratio(self) -> float:
        """How much of the floor's speed paramd reaches."""
        return self.floor.median_ms / self.paramd.median_ms


@dataclass(frozen=True)
class Results:
    """All lines of a run."""

    lines: list[Line]
    steps: list[StepLine]
    workers: list[WorkerLine]
    updates: list[UpdateLine]
    shards: list[ShardLine]
    snapshots: SnapshotFigures


def repeats_for(size: int, *, quick: bool) -> int:
    """Enough repetitions for a median, within about half a second a case."""
    return 3 if quick else int(np.clip((400 << 20) / size, 5, 300))


def dense_lines(floor: Floor, *, quick: bool) -> Iterator[Line]:
    """Pull and push of one dense parameter, from small to large."""
    for kilobytes in tqdm(
        QUICK_SIZES_KB if quick else SIZES_KB, desc="dense", leave=False, disable=None
    ):
        size = kilobytes << 10
        name = f"dense_{kilobytes}"
        params = paramd.ParameterDict()
        params.get(name, shape=(size // 4,), init="zeros")
        params.initialize()
        out = np.ones(size // 4, np.float32)
        raw = np.ones(size, np.uint8)
        pulls: dict[str, Call] = {
            "floor": partial(floor.pull, raw),
            "paramd": partial(params.pull, out={name: out}),
            "memcpy": partial(np.copyto, np.ones_like(out), out),
        }
        yield _line(f"pull {_size(size)}", pulls, repeats_for(size, quick=quick))
        pushes: dict[str, Call] = {
            "floor": partial(floor.push, raw),
            "paramd": partial(params.push, {name: out}),
        }
        yield _line(f"push {_size(size)}", pushes, repeats_for(size, quick=quick))
        paramd.current_session().delete(name)


def row_lines(floor: Floor, table_rows: int, *, quick: bool) -> Iterator[Line]:
    """Pull and push of rows of 64 float32."""
    table = paramd.Parameter(
        "table",
        shape=(table_rows, ROW),
        init="zeros",
        stype="row_sparse",
        grad_stype="row_sparse",
    )
    table.initialize()
    params = paramd.current_session().parameters("table")
    generator = np.random.default_rng(0)
    for count in tqdm(
        QUICK_NUM_ROWS if quick else NUM_ROWS, desc="rows", leave=False, disable=None
    ):
        ids = np.sort(generator.choice(table_rows, count, replace=False)).astype(np.int64)
        rows = np.ones((count, ROW), np.float32)
        repeats = repeats_for(count * ROW * 4 * 4, quick=quick)
        pulls: dict[str, Call] = {
            "floor": partial(floor.rows, ids, rows),
            "paramd": partial(table.row_sparse_data, ids),
        }
        yield _line(f"pull {count:,} rows", pulls, repeats)
        raw = np.ones(count * (ROW * 4 + 8), np.uint8)
        pushes: dict[str, Call] = {
            "floor": partial(floor.push, raw),
            "paramd": partial(params.push, {"table": (ids, rows)}),
        }
        yield _line(f"push {count:,} rows", pushes, repeats)
    paramd.current_session().delete("table")


def bulk_lines(floor: Floor, *, quick: bool) -> Iterator[Line]:
    """200 tensors of 64 KB in one call."""
    params = paramd.ParameterDict("bulk_")
    for index in range(200):
        params.get(str(index), shape=(16 << 10,), init="zeros")
    params.initialize()
    out = params.pull()
    raw = np.ones(200 * (64 << 10), np.uint8)
    yield _line(
        "pull 200 x 64 KB",
        {"floor": partial(floor.pull, raw), "paramd": partial(params.pull, out=out)},
        3 if quick else 40,
    )


def _size(size: int) -> str:
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB"


def _line(case: str, calls: dict[str, Call], repeats: int) -> Line:
    spreads = in_turn(calls, repeats=repeats)
    memcpy = spreads.get("memcpy")
    return Line(
        case, spreads["floor"], spreads["paramd"], None if memcpy is None else memcpy.median_ms
    )


def report(lines: list[Line]) -> str:
    """The table, in Markdown."""
    rows = [
        "| case | gRPC floor, ms | paramd, ms | floor / paramd | memcpy, ms |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for line in lines:
        memcpy = "-" if line.memcpy_ms is None else f"{line.memcpy_ms:.3f}"
        rows.append(
            f"| {line.case} | {line.floor.median_ms:.3f} | {line.paramd.median_ms:.3f} "
            f"({line.paramd.low_ms:.3f}-{line.paramd.high_ms:.3f}) | {line.ratio:.2f} | {memcpy} |"
        )
    return "\n".join(rows)


def measure(*, quick: bool) -> Results:
    """Runs every case."""
    table_rows = 10_000 if quick else 1_000_000
    largest = max(QUICK_SIZES_KB if quick else SIZES_KB) << 10
    with tempfile.TemporaryDirectory() as folder:
        floor_file, paramd_file = Path(folder) / "floor.json", Path(folder) / "paramd.json"
        floor_command = [
            sys.executable,
            "-m",
            "benchmarks.floor",
            str(floor_file),
            str(largest),
            str(table_rows),
        ]
        with (
            started(floor_command, floor_file) as (floor_address,),
            started(paramd_server(paramd_file), paramd_file) as (paramd_address,),
            paramd.connect(paramd_address),
        ):
            floor = Floor(floor_address)
            try:
                lines = [
                    *dense_lines(floor, quick=quick),
                    *row_lines(floor, table_rows, quick=quick),
                    *bulk_lines(floor, quick=quick),
                ]
            finally:
                floor.close()
            steps = [*step_lines(quick=quick), *row_step_lines(quick=quick)]
            workers = list(worker_lines(paramd_address, quick=quick))
    updates = [*update_lines(quick=quick), *row_update_lines(quick=quick)]
    shards = list(shard_lines(quick=quick))
    with tempfile.TemporaryDirectory() as folder:
        snapshots = measure_snapshots(Path(folder), quick=quick, rounds=1 if quick else 3)
    return Results(lines, steps, workers, updates, shards, snapshots)


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions")
    parser.add_argument("--output", type=Path, default=Path("bench-results/results.json"))
    options = parser.parse_args()
    measured = measure(quick=options.quick)
    print(report(measured.lines), end="\n\n")
    print(report_steps(measured.steps), end="\n\n")
    print(report_workers(measured.workers), end="\n\n")
    print(report_updates(measured.updates), end="\n\n")
    print(report_shards(measured.shards), end="\n\n")
    verdict = aim_verdict(measured.shards, quick=options.quick)
    print(verdict, end="\n\n")
    print("\n".join(report_snapshots(measured.snapshots)))
    machine = {
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "numpy": np.__version__,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    print(f"\nmedians (10th to 90th percentile); {machine}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    results = {
        "machine": machine,
        "lines": [{**asdict(each), "ratio": each.ratio} for each in measured.lines],
        "steps": [{**asdict(each), "ratio": each.ratio} for each in measured.steps],
        "workers": [
            {**asdict(each), "case": each.case, "steps_per_second": each.steps_per_second}
            for each in measured.workers
        ],
        "updates": [{**asdict(each), "ratio": each.ratio} for each in measured.updates],
        "shards": [
            {**asdict(each), "case": each.case, "ratio": each.ratio} for each in measured.shards
        ],
        "shards_verdict": verdict,
        "snapshots": {
            **asdict(measured.snapshots),
            "cost": measured.snapshots.cost,
            "restart_ratio": measured.snapshots.restart_ratio,
        },
    }
    options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
