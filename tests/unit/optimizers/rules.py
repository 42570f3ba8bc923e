"""One weight under one rule, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from paramd import optimizer
from paramd.context import cpu
from paramd_server.arrays.backend import host_array
from paramd_server.arrays.memory import MemoryAccount, SpareBuffers
from paramd_server.arrays.numpy_backend import NumpyBackend
from paramd_server.core.optimizers import rule_for
from paramd_server.core.row_sparse import IntArray

__all__ = ["Run"]


class Run:
    """A weight, its states, and the count of its updates.

    Args:
        name: of the optimizer.
        arguments: for its constructor.
        weight: at the beginning.
        lr_mult: the parameter's.
        limit_bytes: of weight and states together.
    """

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, Any],
        weight: np.ndarray[Any, Any],
        *,
        lr_mult: float = 1.0,
        limit_bytes: int = 1 << 32,
    ) -> None:
        self.optimizer = optimizer.create(name, **arguments)
        self.rule = rule_for(self.optimizer)
        self.account = MemoryAccount(limit_bytes)
        self.backend = NumpyBackend(self.account, SpareBuffers())
        self.weight = self.backend.empty(weight.shape, weight.dtype, cpu())
        self.backend.write(self.weight, weight, mode="assign")
        self.states = self.rule.create_states(self.weight, self.backend)
        self._lr_mult = lr_mult
        self._count = self.optimizer.begin_num_update

    def step(
        self, gradient: np.ndarray[Any, Any], ids: IntArray | None = None, *, rescale: float = 1.0
    ) -> None:
        """One update; `rescale` comes on top of the optimizer's own."""
        self._count += 1
        self.rule.update(
            self.backend,
            self.weight,
            gradient,
            self.states,
            ids=ids,
            count=self._count,
            learning_rate=self.optimizer.rate(self._count) * self._lr_mult,
            weight_decay=self.optimizer.wd,
            rescale=self.optimizer.rescale_grad * rescale,
        )

    def value(self) -> np.ndarray[Any, Any]:
        """A copy of the weight."""
        return np.array(host_array(self.backend, self.weight))

    def state(self, name: str) -> np.ndarray[Any, Any]:
        """A copy of a state."""
        return np.array(host_array(self.backend, self.states[name]))
