"""The open gRPC streams of a channel: opened in the background, taken for a call, and ended."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Final

import grpc

from paramd.errors import SessionClosedError
from paramd.transport.attempts import Attempts
from paramd.transport.call_streams import CallFailedError, Carrier
from paramd.v1 import call_service_pb2 as pb
from paramd.wire.calls import END, READY, encode_message
from paramd.wire.envelope import Payload, encode_data

__all__ = ["CallStreamPool", "GrpcStream"]

# Each takes a thread of the server. Calls beyond that are made by themselves.
_MAX_STREAMS: Final = 4
# How long a server may take to have a thread for a stream.
_READY_SECONDS: Final = 30.0
# After a stream that could not be opened.
_PAUSE_SECONDS: Final = 1.0

# What is larger is copied once and not twice. At 1 MiB that is worth as much as a further message.
_INLINE_BYTES: Final = 256 << 10

_ENDED: Final = pb.CallStatus(
    code=grpc.StatusCode.UNAVAILABLE.value[0], details="the server ended the stream"
)


class GrpcStream:
    """One stream of CallService.

    Args:
        method: the multi-callable of StreamCalls.
        attempts: told which thread takes the messages.
        ended: called when the stream has ended, on a thread of gRPC's.
    """

    inline_bytes = _INLINE_BYTES

    def __init__(
        self, method: Any, attempts: Attempts, ended: Callable[[GrpcStream], None]
    ) -> None:
        self._attempts = attempts
        # Parts of calls, the rest of one, or None: then the stream ends.
        self._parts: SimpleQueue[bytes | Iterator[bytes] | None] = SimpleQueue()
        self._has_ended = threading.Event()
        self._ended = ended
        self._call: Any = method(self._requests())
        if not self._call.add_callback(self._on_end):
            self._on_end()

    @property
    def has_ended(self) -> bool:
        """Whether it takes no calls any more."""
        return self._has_ended.is_set()

    def _requests(self) -> Iterator[bytes]:
        self._attempts.note_sender(threading.current_thread())
        while (part := self._parts.get()) is not None:
            if isinstance(part, bytes):
                yield part
            else:
                yield from part

    def _on_end(self) -> None:
        self._parts.put(None)
        self._has_ended.set()
        self._ended(self)

    def send(self, request: bytes) -> None:
        """See Carrier."""
        self._parts.put(request)

    def send_rest(self, messages: Iterator[Payload]) -> None:
        """See Carrier. gRPC asks for each when the one before has been sent."""
        self._parts.put(_parts_of(messages))

    def receive(self) -> bytes:
        """See Carrier."""
        try:
            response: bytes = next(self._call)
        except StopIteration:
            raise CallFailedError(_ENDED) from None
        return response

    def cancel(self) -> object:
        """See Carrier."""
        return self._call.cancel()

    def finish(self) -> None:
        """Ends it after what has been sent."""
        self._parts.put(None)

    def await_end(self, seconds: float) -> bool:
        """Waits until it has ended."""
        return self._has_ended.wait(seconds)


def _parts_of(messages: Iterator[Payload]) -> Iterator[bytes]:
    for message in messages:
        yield encode_data(message) if isinstance(message, memoryview) else encode_message(message)
    yield END


class CallStreamPool:
    """The streams of one channel. Thread-safe.

    Args:
        method: the multi-callable of StreamCalls.
        attempts: those of the connection: a stream that is opened is one of them, and streams that
            are open end before a fork.
    """

    def __init__(self, method: Any, attempts: Attempts) -> None:
        self._method = method
        self._attempts = attempts
        self._lock = threading.Lock()
        self._free: list[GrpcStream] = []  # guarded by _lock; the one used last is the last
        self._all: set[GrpcStream] = set()  # guarded by _lock
        self._opening = False  # guarded by _lock
        self._closed = False  # guarded by _lock
        self._not_before = 0.0  # guarded by _lock; of time.monotonic()
        attempts.add_standing(self)

    def take(self) -> Carrier | None:
        """A stream that is free and ready; None where there is none, and then one is opened."""
        with self._lock:
            while self._free:
                stream = self._free.pop()
                if not stream.has_ended:
                    return stream
            wanted = (
                not self._opening
                and not self._closed
                and len(self._all) < _MAX_STREAMS
                and time.monotonic() >= self._not_before
            )
            self._opening |= wanted
        if wanted:
            threading.Thread(target=self._open, name="paramd-call-stream", daemon=True).start()
        return None

    def give_back(self, carrier: Carrier) -> None:
        """Says that a stream is free again."""
        assert isinstance(carrier, GrpcStream)
        with self._lock:
            if not self._closed:
                self._free.append(carrier)
                return
        carrier.finish()

    def _open(self) -> None:
        pause = 0.0
        try:
            self._open_one()
        except (grpc.RpcError, ValueError, SessionClosedError) as err:
            # The calls that go by themselves tell what is wrong with the server, if anything is.
            pause = math.inf if _is_unknown(err) else _PAUSE_SECONDS
        with self._lock:
            self._opening = False
            self._not_before = time.monotonic() + pause

    def _open_one(self) -> None:
        """Opens a stream, and waits until the server has a thread for it.

        Raises:
            grpc.RpcError, ValueError: where it cannot be opened.
            SessionClosedError: where the session is closed.
        """
        with self._attempts.begin(None) as attempt:
            stream = GrpcStream(self._method, self._attempts, self._forget)
            with self._lock:
                self._all.add(stream)
                if stream.has_ended:
                    self._all.discard(stream)
            attempt.bind(stream)
            self._attempts.limit(attempt, _READY_SECONDS)
            if stream.receive() != READY:
                raise CallFailedError(_ENDED)
        self.give_back(stream)

    def _forget(self, stream: GrpcStream) -> None:
        with self._lock:
            self._all.discard(stream)
            if stream in self._free:
                self._free.remove(stream)

    def end_standing(self, seconds: float) -> bool:
        """Ends all streams, none of which has a call; whether they have ended in that time."""
        with self._lock:
            streams = list(self._all)
        for stream in streams:
            stream.cancel()
        give_up_at = time.monotonic() + seconds
        return all(stream.await_end(max(0.0, give_up_at - time.monotonic())) for stream in streams)

    def close(self) -> None:
        """Opens no stream any more, and ends those that are free; the others after their calls."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for stream in free:
            stream.finish()


def _is_unknown(err: Exception) -> bool:
    """Whether the server has no such streams at all."""
    code = getattr(err, "code", None)
    return code is not None and code() is grpc.StatusCode.UNIMPLEMENTED
