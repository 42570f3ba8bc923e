"""What is aimed at, and whether one run has reached it.

Targets have numbers. 1: gRPC over TCP beside the raw floor and ps-lite. 2: one host, shared memory.
3: what updates cost. 5: training end to end. 6: how cost grows. The fourth, the server's memory, is
held by `tests/system/test_memory.py`; what shards gain is said by `benchmarks.shards`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.embedding_model import CASE as EMBEDDING
from benchmarks.results import Measurements
from benchmarks.steps import StepLine
from benchmarks.updates import UpdateLine

__all__ = ["Verdict", "report_verdicts", "verdicts"]

_OF_FLOOR: Final = 0.9
_TCP_TIMES_PS_LITE: Final = 2.5
_SHM_TIMES_PS_LITE: Final = 4.0
_OF_MEMCPY: Final = 0.85
_UPDATE_TIMES_PUSH: Final = 1.3
_OF_COPY: Final = 0.6
_TIMES_MXNET: Final = 1.5
# How much more than its share the larger of two sizes may cost.
_GROWTH: Final = 1.25
_LARGE: Final = 64 << 20
# Milliseconds.
_SHM_LIMITS: Final = {"pull 4 KB": 0.02, "pull 200 x 64 KB": 2.0}
_TIMED_OPTIMIZERS: Final = ("sgd", "sgd, momentum", "adam")
_GROWN: Final = (
    ("pull 64 MB", "pull 256 MB", 4),
    ("push 64 MB", "push 256 MB", 4),
    ("pull 10,000 rows", "pull 100,000 rows", 10),
    ("push 10,000 rows", "push 100,000 rows", 10),
)


@dataclass(frozen=True)
class Verdict:
    """One aim and what came of it.

    Attributes:
        target: its number.
        claim: what the value is.
        case: what was measured.
        value: that was reached.
        aim: that was to be reached, such as '>= 0.9'.
        met: whether it was.
    """

    target: int
    claim: str
    case: str
    value: float
    aim: str
    met: bool

    @property
    def verdict(self) -> str:
        """'met' or 'missed'."""
        return "met" if self.met else "missed"


def verdicts(
    found: Measurements, steps: Sequence[StepLine], updates: Sequence[UpdateLine]
) -> list[Verdict]:
    """The verdicts on all that was measured.

    Args:
        found: pulls, pushes and training, of all systems.
        steps: steps beside bare pushes.
        updates: arithmetic beside copies.
    """
    return [*_tcp(found), *_shared_memory(found), *_updates(steps, updates), *_end_to_end(found)]


def _at_least(
    target: int, claim: str, case: str, value: float | None, aim: float
) -> Iterator[Verdict]:
    if value is not None:
        yield Verdict(target, claim, case, value, f">= {aim:g}", value >= aim)


def _at_most(
    target: int, claim: str, case: str, value: float | None, aim: float
) -> Iterator[Verdict]:
    if value is not None:
        yield Verdict(target, claim, case, value, f"<= {aim:g}", value <= aim)


def _cases(found: Measurements, *sections: str) -> list[str]:
    return [case for case in found.cases if found.section(case) in sections]


def _size(found: Measurements, case: str) -> int:
    """Bytes of a dense case; 0 of others."""
    sizes = (found.find(case, system) for system in found.systems)
    return next((int(each["size_bytes"]) for each in sizes if each is not None), 0)


def _tcp(found: Measurements) -> Iterator[Verdict]:
    name = "paramd-tcp"
    for case in _cases(found, "dense", "rows", "bulk"):
        ratio = found.ratio(case, name, "floor-tcp")
        yield from _at_least(1, "TCP, of the floor's speed", case, ratio, _OF_FLOOR)
    for case in _cases(found, "dense"):
        if _size(found, case) >= _LARGE:
            ratio = found.ratio(case, name, "ps-lite")
            yield from _at_least(1, "TCP, times ps-lite", case, ratio, _TCP_TIMES_PS_LITE)
    small = found.ratio("pull 4 KB", name, "ps-lite")
    yield from _at_least(1, "TCP, times ps-lite", "pull 4 KB", small, 1.0)


def _shared_memory(found: Measurements) -> Iterator[Verdict]:
    name = "paramd-shm"
    for case in _cases(found, "dense", "rows", "bulk", "steps"):
        ratio = found.ratio(case, name, "fastest peer")
        yield from _at_least(2, "shm, times the fastest peer", case, ratio, 1.0)
        ratio = found.ratio(case, name, "ps-lite")
        yield from _at_least(2, "shm, times ps-lite", case, ratio, _SHM_TIMES_PS_LITE)
    for case in _cases(found, "dense"):
        if case.startswith("pull") and _size(found, case) >= _LARGE:
            ratio = found.ratio(case, name, "memcpy")
            yield from _at_least(2, "shm, of memcpy's speed", case, ratio, _OF_MEMCPY)
    for case, limit in _SHM_LIMITS.items():
        record = found.find(case, name)
        took = None if record is None else float(record["median_ms"])
        yield from _at_most(2, "shm, ms", case, took, limit)


def _updates(steps: Sequence[StepLine], updates: Sequence[UpdateLine]) -> Iterator[Verdict]:
    for step in steps:
        claim = "push and update, times the push"
        yield from _at_most(3, claim, step.case, step.ratio, _UPDATE_TIMES_PUSH)
    for update in updates:
        if update.case in _TIMED_OPTIMIZERS:
            claim = "arithmetic, of a copy's bandwidth"
            yield from _at_least(3, claim, update.case, update.ratio, _OF_COPY)


def _end_to_end(found: Measurements) -> Iterator[Verdict]:
    for system in ("paramd-tcp", "paramd-unix", "paramd-shm"):
        ratio = found.ratio(EMBEDDING, system, "ps-lite")
        yield from _at_least(5, f"{system}, times MXNet", EMBEDDING, ratio, _TIMES_MXNET)
    for less, more, times in _GROWN:
        small, large = found.find(less, "paramd-tcp"), found.find(more, "paramd-tcp")
        if small is not None and large is not None:
            growth = float(large["median_ms"]) / float(small["median_ms"]) / times
            claim = f"TCP, 1/{times} of its time beside {less}"
            yield from _at_most(6, claim, more, growth, _GROWTH)


def report_verdicts(found: Sequence[Verdict]) -> str:
    """The table, in Markdown."""
    rows = [
        "| target | what | case | measured | aimed at | |",
        "| ---: | --- | --- | ---: | ---: | --- |",
    ]
    for each in found:
        told = each.verdict if each.met else f"**{each.verdict}**"
        rows.append(
            f"| {each.target} | {each.claim} | {each.case} | {each.value:.3g} | {each.aim} "
            f"| {told} |"
        )
    return "\n".join(rows)
