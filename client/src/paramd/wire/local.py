"""Messages on the Unix socket between a server and processes of its host; see `local.proto`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

from paramd.errors import InvalidMessageError
from paramd.wire.spinning import Spin

__all__ = ["Incoming", "send_message", "socket_address"]

_SIZE_BYTES: Final = 4
# What is received into: as much as the longest message took, up to a limit.
_FIRST_BYTES: Final = 4 << 10
_KEPT_BYTES: Final = 128 << 10


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
        self._memory = memoryview(bytearray(_FIRST_BYTES))
        # What has come and has not been taken.
        self._begin = self._end = 0
        self._spin: Spin | None = None
        # That have come and nobody has taken, in their order.
        self.descriptors: list[int] = []

    def wait_awake(self, is_alone: Callable[[], bool], *, successes: int) -> None:
        """Waits for messages awake for a moment from now on, where that pays: see `Spin`."""
        self._spin = Spin(self._connection, is_alone, successes=successes)

    def expect_no_descriptors(self) -> None:
        """Discards descriptors from now on: looking for them takes longer than a small message."""
        self._max_descriptors = 0

    def receive(self, *, soon: bool = True) -> bytes | None:
        """The next message; None where the connection has ended between two.

        Args:
            soon: whether it may come so soon that it is worth to wait awake.

        Raises:
            OSError: where the connection has failed, or ended within a message.
            InvalidMessageError: where a message is longer than is taken.
        """
        missing = self._num_missing()
        while missing:
            self._make_room(missing)
            if soon and self._spin is not None:
                self._spin.wait()
            count = self._read()
            if not count:
                if self._begin < self._end:
                    raise ConnectionResetError("the connection ended within a message")
                return None
            self._end += count
            missing = self._num_missing()
        return self._take()

    def close(self) -> None:
        """Closes the descriptors that nobody has taken."""
        while self.descriptors:
            os.close(self.descriptors.pop())

    def _size(self) -> int:
        begin = self._begin
        return int.from_bytes(self._memory[begin : begin + _SIZE_BYTES], "little")

    def _num_missing(self) -> int:
        """How many bytes the next message lacks at least; 0 where it is there."""
        num_there = self._end - self._begin
        if num_there < _SIZE_BYTES:
            return _SIZE_BYTES - num_there
        size = self._size()
        if size > self._max_bytes:
            raise InvalidMessageError(
                f"a message of {size} bytes came, of at most {self._max_bytes}"
            )
        return max(_SIZE_BYTES + size - num_there, 0)

    def _take(self) -> bytes:
        begin = self._begin + _SIZE_BYTES
        end = begin + self._size()
        message = bytes(self._memory[begin:end])
        self._begin = end
        if end == self._end:
            self._begin = self._end = 0
            if len(self._memory) > _KEPT_BYTES:
                # Such messages are rare.
                self._memory = memoryview(bytearray(_FIRST_BYTES))
        return message

    def _make_room(self, missing: int) -> None:
        if self._end + missing <= len(self._memory):
            return
        num_there = self._end - self._begin
        there = self._memory[self._begin : self._end]
        if num_there + missing <= len(self._memory):
            self._memory[:num_there] = bytes(there)
        else:
            memory = memoryview(bytearray(num_there + missing))
            memory[:num_there] = there
            self._memory = memory
        self._begin, self._end = 0, num_there

    def _read(self) -> int:
        room = self._memory[self._end :]
        if not self._max_descriptors:
            return self._connection.recv_into(room)
        data, descriptors, _flags, _address = socket.recv_fds(
            self._connection, len(room), self._max_descriptors
        )
        self.descriptors += descriptors
        room[: len(data)] = data
        return len(data)
