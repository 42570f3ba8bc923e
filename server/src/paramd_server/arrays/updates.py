"""The updates that every backend can do to a weight: their states and their constants.

What each one computes is written in `paramd_server.arrays.update_kernels`, and for people in
docs/optimizers.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["UPDATES", "Update"]

# Multiplies the gradient; then the largest magnitude of one of its elements, or infinity.
_GRADIENT = ("rescale", "clip")


@dataclass(frozen=True)
class Update:
    """One kind of update.

    Attributes:
        name: of the kind.
        states: the names of the arrays beside the weight that it reads and writes, in order.
        constants: the names of the numbers that it takes, in order. Infinity is no bound; as a
            count it means that the means need no correction.
    """

    name: str
    states: tuple[str, ...]
    constants: tuple[str, ...]


UPDATES: Final[Mapping[str, Update]] = MappingProxyType(
    {
        update.name: update
        for update in (
            Update("sgd", (), (*_GRADIENT, "lr", "wd")),
            Update("sgd_momentum", ("momentum",), (*_GRADIENT, "lr", "wd", "momentum")),
            Update("nag_momentum", ("momentum",), (*_GRADIENT, "lr", "wd", "momentum")),
            Update("sign", (), (*_GRADIENT, "lr", "wd")),
            Update(
                "sign_momentum", ("momentum",), (*_GRADIENT, "lr", "wd", "momentum", "decoupled_wd")
            ),
            Update(
                "adam",
                ("mean", "variance"),
                (*_GRADIENT, "lr", "wd", "beta1", "beta2", "epsilon"),
            ),
            Update(
                "adamw",
                ("mean", "variance"),
                (
                    *_GRADIENT,
                    *("lr", "wd", "beta1", "beta2", "epsilon", "count"),
                ),
            ),
            Update("adagrad", ("history",), (*_GRADIENT, "lr", "wd", "epsilon")),
            Update(
                "rmsprop",
                ("variance",),
                (*_GRADIENT, "lr", "wd", "decay", "epsilon", "clip_weights"),
            ),
            Update(
                "rmsprop_centered",
                ("variance", "mean", "delta"),
                (*_GRADIENT, "lr", "wd", "decay", "epsilon", "clip_weights", "momentum"),
            ),
            Update(
                "adadelta",
                ("variance", "delta_variance"),
                (*_GRADIENT, "wd", "decay", "epsilon"),
            ),
            Update("ftrl", ("z", "n"), (*_GRADIENT, "lr", "wd", "lamda1", "beta")),
            Update(
                "lamb",
                ("mean", "variance"),
                (
                    *_GRADIENT,
                    *("lr", "wd", "beta1", "beta2", "epsilon", "count"),
                    *("lower_bound", "upper_bound"),
                ),
            ),
            Update("dcasgd", ("previous",), (*_GRADIENT, "lr", "wd", "lamda")),
            Update(
                "dcasgd_momentum",
                ("previous", "momentum"),
                (*_GRADIENT, "lr", "wd", "lamda", "momentum"),
            ),
        )
    }
)
