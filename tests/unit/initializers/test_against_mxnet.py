from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from paramd import initializer as init
from paramd.initializer import registry
from tests.unit.initializers import oracle_program

pytestmark = pytest.mark.conformance

_ROOT = Path(__file__).parents[3]
# Two samples of one distribution differ by chance once in a million runs; the seeds are fixed.
_ALPHA = 1e-6


class _Oracle:
    def __init__(self, folder: Path) -> None:
        python = _ROOT / ".cache/oracle/bin/python"
        if not python.exists():
            pytest.skip("needs MXNet's environment: make conformance builds it")
        result = subprocess.run(
            [python, oracle_program.__file__, folder / "values.npz"],
            check=True,
            capture_output=True,
            text=True,
            timeout=100,
            env={"PATH": os.environ["PATH"]},
        )
        self.described: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        with np.load(folder / "values.npz") as file:
            cases = [*oracle_program.RANDOM, *oracle_program.EXACT]
            self.values = {case: file[f"arr_{index}"] for index, case in enumerate(cases)}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> _Oracle:
    return _Oracle(tmp_path_factory.mktemp("oracle"))


def _ours(expression: str, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    return init.compute(eval(expression, vars(init)), "w", shape, np.dtype(dtype), 3, 0)


def _ks_distance(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> float:
    left, right = np.sort(left.reshape(-1)), np.sort(right.reshape(-1))
    points = np.concatenate([left, right])
    below = np.searchsorted(left, points, side="right") / left.size
    above = np.searchsorted(right, points, side="right") / right.size
    return float(np.abs(below - above).max())


def test_signatures_are_as_recorded(oracle: _Oracle) -> None:
    recorded = json.loads((Path(__file__).parent / "mxnet_signatures.json").read_text())
    assert oracle.described["signatures"] == recorded


def test_registered_names_are_the_same(oracle: _Oracle) -> None:
    # FusedRNN packs the weights of MXNet's own fused kernel, which no worker of paramd has.
    theirs = {k: v for k, v in oracle.described["registry"].items() if k != "fusedrnn"}
    ours = {name: klass.__name__ for name, klass in registry._registry.items()}
    assert {name: ours.get(name) for name in theirs} == theirs


@pytest.mark.parametrize("expression", oracle_program.DUMPED)
def test_dumps_is_the_same(expression: str, oracle: _Oracle) -> None:
    assert eval(expression, vars(init)).dumps() == oracle.described["dumps"][expression]


@pytest.mark.parametrize("case", oracle_program.EXACT, ids=str)
def test_values_are_the_same(case: tuple[str, tuple[int, ...], str], oracle: _Oracle) -> None:
    ours = _ours(*case)
    assert ours.dtype == oracle.values[case].dtype
    np.testing.assert_array_equal(ours, oracle.values[case])


@pytest.mark.parametrize("case", oracle_program.RANDOM, ids=str)
def test_distributions_are_the_same(
    case: tuple[str, tuple[int, ...], str], oracle: _Oracle
) -> None:
    ours = _ours(*case).astype(np.float64)
    theirs = oracle.values[case].astype(np.float64)
    assert ours.shape == theirs.shape
    # sqrt(-ln(alpha / 2) / 2 * (n + m) / (n m)), with n = m.
    assert _ks_distance(ours, theirs) < math.sqrt(-math.log(_ALPHA / 2) / ours.size)
    # The standard error of a deviation is below deviation / sqrt(2 n) for these, 6 of them allowed.
    assert ours.std() == pytest.approx(theirs.std(), rel=6 / math.sqrt(ours.size))
    assert abs(ours.mean() - theirs.mean()) < 6 * theirs.std() * math.sqrt(2 / ours.size)
    assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.35)
