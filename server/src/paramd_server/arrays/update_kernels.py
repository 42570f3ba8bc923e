"""Arithmetic on gradients and weights in main memory: one pass, in place, without temporaries.

Each is one compiled call, which waits for the GIL once; NumPy would wait for it at every block
(docs/adr/0006). The compiler is loaded on first use, so that a server without a trainer does not
have it.
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

# Rows without a gradient that are updated at a time.
_ROWS: Final = 1 << 16
_BITS: Final = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def is_finite(array: HostArray) -> bool:
    """Tells whether an array of floats holds neither NaN nor infinity.

    Args:
        array: of any shape and any float dtype; it is copied where it is not contiguous.
    """
    from paramd_server.arrays.compiled_checks import all_finite

    bits = _BITS[array.dtype.itemsize]
    exponent = np.array(np.inf, array.dtype).view(bits)[()]
    given = np.require(array, requirements=("C", "A"))
    return bool(all_finite(_read_only(given.reshape(-1).view(bits)), exponent))


def add_into(target: HostArray, value: HostArray) -> None:
    """Adds in place, in the target's dtype; overflow gives infinity, silently.

    Args:
        target: what is added to.
        value: of the same shape and dtype.
    """
    narrow = target.dtype.itemsize == 2 and target.dtype.kind in "fV"
    if not narrow or not target.flags.c_contiguous or not target.flags.aligned:
        with np.errstate(all="ignore"):
            np.add(target, value, out=target)
        return
    # NumPy's own takes fifty times as long for 16-bit floats.
    from paramd_server.arrays.compiled_checks import add
    from paramd_server.arrays.compiled_elements import stand_in_array

    given = np.require(value, requirements=("C", "A"))
    add(stand_in_array(target).reshape(-1), _read_only(stand_in_array(given).reshape(-1)))


def warm_up_kernel(
    name: str,
    dtype: np.dtype[Any],
    *,
    state_dtypes: Sequence[np.dtype[Any]],
    rounded: np.dtype[Any] | None,
) -> None:
    """Compiles a kernel for its first use, and what is done with gradients before.

    It takes a tenth of a second to a second.

    Args:
        name: of the update.
        dtype: of the weight that is computed with.
        state_dtypes: of its states.
        rounded: the dtype of the weight that goes with it, where that is another; gradients have
            it too.
    """
    gradient = np.ones(1, rounded or dtype)
    is_finite(gradient)
    add_into(gradient, gradient)
    update_array(
        name,
        np.ones(1, dtype),
        gradient,
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
    with np.errstate(over="ignore"):
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
