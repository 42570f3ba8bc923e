"""Who moves it: what each measured system provides, and the loop that times all of them alike.

NumPy and the standard library only: the peers' programs use it in their own environments.
"""

from __future__ import annotations

import argparse
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import Call, in_turn
from benchmarks.workloads import Ids, Workload, id_sets, workloads

__all__ = ["Calls", "Options", "Records", "System", "measure", "parse_options"]

Calls = Mapping[str, Call]
Floats = np.ndarray[Any, np.dtype[np.float32]]


class System(ABC):
    """One way to move values between a client and a server.

    Values are float32 and all ones until steps change them; pushed gradients are ones. Each method
    prepares a workload and gives its calls by name: 'pull', 'push', 'push+pull', 'update', 'step'.
    A call returns when its effect is there. What a system has no call for is left out.

    Attributes:
        name: in the results.
    """

    name: str

    def dense(self, workload: Workload) -> Calls:
        """One tensor."""
        return {}

    def rows(self, workload: Workload, ids: Sequence[Ids]) -> Calls:
        """Rows of a table: each call takes the next set of ids."""
        return {}

    def bulk(self, workload: Workload) -> Calls:
        """Many tensors in one call."""
        return {}

    def steps(self, workload: Workload) -> Calls:
        """A tensor that an optimizer on the server updates."""
        return {}

    @abstractmethod
    def received(self) -> Iterable[Any]:
        """The arrays that the last pull brought: of NumPy, or what `np.asarray` takes."""

    @abstractmethod
    def release(self) -> None:
        """Frees what the last workload took."""

    def prepare(self, workload: Workload, *, quick: bool) -> Calls:
        """The calls of a workload."""
        if workload.section == "rows":
            return self.rows(workload, id_sets(workload, quick=quick))
        prepare = {"dense": self.dense, "bulk": self.bulk, "steps": self.steps}
        return prepare[workload.section](workload)


class Records:
    """What a program has measured, a line of JSON each: `benchmarks.results` says what they hold.

    Args:
        path: appended to; several processes may take turns.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, **record: Any) -> None:
        """Writes one record, which stays whatever becomes of this process."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


@dataclass(frozen=True)
class Options:
    """What every measuring program is told.

    Attributes:
        records: where its results go.
        sections: what it measures.
        systems: whom; None for all that it has.
        quick: in the small form.
    """

    records: Records
    sections: tuple[str, ...]
    systems: tuple[str, ...] | None
    quick: bool

    @property
    def arguments(self) -> list[str]:
        """The command line that says the same."""
        arguments = ["--records", str(self.records.path), "--sections", ",".join(self.sections)]
        if self.systems is not None:
            arguments += ["--systems", ",".join(self.systems)]
        return [*arguments, *(["--quick"] if self.quick else [])]


def parse_options(description: str | None) -> Options:
    """Reads the command line of a measuring program."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--records", type=Path, required=True, help="file that results go to")
    parser.add_argument("--sections", required=True, help="with commas between them")
    parser.add_argument("--systems", help="with commas between them; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions")
    found = parser.parse_args()
    systems = None if found.systems is None else tuple(found.systems.split(","))
    return Options(Records(found.records), tuple(found.sections.split(",")), systems, found.quick)


def measure(systems: Sequence[System], options: Options, sections: Collection[str]) -> None:
    """Times some sections' calls of all systems, in turn.

    Raises:
        RuntimeError: where a pull brought something other than what the server holds.
    """
    for workload in workloads(sections, quick=options.quick):
        prepared = {
            system.name: system.prepare(workload, quick=options.quick) for system in systems
        }
        for name in workload.calls:
            calls = {key: each[name] for key, each in prepared.items() if name in each}
            spreads = in_turn(
                calls,
                repeats=workload.repeats(quick=options.quick),
                warm_up=1 if options.quick else 3,
                burst=workload.burst(quick=options.quick),
            )
            for timed, spread in spreads.items():
                options.records.add(
                    system=timed,
                    section=workload.section,
                    case=workload.case(name),
                    size_bytes=workload.size_bytes,
                    **asdict(spread),
                )
            if name == "pull":
                _check(workload, [system for system in systems if system.name in calls])
        for system in systems:
            system.release()


def _check(workload: Workload, systems: Iterable[System]) -> None:
    for system in systems:
        arrays = [np.asarray(each) for each in system.received()]
        elements = sum(each.size for each in arrays)
        ones = all(bool(np.all(each == 1)) for each in arrays)
        if elements * 4 != workload.size_bytes or not ones:
            raise RuntimeError(f"{system.name}: pull {workload.name} did not bring the values")
