"""paramd as a `Library`: a session on an embedded server, in the test process."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

import paramd

__all__ = ["ParamdLibrary"]


class LinearInitializer(paramd.init.Initializer):
    """The same as in `mxnet_library.py`."""

    def __init__(self, step: float = 1.0) -> None:
        super().__init__(step=step)
        self.step = step

    def _init_weight(self, _: str, array: Any) -> None:
        array[:] = (np.arange(array.size) * self.step).reshape(array.shape)


def _train(_: object) -> None:
    """Where MXNet needs a Trainer, paramd needs nothing."""


class ParamdLibrary:
    """paramd."""

    array_types: tuple[type, ...] = (paramd.NDArray,)
    parameter_types: tuple[type, ...] = (paramd.Parameter,)
    initializer_types: tuple[type, ...] = (paramd.init.Initializer,)

    def resolve(self, name: str) -> Any:
        """Gives what paramd offers under a dotted name."""
        if name == "LinearInitializer":
            return LinearInitializer
        if name == "train":
            return _train
        owner: Any = paramd
        for part in name.split("."):
            owner = getattr(owner, part)
        return owner

    def dense(self, values: np.ndarray[Any, Any], context: Any) -> Any:
        """Makes a local array of the values' own dtype."""
        return paramd.nd.array(values, ctx=context, dtype=values.dtype)

    def row_sparse(
        self, rows: np.ndarray[Any, Any], ids: np.ndarray[Any, Any], shape: Any, context: Any
    ) -> Any:
        """Makes a local RowSparseNDArray of the rows' own dtype."""
        return paramd.nd.sparse.row_sparse_array(
            (rows, ids), shape=shape, ctx=context, dtype=rows.dtype
        )

    def call(self, target: Any, member: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Calls a member."""
        return getattr(target, member)(*args, **kwargs)

    def settle(self) -> None:
        """Nothing to wait for: every call of paramd returns when it is done."""

    def concerns(self, warning: warnings.WarningMessage) -> bool:
        """Every warning of paramd is for its user."""
        return True
