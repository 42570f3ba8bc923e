"""Rules that step along the gradient, or by its sign."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from paramd.optimizer import DCASGD, NAG, SGD, Signum
from paramd_server.core.optimizers.rule import Numbers, Step, UpdateRule

__all__ = ["DESCENT"]


class _SGDRule(UpdateRule):
    def __init__(self, optimizer: SGD) -> None:
        update = "sgd_momentum" if optimizer.momentum else "sgd"
        super().__init__(optimizer, update, lazy=optimizer.lazy_update)
        self._momentum = optimizer.momentum

    def numbers(self, step: Step) -> Numbers:
        """See the base."""
        return {
            "lr": step.learning_rate,
            "wd": step.weight_decay,
            "momentum": self._momentum,
        }


class _NAGRule(UpdateRule):
    def __init__(self, optimizer: NAG) -> None:
        super().__init__(optimizer, "nag_momentum" if optimizer.momentum else "sgd")
        self._momentum = optimizer.momentum

    def numbers(self, step: Step) -> Numbers:
        """See the base."""
        return {
            "lr": step.learning_rate,
            "wd": step.weight_decay,
            "momentum": self._momentum,
        }


class _SignumRule(UpdateRule):
    def __init__(self, optimizer: Signum) -> None:
        super().__init__(optimizer, "sign_momentum" if optimizer.momentum else "sign")
        self._momentum, self._decoupled_wd = optimizer.momentum, optimizer.wd_lh

    def numbers(self, step: Step) -> Numbers:
        """See the base."""
        if not self._momentum:
            # Without momentum both kinds of decay are of the weight alone.
            return {"lr": step.learning_rate, "wd": step.weight_decay + self._decoupled_wd}
        return {
            "lr": step.learning_rate,
            "wd": step.weight_decay,
            "momentum": self._momentum,
            "decoupled_wd": self._decoupled_wd,
        }


class _DCASGDRule(UpdateRule):
    def __init__(self, optimizer: DCASGD) -> None:
        super().__init__(optimizer, "dcasgd_momentum" if optimizer.momentum else "dcasgd")
        self._momentum, self._lamda = optimizer.momentum, optimizer.lamda

    def numbers(self, step: Step) -> Numbers:
        """See the base."""
        return {
            "lr": step.learning_rate,
            "wd": step.weight_decay,
            "lamda": self._lamda,
            "momentum": self._momentum,
        }


DESCENT: Final[Mapping[str, Callable[[Any], UpdateRule]]] = MappingProxyType(
    {"sgd": _SGDRule, "nag": _NAGRule, "signum": _SignumRule, "dcasgd": _DCASGDRule}
)
