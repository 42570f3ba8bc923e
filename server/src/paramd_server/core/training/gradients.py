"""Gradients that come with a step: staged, checked, and summed over workers or contexts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paramd.compression import expand
from paramd.errors import (
    DTypeMismatchError,
    InvalidArgumentError,
    InvalidStreamError,
    NonFiniteGradientError,
    ShapeMismatchError,
)
from paramd.spec import TensorHead
from paramd.trainer_spec import TrainerSpec
from paramd_server.arrays.backend import Buffer, HostArray, Values
from paramd_server.arrays.update_kernels import add_into, is_finite
from paramd_server.core.gradient_writing import check_push
from paramd_server.core.initialization import finish_deferred
from paramd_server.core.registry import Registry
from paramd_server.core.row_sparse import IntArray, check_ids, union_of
from paramd_server.core.stored_parameter import StoredParameter
from paramd_server.core.writing import (
    StagedWrite,
    TensorStage,
    check_rows,
    check_staged_ids,
    naming,
)

__all__ = [
    "Contribution",
    "GradientSource",
    "PushedGradient",
    "StepStage",
    "check_trainable",
    "non_finite_error",
    "prepare_sum",
]

# Gives the row ids (None: the gradient is dense) and the values, in host memory or on the context
# of the copy that is updated. Called once, when nothing can fail any more.
GradientSource = Callable[[], tuple[IntArray | None, Values]]


@dataclass(frozen=True)
class PushedGradient:
    """One gradient of a push, in host memory that belongs to it alone.

    Attributes:
        value: the dense gradient, or the rows.
        ids: of the rows, int64, sorted and unique; None for a dense gradient.
    """

    value: Buffer
    ids: Buffer | None

    def check_fits(self, parameter: StoredParameter) -> None:
        """Checks it against a locked parameter, which may not be the one of before.

        Raises:
            ShapeMismatchError, RowIdError.
        """
        shape, first = self.value.shape, 0 if self.ids is None else 1
        if shape[first:] != parameter.shape[first:]:
            raise ShapeMismatchError(
                f"Parameter '{parameter.name}' was made anew: expected a gradient of shape "
                f"{parameter.shape}, but got {'rows' if first else 'one'} of {shape[first:]}",
                parameter=parameter.name,
            )
        if self.ids is not None:
            check_ids(parameter.name, parameter.staged_array(self.ids), parameter.shape[0])


@dataclass(frozen=True)
class Contribution:
    """What one worker adds to the sum over the workers.

    Attributes:
        gradient: its gradient.
        factor: what it is multiplied by, because its batch had another size than the first one's.
    """

    gradient: PushedGradient
    factor: float


def check_trainable(parameter: StoredParameter) -> None:
    """Raises where a parameter has no value, no gradient, or one that no optimizer can step.

    Raises:
        NotInitializedError, DeferredInitializationError, NoGradientError, DTypeMismatchError.
    """
    finish_deferred(parameter)
    parameter.check_gradient()
    # bfloat16 is no subtype of NumPy's floats.
    if parameter.current.dtype.kind not in "fV":
        raise DTypeMismatchError(
            f"Parameter '{parameter.name}': an optimizer steps floating-point values, but it is of "
            f"{parameter.current.dtype}",
            parameter=parameter.name,
        )


def non_finite_error(name: str) -> NonFiniteGradientError:
    """What a step gets whose gradient of a parameter is NaN or infinite somewhere."""
    return NonFiniteGradientError(
        f"Parameter '{name}': the gradient holds NaN or infinity", parameter=name
    )


class StepStage(TensorStage):
    """The gradients of one push to a trainer.

    Args:
        registry: of the server.
        spec: of the trainer.
    """

    def __init__(self, registry: Registry, spec: TrainerSpec) -> None:
        super().__init__(registry)
        self._spec = spec
        self._names = frozenset(spec.parameters)

    def check(self, parameter: StoredParameter, head: TensorHead) -> None:
        """See TensorStage."""
        name = parameter.name
        if name not in self._names:
            raise InvalidArgumentError(
                f"Parameter '{name}' is not one of trainer {self._spec.name!r}", parameter=name
            )
        if head.mode != "by_grad_req":
            raise InvalidStreamError(
                f"Parameter '{name}': a gradient of a step is pushed, but its write mode is "
                f"{head.mode!r}",
                parameter=name,
            )
        if head.context is not None:
            raise InvalidStreamError(
                f"Parameter '{name}': a worker's gradient has no context", parameter=name
            )
        check_trainable(parameter)
        check_push(parameter, head)
        if head.stype == "row_sparse":
            check_rows(parameter, head)
        elif head.two_bit_threshold not in (0.0, self._spec.two_bit_threshold):
            raise InvalidStreamError(
                f"Parameter '{name}': trainer {self._spec.name!r} compresses with the threshold "
                f"{self._spec.two_bit_threshold:g}, but the gradient comes with "
                f"{head.two_bit_threshold:g}",
                parameter=name,
            )

    def finish(self) -> tuple[dict[str, PushedGradient], str]:
        """Checks what came.

        Returns:
            The gradients by name, and the name of the first that is NaN or infinite somewhere, or
            ''.

        Raises:
            RowIdError, InvalidStreamError, MemoryLimitError.
        """
        writes, self._writes = self._writes, []
        dtypes: list[np.dtype[Any]] = []
        with self._registry.hold([write.head.name for write in writes]) as parameters:
            for parameter, write in zip(parameters, writes, strict=True):
                check_staged_ids(parameter, write)
                dtypes.append(parameter.current.dtype)
        gradients: dict[str, PushedGradient] = {}
        wrong = ""
        for write, dtype in zip(writes, dtypes, strict=True):
            name = write.head.name
            with naming(name):
                # Finite in float64 may be infinite in the parameter's dtype.
                value = self._registry.devices.as_dtype(self._expanded(write), dtype)
            gradients[name] = PushedGradient(value, write.ids)
            if not wrong and not is_finite(self._registry.devices.staged_array(value)):
                wrong = name
        return gradients, wrong

    def _expanded(self, write: StagedWrite) -> Buffer:
        if not write.head.two_bit_threshold:
            return write.value
        devices = self._registry.devices
        with naming(write.head.name):
            dense = devices.stage(write.head.shape, write.head.dtype)
        packed = devices.staged_array(write.value)
        devices.staged_array(dense)[...] = expand(
            packed, write.head.shape, write.head.dtype, write.head.two_bit_threshold
        )
        return dense


def prepare_sum(
    parameter: StoredParameter, contributions: Sequence[Contribution]
) -> GradientSource:
    """Makes ready to add up gradients, in the order given.

    The sum is computed in the parameter's dtype, into the memory of the first gradient.

    Args:
        parameter: locked.
        contributions: at least one.

    Raises:
        MemoryLimitError: where a buffer does not fit.
    """
    dtype = parameter.current.dtype
    values = [parameter.as_dtype(each.gradient.value, dtype) for each in contributions]
    arrays = [parameter.staged_array(value) for value in values]
    ids = [
        None if each.gradient.ids is None else parameter.staged_array(each.gradient.ids)
        for each in contributions
    ]
    factors = [each.factor for each in contributions]
    if len(contributions) == 1:

        def alone() -> tuple[IntArray | None, HostArray]:
            _scale(arrays[0], factors[0])
            _keep(values)
            return ids[0], arrays[0]

        return alone
    if all(each is None for each in ids):
        return _dense_sum(values, arrays, factors)
    if all(each is not None for each in ids):
        return _sparse_sum(
            parameter, values, arrays, [each for each in ids if each is not None], factors
        )
    return _mixed_sum(parameter, values, arrays, ids, factors)


def _keep(_buffers: Sequence[Buffer]) -> None:
    """Nothing to do: the caller's closure has kept the buffers, and so their memory, until now."""


def _scale(array: HostArray, factor: float) -> None:
    if factor != 1.0:
        np.multiply(array, array.dtype.type(factor), out=array)


def _dense_sum(
    values: Sequence[Buffer], arrays: Sequence[HostArray], factors: Sequence[float]
) -> GradientSource:
    def add() -> tuple[None, HostArray]:
        for array, factor in zip(arrays, factors, strict=True):
            _scale(array, factor)
        for array in arrays[1:]:
            add_into(arrays[0], array)
        _keep(values)
        return None, arrays[0]

    return add


def _sparse_sum(
    parameter: StoredParameter,
    values: Sequence[Buffer],
    arrays: Sequence[HostArray],
    ids: Sequence[IntArray],
    factors: Sequence[float],
) -> GradientSource:
    union = union_of(ids)
    with naming(parameter.name):
        buffer = parameter.stage((len(union), *parameter.shape[1:]), parameter.current.dtype)
    total = parameter.staged_array(buffer)

    def add() -> tuple[IntArray, HostArray]:
        seen = np.zeros(len(union), np.bool_)
        for array, each, factor in zip(arrays, ids, factors, strict=True):
            _scale(array, factor)
            places = np.searchsorted(union, each)
            again = seen[places]
            # Assigned the first time: 0 + -0 would not be -0.
            if again.any():
                fresh, known = np.flatnonzero(~again), np.flatnonzero(again)
                total[places[fresh]] = np.take(array, fresh, axis=0)
                total[places[known]] += np.take(array, known, axis=0)
            else:
                total[places] = array
            seen[places] = True
        _keep([*values, buffer])
        return union, total

    return add


def _mixed_sum(
    parameter: StoredParameter,
    values: Sequence[Buffer],
    arrays: Sequence[HostArray],
    ids: Sequence[IntArray | None],
    factors: Sequence[float],
) -> GradientSource:
    with naming(parameter.name):
        buffer = parameter.stage(parameter.shape, parameter.current.dtype)
    total = parameter.staged_array(buffer)

    def add() -> tuple[None, HostArray]:
        total[...] = 0
        for array, each, factor in zip(arrays, ids, factors, strict=True):
            _scale(array, factor)
            if each is None:
                add_into(total, array)
            else:
                total[each] += array
        _keep([*values, buffer])
        return None, total

    return add
