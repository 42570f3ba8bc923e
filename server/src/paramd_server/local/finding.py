"""Tells processes of this host where values are, and hands them the memory."""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
from typing import Final

from paramd.errors import InvalidMessageError, ParamdError
from paramd.v1 import local_pb2
from paramd.wire.local import Incoming, send_message
from paramd.wire.messages import context_from_wire, part_from_wire
from paramd.wire.parsing import parse_message
from paramd.wire.status import encode_error
from paramd.wire.tensors import head_to_wire
from paramd_server.arrays.shared_memory import SharedMemory
from paramd_server.core.sharing import Sharing
from paramd_server.rpc.readings import check_count, current_context

__all__ = ["Finding"]

_log = logging.getLogger(__name__)

_MAX_QUESTION_BYTES: Final = 8 << 20
# How long a process may leave unread what it is told.
_SEND_S: Final = 10.0


class Finding:
    """Answers the questions of connections with LOCAL_PURPOSE_FIND.

    Args:
        sharing: finds copies.
        memory: that they are in.
    """

    def __init__(self, sharing: Sharing, memory: SharedMemory) -> None:
        self._sharing = sharing
        self._memory = memory
        self._lock = threading.Lock()
        self._peers: set[_Peer] = set()  # guarded by _lock
        # Memory is given up by any thread, at any point, and the peers are told by one.
        self._freed = threading.Event()
        self._closed = False
        memory.on_freed = self._freed.set
        threading.Thread(target=self._tell, name="local-freed", daemon=True).start()

    def serve(self, connection: socket.socket, _authorization: str) -> None:
        """See Purpose."""
        directory = self._sharing.directory
        peer = _Peer(connection)
        descriptor = directory.descriptor()
        try:
            peer.send(local_pb2.LocalWelcome(size=directory.size), descriptor)
        finally:
            os.close(descriptor)
        with self._lock:
            self._peers.add(peer)
        try:
            incoming = Incoming(connection, max_bytes=_MAX_QUESTION_BYTES)
            while not self._closed and (message := incoming.receive()) is not None:
                self._answer(peer, message)
        except InvalidMessageError as err:
            peer.send(local_pb2.LocalResponse(error=encode_error(err)))
        finally:
            with self._lock:
                self._peers.discard(peer)

    def close(self) -> None:
        """Lets go of all who read in place. Idempotent."""
        self._closed = True
        self._freed.set()
        with self._lock:
            peers = list(self._peers)
        for peer in peers:
            peer.end()

    def _answer(self, peer: _Peer, message: bytes) -> None:
        request = parse_message(local_pb2.LocalRequest, message)
        question = request.WhichOneof("question")
        if question == "locate":
            peer.send(self._locate(request.locate))
        elif question == "segment":
            self._hand_out(peer, request.segment)
        else:
            raise InvalidMessageError("a LocalRequest message came without a question")

    def _locate(self, request: local_pb2.LocateRequest) -> local_pb2.LocalResponse:
        try:
            check_count(len(request.tensors))
            current = current_context(request)
            found = local_pb2.LocatedTensors()
            for each in request.tensors:
                located = found.tensors.add()
                wanted = context_from_wire(each.context) if each.HasField("context") else None
                part = part_from_wire(each.part) if each.HasField("part") else None
                try:
                    place = self._sharing.locate(each.name, wanted, current, part)
                except ParamdError as err:
                    # The call that reads it says what is wrong.
                    _log.debug("no place for %r: %s", each.name, err)
                    continue
                located.header.CopyFrom(head_to_wire(place.head))
                located.layout = place.layout
                if place.slot is not None:
                    located.slot = place.slot
        except ParamdError as err:
            return local_pb2.LocalResponse(error=encode_error(err))
        return local_pb2.LocalResponse(located=found)

    def _hand_out(self, peer: _Peer, number: int) -> None:
        found = self._memory.descriptor(number)
        if found is None:
            peer.send(local_pb2.LocalResponse(segment=local_pb2.SegmentInfo()))
            return
        descriptor, size = found
        try:
            info = local_pb2.SegmentInfo(size=size)
            peer.send(local_pb2.LocalResponse(segment=info), descriptor)
        finally:
            os.close(descriptor)

    def _tell(self) -> None:
        """Says which segments there are still, whenever some have been given up."""
        while self._freed.wait() and not self._closed:
            self._freed.clear()
            numbers = local_pb2.SegmentList(numbers=self._memory.numbers())
            with self._lock:
                peers = list(self._peers)
            for peer in peers:
                try:
                    peer.send(local_pb2.LocalResponse(remaining=numbers))
                except OSError as err:
                    # Its thread sees the end of the connection, too. Who does not read what it is
                    # told reads values over gRPC from now on, and lets go of the memory.
                    _log.info("a process of this host is let go: %s", err)
                    peer.end()


def _timeval(seconds: float) -> bytes:
    """A struct timeval."""
    return struct.pack("ll", int(seconds), 0)


class _Peer:
    """One connection, to which two threads send."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(_SEND_S))

    def send(
        self,
        message: local_pb2.LocalWelcome | local_pb2.LocalResponse,
        descriptor: int | None = None,
    ) -> None:
        """Sends a message. Raises OSError."""
        descriptors = () if descriptor is None else (descriptor,)
        with self._lock:
            send_message(self._connection, message.SerializeToString(), descriptors)

    def end(self) -> None:
        """Ends the connection."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError as err:
            _log.debug("a connection had ended: %s", err)
