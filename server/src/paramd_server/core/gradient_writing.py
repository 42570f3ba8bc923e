"""Writes of gradients: SetGrad, of which a push is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from paramd.context import Context
from paramd.errors import (
    DTypeMismatchError,
    InvalidStreamError,
    ShapeMismatchError,
    WrongStorageTypeError,
)
from paramd.spec import TensorHead, Version
from paramd_server.arrays.backend import HostArray
from paramd_server.core.initialization import finish_deferred
from paramd_server.core.registry import Registry
from paramd_server.core.row_sparse import RowSparseGradient
from paramd_server.core.stored_parameter import StoredParameter
from paramd_server.core.value_writing import whole_value
from paramd_server.core.writing import (
    Action,
    StagedWrite,
    WriteStage,
    check_dense,
    check_rows,
    write_dense,
    write_rows,
)

__all__ = ["GradientStage", "check_push"]

_MODES: Final = ("assign", "add", "subtract", "multiply", "divide", "by_grad_req")


class GradientStage(WriteStage):
    """Gradients that are pushed, assigned, or computed with in place.

    Args:
        registry: of the server.
        current: context for tensors that name none, of a parameter with several copies.
    """

    def __init__(self, registry: Registry, current: Context) -> None:
        super().__init__(registry)
        self._current = current

    def check(self, parameter: StoredParameter, head: TensorHead) -> None:
        """See WriteStage."""
        finish_deferred(parameter)
        parameter.check_gradient()
        parameter.resolve(head.context, self._current)
        if head.mode not in _MODES:
            raise InvalidStreamError(
                f"Parameter '{parameter.name}': a gradient has no write mode {head.mode!r}",
                parameter=parameter.name,
            )
        if head.mode == "by_grad_req":
            check_push(parameter, head)
        if head.stype == "row_sparse":
            check_rows(parameter, head)
        else:
            check_dense(parameter, head)
        sparse = "row_sparse" in (head.stype, parameter.current.grad_stype)
        if sparse and (head.mode in ("multiply", "divide") or head.region is not None):
            raise WrongStorageTypeError(
                f"Parameter '{parameter.name}': a row_sparse gradient can be assigned, added and "
                "subtracted, and only as a whole",
                parameter=parameter.name,
            )

    def prepare(self, parameter: StoredParameter, write: StagedWrite) -> Action:
        """See WriteStage."""
        mode = write.head.mode
        if mode == "by_grad_req":
            mode = "add" if parameter.current.grad_req == "add" else "assign"
        context = parameter.resolve(write.head.context, self._current)
        if parameter.current.grad_stype != "default":
            action = self._prepare_sparse(parameter, context, write, mode)
        elif write.ids is None:
            action = write_dense(parameter, parameter.gradients, context, write, mode)
        elif mode == "assign":
            dense = StagedWrite(
                replace(write.head, stype="default", num_rows=0),
                whole_value(parameter, write, parameter.current.dtype),
                None,
            )
            action = write_dense(parameter, parameter.gradients, context, dense, mode)
        else:
            action = write_rows(parameter, parameter.gradients, context, write, mode)

        def commit() -> None:
            action()
            parameter.fresh_gradients.add(context)
            parameter.gradient_counter += 1

        return commit

    def versions(self, parameters: Sequence[StoredParameter]) -> list[Version]:
        """See WriteStage."""
        return [parameter.gradient_version for parameter in parameters]

    def _prepare_sparse(
        self, parameter: StoredParameter, context: Context, write: StagedWrite, mode: str
    ) -> Action:
        current = parameter.sparse_gradients[context]
        ids, rows = _rows_of(parameter, write)
        devices = self._registry.devices
        if mode == "assign" and write.ids is not None:
            # The staged memory becomes the gradient's.
            staged = parameter.as_dtype(write.value, current.rows.dtype)
            adopted = parameter.backend(context).adopt(staged, context)
            fresh = RowSparseGradient(ids, adopted, parameter.shape)
        elif mode == "assign":
            fresh = current.replaced(ids, rows, devices)
        else:
            fresh = current.merged(ids, rows, devices, mode=mode)

        def publish() -> None:
            parameter.sparse_gradients[context] = fresh

        return publish


def check_push(parameter: StoredParameter, head: TensorHead) -> None:
    """Checks a gradient that a worker pushes: the parameter's shape, and a dtype that fits its own.

    Raises:
        ShapeMismatchError, DTypeMismatchError.
    """
    if head.shape != parameter.shape or head.region is not None:
        raise ShapeMismatchError(
            f"Parameter '{parameter.name}': expected a gradient of shape {parameter.shown_shape}, "
            f"but got {head.shape}",
            parameter=parameter.name,
        )
    dtype = parameter.current.dtype
    # bfloat16 is no subtype of NumPy's floats.
    floats = head.dtype.kind in "fV" and dtype.kind in "fV"
    if not floats and not np.can_cast(head.dtype, dtype, "same_kind"):
        raise DTypeMismatchError(
            f"Parameter '{parameter.name}': expected a gradient of dtype {dtype}, but got "
            f"{head.dtype}",
            parameter=parameter.name,
        )


def _rows_of(
    parameter: StoredParameter, write: StagedWrite
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], HostArray]:
    """The rows that a row_sparse gradient gets from a staged tensor."""
    value = parameter.staged_array(write.value)
    if write.ids is not None:
        return parameter.staged_array(write.ids).copy(), value
    full = np.broadcast_to(value, parameter.shape)
    if value.ndim == 0:
        # As in MXNet: a scalar fills every row, also with zeros.
        return np.arange(parameter.shape[0], dtype=np.int64), full
    # As in MXNet: of a dense value only the rows that are not zero.
    ids = np.flatnonzero(full.reshape(len(full), -1).any(axis=1)).astype(np.int64)
    return ids, full[ids]
