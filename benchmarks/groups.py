"""Programs that measure, one at a time, each with a process group of its own that it ends with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.own import OWN_SYSTEMS
from benchmarks.system import Options, Records
from benchmarks.workloads import MOVING_SECTIONS

__all__ = ["GROUPS", "ROOT", "SYSTEMS", "Group", "run_group"]

ROOT: Final = Path(__file__).parents[1]
_CALLS: Final = (*MOVING_SECTIONS, "latency")
_END_S: Final = 10.0


@dataclass(frozen=True)
class Group:
    """A program and the systems that it measures.

    Attributes:
        name: of its log.
        systems: in the results.
        module: the program.
        sections: that it has something for.
        environment: the virtual environment that it runs in, relative to the root of the project;
            '' for this one.
        build_log: where `make` leaves what building that said.
        limit_s: it is ended after that long.
    """

    name: str
    systems: tuple[str, ...]
    module: str
    sections: tuple[str, ...]
    environment: str = ""
    build_log: str = ""
    limit_s: float = 420.0

    @property
    def python(self) -> Path:
        """The interpreter that runs it."""
        return ROOT / self.environment / "bin/python" if self.environment else Path(sys.executable)

    def missing(self) -> str:
        """Why its environment cannot be used; '' where it can."""
        if not self.environment or (ROOT / self.environment / ".installed").exists():
            return ""
        log = ROOT / self.build_log
        said = _last_line(log) if log.exists() else ""
        hint = said or "`make bench-peers` builds it"
        return f"no environment {self.environment}: {hint}"


GROUPS: Final = (
    Group("own", OWN_SYSTEMS, "benchmarks.own", (*_CALLS, "embedding"), limit_s=600.0),
    Group(
        "ps-lite",
        ("ps-lite",),
        "benchmarks.peers.pslite",
        (*_CALLS, "embedding"),
        ".cache/oracle",
        ".cache/bench/oracle.log",
    ),
    Group(
        "torch-rpc",
        ("torch-rpc",),
        "benchmarks.peers.torch_rpc",
        _CALLS,
        ".cache/bench/torch",
        ".cache/bench/torch.log",
    ),
    Group(
        "ray",
        ("ray",),
        "benchmarks.peers.ray_actor",
        _CALLS,
        ".cache/bench/ray",
        ".cache/bench/ray.log",
    ),
)
SYSTEMS: Final = tuple(system for group in GROUPS for system in group.systems)


def run_group(
    group: Group, folder: Path, *, sections: Collection[str], systems: Collection[str], quick: bool
) -> list[dict[str, Any]]:
    """Runs a program to its end, and ends what it leaves behind.

    Args:
        group: the program.
        folder: where its log and its records are kept.
        sections: to be measured, by this or other programs.
        systems: likewise.
        quick: in the small form.

    Returns:
        Its records. What could not be measured has one with 'unavailable', which says why.
    """
    chosen = tuple(each for each in group.sections if each in sections)
    wanted = tuple(each for each in group.systems if each in systems)
    if not chosen or not wanted:
        return []
    why = group.missing()
    if why:
        return [{"system": system, "unavailable": why} for system in wanted]
    records, log = folder / f"{group.name}.jsonl", folder / f"{group.name}.log"
    records.unlink(missing_ok=True)
    options = Options(Records(records), chosen, wanted, quick)
    command = [str(group.python), "-m", group.module, *options.arguments]
    with log.open("w") as said:
        why = _run(command, said.fileno(), group.limit_s)
    lines = records.read_text().splitlines() if records.exists() else []
    found = [json.loads(line) for line in lines]
    if why:
        why += f": {_last_line(log)} ({log})"
        found += [{"system": system, "unavailable": why, "failed": True} for system in wanted]
    return found


def _run(command: Sequence[str], log: int, limit_s: float) -> str:
    """Runs a command; gives what went wrong, else ''."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # The programs that it starts belong to its process group, as far as they stay in it.
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return f"not done after {limit_s:.0f} s"
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"ended with {process.returncode}" if process.returncode else ""


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    # `make` says last that it has failed, and before why.
    telling = (line for line in reversed(lines) if line and not line.startswith("make"))
    return next((line[:200] for line in telling), "no word in its log")
