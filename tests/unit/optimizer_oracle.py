"""Runs inside MXNet's environment: prints what its optimizers and schedules are and give, as JSON.

The cases are read by the tests, where there is no MXNet.
"""

from __future__ import annotations

import inspect
import json
import warnings
from typing import Any

# Expression and the numbers of updates, in the order in which MXNet is called with them.
_COUNTED = [*range(1, 400)]
_WARM = "warmup_steps=7, warmup_begin_lr=0.013"
SCHEDULES: list[tuple[str, list[int]]] = [
    *(
        (expression, _COUNTED)
        for expression in (
            "FactorScheduler(10, 0.7)",
            "FactorScheduler(1, 0.93, 1e-4, 0.3)",
            "FactorScheduler(3, 0.5, base_lr=0.123, stop_factor_lr=0.01)",
            "FactorScheduler(5)",
            "FactorScheduler(2, 0.9, stop_factor_lr=0.5, base_lr=0.1)",
            f"FactorScheduler(4, 0.9, base_lr=0.3, {_WARM})",
            f"FactorScheduler(2, 0.9, base_lr=0.3, {_WARM}, warmup_mode='constant')",
            "MultiFactorScheduler([1, 5, 6, 100, 398], 0.3)",
            "MultiFactorScheduler([7], 0.1, 0.5)",
            f"MultiFactorScheduler([3, 8, 50], 0.77, base_lr=0.3, {_WARM})",
            "PolyScheduler(300)",
            "PolyScheduler(300, 0.37, 3, 0.01)",
            "PolyScheduler(399, 0.37, 0.9)",
            "PolyScheduler(200, 0.37, 0)",
            f"PolyScheduler(200, 0.37, final_lr=0.002, {_WARM})",
            "CosineScheduler(300)",
            "CosineScheduler(300, 0.37, 0.011)",
            f"CosineScheduler(200, 0.37, 0.011, {_WARM})",
            f"CosineScheduler(200, 0.37, 0.5, {_WARM}, warmup_mode='constant')",
        )
    ),
    # Jumps, as after a state was loaded.
    ("FactorScheduler(10, 0.7)", [0, 5, 1000]),
    ("FactorScheduler(10, 0.97)", [9999, 10000, 10001, 20002]),
    ("FactorScheduler(10, 0.97, stop_factor_lr=0.0)", [100000, 100011]),
    (f"FactorScheduler(3, 0.97, base_lr=0.3, {_WARM})", [0, 6, 7, 500]),
    (f"FactorScheduler(3, 0.97, base_lr=0.3, {_WARM})", [100]),
    ("MultiFactorScheduler([10, 100, 1000], 0.3)", [0, 11, 1001, 5000]),
    ("MultiFactorScheduler([10, 100, 1000], 0.3)", [100]),
    ("PolyScheduler(1000, 0.37, 3, 0.01)", [0, 700, 1000, 9000]),
    ("CosineScheduler(1000, 0.37, 0.01)", [0, 700, 1000, 9000]),
]

# Optimizer, arguments, schedule: the rates of the first updates.
RATES: list[tuple[str, str, str]] = [
    (name, arguments, schedule)
    for schedule in (
        "None",
        f"FactorScheduler(3, 0.7, base_lr=0.3, {_WARM})",
        f"MultiFactorScheduler([9, 12], 0.7, base_lr=0.3, {_WARM})",
        f"PolyScheduler(30, 0.3, {_WARM})",
        f"CosineScheduler(30, 0.3, {_WARM})",
    )
    for name, arguments in (
        ("SGD", "{}"),
        ("SGD", "{'learning_rate': 0.3}"),
        ("SGD", "{'learning_rate': 0.05}"),
        ("NAG", "{'learning_rate': 0.7}"),
        ("Adam", "{}"),
        ("Adam", "{'learning_rate': None}"),
        ("Ftrl", "{}"),
        ("Ftrl", "{'learning_rate': 0.7}"),
        ("AdaGrad", "{'begin_num_update': 5}"),
    )
]
UPDATES = 40

THRESHOLDS = [0.5, 0.1, 2.0]
ELEMENTS = 1003
PUSHES = 12


def gradients(numpy: Any, worker: int) -> Any:
    """The gradients of a worker: what falls on a threshold exactly too, and what is no number."""
    generator = numpy.random.RandomState(worker)
    values = generator.standard_normal((PUSHES, ELEMENTS)).astype(numpy.float32)
    special = [0.5, -0.5, 0.25, -0.25, 0.1, -0.1, 0.49999997, 1e30, -1e30, 1e-40, 0.0, -0.0]
    values[:, : len(special)] = special
    values[:, len(special)] = numpy.nan
    values[:, len(special) + 1] = numpy.inf
    return values


def signature(target: Any) -> dict[str, Any]:
    """Names and defaults of a constructor, the base class's included."""
    found = {}
    for klass in reversed(target.__mro__[:-1]):
        for one in inspect.signature(klass.__init__).parameters.values():
            if one.name != "self" and one.kind is one.POSITIONAL_OR_KEYWORD:
                found[one.name] = None if one.default is inspect.Parameter.empty else one.default
    return found


def schedule_values(mxnet: Any) -> list[list[float]]:
    result = []
    for expression, counts in SCHEDULES:
        schedule = eval(expression, vars(mxnet.lr_scheduler))
        result.append([schedule(count) for count in counts])
    return result


def rates(mxnet: Any) -> list[list[float]]:
    """The rate of each update of a parameter, as the optimizer gives it to its kernel."""
    result = []
    for name, arguments, expression in RATES:
        schedule = eval(expression, vars(mxnet.lr_scheduler))
        optimizer = getattr(mxnet.optimizer, name)(lr_scheduler=schedule, **eval(arguments))
        values = []
        for _ in range(UPDATES):
            optimizer._update_count(0)
            values.append(optimizer._get_lr(0))
        result.append(values)
    return result


def sums(mxnet: Any, numpy: Any, threshold: float) -> list[list[float]]:
    """What a key-value store gives after each push of one and of two devices."""
    result = []
    for workers in (1, 2):
        store = mxnet.kv.create("device")
        store.set_gradient_compression({"type": "2bit", "threshold": threshold})
        store.init("w", mxnet.nd.zeros((ELEMENTS,)))
        pushed = [gradients(numpy, worker) for worker in range(workers)]
        for push in range(PUSHES):
            arrays = [mxnet.nd.array(one[push], mxnet.cpu(at)) for at, one in enumerate(pushed)]
            store.push("w", arrays)
            out = mxnet.nd.zeros((ELEMENTS,))
            store.pull("w", out=out)
            result.append(out.asnumpy().astype(float).tolist())
    return result


def main() -> None:
    warnings.filterwarnings("ignore")
    import mxnet
    import numpy

    registry = mxnet.optimizer.Optimizer.opt_registry
    described = {
        "optimizers": {name: signature(klass) for name, klass in registry.items()},
        "scheduler_signatures": {
            name: list(inspect.signature(getattr(mxnet.lr_scheduler, name)).parameters)
            for name in (
                *("LRScheduler", "FactorScheduler", "MultiFactorScheduler", "PolyScheduler"),
                "CosineScheduler",
            )
        },
        "schedules": schedule_values(mxnet),
        "rates": rates(mxnet),
        "sums": [sums(mxnet, numpy, threshold) for threshold in THRESHOLDS],
    }
    print(json.dumps(described))


if __name__ == "__main__":
    main()
