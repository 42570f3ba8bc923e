"""MXNet 1.9.1 itself reads what paramd writes."""

from __future__ import annotations

import json
import pathlib
import subprocess
from typing import Any

import numpy as np
import pytest

from paramd.files import RowSparseRows, save_arrays
from tests.unit.files.samples import DTYPES, Value, array, rows

ROOT = pathlib.Path(__file__).parents[3]
ORACLE = ROOT / ".cache" / "oracle" / "bin" / "python"
READER = pathlib.Path(__file__).with_name("mxnet_reader.py")

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(not ORACLE.exists(), reason=f"no MXNet: {ORACLE.relative_to(ROOT)}"),
]

FILES: dict[str, dict[str, Value]] = {
    "dense": {
        f"{dtype.name}_{rank}": array((2, 3, 1, 4)[:rank], dtype)
        for dtype in DTYPES
        for rank in (1, 2, 4)
    },
    "row_sparse": {dtype.name: rows([0, 3, 5], (7, 2), dtype) for dtype in DTYPES},
    "mixed": {
        "dense": array((2,)),
        "table": rows([1], (3, 2, 2)),
        "none": rows([], (3, 2)),
        "flat": rows([2], (4,)),
        "é✓/🙂": array((1,)),
        "": array((1,)),
        "empty": array((0, 3)),
    },
    "scalar": {"scalar": array(()), "empty": array((0, 3)), "dense": array((2,), np.int64)},
    "nothing": {},
}


def expected(value: Value) -> dict[str, Any]:
    data = value.rows if isinstance(value, RowSparseRows) else value
    entry: dict[str, Any] = {
        "shape": list(value.shape),
        "stype": "row_sparse" if isinstance(value, RowSparseRows) else "default",
        "data": data.tobytes().hex(),
        "dtype": data.dtype.name,
    }
    if isinstance(value, RowSparseRows):
        entry["ids"] = value.ids.tolist()
    return entry


def test_mxnet_loads_what_paramd_saves(tmp_path: pathlib.Path) -> None:
    paths = {name: tmp_path / f"{name}.params" for name in FILES}
    for name, arrays in FILES.items():
        save_arrays(paths[name], arrays)
    paths["list"] = tmp_path / "list.params"
    save_arrays(paths["list"], {"0": array((2,)), "1": rows([1], (3, 2))}, named=False)
    command = [str(ORACLE), str(READER), *map(str, paths.values())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert loaded[str(paths["list"])] == [expected(array((2,))), expected(rows([1], (3, 2)))]
    # MXNet gives a list for a file without names, and an empty file has none.
    assert loaded[str(paths["nothing"])] == []
    for name, arrays in FILES.items():
        if arrays:
            assert loaded[str(paths[name])] == {key: expected(arrays[key]) for key in arrays}
