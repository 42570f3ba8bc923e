"""Symbols of parameters, by themselves and as MXNet reads them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramd.initializer import Xavier, Zero
from paramd.symbol import Symbol, var

_ORACLE = Path(__file__).parents[2] / ".cache" / "oracle" / "bin" / "python"

# Arguments of var(), with initializers by the name of their class.
_CASES: list[dict[str, Any]] = [
    {"name": "w"},
    {"name": "w", "shape": [3, 4], "dtype": "float32", "stype": "default"},
    {"name": "net_w", "shape": [3, 0], "dtype": "float16", "lr_mult": 2.0, "wd_mult": 0.5},
    {"name": "w", "shape": [3], "dtype": "bool", "init": "zeros", "stype": "row_sparse"},
    {"name": "w", "shape": [], "dtype": "int64", "init": "class Xavier", "stype": "csr"},
    {"name": "w", "shape": [5, 1], "dtype": "bfloat16", "init": "class Zero", "lr_mult": 1},
    {"name": 'w"eight\\ ünï/1', "dtype": "uint8"},
    {"name": "w", "dtype": "float64", "wd_mult": 1e-05},
    {"name": "w", "dtype": "int8"},
    {"name": "w", "dtype": "int32"},
]

_PROGRAM = """
import json, sys
import mxnet as mx, numpy as np
answers = []
for case, graph in json.load(sys.stdin):
    read = mx.sym.load_json(graph)
    case["shape"] = tuple(case["shape"]) if "shape" in case else None
    if case.get("dtype") == "bfloat16":
        case["dtype"] = np.dtype([("bfloat16", np.uint16)])
    init = case.get("init") or ""
    if init.startswith("class "):
        case["init"] = getattr(mx.init, init[6:])()
    made = mx.sym.var(**case)
    answers.append([
        [one.name, one.list_attr(), one.attr_dict(), one.list_arguments(), one.list_outputs(),
         one.list_inputs(), one.list_auxiliary_states(), repr(one), json.loads(one.tojson())]
        for one in (read, made)
    ])
parameter = mx.gluon.Parameter(
    "p", shape=(3, 4), dtype="float16", lr_mult=2.0, init=mx.init.Xavier(), stype="row_sparse"
)
answers.append(parameter.var().attr_dict())
json.dump(answers, sys.stdout)
"""


def _made(case: dict[str, Any]) -> Symbol:
    arguments = dict(case)
    if "shape" in arguments:
        arguments["shape"] = tuple(arguments["shape"])
    made: dict[Any, Any] = {"class Xavier": Xavier, "class Zero": Zero}
    if arguments.get("init") in made:
        arguments["init"] = made[arguments["init"]]()
    return var(**arguments)


def _facts(symbol: Symbol) -> list[Any]:
    return [
        symbol.name,
        symbol.list_attr(),
        symbol.attr_dict(),
        symbol.list_arguments(),
        symbol.list_outputs(),
        symbol.list_inputs(),
        symbol.list_auxiliary_states(),
        repr(symbol),
        json.loads(symbol.tojson()),
    ]


def test_a_symbol_shows_what_it_was_given() -> None:
    init = Xavier()
    symbol = var(
        "w", shape=(3, 4), dtype="float16", lr_mult=2.0, wd_mult=0.5, init=init, stype="row_sparse"
    )
    assert repr(symbol) == "<Symbol w>"
    assert (symbol.name, symbol.shape) == ("w", (3, 4))
    assert symbol.dtype == np.dtype("float16")
    assert (symbol.lr_mult, symbol.wd_mult, symbol.stype) == (2.0, 0.5, "row_sparse")
    assert symbol.init is init
    assert symbol.attr("__shape__") == "(3, 4)"
    assert symbol.attr("__dtype__") == "2"
    assert symbol.attr("__storage_type__") == "1"
    assert symbol.attr("lr_mult") == symbol.attr("__lr_mult__") == "2.0"
    assert symbol.attr("__init__") == init.dumps()
    assert symbol.attr("shape") is None


def test_a_symbol_of_a_name_alone_has_no_attributes() -> None:
    symbol = var("w")
    assert symbol.attr_dict() == {}
    assert json.loads(symbol.tojson())["nodes"] == [{"op": "null", "name": "w", "inputs": []}]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": 3}, TypeError, "expect a string"),
        ({"name": "w", "stype": "dense"}, ValueError, "stype is one of"),
        ({"name": "w", "init": 3}, TypeError, "init is an initializer"),
        ({"name": "w", "dtype": "complex64"}, TypeError, "dtype"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        var(**arguments)


@pytest.fixture(scope="module")
def answers() -> list[Any]:
    done = subprocess.run(
        [_ORACLE, "-c", _PROGRAM],
        input=json.dumps([[case, _made(case).tojson()] for case in _CASES]),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    parsed: list[Any] = json.loads(done.stdout)
    return parsed


@pytest.mark.conformance
@pytest.mark.skipif(not _ORACLE.exists(), reason="no MXNet: `make conformance` builds it")
@pytest.mark.parametrize("index", range(len(_CASES)))
def test_mxnet_reads_the_json_and_makes_the_same(index: int, answers: list[Any]) -> None:
    read, made = answers[index]
    assert read == made
    assert _facts(_made(_CASES[index])) == made


@pytest.mark.conformance
@pytest.mark.skipif(not _ORACLE.exists(), reason="no MXNet: `make conformance` builds it")
def test_the_attributes_are_those_of_a_gluon_parameter(answers: list[Any]) -> None:
    symbol = var(
        "p",
        shape=(3, 4),
        dtype="float16",
        lr_mult=2.0,
        wd_mult=1.0,
        init=Xavier(),
        stype="row_sparse",
    )
    assert symbol.attr_dict() == answers[-1]
