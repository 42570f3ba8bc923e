"""The seed that initial values are drawn from."""

from __future__ import annotations

import numbers
import os
import secrets
import threading

from paramd.context import Context

__all__ = ["next_key", "seed"]


class _KeySource:
    """Seed and counts of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seed: int | None = None  # guarded by _lock; None until it is drawn or set
        self._is_chosen = False  # guarded by _lock; by the user, so that it survives a fork
        self._draws: dict[str, int] = {}  # guarded by _lock

    def set(self, seed: int) -> None:
        with self._lock:
            self._seed = seed
            self._is_chosen = True
            self._draws.clear()

    def next(self, name: str) -> tuple[int, int]:
        with self._lock:
            if self._seed is None:
                self._seed = secrets.randbits(64)
            draw = self._draws.get(name, 0)
            self._draws[name] = draw + 1
            return self._seed, draw

    def after_fork(self) -> None:
        """Gives the child a lock that nobody holds, and a seed of its own if none was chosen."""
        self._lock = threading.Lock()
        if not self._is_chosen:
            self._seed = None


# Module state on purpose: as in MXNet, `random.seed` is for the whole process, whatever sessions
# and threads it has.
_keys = _KeySource()
os.register_at_fork(after_in_child=_keys.after_fork)


def seed(seed_state: int, ctx: str | Context = "all") -> None:
    """Sets the seed for all initial values that this process asks for from now on.

    The same seed, names, shapes and order of initializations give the same values, whatever the
    number of shards and contexts. They are not MXNet's values.

    Args:
        seed_state: any integer; its lowest 64 bits count.
        ctx: 'all', or a context. Values are computed once for all contexts, so each context
            has the one seed, and naming one sets it.

    Raises:
        ValueError: where `seed_state` is no integer.
        KeyError: for an unknown kind of context.
    """
    if not isinstance(seed_state, numbers.Integral):
        raise ValueError(f"seed_state must be int, but got {seed_state!r}")
    if ctx != "all":
        Context(ctx)
    _keys.set(int(seed_state) % 2**64)


def next_key(name: str) -> tuple[int, int]:
    """The key of the next random values for a name.

    Args:
        name: of a parameter.

    Returns:
        The seed, 64 bits, random where `seed` was not called; and how many keys this name had
        since the last call of `seed`.
    """
    return _keys.next(name)
