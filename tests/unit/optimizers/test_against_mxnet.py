"""Every update rule beside MXNet 1.9.1's optimizer, over several steps."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tests.unit.optimizers import oracle_program
from tests.unit.optimizers.cases import IDS, SHAPE, Case, cases
from tests.unit.optimizers.rules import Run

pytestmark = pytest.mark.conformance

_ROOT = Path(__file__).parents[3]
_CASES: Final = list(cases())

# The largest difference, in units of the last place of the larger of the value and 1/4, after any
# of the steps. docs/optimizers.md has the same table.
#
# float16 without multi_precision: MXNet rounds after each operation, paramd once.
_ULPS: Final = {"float16": 8, "float16 multi_precision": 1, "float32": 8, "float64": 8}
# MXNet takes float32 for what these two compute from t, of any dtype of weight.
_COARSE_ULPS: Final = {("adam", "float64"): 2.0**30, ("lamb", "float64"): 2.0**32}


class _Oracle:
    def __init__(self, folder: Path) -> None:
        python = _ROOT / ".cache/oracle/bin/python"
        if not python.exists():
            pytest.skip("needs MXNet's environment: make conformance builds it")
        subprocess.run(
            [python, oracle_program.__file__, folder / "weights.npz"],
            check=True,
            capture_output=True,
            timeout=100,
            env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
        )
        with np.load(folder / "weights.npz") as file:
            self.weights = {str(case): file[f"arr_{i}"] for i, case in enumerate(_CASES)}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> _Oracle:
    return _Oracle(tmp_path_factory.mktemp("oracle"))


def _steps(case: Case) -> np.ndarray[Any, Any]:
    run = Run(case.name, case.arguments, case.weight(), lr_mult=case.lr_mult)
    ids = np.array(IDS) if case.sparse else None
    weights = []
    for gradient in case.gradients():
        run.step(gradient, ids)
        weights.append(run.value())
    return np.stack(weights)


def _ulps(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    wide_ours, wide_theirs = ours.astype(np.float64), theirs.astype(np.float64)
    unit = np.finfo(ours.dtype).eps * np.maximum(np.abs(wide_theirs), 0.25)
    return float((np.abs(wide_ours - wide_theirs) / unit).max())


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_weights_are_the_same(case: Case, oracle: _Oracle) -> None:
    ours, theirs = _steps(case), oracle.weights[str(case)]
    assert ours.dtype == theirs.dtype == case.dtype
    assert ours.shape == theirs.shape
    if case.sparse and case.arguments.get("lazy_update", True):
        # Where MXNet has no row-sparse kernel it updates the other rows with a gradient of 0.
        others = np.setdiff1d(np.arange(SHAPE[0]), IDS)
        assert (ours[:, others] == case.weight()[others]).all()
        ours, theirs = ours[:, IDS], theirs[:, IDS]
    mixed = " multi_precision" if case.arguments.get("multi_precision") else ""
    limit = _COARSE_ULPS.get((case.name, case.dtype), _ULPS[case.dtype + mixed])
    assert _ulps(ours, theirs) <= limit
