"""What tests of proxies share: a counter of calls, an initializer of our own."""

from __future__ import annotations

from typing import Any

import numpy as np

from paramd import init


class Counting:
    """Counts the calls of a session on their way."""

    def __init__(self, calls: Any) -> None:
        self._calls = calls
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._calls, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.names.append(name)
            return call(*args, **kwargs)

        return counted


class Ramp(init.Initializer):
    """0, 1, 2, ... times a step."""

    def __init__(self, step: float = 1.0) -> None:
        super().__init__(step=step)
        self.step = step

    def _init_weight(self, name: str, arr: Any) -> None:
        arr[:] = (np.arange(arr.size) * self.step).reshape(arr.shape)


def ramp(*shape: int) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
