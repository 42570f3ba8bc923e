"""Every line of GLUON.md has a case, and every case goes the same on MXNet and on paramd."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.conformance.both import Both, Counts, report
from tests.conformance.cases import CASES, Case
from tests.conformance.differences import DIFFERENCES
from tests.conformance.lines import LINES
from tests.conformance.program import Program

_SOURCE = Path(__file__).resolve().parents[3] / "shared" / "GLUON.md"
_SECTIONS = {
    "Contexts": "contexts",
    "initialize": "initialize",
    "Values": "values",
    "row_sparse": "row_sparse",
    "Constant": "constant",
    "ParameterDict": "dict",
    "Trainer": "trainer",
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_goes_the_same_on_both(both: Both, counts: Counts, case: Case) -> None:
    program = Program()
    case.write(program)
    differences = both.compare(program, counts)
    assert not differences, report(program, differences)


def test_every_line_has_a_case() -> None:
    covered = {line for case in CASES for line in case.lines}
    covered |= {line for difference in DIFFERENCES for line in difference.lines}
    assert sorted(set(LINES) - covered) == []
    assert sorted(covered - set(LINES)) == []


def test_lines_are_those_of_the_source() -> None:
    if not _SOURCE.exists():
        pytest.skip("the source of the lines is not part of this repository")
    bullets: Counter[str] = Counter()
    section = ""
    for line in _SOURCE.read_text().splitlines():
        if line.startswith("## "):
            section = _SECTIONS.get(line[3:], "")
        elif section and line.startswith("- "):
            bullets[section] += 1
        elif section and line and not line.startswith(" ") and not bullets[section]:
            bullets[section] = 1
    numbers = {match[0] for line in LINES if (match := re.match(r"\w+\.\d+", line))}
    assert Counter(number.split(".")[0] for number in numbers) == bullets
