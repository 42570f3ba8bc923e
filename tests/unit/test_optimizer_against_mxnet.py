from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramd import lr_scheduler
from paramd import optimizer as opt
from paramd.compression import TwoBit, expand
from tests.unit import optimizer_oracle

pytestmark = pytest.mark.conformance

_ROOT = Path(__file__).parents[2]
# What 1.9.1 has and paramd has not.
_LACKING = {
    *("adamax", "ccsgd", "ftml", "groupadagrad", "lars", "lbsgd", "nadam", "sgld", "test"),
}


@pytest.fixture(scope="module")
def mxnet() -> dict[str, Any]:
    python = _ROOT / ".cache/oracle/bin/python"
    if not python.exists():
        pytest.skip("needs MXNet's environment: make conformance builds it")
    result = subprocess.run(
        [python, optimizer_oracle.__file__],
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
        env={"PATH": os.environ["PATH"]},
    )
    described: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return described


def test_names_are_those_of_mxnet(mxnet: dict[str, Any]) -> None:
    # 1.9.1 has no adamw.
    assert {*mxnet["optimizers"]} == {*opt.NAMES, *_LACKING} - {"adamw"}


@pytest.mark.parametrize("name", [name for name in opt.NAMES if name != "adamw"])
def test_arguments_and_defaults_are_those_of_mxnet(name: str, mxnet: dict[str, Any]) -> None:
    theirs = mxnet["optimizers"][name]
    for only_there in ("param_idx2name", "sym", "param_dict"):
        del theirs[only_there]
    ours = {one.name: one.default for one in dataclasses.fields(type(opt.create(name)))}
    assert ours == theirs


def test_schedules_take_the_arguments_in_order(mxnet: dict[str, Any]) -> None:
    for name, theirs in mxnet["scheduler_signatures"].items():
        parameters = inspect.signature(getattr(lr_scheduler, name)).parameters.values()
        ours = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
        assert ours == theirs


@pytest.mark.parametrize(
    "case", range(len(optimizer_oracle.SCHEDULES)), ids=lambda at: optimizer_oracle.SCHEDULES[at][0]
)
def test_schedules_give_the_same_to_the_last_bit(case: int, mxnet: dict[str, Any]) -> None:
    expression, counts = optimizer_oracle.SCHEDULES[case]
    schedule = eval(expression, vars(lr_scheduler))
    assert [schedule(count) for count in counts] == mxnet["schedules"][case]


@pytest.mark.parametrize("case", range(len(optimizer_oracle.RATES)))
def test_optimizers_give_the_same_rates(case: int, mxnet: dict[str, Any]) -> None:
    name, arguments, expression = optimizer_oracle.RATES[case]
    schedule = eval(expression, vars(lr_scheduler))
    with warnings.catch_warnings():
        # Where the learning rate replaces the schedule's; MXNet prints that.
        warnings.simplefilter("ignore", UserWarning)
        made = opt.create(name, lr_scheduler=schedule, **eval(arguments))
    first = made.begin_num_update + 1
    ours = [made.rate(count) for count in range(first, first + optimizer_oracle.UPDATES)]
    assert ours == mxnet["rates"][case]


@pytest.mark.parametrize("case", range(len(optimizer_oracle.THRESHOLDS)))
def test_compressed_pushes_give_the_same(case: int, mxnet: dict[str, Any]) -> None:
    threshold = optimizer_oracle.THRESHOLDS[case]
    compression = TwoBit(threshold)
    shape = (optimizer_oracle.ELEMENTS,)
    theirs = iter(mxnet["sums"][case])
    for workers in (1, 2):
        pushed = [optimizer_oracle.gradients(np, worker) for worker in range(workers)]
        residuals: list[Any] = [None] * workers
        for push in range(optimizer_oracle.PUSHES):
            total = np.zeros(shape, np.float32)
            for worker in range(workers):
                packed, residuals[worker] = compression.compress(
                    pushed[worker][push], residuals[worker]
                )
                total += expand(packed, shape, np.float32, threshold)
            np.testing.assert_array_equal(total, np.array(next(theirs), np.float32))
