"""What all update rules share: their states, and how an update reaches a backend."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from paramd.optimizer import Optimizer
from paramd.wire.dtypes import BFLOAT16
from paramd_server.arrays.backend import ArrayBackend, Buffer, Values
from paramd_server.arrays.updates import UPDATES
from paramd_server.core.row_sparse import IntArray

__all__ = ["Numbers", "Step", "UpdateRule"]

Numbers = dict[str, float]

_HALF: Final = np.dtype(np.float16)
_SINGLE: Final = np.dtype(np.float32)
# The state that holds the weight in float32, where an optimizer computes in multi_precision.
_MASTER: Final = "master"
# The states that begin as copies of the weight.
_COPIES: Final = (_MASTER, "previous")


@dataclass(frozen=True)
class Step:
    """The numbers of one update.

    Attributes:
        count: how many updates of the parameter there were, this one included.
        learning_rate: times the parameter's lr_mult.
        weight_decay: times the parameter's wd_mult.
    """

    count: int
    learning_rate: float
    weight_decay: float


class UpdateRule(ABC):
    """How one optimizer updates weights of float16, bfloat16, float32 or float64.

    Args:
        optimizer: as declared.
        update: the kind of update, a key of `paramd_server.arrays.updates.UPDATES`.
        lazy: whether a row-sparse gradient changes its rows only.
        wide_states: whether float16 weights have states of float32.
    """

    def __init__(
        self, optimizer: Optimizer, update: str, *, lazy: bool = True, wide_states: bool = False
    ) -> None:
        self._optimizer = optimizer
        self._update = UPDATES[update]
        self._lazy = lazy
        self._wide_states = wide_states
        clip = optimizer.clip_gradient
        self._clip = math.inf if clip is None else clip

    @property
    def update_name(self) -> str:
        """Which kind of update a backend does for it."""
        return self._update.name

    @property
    def lazy(self) -> bool:
        """Whether a row-sparse gradient changes its rows only."""
        return self._lazy

    @abstractmethod
    def numbers(self, step: Step) -> Numbers:
        """The constants of an update, but for those of the gradient, by name."""

    def state_dtypes(self, dtype: np.dtype[Any]) -> dict[str, np.dtype[Any]]:
        """The states of a weight, by name.

        Args:
            dtype: of the weight.
        """
        narrow = dtype in (_HALF, BFLOAT16)
        # bfloat16 is too coarse for a mean: 0.999 of a number rounds to the number.
        wide = self._has_master(dtype) or dtype == BFLOAT16 or (narrow and self._wide_states)
        states = dict.fromkeys(self._update.states, _SINGLE if wide else dtype)
        return {**states, _MASTER: _SINGLE} if self._has_master(dtype) else states

    def create_states(self, weight: Buffer, backend: ArrayBackend) -> dict[str, Buffer]:
        """Makes the states of a weight: zeros, or copies of it.

        Args:
            weight: which is read.
            backend: of the weight.

        Raises:
            MemoryLimitError: where they do not fit; nothing is left then.
        """
        states = {}
        for name, dtype in self.state_dtypes(weight.dtype).items():
            if name in _COPIES:
                states[name] = backend.empty(weight.shape, dtype, weight.context)
                backend.copy(weight, states[name])
            else:
                states[name] = backend.zeros(weight.shape, dtype, weight.context)
        return states

    def follow(self, backend: ArrayBackend, weight: Buffer, states: Mapping[str, Buffer]) -> None:
        """Makes the states that are copies of a weight follow one that was written. Cannot fail.

        Args:
            backend: of the weight.
            weight: as it is now.
            states: from `create_states`.
        """
        for name in _COPIES:
            if name in states:
                backend.copy(weight, states[name])

    def warm_up(self, backend: ArrayBackend, dtype: np.dtype[Any]) -> None:
        """Makes the backend ready for this rule, which may take a second or two.

        Args:
            backend: of the weights.
            dtype: of the weights.
        """
        computed = _SINGLE if self._has_master(dtype) else dtype
        states = self.state_dtypes(dtype)
        backend.warm_up(
            self._update.name,
            computed,
            state_dtypes=[states[name] for name in self._update.states],
            rounded=dtype if self._has_master(dtype) else None,
        )

    def update(
        self,
        backend: ArrayBackend,
        weight: Buffer,
        gradient: Values,
        states: Mapping[str, Buffer],
        *,
        ids: IntArray | None,
        count: int,
        learning_rate: float,
        weight_decay: float,
        rescale: float,
    ) -> None:
        """Updates a weight and its states in place. It cannot fail.

        Args:
            backend: of the weight.
            weight: of which nobody reads.
            gradient: of the weight's dtype; of its shape, or of shape (len(ids), *row). It is
                copied where it is not contiguous.
            states: from `create_states`.
            ids: the rows that have a gradient, int64, sorted and unique; None for all of them.
            count: how many updates of the parameter there were, this one included.
            learning_rate: times the parameter's lr_mult.
            weight_decay: times the parameter's wd_mult.
            rescale: multiplies the gradient before all else.
        """
        numbers = self.numbers(Step(count, learning_rate, weight_decay))
        numbers |= {"rescale": rescale, "clip": self._clip}
        master = states.get(_MASTER)
        backend.update(
            self._update.name,
            weight if master is None else master,
            gradient,
            [states[name] for name in self._update.states],
            [numbers[name] for name in self._update.constants],
            rounded=None if master is None else weight,
            ids=ids,
            lazy=self._lazy,
        )

    def _has_master(self, dtype: np.dtype[Any]) -> bool:
        return self._optimizer.multi_precision and dtype in (_HALF, BFLOAT16)
