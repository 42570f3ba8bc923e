"""The Unix socket on which a server hands its shared memory to processes of its user on its host.

The socket is an abstract one: it is in no file system, its name is random, and it is gone with the
server. The name is told to sessions that have greeted the server. Who connects must be of the
server's user, or root (SO_PEERCRED, unix(7)), and show a token where the server asks for one.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from paramd.errors import (
    InvalidMessageError,
    MemoryLimitError,
    ParamdError,
    PermissionDeniedError,
    ProtocolMismatchError,
)
from paramd.v1 import local_pb2
from paramd.wire.local import Incoming, send_message, socket_address
from paramd.wire.parsing import parse_message
from paramd.wire.protocol import PROTOCOL
from paramd.wire.status import encode_error

__all__ = ["Door", "Purpose"]

_log = logging.getLogger(__name__)

_HELLO_S: Final = 10.0
_MAX_HELLO_BYTES: Final = 64 << 10
_MAX_CONNECTIONS: Final = 1024
# struct ucred: pid, uid and gid.
_CREDENTIALS: Final = struct.Struct("3i")


class Purpose(Protocol):
    """What a connection is for."""

    def serve(self, connection: socket.socket, authorization: str) -> None:
        """Welcomes a peer who may come in, and serves it until it goes.

        Raises:
            ParamdError: where it is refused; nothing has been sent then.
            OSError: where the connection has failed.
        """
        ...


class Door:
    """Lets processes in, each connection on a thread of its own.

    Args:
        purposes: what is done for them, by LocalPurpose.
        authorize: raises UnauthenticatedError or PermissionDeniedError where what is shown as
            'authorization' does not carry the right to read.

    Attributes:
        name: of the socket.

    Raises:
        OSError: where the system has no such sockets.
    """

    def __init__(self, purposes: Mapping[int, Purpose], authorize: Callable[[str], None]) -> None:
        self._purposes = purposes
        self._authorize = authorize
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()  # guarded by _lock
        self._closed = False  # guarded by _lock
        self.name = f"paramd-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(socket_address(self.name))
            self._listener.listen(128)
        except BaseException:
            self._listener.close()
            raise
        threading.Thread(target=self._accept, name="local-door", daemon=True).start()

    def close(self) -> None:
        """Lets nobody in any more, and ends all connections. Idempotent."""
        with self._lock:
            self._closed = True
            connections = list(self._connections)
        # A thread that waits for connections is woken by that, and not by closing.
        _shut(self._listener)
        for connection in connections:
            _shut(connection)

    def _accept(self) -> None:
        with self._listener:
            while True:
                try:
                    connection, _ = self._listener.accept()
                except OSError as err:
                    if self._closed:
                        return
                    # No descriptor is left, or the peer has gone already.
                    _log.warning("a process of this host could not be let in: %s", err)
                    threading.Event().wait(0.1)
                    continue
                if not self._admit(connection):
                    connection.close()

    def _admit(self, connection: socket.socket) -> bool:
        with self._lock:
            if self._closed or len(self._connections) >= _MAX_CONNECTIONS:
                return False
            self._connections.add(connection)
        threading.Thread(target=self._serve, args=(connection,), name="local", daemon=True).start()
        return True

    def _serve(self, connection: socket.socket) -> None:
        try:
            self._welcome(connection)
        except OSError as err:
            _log.debug("a process of this host has gone: %s", err)
        except Exception:
            _log.exception("a connection of this host failed in a way that it should not")
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _welcome(self, connection: socket.socket) -> None:
        try:
            _check_user(connection)
            connection.settimeout(_HELLO_S)
            # Nothing comes after it before the answer: what serves reads with a buffer of its own.
            hello = _hello(Incoming(connection, max_bytes=_MAX_HELLO_BYTES).receive())
            if hello.protocol != PROTOCOL:
                raise ProtocolMismatchError(
                    f"the server speaks protocol {PROTOCOL}, but the client {hello.protocol}"
                )
            self._authorize(hello.authorization)
            purpose = self._purposes.get(hello.purpose)
            if purpose is None:
                raise InvalidMessageError(f"a connection has no purpose number {hello.purpose}")
            connection.settimeout(None)
            purpose.serve(connection, hello.authorization)
        except ParamdError as err:
            refusal = local_pb2.LocalWelcome(error=encode_error(err))
            send_message(connection, refusal.SerializeToString())
        except MemoryError:
            refused = MemoryLimitError("the system has no memory for it")
            refusal = local_pb2.LocalWelcome(error=encode_error(refused))
            send_message(connection, refusal.SerializeToString())


def _check_user(connection: socket.socket) -> None:
    """Raises PermissionDeniedError where a peer is of another user."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, user, _group = _CREDENTIALS.unpack(data)
    if user not in (0, os.geteuid()):
        raise PermissionDeniedError(
            f"the server's memory is for processes of user {os.geteuid()}, and not of user {user}"
        )


def _hello(message: bytes | None) -> local_pb2.LocalHello:
    if message is None:
        raise ConnectionResetError("the connection ended before it began")
    return parse_message(local_pb2.LocalHello, message)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError as err:
        # Its peer was faster.
        _log.debug("a connection had ended: %s", err)
