"""Rules with a learning rate of its own for each element, or for each parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from paramd.optimizer import LAMB, AdaDelta, AdaGrad, Adam, AdamW, Ftrl, RMSProp
from paramd_server.arrays.backend import ArrayBackend, Buffer, Values
from paramd_server.core.optimizers.rule import Numbers, Step, UpdateRule
from paramd_server.core.row_sparse import IntArray

__all__ = ["ADAPTIVE"]


class _AdamRule(UpdateRule):
    def __init__(self, optimizer: Adam) -> None:
        super().__init__(optimizer, "adam", lazy=optimizer.lazy_update)
        self._betas, self._epsilon = (optimizer.beta1, optimizer.beta2), optimizer.epsilon

    def numbers(self, step: Step) -> Numbers:
        """See the base."""
        beta1, beta2 = self._betas
        corrected = math.sqrt(1 - beta2**step.count) / (1 - beta1**step.count)
        return {
            "lr": step.learning_rate * corrected,
            "wd": step.weight_decay,
            "beta1": beta1,
            "beta2": beta2,
            "epsilon": self._epsilon,
        }


class _AdamWRule(UpdateRule):
    def __init__(self, optimizer: AdamW) -> None:
        super().__init__(optimizer, "adamw", lazy=optimizer.lazy_update)
        self._betas, self._epsilon = (optimizer.beta1, optimizer.beta2), optimizer.epsilon

    def numbers(self, step: Step) -> Numbers:
        """See the base."""
        beta1, beta2 = self._betas
        return {
            "lr": step.learning_rate,
            "wd": step.weight_decay,
            "beta1": beta1,
            "beta2": beta2,
            "epsilon": self._epsilon,
            "count": step.count,
        }


class _LAMBRule(UpdateRule):
    def __init__(self, optimizer: LAMB) -> None:
        super().__init__(optimizer, "lamb")
        self._betas, self._epsilon = (optimizer.beta1, optimizer.beta2), optimizer.epsilon
        self._lower, self._upper = optimizer.lower_bound, optimizer.upper_bound
        self._corrects = optimizer.bias_correction

    def numbers(self, step: Step) -> Numbers:
        """See the base."""
        beta1, beta2 = self._betas
        return {
            "lr": step.learning_rate,
            "wd": step.weight_decay,
            "beta1": beta1,
            "beta2": beta2,
            "epsilon": self._epsilon,
            "count": step.count if self._corrects else math.inf,
            "lower_bound": 0.0 if self._lower is None else self._lower,
            "upper_bound": math.inf if self._upper is None else self._upper,
        }


class _AdaGradRule(UpdateRule):
    def __init__(self, optimizer: AdaGrad) -> None:
        super().__init__(optimizer, "adagrad", wide_states=True)
        self._epsilon = optimizer.eps

    def numbers(self, step: Step) -> Numbers:
        """See the base."""
        return {
            "lr": step.learning_rate,
            "wd": step.weight_decay,
            "epsilon": self._epsilon,
        }


class _RMSPropRule(UpdateRule):
    def __init__(self, optimizer: RMSProp) -> None:
        update = "rmsprop_centered" if optimizer.centered else "rmsprop"
        super().__init__(optimizer, update, wide_states=True)
        self._decay, self._momentum = optimizer.gamma1, optimizer.gamma2
        self._epsilon, self._clip_weights = optimizer.epsilon, optimizer.clip_weights

    def numbers(self, step: Step) -> Numbers:
        """See the base."""
        return {
            "lr": step.learning_rate,
            "wd": step.weight_decay,
            "decay": self._decay,
            "momentum": self._momentum,
            "epsilon": self._epsilon,
            "clip_weights": math.inf if self._clip_weights is None else self._clip_weights,
        }


class _AdaDeltaRule(UpdateRule):
    def __init__(self, optimizer: AdaDelta) -> None:
        super().__init__(optimizer, "adadelta", wide_states=True)
        self._decay, self._epsilon = optimizer.rho, optimizer.epsilon

    def numbers(self, step: Step) -> Numbers:
        """See the base."""
        return {"wd": step.weight_decay, "decay": self._decay, "epsilon": self._epsilon}


class _FtrlRule(UpdateRule):
    def __init__(self, optimizer: Ftrl) -> None:
        super().__init__(optimizer, "ftrl", wide_states=True)
        self._lamda1, self._beta = optimizer.lamda1, optimizer.beta

    def numbers(self, step: Step) -> Numbers:
        """See the base."""
        return {
            "lr": step.learning_rate,
            "wd": step.weight_decay,
            "lamda1": self._lamda1,
            "beta": self._beta,
        }

    def update(
        self,
        backend: ArrayBackend,
        weight: Buffer,
        gradient: Values,
        states: Mapping[str, Buffer],
        *,
        ids: IntArray | None,
        count: int,
        learning_rate: float,
        weight_decay: float,
        rescale: float,
    ) -> None:
        """As the base; a learning rate of 0, by which it would divide, changes nothing."""
        if learning_rate:
            super().update(
                backend,
                weight,
                gradient,
                states,
                ids=ids,
                count=count,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
                rescale=rescale,
            )


ADAPTIVE: Final[Mapping[str, Callable[[Any], UpdateRule]]] = MappingProxyType(
    {
        "adam": _AdamRule,
        "adamw": _AdamWRule,
        "lamb": _LAMBRule,
        "adagrad": _AdaGradRule,
        "rmsprop": _RMSPropRule,
        "adadelta": _AdaDeltaRule,
        "ftrl": _FtrlRule,
    }
)
