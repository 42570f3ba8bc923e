"""Calls over open streams, message by message, and a look at those of a session."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from paramd.errors import ParamdError
from paramd.session import Session
from paramd.v1 import call_service_pb2 as pb
from paramd.wire.status import decode_error
from tests.support.raw_calls import DEADLINE_S, METHODS, as_bytes
from tests.support.waiting import wait_until

PATH = "/paramd.v1.CallService/StreamCalls"


@dataclass
class Ended:
    """How one call on a stream ended."""

    messages: list[bytes]
    status: pb.CallStatus

    @property
    def error(self) -> ParamdError | None:
        """What it failed with, or None."""
        if not self.status.code:
            return None
        (code,) = [each for each in grpc.StatusCode if each.value[0] == self.status.code]
        return decode_error(code, self.status.error, self.status.details)


class RawStream:
    """One stream of StreamCalls, independent of the client library's.

    Args:
        channel: to the server.
        token: that it is opened with; '' for none.
    """

    def __init__(self, channel: grpc.Channel, token: str = "") -> None:
        self._sent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        method: Any = channel.stream_stream(PATH)
        metadata = (("authorization", f"Bearer {token}"),) if token else None
        self.call = method(iter(self._sent.get, None), timeout=DEADLINE_S, metadata=metadata)

    def ready(self) -> RawStream:
        """Waits for the server's first word."""
        assert self.receive().WhichOneof("part") == "ready"
        return self

    def send(self, request: pb.CallRequest | bytes) -> None:
        self._sent.put(as_bytes(request))

    def receive(self) -> pb.CallResponse:
        return pb.CallResponse.FromString(next(self.call))

    def finish(self) -> None:
        """Ends the stream on this side."""
        self._sent.put(None)

    def open(
        self, method: str, messages: Iterable[Message | bytes], *, complete: bool = True
    ) -> None:
        """Opens a call of a method by its name, or by a path."""
        path = method
        if method in METHODS:
            path = f"/{METHODS[method].containing_service.full_name}/{method}"
        first = pb.CallOpen(method=path, messages=map(as_bytes, messages), complete=complete)
        self.send(pb.CallRequest(open=first))

    def end_of_call(self) -> Ended:
        """Receives what is left of a call."""
        messages: list[bytes] = []
        while True:
            response = self.receive()
            if response.WhichOneof("part") == "data":
                messages.append(response.SerializeToString())
                continue
            messages += response.answer.messages
            if response.answer.HasField("status"):
                return Ended(messages, response.answer.status)

    def call_method(self, method: str, messages: Iterable[Message | bytes]) -> Ended:
        """A whole call."""
        self.open(method, messages)
        return self.end_of_call()


def pools_of(session: Session) -> Iterator[Any]:
    """The pools of streams of a session, one for each server that it has called."""
    calls: Any = session.calls
    shards = getattr(calls, "_shards", None)
    connections = [calls._connection] if shards is None else shards.connections
    for connection in connections:
        channel = connection._channel._channel
        if channel is not None:
            yield channel._streams


def num_streams(session: Session) -> int:
    """How many streams of a session are open and free."""
    return sum(len(pool._free) for pool in pools_of(session))


def await_stream(session: Session) -> None:
    """Waits until one stream is open, so that the next call goes over it; no call does before."""

    def opened() -> bool:
        if not any(pool._opening or pool._free for pool in pools_of(session)):
            session.parameters()
        return num_streams(session) > 0

    wait_until(opened, "an open stream")
