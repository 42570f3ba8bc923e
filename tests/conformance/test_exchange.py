"""What one library writes, the other reads: files and symbols."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import paramd
from paramd import cpu
from tests.conformance.both import Both
from tests.conformance.compare import compare_programs
from tests.conformance.oracle import Oracle
from tests.conformance.program import Program, dense, init, row_sparse
from tests.conformance.program import cpu as on_cpu

_DTYPES = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool")


def _write(path: str) -> Program:
    """Saves a parameter of each dtype, one on two contexts, one with rows, and a constant."""
    p = Program()
    params = p.make("ParameterDict", "p_")
    for name in _DTYPES:
        w = p.call(params, "get", name, shape=(2, 3), dtype=name)
        p.call(w, "initialize", init="ones")
        p.call(w, "set_data", dense([[1, 2, 3], [4, 5, 6]], name))
    both = p.call(params, "get", "both", shape=(2,))
    p.call(both, "initialize", init=init("One"), ctx=[on_cpu(0), on_cpu(1)])
    p.put(p.call(both, "data", on_cpu(1)), slice(None), 4)
    rows = p.call(params, "get", "rows", shape=(4, 2), stype="row_sparse")
    p.call(rows, "initialize", init="ones")
    p.call(rows, "set_data", row_sparse([[1, 2], [3, 4]], [0, 3], (4, 2)))
    c = p.call(params, "get_constant", "c", dense([7, 8]))
    p.call(c, "initialize")
    p.call(params, "save", path)
    return p


def _read(path: str) -> Program:
    p = Program()
    params = p.make("ParameterDict", "p_")
    read = [
        p.call(params, "get", name, shape=(2, 0), dtype=name, allow_deferred_init=True)
        for name in _DTYPES
    ]
    read.append(p.call(params, "get", "both", shape=(2,)))
    read.append(p.call(params, "get", "rows", shape=(4, 2), stype="row_sparse"))
    read.append(p.call(params, "get_constant", "c", dense([0, 0])))
    p.call(params, "load", path)
    p.state(*read)
    return p


@pytest.mark.parametrize("writer", ["mxnet", "paramd"])
def test_each_reads_the_files_of_the_other(both: Both, tmp_path: Path, writer: str) -> None:
    path = str(tmp_path / "exchanged.params")
    mine = str(tmp_path / "own.params")
    paths = {"mxnet": (path, mine), "paramd": (mine, path)}[writer]
    for written, side in zip(paths, ("mxnet", "paramd"), strict=True):
        written_by = both.run_on(side, _write(written))
        assert [outcome for outcome in written_by if "error" in outcome] == []
    reading = _read(path)
    theirs, ours = both.run(reading)
    assert [outcome for outcome in ours if "error" in outcome] == []
    assert compare_programs(reading.steps, theirs, ours) == []


def test_mxnet_reads_our_symbols(oracle: Oracle, tmp_path: Path) -> None:
    with paramd.connect("local"):
        w = paramd.Parameter(
            "net_w", shape=(2, 3), dtype="float16", init=paramd.init.Xavier(), lr_mult=2.0
        )
        text = w.var().tojson()
        w.initialize(ctx=cpu(0))
    p = Program()
    symbol = p.make("symbol.load_json", text)
    p.get(symbol, "name")
    outcomes = oracle.run(p.steps)
    assert outcomes[1]["value"] == "net_w"
    read, written = outcomes[0]["value"]["graph"]["nodes"], json.loads(text)["nodes"]
    assert read == written
    assert "xavier" in read[0]["attrs"]["__init__"]
