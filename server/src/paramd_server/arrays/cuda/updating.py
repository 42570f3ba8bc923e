"""Updates of weights on a GPU, gradients being fed from where they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from paramd_server.arrays.backend import HostArray
from paramd_server.arrays.cuda.buffers import CudaBuffer
from paramd_server.arrays.cuda.device import Device, KernelKey
from paramd_server.arrays.cuda.source import LANES, PARTIALS
from paramd_server.arrays.cuda.transfers import Fed, Rows, TransferSlots

__all__ = ["Step", "Updater", "update_kernels"]

_SUM_BYTES: Final = 8
# Rows without a gradient that are looked for at a time.
_ROWS: Final = 1 << 20
_LAMB: Final = (("lamb_moments", ""), ("lamb_squares", "weight"), ("lamb_squares", "step"))
_SUM_KERNEL: Final[KernelKey] = ("sum_partials", "", ())

Launch = Callable[[Fed], None]


def _types(
    weight: np.dtype[Any],
    gradient: np.dtype[Any],
    states: Sequence[np.dtype[Any]],
    rounded: np.dtype[Any] | None,
) -> tuple[tuple[str, np.dtype[Any]], ...]:
    state = states[0] if states else weight
    return (
        ("WEIGHT", weight),
        ("GRADIENT", gradient),
        ("STATE", state),
        ("ROUNDED", rounded or weight),
    )


def update_kernels(
    update: str,
    dtype: np.dtype[Any],
    *,
    state_dtypes: Sequence[np.dtype[Any]],
    rounded: np.dtype[Any] | None,
) -> list[KernelKey]:
    """The kernels that an update needs; see `ArrayBackend.warm_up` for the arguments."""
    types = _types(dtype, rounded or dtype, state_dtypes, rounded)
    if update != "lamb":
        return [(update, "", types)]
    kernels = [*_LAMB, ("lamb_apply", "")]
    return [_SUM_KERNEL, *((name, mode, types) for name, mode in kernels)]


@dataclass(frozen=True)
class Step:
    """One update; see `ArrayBackend.update`, but all buffers are on one device.

    Attributes:
        update: a key of `UPDATES`.
        weight: not empty.
        gradient: a host array or a buffer.
        states: buffers of one dtype.
        constants: numbers.
        rounded: a buffer or None.
        ids: contiguous int64, or None.
        lazy: whether the rows without a gradient stay as they are.
    """

    update: str
    weight: CudaBuffer
    gradient: HostArray | CudaBuffer
    states: Sequence[CudaBuffer]
    constants: Sequence[float]
    rounded: CudaBuffer | None
    ids: HostArray | None
    lazy: bool

    @property
    def rows(self) -> Rows | None:
        """Those that have a gradient; None for all."""
        if self.ids is None:
            return None
        return Rows(self.ids, self.weight.size // self.weight.shape[0])

    @property
    def gradient_dtype(self) -> np.dtype[Any]:
        """That of the gradient on the device."""
        if isinstance(self.gradient, CudaBuffer):
            return self.gradient.dtype
        return (self.rounded or self.weight).dtype

    def kernel(self, name: str, mode: str = "") -> KernelKey:
        """The kernel of that name for its dtypes."""
        rounded = None if self.rounded is None else self.rounded.dtype
        states = [state.dtype for state in self.states]
        return name, mode, _types(self.weight.dtype, self.gradient_dtype, states, rounded)

    def arguments(self, fed: Fed) -> list[Any]:
        """What every kernel of an update takes."""
        wide = np.float64 if self.weight.dtype == np.float64 else np.float32
        with np.errstate(over="ignore"):
            numbers = [wide(each) for each in self.constants]
        row_size = self.weight.size if self.rows is None else self.rows.size
        return [
            np.uintp(self.weight.address),
            np.uintp(0 if self.rounded is None else self.rounded.address),
            np.uintp(fed.values),
            np.uintp(fed.ids),
            *(np.int64(each) for each in (fed.first, row_size, fed.begin, fed.count)),
            *(np.uintp(state.address) for state in self.states),
            *numbers,
        ]


class Updater:
    """Does the updates on one device.

    Args:
        device: where the weights are.
        slots: of that device.

    Raises:
        MemoryLimitError: where the device has no room for sums.
    """

    def __init__(self, device: Device, slots: TransferSlots) -> None:
        self._device = device
        self._slots = slots
        # The sums under way, and the two that come out; for the use of one update at a time.
        self._partials = device.reserve((PARTIALS + 2) * _SUM_BYTES)
        self._issuing = threading.Lock()

    def run(self, step: Step) -> None:
        """Puts an update on the compute stream; the device is the thread's current one."""
        if step.update == "lamb":
            self._run_lamb(step)
        else:
            self._feed_all(step, self._launch(step, step.update))

    def _run_lamb(self, step: Step) -> None:
        self._feed_all(step, self._launch(step, "lamb_moments"))
        # The sums are the next update's only when this one's last kernel is on the stream.
        with self._issuing:
            self._clear_partials()
            self._launch(step, "lamb_squares", "weight", self._partials_address)(
                Fed(0, step.weight.size)
            )
            self._add_up(0)
            self._clear_partials()
            self._feed_changed(
                step, self._launch(step, "lamb_squares", "step", self._partials_address)
            )
            self._add_up(1)
            self._feed_changed(step, self._launch(step, "lamb_apply", "", self._sum_address(0)))

    def _launch(self, step: Step, name: str, mode: str = "", sums: int | None = None) -> Launch:
        kernel = step.kernel(name, mode)
        last = () if sums is None else (np.uintp(sums),)

        def launch(fed: Fed) -> None:
            self._device.launch(kernel, fed.count, (*step.arguments(fed), *last))

        return launch

    def _feed_all(self, step: Step, launch: Launch) -> None:
        """The elements with a gradient, then those that are updated without one."""
        gradient, rows = step.gradient, step.rows
        values = gradient.address if isinstance(gradient, CudaBuffer) else gradient
        if rows is not None:
            self._slots.feed_rows(rows, values, step.gradient_dtype, launch)
            if not step.lazy:
                for others in _others(rows.ids, step.weight.shape[0]):
                    self._slots.feed_rows(
                        Rows(others, rows.size), None, step.gradient_dtype, launch
                    )
        elif isinstance(values, int):
            launch(Fed(0, step.weight.size, values))
        else:
            self._slots.feed(values, step.gradient_dtype, launch)

    def _feed_changed(self, step: Step, launch: Launch) -> None:
        """All elements that are updated, without the gradient."""
        if step.rows is None or not step.lazy:
            launch(Fed(0, step.weight.size))
        else:
            self._slots.feed_rows(step.rows, None, step.gradient_dtype, launch)

    @property
    def _partials_address(self) -> int:
        return int(self._partials.ptr)

    def _sum_address(self, index: int) -> int:
        return self._partials_address + (PARTIALS + index) * _SUM_BYTES

    def _clear_partials(self) -> None:
        device = self._device
        device.runtime.clear(device.compute, self._partials_address, PARTIALS * _SUM_BYTES)

    def _add_up(self, index: int) -> None:
        partials = np.uintp(self._partials_address)
        last = np.uintp(self._sum_address(index))
        for size, lanes, sums in ((PARTIALS, LANES, partials), (LANES, 1, last)):
            args = (partials, np.int64(size), np.int64(lanes), sums)
            self._device.launch(_SUM_KERNEL, lanes, args)


def _others(ids: HostArray, num_rows: int) -> Iterator[HostArray]:
    for begin in range(0, num_rows, _ROWS):
        end = min(begin + _ROWS, num_rows)
        low, high = np.searchsorted(ids, (begin, end))
        others = np.delete(np.arange(begin, end, dtype=np.int64), ids[low:high] - begin)
        if others.size:
            yield others
