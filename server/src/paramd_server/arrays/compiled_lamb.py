"""LAMB, compiled: two passes over memory, since the step needs two norms first."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from paramd_server.arrays.compiled_elements import clipped, compiled, load, row_of, store

__all__ = ["correction", "lamb"]

# Elements whose squares are summed at a time.
_PIECE: Final = 1024


@compiled
def correction(one: Any, beta: Any, count: Any) -> Any:
    """What a mean has of 1 after some updates, since it began at 0: 1 - beta ** count.

    Of the rounded beta, since the mean has decayed by that.
    """
    return type(one)(1.0 - np.float64(beta) ** np.float64(count))


@compiled
def _sum(scratch: Any, size: Any) -> Any:
    # By halves, which the compiler can vectorize, unlike a running sum, and which loses less.
    while size > 1:
        half = (size + 1) // 2
        for j in range(size - half):
            scratch[j] += scratch[j + half]
        size = half
    return scratch[0]


@compiled
def lamb(
    weight: Any,
    rounded: Any,
    gradient: Any,
    ids: Any,
    stride: Any,
    constants: Any,
    mean: Any,
    variance: Any,
) -> None:
    """The update that needs two norms first; arguments as in `compiled_updates`."""
    one, rescale, clip, lr, wd, beta1, beta2, epsilon, count, low, high = constants
    rest1, rest2 = one - beta1, one - beta2
    correction1, correction2 = correction(one, beta1, count), correction(one, beta2, count)
    scratch = np.empty(_PIECE)
    weight_squares = step_squares = 0.0
    for i in range(weight.shape[0]):
        for begin in range(0, weight.shape[1], _PIECE):
            w = weight[i, begin : begin + _PIECE]
            for j in range(w.size):
                scratch[j] = np.float64(load(w, j)) * np.float64(load(w, j))
            weight_squares += _sum(scratch, w.size)
    for i in range(ids.size):
        for begin in range(0, weight.shape[1], _PIECE):
            w = weight[ids[i], begin : begin + _PIECE]
            g = gradient[i * stride, begin : begin + _PIECE]
            m, v = mean[ids[i], begin : begin + _PIECE], variance[ids[i], begin : begin + _PIECE]
            for j in range(w.size):
                x = clipped(rescale * load(g, j), clip)
                store(m, j, beta1 * load(m, j) + rest1 * x)
                store(v, j, beta2 * load(v, j) + rest2 * x * x)
            for j in range(w.size):
                root = np.sqrt(load(v, j) / correction2)
                step = load(m, j) / correction1 / (root + epsilon) + wd * load(w, j)
                scratch[j] = np.float64(step) * np.float64(step)
            step_squares += _sum(scratch, w.size)
    norm = min(max(np.sqrt(weight_squares), np.float64(low)), np.float64(high))
    rate = lr
    if norm != 0 and step_squares != 0:
        rate = type(one)(lr * norm / np.sqrt(step_squares))
    for i in range(ids.size):
        w, r = weight[ids[i]], row_of(rounded, ids[i])
        m, v = mean[ids[i]], variance[ids[i]]
        for j in range(w.size):
            old = load(w, j)
            root = np.sqrt(load(v, j) / correction2)
            new = old - rate * (load(m, j) / correction1 / (root + epsilon) + wd * old)
            store(w, j, new)
            store(r, j, new)
