"""Arithmetic on gradients and weights in main memory: one pass, in place, without temporaries.

Each is a compiled call, which waits for the GIL once; NumPy would wait for it at every block
(docs/adr/0006). Large ones are a few such calls, on several threads. The compiler is loaded on
first use, so that a server without a trainer does not have it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from paramd_server.arrays.backend import HostArray
from paramd_server.arrays.compiled_threads import in_pieces
from paramd_server.arrays.updates import UPDATES

__all__ = ["add_into", "is_finite", "update_array", "warm_up_kernel"]

IntArray = np.ndarray[Any, np.dtype[np.int64]]

# Rows without a gradient that are updated at a time.
_ROWS: Final = 1 << 16
# Elements that are worth a thread: a quarter of a millisecond each.
_LEAST_UPDATED: Final = 1 << 18
_LEAST_ADDED: Final = 1 << 18
_LEAST_CHECKED: Final = 1 << 20
_BITS: Final[dict[int, np.dtype[Any]]] = {
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
}
_FIRST_ROW: Final = np.zeros(1, np.int64)
_FIRST_ROW.flags.writeable = False


def is_finite(array: HostArray) -> bool:
    """Tells whether an array of floats holds neither NaN nor infinity.

    Args:
        array: of any shape and any float dtype; it is copied where it is not contiguous.
    """
    from paramd_server.arrays.compiled_checks import all_finite

    bits = _BITS[array.dtype.itemsize]
    exponent = np.array(np.inf, array.dtype).view(bits)[()]
    given = np.require(array, requirements=("C", "A"))
    values = _read_only(given.reshape(-1).view(bits))
    found: list[bool] = []

    def check(begin: int, end: int) -> None:
        found.append(all_finite(values[begin:end], exponent))

    in_pieces(check, values.size, least=_LEAST_CHECKED)
    return all(found)


def add_into(target: HostArray, value: HostArray) -> None:
    """Adds in place, in the target's dtype; overflow gives infinity, silently.

    Args:
        target: what is added to.
        value: of the same shape and dtype; it is copied where it is not contiguous, but the target
            is.
    """
    narrow = target.dtype.itemsize == 2 and target.dtype.kind in "fV"
    if not target.flags.c_contiguous or not target.flags.aligned:
        with np.errstate(all="ignore"):
            np.add(target, value, out=target)
        return
    flat = target.reshape(-1)
    given = _read_only(np.require(value, requirements=("C", "A")).reshape(-1))
    if narrow:
        # NumPy's own takes fifty times as long for 16-bit floats.
        from paramd_server.arrays.compiled_checks import add
        from paramd_server.arrays.compiled_elements import stand_in_array

        flat, given = stand_in_array(flat), _read_only(stand_in_array(given))

    def part(begin: int, end: int) -> None:
        if narrow:
            add(flat[begin:end], given[begin:end])
            return
        # Here, since each thread has settings of its own.
        with np.errstate(all="ignore"):
            np.add(flat[begin:end], given[begin:end], out=flat[begin:end])

    in_pieces(part, flat.size, least=_LEAST_ADDED)


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
    from paramd_server.arrays.compiled_updates import KERNELS, WHOLE

    if weight.size == 0:
        return
    rows, width = (1, weight.size) if ids is None else _rows_of(weight)

    def prepared(array: HostArray) -> HostArray:
        return stand_in_array(array).reshape(rows, width)

    wide = np.float64 if weight.dtype == np.float64 else np.float32
    with np.errstate(over="ignore"):
        numbers = tuple(wide(each) for each in (1.0, *constants))
    targets = [prepared(weight), None if rounded is None else prepared(rounded)]
    beside = [prepared(state) for state in states]
    kernel = _Kernel(KERNELS[name], numbers, name in WHOLE)
    given = stand_in_array(np.require(gradient, requirements=("C", "A")))
    if ids is None:
        _update_all(kernel, [*targets, _read_only(given.reshape(1, width)), *beside])
        return
    ids = np.require(ids, np.int64, ("C", "A"))
    gradients = _read_only(given.reshape(len(ids), width))
    _update_rows(kernel, [*targets, gradients, *beside], _read_only(ids), 1)
    if not lazy:
        nothing = _read_only(np.zeros((1, width), given.dtype))
        for begin in range(0, rows, _ROWS):
            end = min(begin + _ROWS, rows)
            low, high = np.searchsorted(ids, (begin, end))
            others = np.delete(np.arange(begin, end), ids[low:high] - begin)
            _update_rows(kernel, [*targets, nothing, *beside], _read_only(others), 0)


class _Kernel(NamedTuple):
    """A kernel of `compiled_updates`, its constants, and whether it needs a weight as a whole."""

    function: Callable[..., None]
    numbers: tuple[Any, ...]
    whole: bool


def _update_all(kernel: _Kernel, arrays: Sequence[HostArray | None]) -> None:
    """Updates a weight of one row.

    Args:
        kernel: how.
        arrays: weight, rounded, gradient and states, all of them (1, width).
    """

    def update(arrays: Sequence[HostArray | None]) -> None:
        kernel.function(*arrays[:3], _FIRST_ROW, 1, kernel.numbers, *arrays[3:])

    def part(begin: int, end: int) -> None:
        update([None if each is None else each[:, begin:end] for each in arrays])

    assert arrays[0] is not None
    width = arrays[0].shape[1]
    if kernel.whole or width < 2 * _LEAST_UPDATED:
        update(arrays)
    else:
        in_pieces(part, width, least=_LEAST_UPDATED)


def _update_rows(
    kernel: _Kernel, arrays: Sequence[HostArray | None], ids: IntArray, stride: int
) -> None:
    """Updates the rows of some ids.

    Args:
        kernel: how.
        arrays: weight, rounded, gradients and states.
        ids: of the rows.
        stride: 1, or 0 where all rows share the first row of the gradients.
    """
    targets, gradients, states = arrays[:2], arrays[2], arrays[3:]
    assert gradients is not None

    def part(begin: int, end: int) -> None:
        given = gradients[begin:end] if stride else gradients
        kernel.function(*targets, given, ids[begin:end], stride, kernel.numbers, *states)

    least = _LEAST_UPDATED // max(gradients.shape[1], 1)
    in_pieces(part, len(ids), least=len(ids) if kernel.whole else least)


def _rows_of(weight: HostArray) -> tuple[int, int]:
    return weight.shape[0], math.prod(weight.shape[1:])


def _read_only(array: HostArray) -> HostArray:
    # Always, so that a read-only gradient needs no kernel of its own.
    view = array.view()
    view.flags.writeable = False
    return view
