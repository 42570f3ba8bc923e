"""Streams that are open, and an eye on those in which nothing moves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import grpc

from paramd.wire.envelope import Payload

__all__ = ["OpenStream", "OpenStreams"]

_log = logging.getLogger(__name__)


class OpenStream:
    """One streaming call, which notes since when it waits for the client.

    Time that the server itself takes (a large file to write, a value to initialize) does not count.

    Args:
        context: of the call.
    """

    def __init__(self, context: grpc.ServicerContext) -> None:
        self.context = context
        self.stalled = False
        # None while the server works. One thread writes it, another one reads it.
        self._waits_since: float | None = None

    def waits_since_before(self, moment: float) -> bool:
        """Whether nothing has come or gone since a moment of time.monotonic()."""
        since = self._waits_since
        return since is not None and since < moment

    def received(self, messages: Iterable[Payload]) -> Iterator[Payload]:
        """The client's messages: it waits for each until it comes."""
        coming = iter(messages)
        while True:
            self._waits_since = time.monotonic()
            message = next(coming, None)
            self._waits_since = None
            if message is None:
                return
            yield message

    def sent(self, messages: Iterable[Payload]) -> Iterator[Payload]:
        """The server's messages: it waits after each until the client has room for it."""
        for message in messages:
            self._waits_since = time.monotonic()
            yield message
            self._waits_since = None


class OpenStreams:
    """All streaming calls of a server.

    A reader that stalls would hold memory and a thread for ever: it is cut off.

    Args:
        stall_s: how long nothing may move in a stream.
    """

    def __init__(self, *, stall_s: float) -> None:
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._streams: set[OpenStream] = set()  # guarded by _lock

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, context: grpc.ServicerContext) -> AbstractContextManager[OpenStream]:
        """Watches a call for as long as a block runs."""
        return _Watched(self, OpenStream(context))

    def add(self, stream: OpenStream) -> None:
        """Watches a call from now on."""
        with self._lock:
            self._streams.add(stream)

    def discard(self, stream: OpenStream) -> None:
        """Watches a call no more."""
        with self._lock:
            self._streams.discard(stream)

    def cut_stalled(self) -> None:
        """Cancels the calls in which nothing has moved for too long. Called now and then."""
        oldest = time.monotonic() - self._stall_s
        with self._lock:
            stalled = [each for each in self._streams if each.waits_since_before(oldest)]
        for stream in stalled:
            if not stream.stalled:
                stream.stalled = True
                _log.warning("cut off a stream in which nothing moved for %g s", self._stall_s)
                stream.context.cancel()


class _Watched:
    """What `OpenStreams.open` gives: a class, since a generator costs small calls more."""

    __slots__ = ("_stream", "_streams")

    def __init__(self, streams: OpenStreams, stream: OpenStream) -> None:
        self._streams = streams
        self._stream = stream

    def __enter__(self) -> OpenStream:
        self._streams.add(self._stream)
        return self._stream

    def __exit__(self, *_error: object) -> None:
        self._streams.discard(self._stream)
