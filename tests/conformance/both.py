"""Runs programs on both libraries, and counts what succeeded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tests.conformance.compare import Difference, compare_programs
from tests.conformance.interpreter import Interpreter
from tests.conformance.oracle import Oracle
from tests.conformance.program import Program

__all__ = ["Both", "Counts"]

Steps = list[dict[str, Any]]
Outcomes = list[dict[str, Any]]


class Counts:
    """How much has been run.

    Attributes:
        programs: programs that were run.
        steps: their steps.
        members: for 'Class.member', how many calls succeeded on both sides.
    """

    def __init__(self) -> None:
        self.programs = 0
        self.steps = 0
        self.members: Counter[str] = Counter()

    def add(self, program: Steps, mxnet: Outcomes, paramd: Outcomes) -> None:
        """Adds a program that was run on both."""
        self.programs += 1
        self.steps += len(program)
        for step, theirs, ours in zip(program, mxnet, paramd, strict=True):
            if "error" not in theirs and "error" not in ours:
                self.members.update(_names_of(step, theirs))

    def merge(self, other: Counts) -> None:
        """Adds what another one counted."""
        self.programs += other.programs
        self.steps += other.steps
        self.members.update(other.members)

    def __str__(self) -> str:
        calls = "\n".join(f"  {name:42}{count:7}" for name, count in sorted(self.members.items()))
        return (
            f"{self.programs} programs, {self.steps} steps; calls that succeeded on both:\n{calls}"
        )


class Both:
    """MXNet and paramd side by side.

    Args:
        oracle: the running MXNet.
        paramd: an interpreter on paramd.
        forget: deletes every trainer and parameter from paramd's server.
    """

    def __init__(self, oracle: Oracle, paramd: Interpreter, forget: Any) -> None:
        self._oracle = oracle
        self._paramd = paramd
        self._forget = forget

    def run(self, program: Program, *, as_is: bool = False) -> tuple[Outcomes, Outcomes]:
        """Runs a program on both.

        Returns:
            The outcomes of MXNet, and those of paramd.
        """
        mxnet = self._oracle.run(program.steps, as_is=as_is)
        try:
            paramd = self._paramd.run(program.steps)
        finally:
            self._forget()
        return mxnet, paramd

    def run_on(self, side: str, program: Program) -> Outcomes:
        """Runs a program on one of them only: 'mxnet' or 'paramd'."""
        if side == "mxnet":
            return self._oracle.run(program.steps)
        try:
            return self._paramd.run(program.steps)
        finally:
            self._forget()

    def compare(self, program: Program, counts: Counts | None = None) -> list[Difference]:
        """Runs a program on both and compares."""
        mxnet, paramd = self.run(program)
        if counts is not None:
            counts.add(program.steps, mxnet, paramd)
        return compare_programs(program.steps, mxnet, paramd)


def report(program: Program, differences: Sequence[Difference]) -> str:
    """Writes a program with its differences for a person."""
    if not differences:
        return "no difference"
    last = max(difference.step for difference in differences)
    steps = "\n".join(f"{i:4} {_line(step)}" for i, step in enumerate(program.steps[: last + 1]))
    return "\n".join(["", steps, *map(str, differences)])


def _line(step: Mapping[str, Any]) -> str:
    shown = {k: v for k, v in step.items() if k not in ("op", "on", "member", "as")}
    return f"{step.get('as', '')} = {step['op']} {step.get('on')} {step.get('member', '')} {shown}"


def _names_of(step: Mapping[str, Any], outcome: Mapping[str, Any]) -> list[str]:
    """The members that a step used: 'Parameter.data', 'Parameter.shape=', 'NDArray[]='."""
    kind, owner = step["op"], outcome["class"]
    if kind == "call" and step["on"] is None:
        return [step["member"]]
    if kind in ("call", "get"):
        return [f"{owner}.{step['member']}"]
    if kind == "set":
        return [f"{owner}.{step['member']}="]
    if kind == "state":
        return [f"{owner} read as a whole"]
    return [f"{owner} {kind}"]
