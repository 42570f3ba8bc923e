"""Writes of values: SetData."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from paramd.context import Context
from paramd.errors import (
    InvalidStreamError,
    ShapeMismatchError,
    UninitializedValueError,
    WrongStorageTypeError,
)
from paramd.spec import TensorHead, Version, merge_shapes
from paramd_server.arrays.backend import Buffer
from paramd_server.core.initialization import distinct_contexts, finish_deferred
from paramd_server.core.registry import Registry
from paramd_server.core.stored_parameter import StoredParameter
from paramd_server.core.writing import (
    Action,
    StagedWrite,
    WriteStage,
    check_dense,
    check_rows,
    write_dense,
    write_rows,
)

__all__ = ["FirstValueStage", "ValueStage", "check_whole_shape", "whole_value"]


_MODES: Final = ("assign", "add", "subtract", "multiply", "divide")
# Of row_sparse tensors: only the rows that come are touched.
_ROW_MODES: Final = ("assign_rows", "add", "subtract")


def check_whole_shape(parameter: StoredParameter, head: TensorHead) -> None:
    """Checks the shape of a value that replaces all of a parameter.

    Raises:
        ShapeMismatchError: where it contradicts the parameter's.
    """
    known = parameter.current.shape
    try:
        merged = merge_shapes(known, head.shape)
    except ValueError as err:
        raise ShapeMismatchError(
            f"Parameter '{parameter.name}': expected shape {parameter.shown_shape}, but got "
            f"{head.shape}",
            parameter=parameter.name,
        ) from err
    # A dimension of 0 would merge with everything, and stands for one that is not known.
    if merged != head.shape or 0 in head.shape:
        raise ShapeMismatchError(
            f"Parameter '{parameter.name}': expected shape {parameter.shown_shape}, but got "
            f"{head.shape}",
            parameter=parameter.name,
        )


def whole_value(parameter: StoredParameter, write: StagedWrite, dtype: np.dtype[Any]) -> Buffer:
    """A staged tensor as a dense host buffer of a dtype. Raises MemoryLimitError."""
    value = parameter.as_dtype(write.value, dtype)
    if write.ids is None:
        return value
    backend = parameter.backend(value.context)
    dense = backend.zeros(write.head.shape, value.dtype, value.context)
    ids, rows = parameter.staged_array(write.ids), parameter.staged_array(value)
    backend.put_rows(dense, ids, rows, mode="assign")
    return dense


class ValueStage(WriteStage):
    """Values that overwrite copies, or parts of one, or that are added to them and the like."""

    def check(self, parameter: StoredParameter, head: TensorHead) -> None:
        """See WriteStage."""
        finish_deferred(parameter)
        rows_only = head.stype == "row_sparse" and head.mode in _ROW_MODES
        if not rows_only and head.mode not in _MODES:
            raise InvalidStreamError(
                f"Parameter '{parameter.name}': a value has no write mode {head.mode!r}",
                parameter=parameter.name,
            )
        if head.context is not None and parameter.copies:
            parameter.resolve(head.context, head.context)
        whole = head.context is None and head.region is None and head.mode == "assign"
        if whole:
            # First, as in MXNet, where a wrong shape shows before a missing initialization.
            check_whole_shape(parameter, head)
        if parameter.state == "declared":
            raise UninitializedValueError(
                f"Parameter '{parameter.name}' has not been initialized",
                parameter=parameter.name,
            )
        if whole:
            return
        parameter.check_initialized()
        if rows_only:
            check_rows(parameter, head)
        elif parameter.current.stype != "default":
            raise WrongStorageTypeError(
                f"Parameter '{parameter.name}' is {parameter.current.stype}: its value is only "
                "written whole, by set_data(), or by rows, by set_row_sparse_data()",
                parameter=parameter.name,
            )
        elif head.stype == "row_sparse":
            check_rows(parameter, head)
            if head.mode != "assign":
                raise WrongStorageTypeError(
                    f"Parameter '{parameter.name}': rows can only be assigned to a dense value",
                    parameter=parameter.name,
                )
        else:
            check_dense(parameter, head)

    def prepare(self, parameter: StoredParameter, write: StagedWrite) -> Action:
        """See WriteStage."""
        head = write.head
        whole = head.region is None and head.mode == "assign" and head.shape
        if not parameter.copies:
            assert parameter.deferred is not None
            staged = whole_value(parameter, write, parameter.current.dtype)
            return parameter.prepare(parameter.spread(staged, parameter.deferred.contexts))
        contexts = list(parameter.copies) if head.context is None else [head.context]
        if write.ids is not None and head.mode in _ROW_MODES:
            mode = "assign" if head.mode == "assign_rows" else head.mode
            actions = [
                write_rows(parameter, parameter.copies, each, write, mode) for each in contexts
            ]
            return _committing(parameter, actions)
        if write.ids is not None:
            dense = whole_value(parameter, write, parameter.current.dtype)
            write = StagedWrite(_dense_head(head), dense, None)
        if whole and write.head.shape == parameter.shape:
            return self._replace(parameter, write, contexts)
        actions = [
            write_dense(parameter, parameter.copies, context, write, head.mode)
            for context in contexts
        ]
        return _committing(parameter, actions)

    def versions(self, parameters: Sequence[StoredParameter]) -> list[Version]:
        """See WriteStage."""
        return [parameter.version for parameter in parameters]

    def _is_read_in_place(self, parameter: StoredParameter) -> bool:
        return parameter.shared is not None

    def _replace(
        self, parameter: StoredParameter, write: StagedWrite, contexts: Sequence[Context]
    ) -> Action:
        # The first context takes the staged memory; the others are overwritten where they are,
        # unless somebody reads there.
        staged = parameter.as_dtype(write.value, parameter.current.dtype)
        others = {
            context: parameter.writable(parameter.copies, context, keep=False)
            for context in contexts[1:]
        }

        host, first = parameter.staged_array(staged), contexts[0]
        adopted = parameter.backend(first).adopt(staged, first)

        def publish() -> None:
            for context, target in others.items():
                parameter.backend(context).write(target, host, mode="assign")
                parameter.copies[context] = target
            parameter.copies[first] = adopted
            _keep(staged)

        return _committing(parameter, [publish])


class FirstValueStage(ValueStage):
    """Values that a client computed to initialize parameters with.

    Args:
        registry: of the server.
        contexts: of the new copies.
        force_reinit: whether a value that is there is replaced, and not kept.
    """

    def __init__(
        self, registry: Registry, contexts: Sequence[Context], *, force_reinit: bool
    ) -> None:
        super().__init__(registry)
        self._contexts = distinct_contexts(registry, contexts)
        self._force_reinit = force_reinit

    def check(self, parameter: StoredParameter, head: TensorHead) -> None:
        """See WriteStage."""
        if head.context is not None or head.region is not None or head.mode != "assign":
            raise InvalidStreamError(
                f"Parameter '{parameter.name}': a first value is assigned whole to every context",
                parameter=parameter.name,
            )
        check_whole_shape(parameter, head)

    def prepare(self, parameter: StoredParameter, write: StagedWrite) -> Action:
        """See WriteStage."""
        if parameter.copies and not self._force_reinit:
            return _nothing
        staged = whole_value(parameter, write, parameter.current.dtype)
        return parameter.prepare(parameter.spread(staged, self._contexts))


def _dense_head(head: TensorHead) -> TensorHead:
    return TensorHead(head.name, head.shape, head.dtype, context=head.context, mode=head.mode)


def _keep(_staged: Buffer) -> None:
    """Nothing to do: the caller's closure has kept the buffer, and so its memory, until now."""


def _nothing() -> None:
    """Another client's value was first, and stays."""


def _committing(parameter: StoredParameter, actions: Sequence[Action]) -> Action:
    def commit() -> None:
        for action in actions:
            action()
        parameter.counter += 1

    return commit
