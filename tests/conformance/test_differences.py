"""Each entry of the list still differs, and as it says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.conformance.both import Both, report
from tests.conformance.compare import compare_programs
from tests.conformance.differences import DIFFERENCES, OnPurpose, Raises
from tests.conformance.interpreter import decode_array
from tests.conformance.program import Program


@pytest.mark.parametrize("entry", DIFFERENCES, ids=str)
def test_entry_still_differs(both: Both, entry: OnPurpose) -> None:
    program = Program()
    key = entry.write(program)
    mxnet, paramd = both.run(program, as_is=entry.as_is)
    found = compare_programs(program.steps, mxnet, paramd)
    assert found, f"nothing differs any more: both gave {paramd[-1]}"
    names = [step["as"] for step in program.steps]
    assert names[found[0].step] == (key.name if key else names[-1]), report(program, found)
    _check(paramd[-1], entry.gives)


def _check(outcome: dict[str, Any], expected: Any) -> None:
    if isinstance(expected, Raises):
        assert expected.error in outcome.get("error", ()), outcome
        return
    assert "error" not in outcome, outcome
    value = outcome["value"]
    if isinstance(value, dict) and "data" in value:
        assert decode_array(value).tolist() == expected
    elif isinstance(value, dict):
        assert value.get("name", value) == expected or expected.items() <= value.items()
    elif isinstance(value, list):
        assert [_plain(item) for item in value] == expected
    else:
        assert value == expected


def _plain(value: Any) -> Any:
    return value["text"] if isinstance(value, dict) and value.get("kind") == "context" else value


def test_names_are_unique() -> None:
    assert [name for name, n in Counter(entry.name for entry in DIFFERENCES).items() if n > 1] == []
