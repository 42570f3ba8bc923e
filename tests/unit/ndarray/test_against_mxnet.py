"""The table of expressions, with MXNet 1.9.1 and with paramd."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramd import nd
from paramd.context import cpu
from tests.unit.ndarray import expression_program
from tests.unit.ndarray.expression_program import evaluate
from tests.unit.ndarray.expressions import EXPRESSIONS, STATEMENTS

_ORACLE = Path(__file__).parents[3] / ".cache" / "oracle" / "bin" / "python"

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(not _ORACLE.exists(), reason="no MXNet: `make conformance` builds it"),
]

_CASES = EXPRESSIONS + STATEMENTS

_NUMPY = "arrays that are NumPy's can be operands"
_MORE = "works, where MXNet's legacy arrays do not have it"

# Differences on purpose, by case.
_DIFFERENT = {
    "a.norm(ord=3)": "a ValueError that names the orders, where MXNet's engine fails",
    'a.tostype("x")': "a ValueError that names the storage types, where MXNet's engine fails",
    'nd.array([3, 2], dtype="int32") + nd.array([2, 2])': "dtypes promote as in NumPy",
    "np.ones(2) + nd.array([3, 2])": _NUMPY,
    "nd.array([3, 2]) + np.ones(2)": _NUMPY,
    "nd.array([7.0]) // 2": _MORE,
    "nd.array([1, 2]) @ nd.array([1, 2])": _MORE,
    "nd.array(5) + 1": _MORE,
    "float(nd.array([3]))": _MORE,
    "len(nd.array(5))": "a TypeError, as Python has it for what has no length",
    'nd.array([1.0] * 3000, dtype="float16").sum()': "NumPy 2 prints float16 in another way",
    "nd.sparse.row_sparse_array(([[1, 2], [3, 4]], [2, 0]), shape=(4, 2)).indices": (
        "ids are always sorted"
    ),
    "a[:, 1][0] = 9": "every basic index gives a view; in MXNet only those of rows in sequence",
    "a[0] = None": "None is no number",
}


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    done = subprocess.run(
        [_ORACLE, expression_program.__file__],
        input=json.dumps(_CASES),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "MXNET_STORAGE_FALLBACK_LOG_VERBOSE": "0", "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout[done.stdout.index("[{") :])
    return dict(zip(_CASES, answers, strict=True))


def _same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    if "error" in theirs:
        return theirs["error"][0] in ours.get("error", ())
    return _equal(ours, theirs)


def _equal(ours: Any, theirs: Any) -> bool:
    """Equal facts; values within 1e-6, since sums are added up in another order."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return False
        exact = ours.get("values") == theirs.get("values")
        return all(_equal(ours[key], theirs[key]) for key in theirs if exact or key != "text")
    if isinstance(theirs, list) and isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    if isinstance(theirs, float) and isinstance(ours, float):
        return ours == theirs or bool(np.isclose(ours, theirs, rtol=1e-6, atol=0, equal_nan=True))
    return type(ours) is type(theirs) and bool(ours == theirs)


@pytest.mark.parametrize("source", [case for case in _CASES if case not in _DIFFERENT])
def test_it_gives_what_mxnet_gives(source: str, expected: dict[str, Any]) -> None:
    ours = evaluate(source, {"nd": nd, "cpu": cpu})
    theirs = expected[source]
    assert _same(ours, theirs), f"{source}\nours   {ours}\nMXNet  {theirs}"


@pytest.mark.parametrize("source", _DIFFERENT)
def test_a_difference_on_purpose_still_differs(source: str, expected: dict[str, Any]) -> None:
    assert source in _CASES
    assert not _same(evaluate(source, {"nd": nd, "cpu": cpu}), expected[source])
