"""The optimizers in float64 NumPy, written from their papers and docs/optimizers.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from paramd.optimizer import (
    DCASGD,
    LAMB,
    NAG,
    SGD,
    AdaDelta,
    AdaGrad,
    Adam,
    AdamW,
    Ftrl,
    Optimizer,
    RMSProp,
    Signum,
)

__all__ = ["Reference"]

_Array = np.ndarray[Any, np.dtype[np.float64]]
_States = dict[str, _Array]


class _Step:
    """One update of some rows.

    Attributes:
        w: the rows.
        g: their gradient, rescaled.
        s: their states, which are replaced.
        lr: the learning rate.
        wd: the weight decay.
        t: the number of the update.
        norm: of the whole weight.
    """

    def __init__(self, w: _Array, g: _Array, s: _States, rates: tuple[float, float]) -> None:
        self.w, self.g, self.s = w, g, s
        self.lr, self.wd = rates
        self.t, self.norm = 0, 0.0


def _clip(optimizer: Optimizer, x: _Array) -> _Array:
    bound = optimizer.clip_gradient
    return x if bound is None else np.clip(x, -bound, bound)


def _sgd(o: SGD, x: _Step) -> _Array:
    x.s["momentum"] = o.momentum * x.s["momentum"] - x.lr * (_clip(o, x.g) + x.wd * x.w)
    return x.w + x.s["momentum"]


def _nag(o: NAG, x: _Step) -> _Array:
    kept = o.momentum * x.s["momentum"]
    ahead = kept - x.lr * (_clip(o, x.g) + x.wd * x.w)
    new = x.w - kept + (1 + o.momentum) * ahead
    x.s["momentum"] = kept - x.lr * (_clip(o, x.g) + x.wd * new)
    return new


def _signum(o: Signum, x: _Step) -> _Array:
    if not o.momentum:
        return np.asarray((1 - x.lr * (x.wd + o.wd_lh)) * x.w - x.lr * np.sign(x.g))
    d = _clip(o, x.g) + x.wd * x.w
    x.s["momentum"] = o.momentum * x.s["momentum"] - (1 - o.momentum) * d
    return (1 - x.lr * o.wd_lh) * x.w + x.lr * np.sign(x.s["momentum"])


def _means(o: Adam | AdamW | LAMB, x: _Step, d: _Array) -> tuple[_Array, _Array]:
    x.s["mean"] = o.beta1 * x.s["mean"] + (1 - o.beta1) * d
    x.s["variance"] = o.beta2 * x.s["variance"] + (1 - o.beta2) * d**2
    return x.s["mean"] / (1 - o.beta1**x.t), x.s["variance"] / (1 - o.beta2**x.t)


def _adam(o: Adam, x: _Step) -> _Array:
    _means(o, x, _clip(o, x.g + x.wd * x.w))
    rate = x.lr * np.sqrt(1 - o.beta2**x.t) / (1 - o.beta1**x.t)
    return np.asarray(x.w - rate * x.s["mean"] / (np.sqrt(x.s["variance"]) + o.epsilon))


def _adamw(o: AdamW, x: _Step) -> _Array:
    # Algorithm 2 of Loshchilov & Hutter with alpha = 1, eta_t = lr and lambda = wd.
    mean, variance = _means(o, x, _clip(o, x.g))
    return x.w - x.lr * (mean / (np.sqrt(variance) + o.epsilon) + x.wd * x.w)


def _adagrad(o: AdaGrad, x: _Step) -> _Array:
    g = _clip(o, x.g)
    x.s["history"] = x.s["history"] + g**2
    return x.w - x.lr * (g / np.sqrt(x.s["history"] + o.eps) + x.wd * x.w)


def _rmsprop(o: RMSProp, x: _Step) -> _Array:
    d = _clip(o, x.g + x.wd * x.w)
    x.s["variance"] = o.gamma1 * x.s["variance"] + (1 - o.gamma1) * d**2
    if o.centered:
        x.s["mean"] = o.gamma1 * x.s["mean"] + (1 - o.gamma1) * d
        spread = np.sqrt(x.s["variance"] - x.s["mean"] ** 2 + o.epsilon)
        x.s["delta"] = o.gamma2 * x.s["delta"] - x.lr * d / spread
        new = x.w + x.s["delta"]
    else:
        new = x.w - x.lr * d / np.sqrt(x.s["variance"] + o.epsilon)
    bound = np.inf if o.clip_weights is None else o.clip_weights
    return np.asarray(np.clip(new, -bound, bound))


def _adadelta(o: AdaDelta, x: _Step) -> _Array:
    g = _clip(o, x.g)
    x.s["variance"] = o.rho * x.s["variance"] + (1 - o.rho) * g**2
    ratio = (x.s["delta_variance"] + o.epsilon) / (x.s["variance"] + o.epsilon)
    delta = np.sqrt(ratio) * g
    x.s["delta_variance"] = o.rho * x.s["delta_variance"] + (1 - o.rho) * delta**2
    return x.w - delta - x.wd * x.w


def _ftrl(o: Ftrl, x: _Step) -> _Array:
    g = _clip(o, x.g)
    n = x.s["n"] + g**2
    x.s["z"] = x.s["z"] + g - (np.sqrt(n) - np.sqrt(x.s["n"])) / x.lr * x.w
    x.s["n"] = n
    rate = (o.beta + np.sqrt(n)) / x.lr + x.wd
    return np.where(
        np.abs(x.s["z"]) > o.lamda1, (np.sign(x.s["z"]) * o.lamda1 - x.s["z"]) / rate, 0
    )


def _lamb(o: LAMB, x: _Step) -> _Array:
    mean, variance = _means(o, x, _clip(o, x.g))
    if not o.bias_correction:
        mean, variance = x.s["mean"], x.s["variance"]
    step = mean / (np.sqrt(variance) + o.epsilon) + x.wd * x.w
    norm = x.norm if o.lower_bound is None else max(x.norm, o.lower_bound)
    norm = norm if o.upper_bound is None else min(norm, o.upper_bound)
    length = float(np.linalg.norm(step))
    return x.w - x.lr * (norm / length if norm and length else 1) * step


def _dcasgd(o: DCASGD, x: _Step) -> _Array:
    g = _clip(o, x.g)
    delay = o.lamda * g**2 * (x.w - x.s["previous"])
    x.s["momentum"] = o.momentum * x.s["momentum"] - x.lr * (g + x.wd * x.w + delay)
    x.s["previous"] = x.w
    return x.w + x.s["momentum"]


_RULES: Final[dict[str, Callable[[Any, _Step], _Array]]] = {
    "sgd": _sgd,
    "nag": _nag,
    "signum": _signum,
    "adam": _adam,
    "adamw": _adamw,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
    "adadelta": _adadelta,
    "ftrl": _ftrl,
    "lamb": _lamb,
    "dcasgd": _dcasgd,
}
_STATES: Final = (
    *("momentum", "mean", "variance", "history", "delta", "delta_variance"),
    *("z", "n", "previous"),
)


class Reference:
    """A weight under an optimizer.

    Args:
        optimizer: as declared.
        weight: at the beginning.
    """

    def __init__(self, optimizer: Optimizer, weight: np.ndarray[Any, Any]) -> None:
        self._optimizer = optimizer
        self.weight: _Array = weight.astype(np.float64)
        self.states: _States = {name: np.zeros_like(self.weight) for name in _STATES}
        self.states["previous"] = self.weight.copy()

    def step(
        self,
        gradient: np.ndarray[Any, Any],
        ids: np.ndarray[Any, Any] | None = None,
        *,
        count: int,
        lr: float,
        wd: float,
        rescale: float = 1.0,
    ) -> None:
        """One update, of some rows or of all."""
        rows: Any = slice(None) if ids is None else ids
        if self.weight.ndim == 0:
            rows = ()
        g = np.asarray(gradient, np.float64) * rescale
        states = {name: value[rows] for name, value in self.states.items()}
        step = _Step(self.weight[rows], g, states, (lr, wd))
        step.t, step.norm = count, float(np.linalg.norm(self.weight.reshape(-1)))
        new = _RULES[self._optimizer.name](self._optimizer, step)
        for name, value in step.s.items():
            self.states[name][rows] = value
        self.weight[rows] = new
