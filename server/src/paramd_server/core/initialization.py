"""First values: initialize, finish what was deferred, take a value that a client computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paramd.context import Context
from paramd.errors import InitializerError, InvalidArgumentError, UnknownShapeError
from paramd.initial_values import InitialValues, check, is_zero, resolve, values_of_part
from paramd.spec import FirstValue, InitializeEntry, StoredInfo, shape_is_known
from paramd_server.arrays.backend import Buffer
from paramd_server.core.parts import whole_shape
from paramd_server.core.registry import Registry
from paramd_server.core.shared_copies import changing
from paramd_server.core.stored_parameter import StoredParameter

__all__ = ["distinct_contexts", "finish_deferred", "initialize"]


def distinct_contexts(registry: Registry, contexts: Sequence[Context]) -> tuple[Context, ...]:
    """The contexts without repetitions, each of which the server has.

    Raises:
        InvalidArgumentError: for an empty list.
        ContextNotAvailableError: where the server lacks one.
    """
    if not contexts:
        raise InvalidArgumentError("a parameter lives on at least one context, but none was given")
    for context in contexts:
        registry.devices.backend(context)
    return tuple(dict.fromkeys(contexts))


def initialize(
    registry: Registry,
    entries: Sequence[InitializeEntry],
    contexts: Sequence[Context],
    *,
    force_reinit: bool,
) -> list[tuple[str, StoredInfo]]:
    """Gives parameters their first values, or with force_reinit new ones.

    Returns:
        For each entry 'initialized', 'deferred' or 'already_initialized', and what is now. An
        initialized parameter whose client-side initializer is to replace the value is 'deferred',
        and keeps the old value until the new one comes.

    Raises:
        UnknownShapeError: where the shape is not known and may not be deferred.
        InitializerError, ContextNotAvailableError, MemoryLimitError.
        Nothing is changed then.
    """
    placed = distinct_contexts(registry, contexts)
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise InvalidArgumentError("a parameter is initialized once in a call, but one comes twice")
    outcomes: list[tuple[str, StoredInfo]] = []
    with registry.hold(names) as parameters:
        pairs = list(zip(parameters, entries, strict=True))
        for parameter, entry in pairs:
            _check(parameter, entry, force_reinit=force_reinit)
        prepared = [
            _prepare(parameter, entry, placed, force_reinit=force_reinit)
            for parameter, entry in pairs
        ]
        with changing(parameters):
            for _, publish in prepared:
                publish()
        for parameter, (outcome, _) in zip(parameters, prepared, strict=True):
            outcomes.append((outcome, parameter.info()))
    return outcomes


def _check(parameter: StoredParameter, entry: InitializeEntry, *, force_reinit: bool) -> None:
    if parameter.copies and not force_reinit:
        return
    spec = parameter.current
    known = shape_is_known(spec.shape)
    if not known and not spec.allow_deferred_init:
        raise UnknownShapeError(
            f"Cannot initialize Parameter '{spec.name}' because it has invalid shape: {spec.shape}",
            parameter=spec.name,
        )
    check(entry.init, spec.name, whole_shape(spec), spec.dtype)
    if spec.stype == "csr" and entry.init.name in ("zero", "one", "constant"):
        raise InitializerError(
            f"Parameter '{spec.name}': a csr parameter cannot be filled with one number",
            parameter=spec.name,
        )


def _prepare(
    parameter: StoredParameter,
    entry: InitializeEntry,
    contexts: tuple[Context, ...],
    *,
    force_reinit: bool,
) -> tuple[str, Callable[[], None]]:
    """The outcome, and what brings it about."""
    if parameter.copies and not force_reinit:
        return "already_initialized", _nothing
    first_value = FirstValue(entry.init, entry.seed, entry.draw, contexts)
    if parameter.copies and entry.init.client_side:
        return "deferred", _nothing
    if not shape_is_known(parameter.current.shape) or entry.init.client_side:

        def defer() -> None:
            parameter.deferred = first_value

        return "deferred", defer
    return "initialized", _fill(parameter, first_value)


def _nothing() -> None:
    """The parameter stays as it is."""


def _fill(parameter: StoredParameter, first_value: FirstValue) -> Callable[[], None]:
    """Computes the value, and gives what publishes it."""
    shape, dtype = parameter.current.shape, parameter.current.dtype
    assert shape is not None
    if is_zero(first_value.init):
        # Every copy is zeroed by the system, page by page when it is first written.
        copies: dict[Context, Buffer] = {
            context: parameter.backend(context).zeros(shape, dtype, context)
            for context in first_value.contexts
        }
    else:
        staged = parameter.stage(shape, dtype)
        values = _values(parameter, first_value)
        # Little for most, but a multiple of the parameter for a decomposition.
        with parameter.reserved(values.workspace_bytes):
            values.read(0, parameter.staged_array(staged).reshape(-1))
        copies = parameter.spread(staged, first_value.contexts)
    return parameter.prepare(copies, first_value=first_value)


def _values(parameter: StoredParameter, first_value: FirstValue) -> InitialValues:
    spec = parameter.current
    values = resolve(
        first_value.init,
        spec.name,
        whole_shape(spec),
        spec.dtype,
        seed=first_value.seed,
        draw=first_value.draw,
    )
    return values if spec.part is None else values_of_part(values, spec.part)


def finish_deferred(parameter: StoredParameter) -> None:
    """Initializes a deferred parameter whose shape has become known; else does nothing.

    Called, with the parameter's lock held, by whatever needs a value.

    Raises:
        InitializerError, MemoryLimitError: the parameter stays deferred then.
    """
    deferred = parameter.deferred
    if (
        deferred is None
        or parameter.copies
        or deferred.init.client_side
        or not shape_is_known(parameter.current.shape)
    ):
        return
    spec = parameter.current
    check(deferred.init, spec.name, whole_shape(spec), spec.dtype)
    _fill(parameter, deferred)()
