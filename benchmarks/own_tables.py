"""Measurements that concern paramd alone, each with a table of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import paramd
from benchmarks.serving import paramd_server, started
from benchmarks.shards import ShardLine, aim_verdict, report_shards, shard_lines
from benchmarks.snapshots import SnapshotFigures, measure_snapshots, report_snapshots
from benchmarks.steps import StepLine, report_steps, row_step_lines, step_lines
from benchmarks.updates import UpdateLine, report_updates, row_update_lines, update_lines
from benchmarks.workers import WorkerLine, report_workers, worker_lines

__all__ = ["TABLE_SECTIONS", "OwnTables", "measure_own_tables"]

TABLE_SECTIONS: Final = ("steps", "workers", "updates", "shards", "snapshots")
"""The sections that have such tables."""


@dataclass(frozen=True)
class OwnTables:
    """What was measured; empty, or None, where it was not asked for.

    Attributes:
        steps: steps beside bare pushes and pulls.
        workers: steps of several workers.
        updates: arithmetic of the optimizers beside a copy.
        shards: pulls and steps on several shards beside one.
        snapshots: what they cost a run.
        quick: whether this was the small form.
    """

    steps: list[StepLine]
    workers: list[WorkerLine]
    updates: list[UpdateLine]
    shards: list[ShardLine]
    snapshots: SnapshotFigures | None
    quick: bool

    def reports(self) -> list[str]:
        """The tables, in Markdown."""
        found = []
        if self.steps:
            found.append(report_steps(self.steps))
        if self.workers:
            found.append(report_workers(self.workers))
        if self.updates:
            found.append(report_updates(self.updates))
        if self.shards:
            found.append(report_shards(self.shards))
            found.append(aim_verdict(self.shards, quick=self.quick))
        if self.snapshots is not None:
            found.append("\n".join(report_snapshots(self.snapshots)))
        return found

    def document(self) -> dict[str, Any]:
        """Their part of the document of a run."""
        found: dict[str, Any] = {}
        if self.steps:
            found["steps"] = [{**asdict(each), "ratio": each.ratio} for each in self.steps]
        if self.workers:
            found["workers"] = [
                {**asdict(each), "case": each.case, "steps_per_second": each.steps_per_second}
                for each in self.workers
            ]
        if self.updates:
            found["updates"] = [{**asdict(each), "ratio": each.ratio} for each in self.updates]
        if self.shards:
            found["shards"] = [
                {**asdict(each), "case": each.case, "ratio": each.ratio} for each in self.shards
            ]
            found["shards_verdict"] = aim_verdict(self.shards, quick=self.quick)
        if self.snapshots is not None:
            found["snapshots"] = {
                **asdict(self.snapshots),
                "restart_ratio": self.snapshots.restart_ratio,
            }
        return found


def measure_own_tables(sections: Collection[str], *, quick: bool) -> OwnTables:
    """Measures some sections, one after the other."""
    steps: list[StepLine] = []
    workers: list[WorkerLine] = []
    updates: list[UpdateLine] = []
    shards: list[ShardLine] = []
    snapshots = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "steps" in sections or "workers" in sections:
            port_file = folder / "server.json"
            with (
                started(paramd_server(port_file), port_file) as (address,),
                paramd.connect(address, transport="tcp"),
            ):
                if "steps" in sections:
                    steps = [*step_lines(quick=quick), *row_step_lines(quick=quick)]
                if "workers" in sections:
                    workers = list(worker_lines(address, quick=quick))
        if "updates" in sections:
            updates = [*update_lines(quick=quick), *row_update_lines(quick=quick)]
        if "shards" in sections:
            shards = list(shard_lines(quick=quick))
        if "snapshots" in sections:
            state = folder / "snapshots"
            state.mkdir()
            snapshots = measure_snapshots(state, quick=quick, rounds=1 if quick else 3)
    return OwnTables(steps, workers, updates, shards, snapshots, quick)
