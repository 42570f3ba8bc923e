"""Loading parameters from a file's tensors: all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from paramd.context import cpu
from paramd.errors import (
    ContextMismatchError,
    DTypeMismatchError,
    InvalidArgumentError,
    InvalidStreamError,
    ParameterMissingError,
    ParameterUnexpectedError,
    ShapeMismatchError,
)
from paramd.spec import LoadOptions, TensorHead, Version, merge_shapes
from paramd_server.core.attributes import cast_gradients
from paramd_server.core.initialization import distinct_contexts, finish_deferred
from paramd_server.core.registry import Registry
from paramd_server.core.stored_parameter import StoredParameter
from paramd_server.core.value_writing import whole_value
from paramd_server.core.writing import Action, StagedWrite, WriteStage

__all__ = ["LoadStage", "check_names"]


def _shown(names: Collection[str], limit: int = 10) -> str:
    some = [f"'{name}'" for name in list(names)[:limit]]
    return ", ".join(some) + (", ..." if len(names) > limit else "")


def check_names(options: LoadOptions, held: Collection[str]) -> None:
    """Compares what a file holds with what is to be loaded.

    Args:
        options: of the load.
        held: the names in the file, `restore_prefix` added.

    Raises:
        ParameterMissingError, ParameterUnexpectedError.
    """
    cut = len(options.restore_prefix)
    held, wanted = set(held), set(options.names)
    if not options.allow_missing:
        for name in options.names:
            if name not in held:
                raise ParameterMissingError(
                    f"Parameter '{name[cut:]}' is missing in {options.source}, which contains "
                    f"parameters: {_shown(sorted(held))}. Make sure that source and target have "
                    "the same prefix, or set allow_missing",
                    parameter=name,
                )
    if not options.ignore_extra:
        for name in sorted(held - wanted):
            raise ParameterUnexpectedError(
                f"Parameter '{name[cut:]}' loaded from {options.source} is not present in "
                f"ParameterDict, choices are: {_shown(options.names)}. Set ignore_extra to True "
                "to ignore it",
                parameter=name,
            )


class LoadStage(WriteStage):
    """The tensors of one load.

    Args:
        registry: of the server.
        options: what is asked.

    Raises:
        ContextNotAvailableError: where the server lacks a context.
    """

    def __init__(self, registry: Registry, options: LoadOptions) -> None:
        super().__init__(registry)
        if options.dtype_source not in ("current", "saved"):
            raise InvalidArgumentError(
                f"dtype_source is 'current' or 'saved', but got {options.dtype_source!r}"
            )
        self._options = options
        self._names = frozenset(options.names)
        self._contexts = distinct_contexts(registry, options.contexts) if options.contexts else ()

    def check(self, parameter: StoredParameter, head: TensorHead) -> None:
        """See WriteStage."""
        finish_deferred(parameter)
        if head.name not in self._names:
            raise InvalidStreamError(
                f"Parameter '{head.name}' is not among those to be loaded", parameter=head.name
            )
        if head.region is not None or head.context is not None:
            raise InvalidStreamError(
                f"Parameter '{head.name}' is loaded whole and to every context",
                parameter=head.name,
            )
        self._check_shape(parameter, head)
        self._check_dtype(parameter, head)
        self._check_contexts(parameter)

    def prepare(self, parameter: StoredParameter, write: StagedWrite) -> Action:
        """See WriteStage."""
        cast: Callable[[], None] | None = None
        spec = parameter.current
        if write.head.dtype != spec.dtype and self._options.dtype_source == "saved":
            spec = replace(spec, dtype=write.head.dtype)
            cast = cast_gradients(parameter, write.head.dtype, self._registry.devices)
        dense = whole_value(parameter, write, spec.dtype)
        if not parameter.copies:
            contexts = parameter.contexts or self._contexts or (cpu(),)
            return parameter.prepare(parameter.spread(dense, contexts), spec)
        copies = parameter.spread(dense, parameter.contexts)

        def publish() -> None:
            if cast is not None:
                cast()
            parameter.current = spec
            parameter.copies = copies
            parameter.counter += 1

        return publish

    def versions(self, parameters: Sequence[StoredParameter]) -> list[Version]:
        """See WriteStage."""
        return [parameter.version for parameter in parameters]

    def _is_read_in_place(self, parameter: StoredParameter) -> bool:
        return parameter.shared is not None

    def _check_shape(self, parameter: StoredParameter, head: TensorHead) -> None:
        known = parameter.current.shape
        try:
            fits = merge_shapes(known, head.shape) == head.shape
        except ValueError:
            fits = False
        if not fits or 0 in head.shape:
            raise ShapeMismatchError(
                f"Failed loading Parameter '{parameter.name}' from saved params: shape "
                f"incompatible expected {parameter.shown_shape} vs saved {head.shape}",
                parameter=parameter.name,
            )

    def _check_dtype(self, parameter: StoredParameter, head: TensorHead) -> None:
        dtype = parameter.current.dtype
        if head.dtype != dtype and not self._options.cast_dtype:
            raise DTypeMismatchError(
                f"Failed loading Parameter '{parameter.name}' from saved params: dtype "
                f"incompatible expected {dtype} vs saved {head.dtype}. Set cast_dtype=True to "
                "cast the dtype of saved params.",
                parameter=parameter.name,
            )

    def _check_contexts(self, parameter: StoredParameter) -> None:
        there = parameter.contexts
        if there and self._contexts and set(there) != set(self._contexts):
            raise ContextMismatchError(
                f"Failed to load Parameter '{parameter.name}' on {list(self._contexts)} because "
                f"it was previous initialized on {list(there)}",
                parameter=parameter.name,
            )
