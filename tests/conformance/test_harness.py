"""The comparison itself: it must see what differs, or nothing here proves anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance.compare import compare_programs
from tests.conformance.interpreter import decode_array, encode_array
from tests.conformance.oracle import Oracle, OracleError
from tests.conformance.program import Program, cpu, dense, init


def _array(values: Any, **changes: Any) -> dict[str, Any]:
    form = {"kind": "array", "stype": "default", "context": "cpu(0)"}
    return {**form, **encode_array(np.array(values, dtype=np.float32)), **changes}


def _value(value: Any, warnings: Any = ()) -> dict[str, Any]:
    return {"class": "Parameter", "value": value, "warnings": list(warnings)}


def _error(*bases: str, message: str = "") -> dict[str, Any]:
    return {"class": "Parameter", "error": list(bases), "message": message, "warnings": []}


_NAMED = _value({"kind": "Parameter", "name": "net_w"})
_NOT_THERE = "Parameter 'net_w' was not initialized on context cpu(0). It was only initialized on "


@pytest.mark.parametrize(
    ("mxnet", "paramd"),
    [
        (_value(1), _value(2)),
        (_value(None), _error("ValueError")),
        (_error("ValueError"), _value(None)),
        (_error("ValueError"), _error("TypeError")),
        (_value(_array([1, 2])), _value(_array([1, np.nextafter(np.float32(2), 3)]))),
        (_value(_array([1, 2])), _value(_array([[1, 2]]))),
        (_value(_array([1, 2])), _value(_array([1, 2], context="cpu(1)"))),
        (_value(_array([1, 2])), _value(_array([1, 2], stype="row_sparse"))),
        (_value(None, [[["UserWarning"], "net_w"]]), _value(None)),
        (_value(None, [[["UserWarning"], "net_w"]]), _value(None, [[["UserWarning"], "other"]])),
        (
            _error("RuntimeError", message=_NOT_THERE + "[cpu(1), cpu(2)]."),
            _error("RuntimeError", message="net_w has no copy on cpu(0), only on [cpu(1)]"),
        ),
        (
            _error("AssertionError", message="Expected shape (2, 4) is incompatible with (2, 3)."),
            _error("AssertionError", message="shape (2, 3) expected, (4, 2) came"),
        ),
        (_value({"shape": [2], "data": 1}), _value({"shape": [2], "data": 2})),
    ],
)
def test_difference_is_seen(mxnet: dict[str, Any], paramd: dict[str, Any]) -> None:
    program = [{"op": "call"}, {"op": "call"}]
    found = compare_programs(program, [_NAMED, mxnet], [_NAMED, paramd])
    assert [difference.step for difference in found] == [1]


@pytest.mark.parametrize(
    ("mxnet", "paramd"),
    [
        (_value(_array([1, 2])), _value(_array([1, 2]))),
        (_error("MXNetError"), _error("OurError", "MXNetError", "RuntimeError")),
        (
            _error("RuntimeError", message=_NOT_THERE + "[cpu(1), cpu(2)]."),
            _error("Ours", "RuntimeError", message="net_w: cpu(0)? only on cpu(1), cpu(2)"),
        ),
    ],
)
def test_same_is_no_difference(mxnet: dict[str, Any], paramd: dict[str, Any]) -> None:
    program = [{"op": "call"}, {"op": "call"}]
    assert compare_programs(program, [_NAMED, mxnet], [_NAMED, paramd]) == []


def test_distributions_are_told_apart() -> None:
    generator = np.random.default_rng(7)
    step = [{"op": "call", "loose": "distribution"}]
    normal = _value(_array(generator.normal(0, 1, 2000)))
    same = _value(_array(generator.normal(0, 1, 2000)))
    wider = _value(_array(generator.normal(0, 1.3, 2000)))
    uniform = _value(_array(generator.uniform(-np.sqrt(3), np.sqrt(3), 2000)))
    assert compare_programs(step, [normal], [same]) == []
    assert len(compare_programs(step, [normal], [wider])) == 1
    assert len(compare_programs(step, [normal], [uniform])) == 1


def test_arrays_survive_json() -> None:
    for values in (np.zeros((0, 3), np.float16), np.array(5, np.int8), np.array([[True]])):
        read = decode_array(encode_array(values))
        assert (read.dtype, read.shape) == (values.dtype, values.shape)
        assert read.tobytes() == values.tobytes()


def test_missing_oracle_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tests.conformance.oracle.ORACLE_PYTHON", tmp_path / "python")
    with pytest.raises(OracleError, match="make conformance"):
        Oracle(tmp_path)


def test_oracle_runs_a_program(oracle: Oracle) -> None:
    program = Program()
    w = program.make("Parameter", "w", shape=(2,))
    program.call(w, "data")
    program.call(w, "initialize", init=init("Constant", 3), ctx=cpu(1))
    program.call(w, "initialize")
    program.call(w, "set_data", dense([1, 2]))
    program.call(w, "data")
    outcomes = oracle.run(program.steps)
    assert outcomes[1]["error"][0] == "RuntimeError"
    assert outcomes[3]["warnings"][0][0][0] == "UserWarning"
    assert decode_array(outcomes[5]["value"]).tolist() == [1, 2]
    assert outcomes[5]["value"]["context"] == "cpu(1)"


def test_oracle_comes_back_after_it_died(oracle: Oracle) -> None:
    program = Program()
    program.make("base.ctypes.string_at", 0)
    with pytest.raises(OracleError, match="ended"):
        oracle.run(program.steps)
    ending = Program()
    ending.make("cpu", 1)
    assert oracle.run(ending.steps)[0]["value"]["text"] == "cpu(1)"
