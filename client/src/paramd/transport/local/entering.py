"""Goes through the door of a server: the Unix socket on which it hands out its memory."""

from __future__ import annotations

import logging
import mmap
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

import grpc

from paramd.errors import InvalidMessageError, ParamdError, ServerUnavailable
from paramd.v1 import local_pb2
from paramd.wire.local import Incoming, send_message, socket_address
from paramd.wire.parsing import parse_message
from paramd.wire.protocol import PROTOCOL
from paramd.wire.status import decode_error

__all__ = ["Entrance", "enter", "map_memory"]

_log = logging.getLogger(__name__)

_WELCOME_SECONDS: Final = 10.0
_MAX_MESSAGE_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class Entrance:
    """A connection to a server of this host.

    Attributes:
        connection: the socket.
        incoming: what comes over it.
        descriptor: of the memory that came with the welcome; its owner closes it.
        size: of that memory, in bytes.
    """

    connection: socket.socket
    incoming: Incoming
    descriptor: int
    size: int


def enter(name: str, purpose: local_pb2.LocalPurpose, authorization: str) -> Entrance:
    """Connects to the abstract socket of a name.

    Args:
        name: of the socket.
        purpose: of the connection.
        authorization: as the metadata of a call, or ''.

    Raises:
        ServerUnavailable: where nobody is there, as from a host or container that has no such
            socket.
        ParamdError: where the server refuses.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    incoming = Incoming(connection, max_bytes=_MAX_MESSAGE_BYTES, max_descriptors=1)
    try:
        _connect(connection, name)
        connection.settimeout(_WELCOME_SECONDS)
        hello = local_pb2.LocalHello(
            protocol=PROTOCOL, authorization=authorization, purpose=purpose
        )
        try:
            send_message(connection, hello.SerializeToString())
        except (BrokenPipeError, ConnectionResetError) as err:
            # Who lets no such process in says so, and does not wait for what it has to say.
            _log.debug("a server of this host has closed its door: %s", err)
        welcome = _welcome(incoming.receive())
        if len(incoming.descriptors) != 1 or not welcome.size:
            raise InvalidMessageError("the server's welcome came without its memory")
        connection.settimeout(None)
        return Entrance(connection, incoming, incoming.descriptors.pop(), welcome.size)
    except ParamdError:
        # Some are OSErrors as well.
        _leave(connection, incoming)
        raise
    except OSError as err:
        _leave(connection, incoming)
        raise ServerUnavailable(f"no server shares its memory here: {err}") from err
    except BaseException:
        _leave(connection, incoming)
        raise


def map_memory(descriptor: int, size: int) -> mmap.mmap:
    """Maps memory that a server has handed out, for reading; closes the descriptor.

    Raises:
        OSError: where the system has no room for it.
    """
    try:
        return mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)


def _connect(connection: socket.socket, name: str) -> None:
    """Connects, and waits for a moment where many others do."""
    # A socket with a timeout of Python's would not wait: connect(2) fails with EAGAIN then.
    limit = struct.pack("ll", int(_WELCOME_SECONDS), 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    connection.connect(socket_address(name))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 0))


def _welcome(message: bytes | None) -> local_pb2.LocalWelcome:
    if message is None:
        raise ConnectionResetError("the server ended the connection")
    welcome = parse_message(local_pb2.LocalWelcome, message)
    if welcome.error:
        raise decode_error(grpc.StatusCode.INTERNAL, welcome.error, "refused")
    return welcome


def _leave(connection: socket.socket, incoming: Incoming) -> None:
    connection.close()
    incoming.close()
