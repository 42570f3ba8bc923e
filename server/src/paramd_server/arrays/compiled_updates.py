"""The updates of `paramd_server.arrays.updates`, compiled for a CPU.

Each is one pass over memory without temporaries, on the calling thread, which waits once for the
GIL (docs/adr/0006).
They share their first arguments:

    weight: (rows, width), of the dtype to compute with, or its 16-bit stand-in; updated in place.
    rounded: None, or an array like weight that gets each new weight, rounded to its dtype.
    gradient: (n, width).
    ids: the rows of weight to update, unique.
    stride: row `i * stride` of gradient goes with `ids[i]`: 1, or 0 where all rows share row 0.
    constants: 1, then what `Update.constants` names, in the dtype to compute with: a plain 1 would
        make Numba compute in float64.

The states follow, in the order of `Update.states`. Everything is rounded once, when it is stored.
The order of the operations is MXNet 1.9.1's, which an experiment shows, so that float32 gives its
bits almost always.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from paramd_server.arrays.compiled_elements import clipped, compiled, load, row_of, store
from paramd_server.arrays.compiled_lamb import correction, lamb

__all__ = ["KERNELS", "WHOLE"]

_Kernel = Callable[..., None]


@compiled
def _sgd(weight: Any, rounded: Any, gradient: Any, ids: Any, stride: Any, constants: Any) -> None:
    _one, rescale, clip, lr, wd = constants
    decay = lr * wd
    for i in range(ids.size):
        w, r, g = weight[ids[i]], row_of(rounded, ids[i]), gradient[i * stride]
        for j in range(w.size):
            old = load(w, j)
            new = old - (decay * old + lr * clipped(rescale * load(g, j), clip))
            store(w, j, new)
            store(r, j, new)


@compiled
def _sgd_momentum(
    weight: Any, rounded: Any, gradient: Any, ids: Any, stride: Any, constants: Any, momentum: Any
) -> None:
    _one, rescale, clip, lr, wd, mu = constants
    decay = lr * wd
    for i in range(ids.size):
        w, r = weight[ids[i]], row_of(rounded, ids[i])
        g, m = gradient[i * stride], momentum[ids[i]]
        for j in range(w.size):
            old = load(w, j)
            step = mu * load(m, j) - decay * old - lr * clipped(rescale * load(g, j), clip)
            new = old + step
            store(m, j, step)
            store(w, j, new)
            store(r, j, new)


@compiled
def _nag_momentum(
    weight: Any, rounded: Any, gradient: Any, ids: Any, stride: Any, constants: Any, momentum: Any
) -> None:
    one, rescale, clip, lr, wd, mu = constants
    ahead = one + mu
    for i in range(ids.size):
        w, r = weight[ids[i]], row_of(rounded, ids[i])
        g, m = gradient[i * stride], momentum[ids[i]]
        for j in range(w.size):
            old = load(w, j)
            x = clipped(rescale * load(g, j), clip)
            kept = mu * load(m, j)
            new = old - kept + ahead * (kept - lr * (x + wd * old))
            # As in MXNet the momentum has the decay of the new weight.
            store(m, j, kept - lr * (x + wd * new))
            store(w, j, new)
            store(r, j, new)


@compiled
def _sign(weight: Any, rounded: Any, gradient: Any, ids: Any, stride: Any, constants: Any) -> None:
    one, rescale, clip, lr, wd = constants
    zero = one - one
    kept = one - lr * wd
    for i in range(ids.size):
        w, r, g = weight[ids[i]], row_of(rounded, ids[i]), gradient[i * stride]
        for j in range(w.size):
            x = clipped(rescale * load(g, j), clip)
            step = x * zero
            if x > zero:
                step = lr
            if x < zero:
                step = -lr
            new = kept * load(w, j) - step
            store(w, j, new)
            store(r, j, new)


@compiled
def _sign_momentum(
    weight: Any, rounded: Any, gradient: Any, ids: Any, stride: Any, constants: Any, momentum: Any
) -> None:
    one, rescale, clip, lr, wd, mu, decoupled_wd = constants
    zero = one - one
    rest = one - mu
    decay, kept = rest * wd, one - lr * decoupled_wd
    for i in range(ids.size):
        w, r = weight[ids[i]], row_of(rounded, ids[i])
        g, m = gradient[i * stride], momentum[ids[i]]
        for j in range(w.size):
            old = load(w, j)
            x = clipped(rescale * load(g, j), clip)
            mean = mu * load(m, j) - decay * old - rest * x
            step = mean * zero
            if mean > zero:
                step = lr
            if mean < zero:
                step = -lr
            new = kept * old + step
            store(m, j, mean)
            store(w, j, new)
            store(r, j, new)


@compiled
def _adam(
    weight: Any,
    rounded: Any,
    gradient: Any,
    ids: Any,
    stride: Any,
    constants: Any,
    mean: Any,
    variance: Any,
) -> None:
    one, rescale, clip, lr, wd, beta1, beta2, epsilon = constants
    rest1, rest2 = one - beta1, one - beta2
    for i in range(ids.size):
        w, r, g = weight[ids[i]], row_of(rounded, ids[i]), gradient[i * stride]
        m, v = mean[ids[i]], variance[ids[i]]
        for j in range(w.size):
            old = load(w, j)
            x = clipped(rescale * load(g, j) + wd * old, clip)
            first = beta1 * load(m, j) + rest1 * x
            second = beta2 * load(v, j) + rest2 * x * x
            new = old - lr * first / (np.sqrt(second) + epsilon)
            store(m, j, first)
            store(v, j, second)
            store(w, j, new)
            store(r, j, new)


@compiled
def _adamw(
    weight: Any,
    rounded: Any,
    gradient: Any,
    ids: Any,
    stride: Any,
    constants: Any,
    mean: Any,
    variance: Any,
) -> None:
    one, rescale, clip, lr, wd, beta1, beta2, epsilon, count = constants
    rest1, rest2 = one - beta1, one - beta2
    correction1, correction2 = correction(one, beta1, count), correction(one, beta2, count)
    for i in range(ids.size):
        w, r, g = weight[ids[i]], row_of(rounded, ids[i]), gradient[i * stride]
        m, v = mean[ids[i]], variance[ids[i]]
        for j in range(w.size):
            old = load(w, j)
            x = clipped(rescale * load(g, j), clip)
            first = beta1 * load(m, j) + rest1 * x
            second = beta2 * load(v, j) + rest2 * x * x
            step = (first / correction1) / (np.sqrt(second / correction2) + epsilon)
            new = old - lr * (step + wd * old)
            store(m, j, first)
            store(v, j, second)
            store(w, j, new)
            store(r, j, new)


@compiled
def _adagrad(
    weight: Any, rounded: Any, gradient: Any, ids: Any, stride: Any, constants: Any, history: Any
) -> None:
    _one, rescale, clip, lr, wd, epsilon = constants
    for i in range(ids.size):
        w, r = weight[ids[i]], row_of(rounded, ids[i])
        g, h = gradient[i * stride], history[ids[i]]
        for j in range(w.size):
            old = load(w, j)
            x = clipped(rescale * load(g, j), clip)
            total = load(h, j) + x * x
            new = old - lr * (x / np.sqrt(total + epsilon) + wd * old)
            store(h, j, total)
            store(w, j, new)
            store(r, j, new)


@compiled
def _rmsprop(
    weight: Any, rounded: Any, gradient: Any, ids: Any, stride: Any, constants: Any, variance: Any
) -> None:
    one, rescale, clip, lr, wd, decay, epsilon, clip_weights = constants
    rest = one - decay
    for i in range(ids.size):
        w, r = weight[ids[i]], row_of(rounded, ids[i])
        g, n = gradient[i * stride], variance[ids[i]]
        for j in range(w.size):
            old = load(w, j)
            x = clipped(rescale * load(g, j) + wd * old, clip)
            second = rest * (x * x) + decay * load(n, j)
            new = clipped(old - lr * (x / np.sqrt(second + epsilon)), clip_weights)
            store(n, j, second)
            store(w, j, new)
            store(r, j, new)


@compiled
def _rmsprop_centered(
    weight: Any,
    rounded: Any,
    gradient: Any,
    ids: Any,
    stride: Any,
    constants: Any,
    variance: Any,
    mean: Any,
    delta: Any,
) -> None:
    one, rescale, clip, lr, wd, decay, epsilon, clip_weights, momentum = constants
    rest = one - decay
    for i in range(ids.size):
        w, r, g = weight[ids[i]], row_of(rounded, ids[i]), gradient[i * stride]
        n, a, d = variance[ids[i]], mean[ids[i]], delta[ids[i]]
        for j in range(w.size):
            old = load(w, j)
            x = clipped(rescale * load(g, j) + wd * old, clip)
            second = decay * load(n, j) + rest * x * x
            first = decay * load(a, j) + rest * x
            step = momentum * load(d, j) - lr * x / np.sqrt(second - first * first + epsilon)
            new = clipped(old + step, clip_weights)
            store(n, j, second)
            store(a, j, first)
            store(d, j, step)
            store(w, j, new)
            store(r, j, new)


@compiled
def _adadelta(
    weight: Any,
    rounded: Any,
    gradient: Any,
    ids: Any,
    stride: Any,
    constants: Any,
    variance: Any,
    delta_variance: Any,
) -> None:
    one, rescale, clip, wd, decay, epsilon = constants
    rest = one - decay
    for i in range(ids.size):
        w, r, g = weight[ids[i]], row_of(rounded, ids[i]), gradient[i * stride]
        s, u = variance[ids[i]], delta_variance[ids[i]]
        for j in range(w.size):
            old = load(w, j)
            x = clipped(rescale * load(g, j), clip)
            second = decay * load(s, j) + rest * x * x
            before = load(u, j)
            step = np.sqrt(before + epsilon) / np.sqrt(second + epsilon) * x
            new = old - (step + wd * old)
            store(s, j, second)
            store(u, j, decay * before + rest * step * step)
            store(w, j, new)
            store(r, j, new)


@compiled
def _ftrl(
    weight: Any,
    rounded: Any,
    gradient: Any,
    ids: Any,
    stride: Any,
    constants: Any,
    linear: Any,
    squares: Any,
) -> None:
    one, rescale, clip, lr, wd, lamda1, beta = constants
    zero = one - one
    for i in range(ids.size):
        w, r, g = weight[ids[i]], row_of(rounded, ids[i]), gradient[i * stride]
        z, n = linear[ids[i]], squares[ids[i]]
        for j in range(w.size):
            old, before = load(w, j), load(n, j)
            x = clipped(rescale * load(g, j), clip)
            total = before + x * x
            root = np.sqrt(total)
            sum_ = load(z, j) + (x - (root - np.sqrt(before)) * old / lr)
            # sign(z) * lamda1 - z, where abs(z) is above lamda1; a NaN stays one.
            pull = sum_ * zero
            if sum_ > lamda1:
                pull = lamda1 - sum_
            if sum_ < -lamda1:
                pull = -lamda1 - sum_
            new = pull / ((beta + root) / lr + wd)
            store(z, j, sum_)
            store(n, j, total)
            store(w, j, new)
            store(r, j, new)


@compiled
def _dcasgd(
    weight: Any, rounded: Any, gradient: Any, ids: Any, stride: Any, constants: Any, previous: Any
) -> None:
    _one, rescale, clip, lr, wd, lamda = constants
    for i in range(ids.size):
        w, r = weight[ids[i]], row_of(rounded, ids[i])
        g, p = gradient[i * stride], previous[ids[i]]
        for j in range(w.size):
            old = load(w, j)
            x = clipped(rescale * load(g, j), clip)
            new = old - lr * (x + wd * old + lamda * x * x * (old - load(p, j)))
            store(p, j, old)
            store(w, j, new)
            store(r, j, new)


@compiled
def _dcasgd_momentum(
    weight: Any,
    rounded: Any,
    gradient: Any,
    ids: Any,
    stride: Any,
    constants: Any,
    previous: Any,
    momentum: Any,
) -> None:
    _one, rescale, clip, lr, wd, lamda, mu = constants
    for i in range(ids.size):
        w, r, g = weight[ids[i]], row_of(rounded, ids[i]), gradient[i * stride]
        p, m = previous[ids[i]], momentum[ids[i]]
        for j in range(w.size):
            old = load(w, j)
            x = clipped(rescale * load(g, j), clip)
            step = mu * load(m, j) - lr * (x + wd * old + lamda * x * x * (old - load(p, j)))
            new = old + step
            store(m, j, step)
            store(p, j, old)
            store(w, j, new)
            store(r, j, new)


KERNELS: Final[Mapping[str, _Kernel]] = {
    "sgd": _sgd,
    "sgd_momentum": _sgd_momentum,
    "nag_momentum": _nag_momentum,
    "sign": _sign,
    "sign_momentum": _sign_momentum,
    "adam": _adam,
    "adamw": _adamw,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
    "rmsprop_centered": _rmsprop_centered,
    "adadelta": _adadelta,
    "ftrl": _ftrl,
    "lamb": lamb,
    "dcasgd": _dcasgd,
    "dcasgd_momentum": _dcasgd_momentum,
}
WHOLE: Final = frozenset({"lamb"})
"""Those that need all of a weight at a time; the others take any part of it by itself."""
