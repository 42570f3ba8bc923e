"""Optimizers, weights and gradients that the tests of update rules share. NumPy and nothing else.

It runs in MXNet's environment too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

SHAPE = (7, 5)
STEPS = 6
# Rows that have a gradient, in every step of a row-sparse case.
IDS = (1, 3, 4, 6)

# All of them are float32 numbers, which MXNet rounds its own to.
_COMMON: list[dict[str, Any]] = [
    {},
    {"wd": 2.0**-4},
    {"clip_gradient": 0.5, "rescale_grad": 0.75},
    {"wd": 2.0**-4, "clip_gradient": 0.5, "rescale_grad": 0.75},
]
_BETAS = {"beta1": 0.875, "beta2": 0.9375, "epsilon": 2.0**-10}
_OWN: dict[str, list[dict[str, Any]]] = {
    "sgd": [{}, {"momentum": 0.875}, {"momentum": 0.875, "lazy_update": False}],
    "nag": [{}, {"momentum": 0.875}],
    "signum": [{"momentum": 0.0}, {"momentum": 0.875}, {"momentum": 0.875, "wd_lh": 0.125}],
    "adam": [_BETAS, {**_BETAS, "lazy_update": False}],
    "adagrad": [{"eps": 2.0**-10}],
    "rmsprop": [
        {"gamma1": 0.875, "epsilon": 2.0**-10},
        {"gamma1": 0.875, "epsilon": 2.0**-10, "clip_weights": 0.75},
        {"gamma1": 0.875, "gamma2": 0.75, "epsilon": 2.0**-10, "centered": True},
    ],
    "adadelta": [{"rho": 0.875, "epsilon": 2.0**-10}],
    "ftrl": [{"lamda1": 0.25, "beta": 0.5}],
    "lamb": [
        _BETAS,
        {**_BETAS, "bias_correction": False},
        {**_BETAS, "lower_bound": 8.0},
        {**_BETAS, "upper_bound": 0.5},
    ],
    # MXNet's own fails with momentum.
    "dcasgd": [{"lamda": 0.5}],
}
# What MXNet lacks, or cannot run.
_OURS: list[tuple[str, dict[str, Any]]] = [
    ("adamw", _BETAS),
    ("adamw", {**_BETAS, "lazy_update": False}),
    ("dcasgd", {"lamda": 0.5, "momentum": 0.875}),
]


def argument_sets() -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and arguments of optimizers, each one with each option."""
    theirs = [(name, own) for name, owns in _OWN.items() for own in owns]
    for name, own in (*theirs, *_OURS):
        for common in _COMMON:
            yield name, {"learning_rate": 0.25, **own, **common}


@dataclass(frozen=True)
class Case:
    """One run of an optimizer over some steps.

    Attributes:
        name: of the optimizer.
        arguments: for its constructor.
        dtype: of the weight.
        sparse: whether gradients have some rows only.
    """

    name: str
    arguments: dict[str, Any]
    dtype: str
    sparse: bool

    def __str__(self) -> str:
        own = {key: value for key, value in self.arguments.items() if key != "learning_rate"}
        shown = "-".join(f"{key}={value:g}" for key, value in own.items())
        return f"{self.name}-{self.dtype}-{'sparse' if self.sparse else 'dense'}-{shown}"

    @property
    def lr_mult(self) -> float:
        """The parameter's own."""
        return 0.5

    def weight(self) -> np.ndarray[Any, Any]:
        """The weight at the beginning, none of it near 0."""
        random = np.random.RandomState(1)
        return np.asarray(_away_from_zero(random, SHAPE)).astype(self.dtype)

    def gradients(self) -> list[np.ndarray[Any, Any]]:
        """A gradient for each step, of SHAPE or of the rows IDS.

        With this seed no momentum comes so near to 0 that its sign is a matter of rounding.
        """
        random = np.random.RandomState(4)
        shape = (len(IDS), *SHAPE[1:]) if self.sparse else SHAPE
        return [_away_from_zero(random, shape).astype(self.dtype) for _ in range(STEPS)]


def _away_from_zero(random: np.random.RandomState, shape: tuple[int, ...]) -> Any:
    return random.uniform(0.25, 1.5, shape) * random.choice([-1.0, 1.0], shape)


def cases() -> Iterator[Case]:
    """All cases that MXNet can run."""
    for name, owns in _OWN.items():
        for own in owns:
            for common in _COMMON:
                for dtype in ("float32", "float64", "float16", "float16 multi_precision"):
                    for sparse in (False, True):
                        case = _case(name, {**own, **common}, dtype, sparse)
                        if _runs_in_mxnet(case):
                            yield case


def _case(name: str, arguments: dict[str, Any], dtype: str, sparse: bool) -> Case:
    kind, _, mixed = dtype.partition(" ")
    arguments = {"learning_rate": 0.25, **arguments}
    if mixed:
        arguments["multi_precision"] = True
    return Case(name, arguments, kind, sparse)


def _runs_in_mxnet(case: Case) -> bool:
    mixed = case.arguments.get("multi_precision", False)
    wide = case.dtype == "float32" or mixed
    # These four have states of float32 there, whatever they are for.
    if case.name in ("adagrad", "rmsprop", "adadelta", "ftrl") and not wide:
        return False
    if not (case.sparse and "wd" in case.arguments):
        return True
    # With weight decay AdaGrad's row-sparse kernel fails; LAMB, which has none, takes the norm of
    # an update of all rows; and NAG, which has none, gives other weights than its dense one does.
    return case.name not in ("adagrad", "lamb") and not (
        case.name == "nag" and "momentum" in case.arguments and not mixed
    )
