"""The sending side of a stream: what gRPC's thread, or the caller's, takes messages from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType

from paramd.transport.attempts import Attempt, Attempts, Cancellable
from paramd.wire.envelope import Payload

__all__ = ["Requests"]

# How long the end of an attempt waits for a message that is being made.
_STOP_SECONDS = 5.0


class Requests:
    """Gives messages to gRPC or to an open stream, and notes when they move.

    gRPC asks for a message when the one before has been sent. What making one raises must neither
    end the stream as if it were complete, which would commit half a write, nor reach gRPC, which
    would only log it: the call is cancelled, and the exception kept for the caller.

    Args:
        messages: the messages.
        attempt: the attempt that sends them.
        attempts: told which thread takes them.
    """

    def __init__(self, messages: Iterator[Payload], attempt: Attempt, attempts: Attempts) -> None:
        self._attempts = attempts
        self._messages = messages
        self._attempt = attempt
        self._lock = threading.Lock()
        self._stopped = False  # guarded by _lock
        # Taken until the call has its name. An event costs every small call several times this.
        self._unbound = threading.Lock()
        self._unbound.acquire()
        self._is_bound = False  # of the caller's thread
        # What the caller's own thread takes is the first part of a call on an open stream.
        self._sender = threading.get_ident()

    def bind(self, call: Cancellable) -> None:
        """Says which call takes the messages."""
        self._attempt.bind(call)
        self._let_through()

    def _let_through(self) -> None:
        if not self._is_bound:
            self._is_bound = True
            self._unbound.release()

    def __iter__(self) -> Requests:
        return self

    def __next__(self) -> Payload:
        if self._sender != threading.get_ident():
            self._sender = threading.get_ident()
            self._attempts.note_sender(threading.current_thread())
        with self._lock:
            if self._stopped:
                raise StopIteration
            try:
                message = next(self._messages)
            except StopIteration:
                raise
            except BaseException as err:
                self._stopped = True
                self._attempt.failure = err
        if self._attempt.failure is not None:
            # gRPC's thread may be here before the call has its name.
            with self._unbound:
                pass
            self._attempt.end("failure")
            raise StopIteration
        self._attempt.move(len(message))
        return message

    def __enter__(self) -> Requests:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The next attempt may read the same file: this one must have let go of it.
        self._let_through()
        if self._lock.acquire(timeout=_STOP_SECONDS):
            self._stopped = True
            self._lock.release()
