"""Calls over streams that stay open: one call after the other on each stream.

A `StreamCall` is to a connection what a call of gRPC's is, whatever carries the stream. It is made
for small calls: what the caller sends and what comes back are then one message each.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grpc

from paramd.errors import InvalidStreamError
from paramd.v1 import call_service_pb2 as pb
from paramd.wire.calls import (
    Answer,
    code_of_status,
    decode_response,
    encode_opening,
    is_ok,
)
from paramd.wire.envelope import Payload, whole
from paramd.wire.status import DETAIL_KEY

__all__ = [
    "CallFailedError",
    "Carrier",
    "StreamCall",
    "StreamedMethod",
    "Streams",
]


class CallFailedError(grpc.RpcError):
    """A call that failed on a stream, as `error_of` takes it.

    Args:
        status: how it ended.
    """

    def __init__(self, status: pb.CallStatus) -> None:
        super().__init__(status.details)
        self._status = status

    def code(self) -> grpc.StatusCode:
        """The code of gRPC."""
        return code_of_status(self._status)

    def details(self) -> str:
        """The text beside it."""
        return self._status.details

    def trailing_metadata(self) -> Any:
        """The error, where the server told one."""
        return ((DETAIL_KEY, self._status.error),) if self._status.error else ()


class Carrier(Protocol):
    """A stream on which calls go: one at a time, of one thread.

    Attributes:
        inline_bytes: messages of a call that have no more bytes together go with its opening.
    """

    inline_bytes: int

    def send(self, request: bytes) -> None:
        """Sends the CallRequest that opens a call."""
        ...

    def send_rest(self, messages: Iterator[Payload]) -> None:
        """Sends the other messages of the call that is open, then its end.

        It may go on while answers are received. A view is valid until the next message is asked
        for; one that comes from elsewhere than a payload is `bytes`.
        """
        ...

    def receive(self) -> bytes:
        """The next CallResponse.

        Raises:
            grpc.RpcError: where the stream has ended.
        """
        ...

    def cancel(self) -> object:
        """Ends the stream, from any thread."""
        ...


class StreamCall:
    """One call on a stream. It begins when its first answer is asked for.

    Args:
        carrier: the stream.
        path: of the method.
        requests: the messages of the call.
        release: called when the stream can take the next call. Else it has been cancelled.
    """

    def __init__(
        self,
        carrier: Carrier,
        path: str,
        requests: Iterator[Payload],
        release: Callable[[Carrier], None],
    ) -> None:
        self._carrier = carrier
        self._path = path
        self._requests = requests
        self._release = release
        self._begun = False
        self._answers: deque[Payload] = deque()
        self._status: pb.CallStatus | None = None
        self._lock = threading.Lock()
        self._cancelled = False  # guarded by _lock
        self._released = False  # guarded by _lock

    def cancel(self) -> bool:
        """Ends the call, and the stream with it, from any thread. False where it has ended."""
        with self._lock:
            if self._released:
                return False
            self._cancelled = True
            self._carrier.cancel()
        return True

    def result(self) -> bytes:
        """The answer, of a method that gives one.

        Raises:
            grpc.RpcError: where the call failed.
            InvalidStreamError: where there is none, or another one.
        """
        answers = list(map(whole, self))
        if len(answers) != 1:
            raise InvalidStreamError(f"{self._path} has one answer, but {len(answers)} came")
        return answers[0]

    def __iter__(self) -> StreamCall:
        return self

    def __next__(self) -> Payload:
        """The next answer; a view where it is a payload.

        Raises:
            grpc.RpcError: where the call failed.
        """
        if not self._begun:
            self._begun = True
            self._begin()
        while True:
            if self._answers:
                return self._answers.popleft()
            if self._status is not None:
                if is_ok(self._status):
                    raise StopIteration
                raise CallFailedError(self._status)
            response = decode_response(self._carrier.receive())
            if isinstance(response, memoryview):
                return response
            if not isinstance(response, Answer):
                raise InvalidStreamError(
                    f"{self._path}: the server answered with {response.WhichOneof('part')}"
                )
            self._answers.extend(response.messages)
            if response.status is not None:
                self._end(response.status)

    def _begin(self) -> None:
        messages: list[Payload] = []
        size = 0
        for message in self._requests:
            size += len(message)
            if size > self._carrier.inline_bytes:
                self._send(encode_opening(self._path, messages, complete=False))
                self._carrier.send_rest(self._rest(message))
                return
            # A view is valid for now only.
            messages.append(whole(message))
        self._send(encode_opening(self._path, messages, complete=True))

    def _send(self, opening: bytes) -> None:
        with self._lock:
            # What makes the messages may have failed, and then they only seem to be complete.
            if self._cancelled:
                # Again, by the thread that it belongs to.
                self._carrier.cancel()
                raise CallFailedError(_CANCELLED)
        self._carrier.send(opening)

    def _rest(self, message: Payload) -> Iterator[Payload]:
        yield message
        for message in self._requests:
            if self._status is not None:
                # It is answered already.
                return
            yield message

    def _end(self, status: pb.CallStatus) -> None:
        self._status = status
        with self._lock:
            self._released = not self._cancelled
        if self._released:
            self._release(self._carrier)
        else:
            # Again, by the thread that it belongs to.
            self._carrier.cancel()


_CANCELLED = pb.CallStatus(code=grpc.StatusCode.CANCELLED.value[0], details="cancelled")


class Streams(Protocol):
    """The open streams to one server."""

    def take(self) -> Carrier | None:
        """One that is free, or None: then a call is made by itself."""
        ...

    def give_back(self, carrier: Carrier) -> None:
        """Says that the stream is free again."""
        ...


class StreamedMethod:
    """The multi-callable of an RPC that goes over an open stream, where one is free.

    Args:
        path: of the method.
        plain: that of gRPC.
        streams: the streams.
    """

    def __init__(self, path: str, plain: Any, streams: Streams) -> None:
        self._path = path
        self._plain = plain
        self._streams = streams

    def __call__(self, request: bytes | Iterator[Payload], timeout: float | None = None) -> Any:
        """A call whose answers are iterated. `timeout` in seconds holds for gRPC's own alone."""
        return self._on_stream(request) or self._plain(request, timeout=timeout)

    def future(self, request: bytes | Iterator[Payload], timeout: float | None = None) -> Any:
        """A call with one answer. `timeout` in seconds holds for gRPC's own alone."""
        return self._on_stream(request) or self._plain.future(request, timeout=timeout)

    def _on_stream(self, request: bytes | Iterator[Payload]) -> StreamCall | None:
        carrier = self._streams.take()
        if carrier is None:
            return None
        requests = iter((request,)) if isinstance(request, bytes) else request
        return StreamCall(carrier, self._path, requests, self._streams.give_back)
