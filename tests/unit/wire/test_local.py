"""Messages over a Unix socket come as they were sent, however they are cut up."""

from __future__ import annotations

import os
import socket
import threading

import numpy as np
import pytest

from paramd.errors import InvalidMessageError
from paramd.wire.local import Incoming, send_message

MAX_BYTES = 1 << 20
# Around what is received at a time, at first and later.
SIZES = (
    0,
    1,
    3,
    4,
    1000,
    4091,
    4092,
    4093,
    (1 << 17) - 5,
    (1 << 17) - 4,
    (1 << 17) - 3,
    1 << 17,
    MAX_BYTES,
)


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(4, "little") + message


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("max_descriptors", [0, 1])
def test_messages_come_whole_however_they_are_cut(
    pair: tuple[socket.socket, socket.socket], seed: int, max_descriptors: int
) -> None:
    rng = np.random.default_rng(seed)
    sizes = [*SIZES, *rng.integers(0, 50_000, 20), *rng.integers(0, 50, 200)]
    messages = [rng.bytes(int(size)) for size in rng.permutation(sizes)]
    stream = b"".join(map(framed, messages))
    cuts = sorted(rng.integers(0, len(stream), 300))
    ours, theirs = pair

    def send() -> None:
        for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            theirs.sendall(stream[begin:end])
        theirs.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    incoming = Incoming(ours, max_bytes=MAX_BYTES, max_descriptors=max_descriptors)
    assert list(iter(incoming.receive, None)) == messages, f"seed {seed}"
    sender.join()


def test_a_message_that_is_too_long_is_refused(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    theirs.sendall((MAX_BYTES + 1).to_bytes(4, "little"))
    with pytest.raises(InvalidMessageError, match=f"{MAX_BYTES + 1} bytes came, of at most"):
        Incoming(ours, max_bytes=MAX_BYTES).receive()


@pytest.mark.parametrize("sent", [1, 3, 4, 5, 1003])
def test_a_connection_that_ends_within_a_message(
    pair: tuple[socket.socket, socket.socket], sent: int
) -> None:
    ours, theirs = pair
    send_message(theirs, b"whole")
    theirs.sendall(framed(bytes(1000))[:sent])
    theirs.shutdown(socket.SHUT_WR)
    incoming = Incoming(ours, max_bytes=MAX_BYTES)
    assert incoming.receive() == b"whole"
    with pytest.raises(ConnectionResetError, match="within a message"):
        incoming.receive()


def test_descriptors_are_taken_where_they_are_expected(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    incoming = Incoming(ours, max_bytes=MAX_BYTES, max_descriptors=1)
    reader, writer = os.pipe()
    try:
        send_message(theirs, b"with one", (writer,))
        assert incoming.receive() == b"with one"
        (received,) = incoming.descriptors
        assert os.path.sameopenfile(received, writer)
        incoming.close()
        assert incoming.descriptors == []
        incoming.expect_no_descriptors()
        send_message(theirs, b"with another", (writer,))
        assert incoming.receive() == b"with another"
        assert incoming.descriptors == []
    finally:
        os.close(reader)
        os.close(writer)
