"""What connections do around a fork of the process.

A child in which gRPC goes on needs three things: gRPC's own fork support (`fork_support`), no
thread inside gRPC at the moment of the fork, and channels of its own. So calls are held while a
fork goes on. Those under way get a moment to end; then they are interrupted, and sent again after
the fork. Measured: with another thread inside gRPC nearly every child hangs; closing the channel
instead of waiting still breaks two or three in a hundred.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Protocol

import grpc

from paramd.transport.attempts import Attempts

__all__ = ["GRACE_SECONDS", "Forkable", "watch_forks"]

# How long calls may go on before they are interrupted, and then how long that may take.
GRACE_SECONDS = 1.0
_INTERRUPT_SECONDS = 5.0


class Forkable(Protocol):
    """What has calls under way and something to do in a child."""

    attempts: Attempts

    def start_over_in_child(self, *, quiet: bool) -> None:
        """Forgets everything of the parent. `quiet`: no call was under way."""
        ...


class _Forks:
    """The connections of this process, held from before a fork until after it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._known: weakref.WeakSet[Forkable] = weakref.WeakSet()  # guarded by _lock
        self._held: list[Forkable] = []  # guarded by _lock
        self._quiet = True  # guarded by _lock
        self._registered = False  # guarded by _lock

    def add(self, connection: Forkable) -> None:
        with self._lock:
            if not self._registered:
                self._register()
                self._registered = True
            self._known.add(connection)

    def _register(self) -> None:
        # gRPC registers its own hooks with its first channel. Those that come before a fork run
        # last-registered first, and ours must be done when gRPC's begin: those stop its threads,
        # which could then end no call any more.
        grpc.insecure_channel("unix:/dev/null").close()
        os.register_at_fork(
            before=self.before,
            after_in_parent=self.after_in_parent,
            after_in_child=self.after_in_child,
        )

    def before(self) -> None:
        self._lock.acquire()
        self._held = list(self._known)
        for connection in self._held:
            connection.attempts.pause()
        if not self._wait(GRACE_SECONDS):
            for connection in self._held:
                connection.attempts.end_all("fork")
            self._quiet = self._wait(_INTERRUPT_SECONDS)
        for connection in self._held:
            # Without this the child hangs in 1 of 10 forks that interrupt an upload.
            self._quiet &= connection.attempts.join_senders(_INTERRUPT_SECONDS)

    def _wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        waits = [
            connection.attempts.wait_until_idle(max(end - time.monotonic(), 0))
            for connection in self._held
        ]
        return all(waits)

    def after_in_parent(self) -> None:
        for connection in self._held:
            connection.attempts.resume()
        self._held = []
        self._quiet = True
        self._lock.release()

    def after_in_child(self) -> None:
        for connection in self._held:
            connection.start_over_in_child(quiet=self._quiet)
        self._held = []
        self._quiet = True
        self._lock = threading.RLock()


_forks = _Forks()


def watch_forks(connection: Forkable) -> None:
    """Holds the calls of this connection while the process forks, from now on."""
    _forks.add(connection)
