"""Changes of what a parameter is: attributes, dtype, contexts; and clearing gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from paramd.context import Context
from paramd.errors import (
    InvalidArgumentError,
    ShapeMismatchError,
    UninitializedContextError,
)
from paramd.initial_values import check_arguments
from paramd.spec import FirstValue, InitializerSpec, ParameterSpec, Part, Shape, shape_is_known
from paramd_server.arrays.backend import Buffer
from paramd_server.arrays.devices import Devices
from paramd_server.core.initialization import distinct_contexts, finish_deferred
from paramd_server.core.mean import mean_of_copies
from paramd_server.core.parts import shown_shape, whole_shape
from paramd_server.core.registry import Registry
from paramd_server.core.row_sparse import RowSparseGradient
from paramd_server.core.shared_copies import changing
from paramd_server.core.stored_parameter import StoredParameter
from paramd_server.core.writing import Action

__all__ = [
    "cast",
    "cast_gradients",
    "prepare_zero_gradient",
    "reset_contexts",
    "set_grad_req",
    "set_init",
    "set_multiplier",
    "set_shape",
    "zero_gradients",
]


def _apply(
    registry: Registry, names: Sequence[str], prepare: Callable[[StoredParameter], Action]
) -> None:
    """Changes parameters all together: everything that can fail goes before any change."""
    with registry.hold(list(dict.fromkeys(names))) as parameters:
        actions = [prepare(parameter) for parameter in parameters]
        with changing(parameters):
            for action in actions:
                action()


def _change_spec(parameter: StoredParameter, **changes: Any) -> Action:
    after: ParameterSpec = replace(parameter.current, **changes)

    def apply() -> None:
        parameter.current = after

    return apply


def set_shape(
    registry: Registry, names: Sequence[str], shape: Shape, part: Part | None = None
) -> None:
    """Sets the shape of parameters.

    Args:
        registry: of the server.
        names: of the parameters.
        shape: with `part` the shape of that part, else of the whole parameter.
        part: what of the parameters is here, where they are spread over several shards.

    Raises:
        ShapeMismatchError: where a known dimension would change, or their number; or what part
            of a known shape is here.
        InvalidArgumentError: where the part has another shape.
    """
    if part is not None and part.local_shape != shape:
        raise InvalidArgumentError(
            f"a part of shape {part.local_shape} does not have the shape {shape}"
        )

    def prepare(parameter: StoredParameter) -> Action:
        spec = parameter.current
        after = replace(spec, shape=shape, part=part)
        known, whole = whole_shape(spec), whole_shape(after)
        assert whole is not None
        fits = known is None or (
            len(known) == len(whole)
            and all(old in (0, -1, new) for old, new in zip(known, whole, strict=True))
        )
        if not fits:
            raise _shape_mismatch(parameter, str(whole), str(known))
        if part != spec.part and shape_is_known(spec.shape):
            raise _shape_mismatch(parameter, shown_shape(after), shown_shape(spec))
        return _change_spec(parameter, shape=shape, part=part)

    _apply(registry, names, prepare)


def _shape_mismatch(parameter: StoredParameter, given: str, known: str) -> ShapeMismatchError:
    return ShapeMismatchError(
        f"Parameter '{parameter.name}': Expected shape {given} is incompatible with given "
        f"shape {known}",
        parameter=parameter.name,
    )


def set_grad_req(registry: Registry, names: Sequence[str], grad_req: str) -> None:
    """Sets grad_req: another one than before gives new, zeroed buffers, 'null' none.

    Raises:
        MemoryLimitError: where the buffers do not fit.
    """

    def prepare(parameter: StoredParameter) -> Action:
        spec = parameter.current
        wanted = "null" if spec.constant or not spec.differentiable else grad_req
        if wanted == spec.grad_req:
            return _nothing
        after = replace(spec, grad_req=wanted)
        if not parameter.copies:
            return _change_spec(parameter, grad_req=wanted)
        dense, sparse = parameter.zero_gradients(after, parameter.copies)

        def apply() -> None:
            parameter.current = after
            parameter.gradients, parameter.sparse_gradients = dense, sparse
            parameter.fresh_gradients = set()
            parameter.gradient_counter += 1

        return apply

    _apply(registry, names, prepare)


def set_multiplier(registry: Registry, names: Sequence[str], attribute: str, value: float) -> None:
    """Sets 'lr_mult' or 'wd_mult'."""
    _apply(registry, names, lambda parameter: _change_spec(parameter, **{attribute: value}))


def set_init(registry: Registry, names: Sequence[str], init: InitializerSpec | None) -> None:
    """Sets the declared initializer, or takes it away.

    Raises:
        InitializerError: where it does not exist.
    """

    def prepare(parameter: StoredParameter) -> Action:
        if init is not None and not init.client_side:
            check_arguments(init, parameter.name)
        return _change_spec(parameter, init=init)

    _apply(registry, names, prepare)


def cast(registry: Registry, names: Sequence[str], dtype: np.dtype[Any]) -> None:
    """Casts values and gradients; of a deferred parameter, the dtype to come.

    Raises:
        MemoryLimitError: where the cast arrays do not fit.
    """

    def prepare(parameter: StoredParameter) -> Action:
        change = _change_spec(parameter, dtype=dtype)
        if not parameter.copies or parameter.current.dtype == dtype:
            return change
        copies = _cast_all(parameter, parameter.copies, dtype)
        gradients = cast_gradients(parameter, dtype, registry.devices)

        def apply() -> None:
            change()
            parameter.copies = copies
            parameter.counter += 1
            gradients()

        return apply

    _apply(registry, names, prepare)


def cast_gradients(parameter: StoredParameter, dtype: np.dtype[Any], devices: Devices) -> Action:
    """Prepares a cast of a locked parameter's gradients. Raises MemoryLimitError."""
    dense = _cast_all(parameter, parameter.gradients, dtype)
    sparse = {
        context: gradient.cast(dtype, devices)
        for context, gradient in parameter.sparse_gradients.items()
    }

    def apply() -> None:
        parameter.gradients, parameter.sparse_gradients = dense, sparse
        parameter.gradient_counter += 1

    return apply


def _cast_all(
    parameter: StoredParameter, buffers: dict[Context, Buffer], dtype: np.dtype[Any]
) -> dict[Context, Buffer]:
    cast_buffers = {}
    for context, buffer in buffers.items():
        backend = parameter.backend(context)
        cast_buffers[context] = backend.empty(buffer.shape, dtype, context)
        backend.copy(buffer, cast_buffers[context])
    return cast_buffers


def reset_contexts(registry: Registry, names: Sequence[str], contexts: Sequence[Context]) -> None:
    """Moves parameters: the new copies hold the mean over the old, the gradients are zero.

    Of a deferred parameter only the contexts to come change.

    Raises:
        UninitializedContextError: for a parameter that was never initialized.
        ContextNotAvailableError, MemoryLimitError.
    """
    placed = distinct_contexts(registry, contexts)

    def prepare(parameter: StoredParameter) -> Action:
        finish_deferred(parameter)
        deferred = parameter.deferred
        if parameter.copies:
            moved = parameter.spread(mean_of_copies(parameter), placed)
            return parameter.prepare(moved, first_value=_moved(parameter.first_value, placed))
        if deferred is None:
            raise UninitializedContextError(
                f"Cannot reset context for Parameter '{parameter.name}' because it has not been "
                "initialized",
                parameter=parameter.name,
            )

        def move() -> None:
            parameter.deferred = _moved(deferred, placed)

        return move

    _apply(registry, names, prepare)


def _moved(first_value: FirstValue | None, contexts: tuple[Context, ...]) -> FirstValue | None:
    return None if first_value is None else replace(first_value, contexts=contexts)


def zero_gradients(registry: Registry, names: Sequence[str]) -> None:
    """Clears gradients; parameters without any are passed over."""
    _apply(registry, names, lambda parameter: prepare_zero_gradient(parameter, registry.devices))


def prepare_zero_gradient(parameter: StoredParameter, devices: Devices) -> Action:
    """Prepares to clear a locked parameter's gradients. Raises MemoryLimitError."""
    if not parameter.has_gradient:
        return _nothing
    targets = {
        context: parameter.writable(parameter.gradients, context, keep=False)
        for context in parameter.gradients
    }
    empty = {
        context: RowSparseGradient.empty(parameter.shape, parameter.current.dtype, context, devices)
        for context in parameter.sparse_gradients
    }
    zero = np.zeros((), np.uint8)

    def apply() -> None:
        for context, target in targets.items():
            parameter.backend(context).write(target, zero, mode="assign")
            parameter.gradients[context] = target
        parameter.sparse_gradients.update(empty)
        parameter.gradient_counter += 1

    return apply


def _nothing() -> None:
    """The parameter is as it should be."""
