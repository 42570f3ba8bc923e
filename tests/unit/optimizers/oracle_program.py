"""Runs inside MXNet's environment: what its optimizers make of every case.

The weights after each step go to the .npz file that the argument names, one array for each case
in the order of `cases()`.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def _run(mx: Any, np: Any, case: Any, ids: Any) -> Any:
    weight = mx.nd.array(case.weight(), dtype=case.dtype)
    if case.sparse:
        weight = weight.tostype("row_sparse")
    optimizer = mx.optimizer.create(case.name, **case.arguments)
    optimizer.set_lr_mult({0: case.lr_mult})
    updater = mx.optimizer.get_updater(optimizer)
    weights = []
    for gradient in case.gradients():
        grad = mx.nd.array(gradient, dtype=case.dtype)
        if case.sparse:
            grad = mx.nd.sparse.row_sparse_array(
                (grad, np.array(ids)), shape=weight.shape, dtype=case.dtype
            )
        updater(0, grad, weight)
        weights.append(weight.asnumpy())
    return np.stack(weights)


def main() -> None:
    warnings.simplefilter("ignore")
    import mxnet as mx
    import numpy as np
    from cases import IDS, cases  # type: ignore[import-not-found]

    np.savez(sys.argv[1], *[_run(mx, np, case, IDS) for case in cases()])


if __name__ == "__main__":
    main()
