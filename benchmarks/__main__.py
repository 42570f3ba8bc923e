"""`make bench`: paramd beside the raw gRPC floor, memory itself, and what else a user could take.

Every system runs in turn, never two at a time; what it measures alternates with nothing but the
floor and memcpy. Prints tables, and writes results.json, results.md and a plot.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from tqdm import tqdm

from benchmarks.groups import GROUPS, ROOT, SYSTEMS, run_group
from benchmarks.own_tables import TABLE_SECTIONS, OwnTables, measure_own_tables
from benchmarks.results import Measurements
from benchmarks.targets import Verdict, report_verdicts, verdicts
from benchmarks.workloads import MOVING_SECTIONS

SECTIONS: Final = tuple(dict.fromkeys((*MOVING_SECTIONS, "latency", "embedding", *TABLE_SECTIONS)))
_PLOT_PYTHON: Final = ROOT / ".cache/bench/plot/bin/python"
_PLOT_S: Final = 120.0


def measure(
    folder: Path, *, sections: Sequence[str], systems: Sequence[str], quick: bool
) -> tuple[Measurements, OwnTables]:
    """Runs every program, then what concerns paramd alone.

    Args:
        folder: for logs and records.
        sections: some of SECTIONS.
        systems: some of SYSTEMS.
        quick: in the small form.
    """
    records: list[dict[str, Any]] = []
    for group in (bar := tqdm(GROUPS, leave=False, disable=None)):
        bar.set_description(group.name)
        records += run_group(group, folder, sections=sections, systems=systems, quick=quick)
    own = any(system.startswith("paramd") for system in systems)
    tables = measure_own_tables(sections if own else (), quick=quick)
    return Measurements(records, systems), tables


def report(
    found: Measurements, tables: OwnTables, judged: Sequence[Verdict], machine: object
) -> str:
    """All tables, in Markdown."""
    parts = [found.report()] if found.records or found.unavailable else []
    parts += tables.reports()
    if judged:
        parts.append(report_verdicts(judged))
    if tables.quick:
        parts.append("The small form (--quick): it shows that everything runs, and no figures.")
    return "\n\n".join([*parts, f"{machine}"])


def _machine() -> dict[str, object]:
    return {
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "numpy": np.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "system": platform.platform(),
    }


def _draw(results: Path) -> str:
    """Draws the results; gives what there is to say about it."""
    if not _PLOT_PYTHON.exists():
        return "no plot: `make bench-peers` builds its environment"
    images = [str(results.with_suffix(suffix)) for suffix in (".svg", ".png")]
    command = [str(_PLOT_PYTHON), "-m", "benchmarks.plot", str(results.absolute())]
    done = subprocess.run(
        [*command, *(str(Path(image).absolute()) for image in images)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_PLOT_S,
        check=False,
    )
    if done.returncode:
        return f"no plot: {done.stderr.strip().splitlines()[-1]}"
    return f"plot: {', '.join(images)}"


def _chosen(argument: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Those that were asked for, in their own order."""
    asked = text.split(",")
    unknown = [each for each in asked if each not in known]
    if unknown:
        sys.exit(f"{argument} takes some of {','.join(known)}, but got {','.join(unknown)}")
    return tuple(each for each in known if each in asked)


def main() -> int:
    """Measures and reports; gives 1 where a program that could run has failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="by default %(default)s")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="by default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("bench-results/results.json"))
    options = parser.parse_args()
    # What is running is ended then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sections = _chosen("--sections", options.sections, SECTIONS)
    systems = _chosen("--systems", options.systems, SYSTEMS)
    folder: Path = options.output.parent.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    started = time.strftime("%Y-%m-%dT%H:%M:%S")
    found, tables = measure(folder, sections=sections, systems=systems, quick=options.quick)
    judged = verdicts(found, tables.steps, tables.updates)
    machine = _machine()
    document = {
        "schema": 1,
        "started": started,
        "quick": options.quick,
        "machine": machine,
        **found.document(),
        "verdicts": [{**asdict(each), "verdict": each.verdict} for each in judged],
        **tables.document(),
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    text = report(found, tables, judged, machine)
    options.output.with_suffix(".md").write_text(text + "\n")
    print(text)
    print(f"\n{_draw(options.output)}")
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())
