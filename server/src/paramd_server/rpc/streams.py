"""Streams that are open, and an eye on those in which nothing moves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import grpc

__all__ = ["OpenStream", "OpenStreams"]

_log = logging.getLogger(__name__)


class OpenStream:
    """One streaming call, which notes each message that moves.

    Args:
        context: of the call.
    """

    def __init__(self, context: grpc.ServicerContext) -> None:
        self.context = context
        self.moved_at = time.monotonic()
        self.stalled = False

    def watch(self, messages: Iterable[bytes]) -> Iterator[bytes]:
        """The same messages, noted as they pass in either direction."""
        for message in messages:
            self.moved_at = time.monotonic()
            yield message
        self.moved_at = time.monotonic()


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

    @contextmanager
    def open(self, context: grpc.ServicerContext) -> Iterator[OpenStream]:
        """Registers a call for as long as the block runs."""
        stream = OpenStream(context)
        with self._lock:
            self._streams.add(stream)
        try:
            yield stream
        finally:
            with self._lock:
                self._streams.discard(stream)

    def cut_stalled(self) -> None:
        """Cancels the calls in which nothing has moved for too long. Called now and then."""
        oldest = time.monotonic() - self._stall_s
        with self._lock:
            stalled = [each for each in self._streams if each.moved_at < oldest]
        for stream in stalled:
            if not stream.stalled:
                stream.stalled = True
                _log.warning("cut off a stream in which nothing moved for %g s", self._stall_s)
                stream.context.cancel()
