"""Messages on the Unix socket between a server and processes of its host; see `local.proto`."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Final

from paramd.errors import InvalidMessageError

__all__ = ["Incoming", "send_message", "socket_address"]

_SIZE_BYTES: Final = 4
_RECEIVE_BYTES: Final = 256 << 10


def socket_address(name: str) -> str:
    """The address of the abstract socket of a name: it is in no file system, see unix(7)."""
    return f"\0{name}"


def send_message(connection: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Sends one message.

    Args:
        connection: that it goes over.
        data: the message.
        descriptors: that go beside it.

    Raises:
        OSError: where the connection is gone, or takes nothing more.
    """
    framed = len(data).to_bytes(_SIZE_BYTES, "little") + data
    if descriptors:
        sent = socket.send_fds(connection, [framed], list(descriptors))
        framed = framed[sent:]
    connection.sendall(framed)


class Incoming:
    """The messages that come over a connection.

    Args:
        connection: that they come over.
        max_bytes: the longest message that is taken.
        max_descriptors: the most descriptors that are taken beside one; 0: they are discarded.
    """

    def __init__(
        self, connection: socket.socket, *, max_bytes: int, max_descriptors: int = 0
    ) -> None:
        self._connection = connection
        self._max_bytes = max_bytes
        self._max_descriptors = max_descriptors
        self._buffer = bytearray()
        # That have come and nobody has taken, in their order.
        self.descriptors: list[int] = []

    def receive(self) -> bytes | None:
        """The next message; None where the connection has ended between two.

        Raises:
            OSError: where the connection has failed, or ended within a message.
            InvalidMessageError: where a message is longer than is taken.
        """
        while (message := self._take()) is None:
            data = self._read()
            if not data:
                if self._buffer:
                    raise ConnectionResetError("the connection ended within a message")
                return None
            self._buffer += data
        return message

    def close(self) -> None:
        """Closes the descriptors that nobody has taken."""
        while self.descriptors:
            os.close(self.descriptors.pop())

    def _take(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < _SIZE_BYTES:
            return None
        size = int.from_bytes(buffer[:_SIZE_BYTES], "little")
        if size > self._max_bytes:
            raise InvalidMessageError(
                f"a message of {size} bytes came, of at most {self._max_bytes}"
            )
        end = _SIZE_BYTES + size
        if len(buffer) < end:
            return None
        message = bytes(memoryview(buffer)[_SIZE_BYTES:end])
        del buffer[:end]
        return message

    def _read(self) -> bytes:
        if not self._max_descriptors:
            return self._connection.recv(_RECEIVE_BYTES)
        data, descriptors, _flags, _address = socket.recv_fds(
            self._connection, _RECEIVE_BYTES, self._max_descriptors
        )
        self.descriptors += descriptors
        return data
