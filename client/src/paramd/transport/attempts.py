"""The calls that are under way in one session: the one place that can wait for or end them.

No thread may be inside gRPC at the moment of a fork, a closing session ends its calls, and a
stream in which nothing moves has to be cut. All three need to know what is under way.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import Final, Protocol

from paramd.errors import SessionClosedError

__all__ = [
    "CALL_GROUP",
    "Attempt",
    "Attempts",
    "CallCancelledError",
    "CallGroup",
    "Cancellable",
    "Standing",
]

# The watching thread goes away after so many seconds without a stream.
_IDLE_SECONDS = 5.0
# How often a call that pauses looks whether it is still wanted.
_LOOK_SECONDS = 0.1


class CallCancelledError(Exception):
    """A call that nobody waits for any more. It never reaches a user."""


class CallGroup:
    """Calls that go on at the same time, and end together when nobody waits for them any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attempts: set[Attempt] = set()  # guarded by _lock
        self._cancelled = False  # guarded by _lock

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for them any more."""
        return self._cancelled

    def add(self, attempt: Attempt) -> None:
        """Counts an attempt to the group.

        Raises:
            CallCancelledError: where the group has been cancelled.
        """
        with self._lock:
            if self._cancelled:
                raise CallCancelledError
            self._attempts.add(attempt)

    def discard(self, attempt: Attempt) -> None:
        """Takes out an attempt that has ended."""
        with self._lock:
            self._attempts.discard(attempt)

    def cancel(self) -> None:
        """Ends every attempt, and lets none begin."""
        with self._lock:
            self._cancelled = True
            attempts = list(self._attempts)
        for attempt in attempts:
            attempt.end("cancel")


CALL_GROUP: Final[ContextVar[CallGroup | None]] = ContextVar("paramd_call_group", default=None)
"""What the calls of this thread belong to, where several go on at the same time."""


class Cancellable(Protocol):
    """A call of gRPC."""

    def cancel(self) -> object:
        """Ends it."""
        ...


class Standing(Protocol):
    """Streams that stay open, with a call or without one."""

    def end_standing(self, seconds: float) -> bool:
        """Ends those that have no call, and waits for that; whether they have ended in time."""
        ...


class Attempt:
    """One sending of one call.

    Attributes:
        moved: bytes that moved, in either direction.
        moved_at: when the last of them did (monotonic seconds).
        stall_limit: seconds without movement after which it is cut, or None.
        give_up_at: when it is cut in any case (monotonic seconds), or None.
        ended_by: why this side ended it: '', 'fork', 'close', 'stall', 'deadline', 'cancel' or
            'failure'.
        failure: what the caller's own code raised while it made the messages.
    """

    __slots__ = ("_call", "_lock", "ended_by", "failure", "give_up_at", "moved", "moved_at",
                 "stall_limit", "thread")  # fmt: skip

    def __init__(self, stall_limit: float | None) -> None:
        self.moved = 0
        self.moved_at = time.monotonic()
        self.stall_limit = stall_limit
        self.give_up_at: float | None = None
        self.thread = threading.get_ident()
        self.ended_by = ""
        self.failure: BaseException | None = None
        self._lock = threading.Lock()
        self._call: Cancellable | None = None  # guarded by _lock

    def bind(self, call: Cancellable) -> None:
        """Says which call it is; ends it if that was asked for already."""
        with self._lock:
            self._call = call
            if self.ended_by:
                call.cancel()

    def move(self, size: int) -> None:
        """Notes that bytes moved."""
        self.moved += size
        self.moved_at = time.monotonic()

    def end(self, reason: str) -> None:
        """Cancels the call; the first reason stays."""
        with self._lock:
            if not self.ended_by:
                self.ended_by = reason
                if self._call is not None:
                    self._call.cancel()


class Attempts:
    """All attempts that are under way; opened and closed like a gate."""

    def __init__(self) -> None:
        # The condition's own, which by its own name is taken without two more calls.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._active: set[Attempt] = set()  # guarded by _changed
        self._paused = False  # guarded by _changed
        self._closed = False  # guarded by _changed
        self._watcher: threading.Thread | None = None  # guarded by _changed
        # gRPC's threads that take messages of streams; guarded by _changed.
        self._senders: set[threading.Thread] = set()
        self._standing: weakref.WeakSet[Standing] = weakref.WeakSet()  # guarded by _changed
        self._watcher_wakes_at = 0.0  # guarded by _changed; monotonic seconds

    @property
    def closed(self) -> bool:
        """Whether no attempt can begin any more."""
        return self._closed

    def begin(self, stall_limit: float | None) -> AbstractContextManager[Attempt]:
        """An attempt, under way until the block ends. Waits while a fork goes on.

        Raises:
            SessionClosedError: where the session is closed.
        """
        return _UnderWay(self, Attempt(stall_limit), CALL_GROUP.get())

    def add(self, attempt: Attempt) -> None:
        """Notes that an attempt begins. See `begin`."""
        with self._lock:
            while self._paused and not self._closed:
                self._changed.wait()
            if self._closed:
                raise SessionClosedError("the session is closed")
            self._active.add(attempt)
            if attempt.stall_limit is not None and self._watcher is None:
                self._start_watcher()

    def discard(self, attempt: Attempt) -> None:
        """Notes that an attempt has ended."""
        with self._lock:
            self._active.discard(attempt)
            if self._paused or self._closed:
                self._changed.notify_all()

    def sleep(self, seconds: float) -> None:
        """Sleeps, but not longer than until the session is closed, or the call not wanted."""
        group = CALL_GROUP.get()
        end = time.monotonic() + seconds
        while group is not None and not group.cancelled and end - time.monotonic() > _LOOK_SECONDS:
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, _LOOK_SECONDS):
                    return
        with self._changed:
            self._changed.wait_for(lambda: self._closed, max(0.0, end - time.monotonic()))

    def pause(self) -> None:
        """Lets no attempt begin."""
        with self._changed:
            self._paused = True

    def resume(self) -> None:
        """Lets attempts begin again."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def wait_until_idle(self, seconds: float) -> bool:
        """Waits until no other thread has an attempt under way; False if some still have."""
        me = threading.get_ident()
        with self._changed:
            return self._changed.wait_for(
                lambda: all(attempt.thread == me for attempt in self._active), seconds
            )

    def note_sender(self, thread: threading.Thread) -> None:
        """Notes a thread of gRPC that takes the messages of a stream."""
        with self._changed:
            self._senders = {each for each in self._senders if each.is_alive()}
            self._senders.add(thread)

    def limit(self, attempt: Attempt, seconds: float) -> None:
        """Cuts an attempt off in so many seconds, if it is still under way then."""
        with self._changed:
            attempt.give_up_at = time.monotonic() + seconds
            if self._watcher is None:
                self._start_watcher()
            elif attempt.give_up_at < self._watcher_wakes_at:
                self._changed.notify_all()

    def add_standing(self, streams: Standing) -> None:
        """Notes streams that are to end before a fork."""
        with self._changed:
            self._standing.add(streams)

    def join_senders(self, seconds: float) -> bool:
        """Ends standing streams, and waits until the threads that took messages have ended.

        They go on for a moment after their call has ended, inside of gRPC. False if some have not
        ended in time.
        """
        end = time.monotonic() + seconds
        with self._changed:
            standing = list(self._standing)
        left = [each for each in standing if not each.end_standing(max(end - time.monotonic(), 0))]
        with self._changed:
            senders, self._senders = self._senders, set()
        for thread in senders:
            thread.join(max(end - time.monotonic(), 0))
        return not left and not any(thread.is_alive() for thread in senders)

    def end_all(self, reason: str) -> None:
        """Ends every attempt of the other threads."""
        me = threading.get_ident()
        with self._changed:
            for attempt in self._active:
                if attempt.thread != me:
                    attempt.end(reason)

    def close(self) -> None:
        """Ends every attempt, and lets none begin."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for attempt in self._active:
                attempt.end("close")

    def _start_watcher(self) -> None:
        self._watcher = threading.Thread(target=self._watch, name="paramd-stall-watch", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        """Cuts stalled streams, and what has a limit.

        A new stream never has to wake it: it wakes before its stall limit.
        """
        with self._changed:
            while True:
                now = time.monotonic()
                wake_in = _IDLE_SECONDS
                watched = False
                for attempt in self._active:
                    for reason, at in _limits(attempt):
                        watched = True
                        if at <= now:
                            attempt.end(reason)
                        else:
                            wake_in = min(wake_in, at - now)
                if self._closed or not watched:
                    self._watcher = None
                    return
                wake_in = max(wake_in, 0.01)
                self._watcher_wakes_at = now + wake_in
                self._changed.wait(wake_in)


class _UnderWay:
    """What `Attempts.begin` gives: a class, since a generator costs small calls more."""

    __slots__ = ("_attempt", "_attempts", "_group")

    def __init__(self, attempts: Attempts, attempt: Attempt, group: CallGroup | None) -> None:
        self._attempts = attempts
        self._attempt = attempt
        self._group = group

    def __enter__(self) -> Attempt:
        if self._group is not None:
            self._group.add(self._attempt)
        self._attempts.add(self._attempt)
        return self._attempt

    def __exit__(
        self, _type: object, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._attempt.end("failure")
        if self._group is not None:
            self._group.discard(self._attempt)
        self._attempts.discard(self._attempt)


def _limits(attempt: Attempt) -> Iterator[tuple[str, float]]:
    """Why and when an attempt is to be cut."""
    if attempt.stall_limit is not None:
        yield "stall", attempt.moved_at + attempt.stall_limit
    if attempt.give_up_at is not None:
        yield "deadline", attempt.give_up_at
