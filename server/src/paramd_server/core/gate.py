"""A gate that many changes pass at a time, and that is closed for a moment that none may cross."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

__all__ = ["Gate"]


class Gate:
    """Tells changes from moments at which nothing may be half done.

    A change goes through `shared`: its effect and what is remembered of it are on the same side of
    every moment. It is taken before any other lock. One that waits for `exclusive` lets no
    new change in, so that it waits for those only that are under way.
    """

    def __init__(self) -> None:
        # The condition's own, which by its own name is taken without two more calls.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # Both guarded by _lock.
        self._inside = 0
        self._owner: int | None = None
        # How deep each thread is inside.
        self._own = threading.local()

    def shared(self) -> AbstractContextManager[None]:
        """Goes through, together with others. A thread that is inside goes in again freely."""
        return _Shared(self)

    def enter(self) -> None:
        """Goes in. See `shared`."""
        depth: int = getattr(self._own, "depth", 0)
        if depth == 0:
            with self._lock:
                while self._owner is not None:
                    self._changed.wait()
                self._inside += 1
        self._own.depth = depth + 1

    def leave(self) -> None:
        """Goes out again. See `shared`."""
        self._own.depth -= 1
        if self._own.depth == 0:
            with self._lock:
                self._inside -= 1
                if not self._inside and self._owner is not None:
                    self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Waits until nobody is inside, and keeps everybody out while the block runs.

        Raises:
            RuntimeError: where this thread is inside itself.
        """
        if getattr(self._own, "depth", 0):
            raise RuntimeError("a thread that makes a change cannot wait for its own end")
        try:
            self._close()
            self._own.depth = 1
            yield
        finally:
            self._own.depth = 0
            with self._changed:
                if self._owner == threading.get_ident():
                    self._owner = None
                    self._changed.notify_all()

    def _close(self) -> None:
        with self._changed:
            while self._owner is not None:
                self._changed.wait()
            self._owner = threading.get_ident()
            while self._inside:
                self._changed.wait()


class _Shared:
    """What `Gate.shared` gives: a class, since a generator costs every small change more."""

    __slots__ = ("_gate",)

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate.enter()

    def __exit__(self, *_error: object) -> None:
        self._gate.leave()
