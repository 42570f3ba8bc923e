"""paramd as a `Library`: sessions with a server, in the test process."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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


def _backward_wrote(*_: object, **__: object) -> None:
    """Where MXNet wants to see autograd, every write to a gradient counts."""


class ClusterTrainer:
    """A distributed trainer with the trainers of all its workers."""

    def __init__(
        self,
        sessions: Sequence[paramd.Session],
        parameters: Sequence[paramd.Parameter],
        *args: Any,
        workers: int = 1,
        **kwargs: Any,
    ) -> None:
        self._trainers = [
            paramd.Trainer(parameters, *args, session=session, num_workers=workers, **kwargs)
            for session in sessions[:workers]
        ]

    def step(self, batch_size: float, gradients: Sequence[Mapping[str, Any]]) -> None:
        """A step by the gradients of each worker, by name."""
        with ThreadPoolExecutor(len(self._trainers)) as pool:
            steps = [
                pool.submit(trainer.step, batch_size, grads=of_worker)
                for trainer, of_worker in zip(self._trainers, gradients, strict=True)
            ]
            for step in steps:
                step.result()

    def step_by_buffers(self, batch_size: float) -> None:
        self._trainers[0].step(batch_size)

    def allreduce_grads(self) -> None:
        self._trainers[0].allreduce_grads()

    def update(self, batch_size: float) -> None:
        self._trainers[0].update(batch_size)


class ParamdLibrary:
    """paramd.

    Args:
        sessions: with one server, one for each worker that a program may have. The first serves
            everything else.
    """

    array_types: tuple[type, ...] = (paramd.NDArray,)
    parameter_types: tuple[type, ...] = (paramd.Parameter,)
    initializer_types: tuple[type, ...] = (paramd.init.Initializer,)

    def __init__(self, sessions: Sequence[paramd.Session]) -> None:
        self._sessions = sessions

    def resolve(self, name: str) -> Any:
        """Gives what paramd offers under a dotted name."""
        own = {
            "LinearInitializer": LinearInitializer,
            "train": _train,
            "backward_wrote": _backward_wrote,
            "ClusterTrainer": partial(ClusterTrainer, self._sessions),
        }
        if name in own:
            return own[name]
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
