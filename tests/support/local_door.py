"""The door of a server of this host, seen from outside: sockets, descriptors, mapped memory."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from paramd.errors import ParamdError
from paramd.v1 import local_pb2, session_service_pb2
from paramd.wire.local import Incoming, send_message, socket_address
from paramd.wire.protocol import PROTOCOL
from paramd.wire.status import decode_error
from tests.support.raw_calls import RawClient
from tests.support.server_process import ServerProcess

__all__ = ["Visitor", "mapped_segments", "num_descriptors", "num_threads", "socket_name"]

_TIMEOUT_S: Final = 20.0
_MAX_BYTES: Final = 1 << 20
_VALUES: Final = re.compile(r"^\S+ (\S+) \S+ \S+ (\d+) +/memfd:paramd-values", re.MULTILINE)


def socket_name(server: ServerProcess) -> str:
    """What a server says in its handshake."""
    request = session_service_pb2.HelloRequest(protocol=PROTOCOL, identity=os.urandom(16))
    with RawClient(server.address) as client:
        return str(client.call("Hello", request).local_socket)


def num_descriptors(server: ServerProcess) -> int:
    """How many descriptors a server has open."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def num_threads(server: ServerProcess) -> int:
    """How many threads a server has."""
    return len(os.listdir(f"/proc/{server.process.pid}/task"))


def mapped_segments() -> set[str]:
    """The segments of values that this process has mapped, of all servers, by their inodes."""
    return {inode for _, inode in _VALUES.findall(Path("/proc/self/maps").read_text())}


@dataclass
class Visitor:
    """One connection to a door.

    Attributes:
        connection: the socket.
        incoming: what comes over it.
    """

    connection: socket.socket
    incoming: Incoming

    @classmethod
    @contextmanager
    def at(cls, name: str) -> Iterator[Visitor]:
        """Connects to the socket of a name."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            # Without a timeout, so that it waits while many others connect.
            connection.connect(socket_address(name))
            connection.settimeout(_TIMEOUT_S)
            incoming = Incoming(connection, max_bytes=_MAX_BYTES, max_descriptors=1)
            try:
                yield cls(connection, incoming)
            finally:
                incoming.close()

    def greet(
        self,
        *,
        protocol: int = PROTOCOL,
        token: str = "",
        purpose: int = local_pb2.LOCAL_PURPOSE_FIND,
    ) -> local_pb2.LocalWelcome:
        """Says hello; the server's answer."""
        hello = local_pb2.LocalHello(
            protocol=protocol,
            authorization=f"Bearer {token}" if token else "",
            purpose=purpose,  # type: ignore[arg-type]
        )
        send_message(self.connection, hello.SerializeToString())
        return self.welcome()

    def welcome(self) -> local_pb2.LocalWelcome:
        """The server's first answer. Raises OSError where there is none."""
        answer = self.incoming.receive()
        if answer is None:
            raise ConnectionResetError("the server ended the connection")
        return local_pb2.LocalWelcome.FromString(answer)

    def ask(self, request: local_pb2.LocalRequest | bytes) -> local_pb2.LocalResponse:
        """Asks a question; the answer."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        send_message(self.connection, data)
        while True:
            answer = self.incoming.receive()
            if answer is None:
                raise ConnectionResetError("the server ended the connection")
            response = local_pb2.LocalResponse.FromString(answer)
            if response.WhichOneof("part") != "remaining":
                return response

    def is_at_the_end(self) -> bool:
        """Whether the server has ended the connection. Waits for it."""
        try:
            return self.incoming.receive() is None
        except ConnectionResetError:
            return True


def refusal(error: bytes) -> ParamdError:
    """The error in an answer."""
    return decode_error(grpc.StatusCode.INTERNAL, error, "nothing")
