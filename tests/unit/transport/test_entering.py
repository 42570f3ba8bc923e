"""Going through the door of a server that lets nobody in."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from paramd.errors import PermissionDeniedError, ServerUnavailable
from paramd.transport.local import entering
from paramd.transport.local.entering import enter
from paramd.v1 import local_pb2
from paramd.wire.local import send_message, socket_address
from paramd.wire.status import encode_error


@pytest.fixture
def door() -> Iterator[tuple[str, socket.socket]]:
    name = f"paramd-test-{os.urandom(8).hex()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.settimeout(20)
        listener.bind(socket_address(name))
        listener.listen()
        yield name, listener


@pytest.mark.parametrize("says", [True, False])
def test_a_refusal_is_heard_that_comes_before_the_hello_is_sent(
    door: tuple[str, socket.socket], says: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, listener = door
    closed = threading.Event()

    def refuse() -> None:
        connection, _ = listener.accept()
        with connection:
            if says:
                error = encode_error(PermissionDeniedError("not for you"))
                send_message(connection, local_pb2.LocalWelcome(error=error).SerializeToString())
        closed.set()

    def send_late(connection: socket.socket, data: bytes) -> None:
        assert closed.wait(20)
        send_message(connection, data)

    monkeypatch.setattr(entering, "send_message", send_late)
    refuser = threading.Thread(target=refuse)
    refuser.start()
    expected = PermissionDeniedError if says else ServerUnavailable
    with pytest.raises(expected, match="not for you" if says else "shares its memory"):
        enter(name, local_pb2.LOCAL_PURPOSE_FIND, "")
    refuser.join()
