"""Arithmetic on gradients and weights in main memory: one pass, in place, without temporaries.

The kernels are compiled on first use; what only checks and adds does without them, so that a
server without a trainer never loads the compiler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from paramd_server.arrays.backend import HostArray
from paramd_server.arrays.updates import UPDATES

__all__ = ["add_into", "is_finite", "update_array", "warm_up_kernel"]

IntArray = np.ndarray[Any, np.dtype[np.int64]]

# Elements that are checked at a time: they stay in the cache for the second look.
_CHECKED: Final = 1 << 18
# Rows without a gradient that are updated at a time.
_ROWS: Final = 1 << 16
_UNSIGNED: Final = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_SIGNED: Final = {2: np.int16, 4: np.int32, 8: np.int64}


def is_finite(array: HostArray) -> bool:
    """Tells whether an array of floats holds neither NaN nor infinity.

    Args:
        array: of any shape and any float dtype, contiguous or not.
    """
    infinity = np.array(np.inf, array.dtype)
    if not array.flags.c_contiguous:
        with np.errstate(all="ignore"):
            return bool(np.isfinite(array).all())
    # As integers, infinity and NaN are above all finite numbers of their sign.
    size = array.dtype.itemsize
    unsigned = array.reshape(-1).view(_UNSIGNED[size])
    signed = array.reshape(-1).view(_SIGNED[size])
    positive = int(infinity.view(_SIGNED[size]))
    negative = int((-infinity).view(_UNSIGNED[size]))
    for begin in range(0, array.size, _CHECKED):
        block = slice(begin, begin + _CHECKED)
        if signed[block].max() >= positive or unsigned[block].max() >= negative:
            return False
    return True


def add_into(target: HostArray, value: HostArray) -> None:
    """Adds in place, in the target's dtype; overflow gives infinity, silently.

    Args:
        target: what is added to.
        value: of the same shape and dtype.
    """
    with np.errstate(all="ignore"):
        np.add(target, value, out=target)


def warm_up_kernel(
    name: str,
    dtype: np.dtype[Any],
    *,
    state_dtypes: Sequence[np.dtype[Any]],
    rounded: np.dtype[Any] | None,
) -> None:
    """Compiles a kernel for its first use, which takes a second.

    Args:
        name: of the update.
        dtype: of the weight that is computed with.
        state_dtypes: of its states.
        rounded: the dtype of the weight that goes with it, where that is another; gradients have
            it too.
    """
    update_array(
        name,
        np.ones(1, dtype),
        np.ones(1, rounded or dtype),
        [np.ones(1, each) for each in state_dtypes],
        [1.0] * len(UPDATES[name].constants),
        rounded=None if rounded is None else np.ones(1, rounded),
        ids=None,
        lazy=True,
    )


def update_array(
    name: str,
    weight: HostArray,
    gradient: HostArray,
    states: Sequence[HostArray],
    constants: Sequence[float],
    *,
    rounded: HostArray | None,
    ids: IntArray | None,
    lazy: bool,
) -> None:
    """Updates a weight in place; see `ArrayBackend.update` for the arguments."""
    # Loads the compiler, which a server without a trainer has no use for.
    from paramd_server.arrays.compiled_elements import stand_in_array
    from paramd_server.arrays.compiled_updates import KERNELS

    rows, width = (1, weight.size) if ids is None else _rows_of(weight)
    if weight.size == 0:
        return

    def prepared(array: HostArray) -> HostArray:
        return stand_in_array(array).reshape(rows, width)

    wide = np.float64 if weight.dtype == np.float64 else np.float32
    numbers = tuple(wide(each) for each in (1.0, *constants))
    targets = prepared(weight), None if rounded is None else prepared(rounded)
    beside = [prepared(state) for state in states]
    kernel = KERNELS[name]

    def run(gradients: HostArray, ids: IntArray, stride: int) -> None:
        kernel(*targets, _read_only(gradients), _read_only(ids), stride, numbers, *beside)

    given = stand_in_array(np.require(gradient, requirements=("C", "A")))
    if ids is None:
        run(given.reshape(1, width), np.zeros(1, np.int64), 1)
        return
    ids = np.require(ids, np.int64, ("C", "A"))
    run(given.reshape(len(ids), width), ids, 1)
    if not lazy:
        nothing = np.zeros((1, width), given.dtype)
        for begin in range(0, rows, _ROWS):
            end = min(begin + _ROWS, rows)
            low, high = np.searchsorted(ids, (begin, end))
            others = np.delete(np.arange(begin, end), ids[low:high] - begin)
            run(nothing, others, 0)


def _rows_of(weight: HostArray) -> tuple[int, int]:
    return weight.shape[0], math.prod(weight.shape[1:])


def _read_only(array: HostArray) -> HostArray:
    # Always, so that a read-only gradient needs no kernel of its own.
    view = array.view()
    view.flags.writeable = False
    return view
