"""Runs inside MXNet's environment: prints what its initializers are and give, as JSON.

Values go to the .npz file that the argument names.
"""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from typing import Any

NAMES = [
    *("Initializer", "Zero", "One", "Constant", "Uniform", "Normal", "Orthogonal", "Xavier"),
    *("MSRAPrelu", "Bilinear", "LSTMBias", "Mixed", "Load", "InitDesc"),
    *("register", "alias", "create"),
]

# Expression, shape, dtype: what is random is compared by distribution, the rest exactly.
RANDOM = [
    ("Uniform(0.3)", (200, 300), "float32"),
    ("Uniform()", (200, 300), "float64"),
    ("Normal(2.0)", (200, 300), "float32"),
    ("Normal()", (200, 300), "float16"),
    ("Xavier()", (300, 200), "float32"),
    ("Xavier('gaussian', 'in', 2.34)", (64, 32, 3, 5), "float32"),
    ("Xavier('uniform', 'out', 1)", (64, 32, 3, 5), "float32"),
    ("MSRAPrelu()", (64, 32, 3, 5), "float32"),
    ("MSRAPrelu('in', 0.1)", (300, 200), "float32"),
    ("Orthogonal()", (100, 150), "float32"),
    ("Orthogonal(2.0, 'normal')", (150, 100), "float32"),
]
EXACT = [
    (expression, shape, dtype)
    for dtype in ("float32", "float64", "float16", "int32", "int8", "uint8", "int64", "bool")
    for expression, shape in [
        ("Zero()", (2, 3)),
        ("One()", (2, 3)),
        ("Constant(2.7)", (2, 3)),
        ("Constant(-2.7)", (2, 3)),
        ("Constant(0.1)", (2, 3)),
        ("Constant(100)", (2, 3)),
        ("LSTMBias(0.1)", (8,)),
        ("LSTMBias(2.7)", (8, 3)),
        ("Bilinear()", (2, 3, 5, 6)),
        ("Bilinear()", (1, 1, 9, 3)),
    ]
]
DUMPED = ["Zero()", "Uniform(1)", "Xavier()", "MSRAPrelu()", "Orthogonal()", "LSTMBias(2)"]


def signature(target: Any) -> list[list[Any]]:
    empty = inspect.Parameter.empty
    return [
        [one.name, one.kind.name, "" if one.default is empty else repr(one.default)]
        for one in inspect.signature(target).parameters.values()
    ]


def value(mxnet: Any, expression: str, shape: tuple[int, ...], dtype: str) -> Any:
    parameter = mxnet.gluon.Parameter("w", shape=shape, dtype=dtype)
    parameter.initialize(eval(expression, vars(mxnet.init)))
    return parameter.data().asnumpy()


def main() -> None:
    # Here, since the tests read the cases where there is no MXNet.
    warnings.filterwarnings("ignore")
    import mxnet
    import numpy

    mxnet.random.seed(3)
    cases = [*RANDOM, *EXACT]
    numpy.savez(sys.argv[1], *[value(mxnet, *case) for case in cases])
    registry = mxnet.registry.get_registry(mxnet.init.Initializer)
    described = {
        "signatures": {name: signature(getattr(mxnet.init, name)) for name in NAMES},
        "registry": {name: klass.__name__ for name, klass in registry.items()},
        "dumps": {text: eval(text, vars(mxnet.init)).dumps() for text in DUMPED},
    }
    print(json.dumps(described))


if __name__ == "__main__":
    main()
