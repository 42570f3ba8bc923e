"""Calls to a server of this host: over a Unix socket, with their payload in memory."""

from __future__ import annotations

import logging
import mmap
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import grpc
import numpy as np

from paramd.errors import InvalidMessageError, ParamdError
from paramd.transport.call_streams import CallFailedError, Carrier
from paramd.transport.local.entering import Entrance, enter
from paramd.v1 import call_service_pb2 as pb
from paramd.v1 import local_pb2
from paramd.wire.calls import END, READY, Payload, encode_message
from paramd.wire.local import send_message
from paramd.wire.parsing import parse_message
from paramd.wire.tensors import CHUNK_BYTES

__all__ = ["LocalStream", "LocalStreams"]

_log = logging.getLogger(__name__)

# Each takes a thread of the server, and a ring.
_MAX_STREAMS: Final = 4
# What is smaller costs less on the socket than in the ring, of which the server has to be told.
_INLINE_BYTES: Final = 64 << 10
# A call that sends no more is answered before the thread would have gone to sleep and woken up.
_SOON_BYTES: Final = (1 << 20) + _INLINE_BYTES
# See Spin. More clients than processors would keep the server from answering.
_SUCCESSES: Final = 16
# The tag of CallResponse.blocks_used.
_BLOCKS_USED: Final = b"\x20"


class LocalStream:
    """One connection that carries calls. See Carrier.

    Args:
        entrance: of the server, for LOCAL_PURPOSE_CALL.
        ended: called once, when it takes no calls any more.
        is_alone: whether no other stream of the session is in use.

    Raises:
        InvalidMessageError: where the server speaks another language.
        OSError: where the ring cannot be mapped, or the connection has failed.
    """

    inline_bytes = _INLINE_BYTES

    def __init__(
        self, entrance: Entrance, ended: Callable[[], None], is_alone: Callable[[], bool]
    ) -> None:
        self._connection, self._incoming = entrance.connection, entrance.incoming
        self.has_ended = False
        self.begin()
        try:
            try:
                ring = mmap.mmap(entrance.descriptor, entrance.size)
            finally:
                os.close(entrance.descriptor)
            if entrance.size < CHUNK_BYTES or self._incoming.receive() != READY:
                raise InvalidMessageError("the server's welcome is of another version")
        except BaseException:
            self._connection.close()
            raise
        self._incoming.expect_no_descriptors()
        self._incoming.wait_awake(is_alone, successes=_SUCCESSES)
        self._ring = np.frombuffer(ring, np.uint8)
        self._ended = ended
        self._num_slots = entrance.size // CHUNK_BYTES
        # Slots are used in their order, and the server says when it has used one.
        self._num_used = 0
        self._next_slot = 0
        # Came while a slot was waited for.
        self._waiting: deque[bytes] = deque()

    def begin(self) -> None:
        """Says that a call of this thread is under way from now on."""
        self._owner = threading.get_ident()
        self._num_sent = 0

    def send(self, request: bytes) -> None:
        """See Carrier."""
        self._num_sent += len(request)
        try:
            send_message(self._connection, request)
        except OSError as err:
            raise self._failure(err) from err

    def send_rest(self, messages: Iterator[Payload]) -> None:
        """See Carrier. All has been sent when it returns."""
        for message in messages:
            if isinstance(message, bytes):
                self.send(encode_message(message))
                continue
            for begin in range(0, len(message), CHUNK_BYTES):
                if self._has_slot():
                    self._send_block(message[begin : begin + CHUNK_BYTES])
            if self._waiting:
                # It has been answered already.
                break
        self.send(END)

    def receive(self) -> bytes:
        """See Carrier."""
        if self._waiting:
            return self._waiting.popleft()
        while (response := self._next()) is None:
            pass
        return response

    def cancel(self) -> object:
        """See Carrier."""
        self._end()
        if threading.get_ident() == self._owner:
            self._connection.close()
            return None
        try:
            # It cannot be closed while the owner waits for something to come, which this ends.
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError as err:
            _log.debug("the connection had ended: %s", err)
        return None

    def close(self) -> None:
        """Gives it up. For whoever has it: another thread may only cancel it."""
        self._end()
        self._connection.close()

    def abandon(self) -> None:
        """Closes a forked child's copy of the connection, which stays the parent's."""
        self.has_ended = True
        self._connection.close()

    def _has_slot(self) -> bool:
        """Waits for a free slot; False where the call has been answered already."""
        while self._num_used == self._num_slots and not self._waiting:
            response = self._next()
            if response is not None:
                self._waiting.append(response)
        return not self._waiting

    def _send_block(self, payload: memoryview) -> None:
        offset = self._next_slot * CHUNK_BYTES
        self._next_slot = (self._next_slot + 1) % self._num_slots
        self._num_used += 1
        size = len(payload)
        self._num_sent += size
        # Without the GIL, unlike an assignment to a view.
        np.copyto(self._ring[offset : offset + size], np.frombuffer(payload, np.uint8))
        block = pb.RingBlock(offset=offset, size=size)
        self.send(pb.CallRequest(block=block).SerializeToString())

    def _next(self) -> bytes | None:
        """The next response; None where it says only that blocks have been used."""
        try:
            response = self._incoming.receive(soon=self._num_sent <= _SOON_BYTES)
        except (OSError, InvalidMessageError) as err:
            raise self._failure(err) from err
        if response is None:
            raise self._failure("the server ended the connection")
        if response[:1] != _BLOCKS_USED:
            return response
        self._num_used -= parse_message(pb.CallResponse, response).blocks_used
        return None

    def _failure(self, why: object) -> CallFailedError:
        self.close()
        status = pb.CallStatus(code=grpc.StatusCode.UNAVAILABLE.value[0], details=str(why))
        return CallFailedError(status)

    def _end(self) -> None:
        if not self.has_ended:
            self.has_ended = True
            self._ended()


class LocalStreams:
    """The connections of one session to one server that carry calls. Thread-safe.

    Args:
        name: of the server's socket.
        authorization: gives what is shown as the metadata of a call, or ''.
    """

    def __init__(self, name: str, authorization: Callable[[], str]) -> None:
        self._name = name
        self._authorization = authorization
        self._lock = threading.Lock()
        self._free: list[LocalStream] = []  # guarded by _lock; the one used last is the last
        self._num_streams = 0  # guarded by _lock
        self._closed = False  # guarded by _lock

    def take(self) -> Carrier | None:
        """See Streams."""
        with self._lock:
            while self._free:
                stream = self._free.pop()
                stream.begin()
                if not stream.has_ended:
                    return stream
            if self._closed or self._num_streams >= _MAX_STREAMS:
                return None
            self._num_streams += 1
        try:
            entrance = enter(self._name, local_pb2.LOCAL_PURPOSE_CALL, self._authorization())
            return LocalStream(entrance, self._forget, self._is_one_in_use)
        except (ParamdError, OSError) as err:
            _log.info("calls go over gRPC: %s", err)
            with self._lock:
                # It is not tried again: there is another way.
                self._closed = True
            return None

    def give_back(self, carrier: Carrier) -> None:
        """See Streams."""
        assert isinstance(carrier, LocalStream)
        with self._lock:
            if not self._closed:
                self._free.append(carrier)
                return
        carrier.close()

    def close(self) -> None:
        """Ends those on which no call is under way, and each other one when its call has ended."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for stream in free:
            stream.close()

    def abandon(self) -> None:
        """Closes a forked child's copies of the connections, without the parent's locks."""
        self._closed = True
        for stream in self._free:
            stream.abandon()

    def _is_one_in_use(self) -> bool:
        return self._num_streams - len(self._free) == 1

    def _forget(self) -> None:
        with self._lock:
            self._num_streams -= 1
