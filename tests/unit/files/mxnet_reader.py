"""Tells as JSON what MXNet loads from the files named on the command line.

Run with MXNet's own Python.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import mxnet as mx
import numpy as np


def describe(array: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"shape": list(array.shape), "stype": array.stype}
    dtype = np.dtype(array.dtype)
    entry["dtype"] = dtype.name if dtype.names is None else dtype.names[0]
    if array.stype == "row_sparse":
        # Raises where the ids are not what MXNet demands.
        array.check_format(full_check=True)
        entry["ids"] = array.indices.asnumpy().tolist()
        array = array.data
    entry["data"] = array.asnumpy().tobytes().hex()
    return entry


def load(path: str) -> Any:
    loaded = mx.nd.load(path)
    if isinstance(loaded, list):
        return [describe(array) for array in loaded]
    return {name: describe(array) for name, array in loaded.items()}


def main() -> None:
    result = {}
    for path in sys.argv[1:]:
        with mx.util.np_shape("scalar" in path):
            result[path] = load(path)
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
