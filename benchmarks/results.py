"""What a run has measured: the document of results.json, and its table.

The document is one JSON object:

- `schema`: 1. `started`: local time, ISO 8601. `quick`: whether it was the small form, whose
  figures say nothing. `machine`: `python`, `grpcio`, `numpy`, `cores`, `machine`, `system`.
- `systems`: by name an object with `unavailable` (why nothing, or not all, was measured; null) and
  `versions` (of what a peer consists of).
- `measurements`: a list of objects with `system`, `section`, `case`, and
  - in the sections `dense`, `rows`, `bulk` and `steps`: `size_bytes` of the values that one pull,
    push or update has, `median_ms`, `low_ms` and `high_ms` (10th and 90th percentile), `repeats`;
  - in `latency`: `clients`, `median_ms`, `p90_ms`, `p99_ms` over the calls of all clients,
    `repeats`, `pulls_per_second`;
  - in `embedding`: `samples_per_second` of all workers, and of `each`.
- `ratios`: a list of objects with `case` and `ratios`, by name how many times as fast one system is
  as another, where both were measured.
- `verdicts`: a list of objects with `target` (its number), `claim`, `case`, `value`, `aim` and
  `verdict`, 'met' or 'missed'.
- `steps`, `workers`, `updates`, `shards`, `snapshots`: paramd's own tables, where they were
  measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

__all__ = ["PEERS", "Measurements"]

PEERS: Final = ("ps-lite", "torch-rpc", "ray")
_FASTEST_PEER: Final = "fastest peer"
# How many times as fast the first is as the second.
_RATIOS: Final[Mapping[str, tuple[str, str]]] = {
    "TCP / floor": ("paramd-tcp", "floor-tcp"),
    "Unix / floor": ("paramd-unix", "floor-unix"),
    "shm / memcpy": ("paramd-shm", "memcpy"),
    "TCP / ps-lite": ("paramd-tcp", "ps-lite"),
    "shm / ps-lite": ("paramd-shm", "ps-lite"),
    "shm / fastest peer": ("paramd-shm", _FASTEST_PEER),
}

Record = Mapping[str, Any]


class Measurements:
    """The records of all programs.

    Args:
        records: as they were written: with 'case' a measurement, with 'unavailable' or 'versions'
            something about a system.
        systems: that were to be measured, in the order of the table.
    """

    def __init__(self, records: Iterable[Record], systems: Sequence[str]) -> None:
        self.systems = tuple(systems)
        self.records: list[Record] = []
        self.unavailable: dict[str, str] = {}
        self.versions: dict[str, Mapping[str, str]] = {}
        self.failed = False
        self._by_case: dict[str, dict[str, Record]] = {}
        for record in records:
            self._add(record)

    def _add(self, record: Record) -> None:
        if "unavailable" in record:
            self.unavailable[record["system"]] = record["unavailable"]
            self.failed |= bool(record.get("failed"))
        elif "versions" in record:
            self.versions[record["system"]] = record["versions"]
        else:
            self.records.append(record)
            self._by_case.setdefault(record["case"], {})[record["system"]] = record

    @property
    def cases(self) -> list[str]:
        """All of them, in the order in which they were first measured."""
        return list(self._by_case)

    def find(self, case: str, system: str) -> Record | None:
        """What was measured of a system; 'fastest peer' is a system, too."""
        found = self._by_case.get(case, {})
        if system != _FASTEST_PEER:
            return found.get(system)
        peers = [found[peer] for peer in PEERS if peer in found]
        return max(peers, key=_speed, default=None)

    def section(self, case: str) -> str:
        """The section of a case."""
        return next(str(record["section"]) for record in self._by_case[case].values())

    def ratio(self, case: str, system: str, other: str) -> float | None:
        """How many times as fast a system is as another; None where one was not measured."""
        found, beside = self.find(case, system), self.find(case, other)
        return None if found is None or beside is None else _speed(found) / _speed(beside)

    def ratios(self, case: str) -> dict[str, float]:
        """All ratios of a case by name."""
        every = {name: self.ratio(case, *pair) for name, pair in _RATIOS.items()}
        return {name: value for name, value in every.items() if value is not None}

    def document(self) -> dict[str, Any]:
        """Its part of the document of a run."""
        return {
            "systems": {
                system: {
                    "unavailable": self.unavailable.get(system),
                    "versions": dict(self.versions.get(system, {})),
                }
                for system in self.systems
            },
            "measurements": list(self.records),
            "ratios": [{"case": case, "ratios": self.ratios(case)} for case in self.cases],
        }

    def report(self) -> str:
        """The table, in Markdown, and what it does not have."""
        names = [name for name, pair in _RATIOS.items() if self._compares(pair)]
        rows = [
            f"| {' | '.join(['case', *self.systems, *names])} |",
            f"| {' | '.join(['---', *['---:'] * (len(self.systems) + len(names))])} |",
        ]
        for case in self.cases:
            cells = [self._cell(case, system) for system in self.systems]
            ratios = self.ratios(case)
            cells += [f"{ratios[name]:.2f}" if name in ratios else "-" for name in names]
            rows.append(f"| {' | '.join([case, *cells])} |")
        rows += [
            "",
            "Milliseconds: the median (10th to 90th percentile); of many clients the 50th / 90th / "
            "99th percentile; of the embedding model samples a second of both workers. Ratios: how "
            "many times as fast.",
        ]
        rows += [f"\n{system}: not available: {why}" for system, why in self.unavailable.items()]
        return "\n".join(rows)

    def _compares(self, pair: tuple[str, str]) -> bool:
        known = (*self.systems, *([_FASTEST_PEER] if {*PEERS} & {*self.systems} else []))
        return all(system in known for system in pair)

    def _cell(self, case: str, system: str) -> str:
        record = self.find(case, system)
        if record is None:
            return "not available" if system in self.unavailable else "-"
        if "samples_per_second" in record:
            return f"{record['samples_per_second']:,.0f}"
        median = _digits(record["median_ms"])
        if "p99_ms" in record:
            return f"{median} / {_digits(record['p90_ms'])} / {_digits(record['p99_ms'])}"
        return f"{median} ({_digits(record['low_ms'])}-{_digits(record['high_ms'])})"


def _speed(record: Record) -> float:
    rate = record.get("samples_per_second")
    return 1 / float(record["median_ms"]) if rate is None else float(rate)


def _digits(milliseconds: float) -> str:
    """About three significant digits."""
    decimals = next(
        (count for least, count in ((100, 0), (10, 1), (1, 2), (0.01, 3)) if milliseconds >= least),
        4,
    )
    return f"{milliseconds:.{decimals}f}"
