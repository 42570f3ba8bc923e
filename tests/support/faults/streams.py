"""Calls that come over a stream that stays open, each of which meets its own fault."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

import grpc

from paramd.v1 import call_service_pb2 as pb
from paramd.wire.calls import OK, READY, Opening, Payload, decode_request, encode_answer
from paramd.wire.envelope import encode_data
from paramd.wire.status import DETAIL_KEY

__all__ = ["IS_STREAM", "answer_stream"]

IS_STREAM: Final = "/paramd.v1.CallService/StreamCalls"

Handle = Callable[[str, Iterator[bytes], Any], Iterator[bytes]]


def answer_stream(
    handle: Handle, requests: Iterator[bytes], context: grpc.ServicerContext
) -> Iterator[bytes]:
    """The responses of a stream, each of whose calls is handled by itself.

    Args:
        handle: takes a method's path, its messages, and a context of which this has a part.
        requests: of the stream.
        context: of the stream.
    """
    yield READY
    for request in requests:
        opening = decode_request(request)
        assert isinstance(opening, Opening), "a call begins with open"
        call = _Call(context)
        messages = _Messages(opening, requests)
        replies: list[bytes] = []
        status = OK
        try:
            replies.extend(handle(opening.method, messages, call))
        except _AbortedError as err:
            status = pb.CallStatus(code=err.code.value[0], details=err.details, error=call.detail())
        for _ in messages:
            pass
        yield encode_answer(replies, status)


class _AbortedError(Exception):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class _Call:
    """What the proxy needs of a context."""

    def __init__(self, stream: grpc.ServicerContext) -> None:
        self._trailing: Any = ()
        self.invocation_metadata = stream.invocation_metadata
        self.add_callback = stream.add_callback
        self.peer = stream.peer

    def time_remaining(self) -> None:
        """A stream has no end."""

    def set_trailing_metadata(self, trailing: Any) -> None:
        self._trailing = trailing

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise _AbortedError(code, details)

    def detail(self) -> bytes:
        return next((value for key, value in self._trailing if key == DETAIL_KEY), b"")


class _Messages:
    """The messages of one call. Thread-safe: one that was given up may still read some.

    Whoever skips the rest waits for it.
    """

    def __init__(self, opening: Opening, requests: Iterator[bytes]) -> None:
        self._lock = threading.Lock()
        self._messages = _messages(opening, requests)  # guarded by _lock

    def __iter__(self) -> _Messages:
        return self

    def __next__(self) -> bytes:
        with self._lock:
            return next(self._messages)


def _messages(opening: Opening, requests: Iterator[bytes]) -> Iterator[bytes]:
    yield from map(_whole, opening.messages)
    if opening.complete:
        return
    for request in requests:
        part = decode_request(request)
        if not isinstance(part, bytes | memoryview):
            return
        yield _whole(part)


def _whole(message: Payload) -> bytes:
    return encode_data(message) if isinstance(message, memoryview) else message
