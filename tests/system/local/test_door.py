"""Who is let in to a server's memory, what they can do there, and what becomes of it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import paramd
from paramd.errors import (
    InvalidMessageError,
    ParamdError,
    PermissionDeniedError,
    ProtocolMismatchError,
    UnauthenticatedError,
)
from paramd.v1 import local_pb2
from paramd.v1 import parameter_service_pb2 as pb
from paramd.wire.directory import MAGIC
from paramd_server.security import Right
from tests.support.local_door import Visitor, num_descriptors, num_threads, refusal, socket_name
from tests.support.processes import forked, status_of
from tests.support.raw_calls import RawClient
from tests.support.security import TOKENS, write_tokens
from tests.support.server_process import ServerProcess, serve
from tests.support.waiting import wait_until
from tests.system.local.conftest import make, reads_in_place

pytestmark = pytest.mark.real_devices

NOBODY: Final = 65534
NUM_VISITORS: Final = 1500
# Of fcntl.h and linux/falloc.h.
PUNCH_HOLE, KEEP_SIZE = 2, 1


@pytest.fixture(scope="module")
def door(server: ServerProcess) -> str:
    """The name of the server's socket; it has a small parameter and a large one."""
    with RawClient(server.address) as client:
        client.create("small", (10,))
        client.create("large", (1 << 19,))
    return socket_name(server)


def greeted(visitor: Visitor) -> tuple[int, int]:
    """Comes in: the descriptor and the size of the table of places."""
    welcome = visitor.greet()
    assert welcome.error == b""
    return visitor.incoming.descriptors.pop(), welcome.size


def locate(*names: str) -> local_pb2.LocalRequest:
    tensors = [pb.TensorSelector(name=name) for name in names]
    return local_pb2.LocalRequest(locate=local_pb2.LocateRequest(tensors=tensors))


# Who is let in


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused(door: str) -> None:
    def visit() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with Visitor.at(door) as visitor:
            err = refusal(visitor.welcome().error)
            assert isinstance(err, PermissionDeniedError)
            assert f"of user {NOBODY}" in str(err)
            assert visitor.incoming.descriptors == []
            assert visitor.is_at_the_end()

    assert status_of(forked(visit)) == 0


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that asks for tokens."""
    directory: Path = tmp_path_factory.mktemp("tokens")
    tokens = write_tokens(directory / "tokens")
    with serve(directory, "--token-file", str(tokens)) as server:
        yield server


@pytest.fixture(scope="module")
def guarded_door(guarded: ServerProcess) -> str:
    with paramd.connect(guarded.address, token=TOKENS[Right.READ]) as session:
        return session._connection.greeted().local_socket


@pytest.mark.parametrize("purpose", [1, 2], ids=["find", "call"])
@pytest.mark.parametrize("token", ["", "wrong-and-long-enough-0123456789"])
def test_who_shows_no_right_token_is_refused(guarded_door: str, token: str, purpose: int) -> None:
    with Visitor.at(guarded_door) as visitor:
        assert isinstance(
            refusal(visitor.greet(token=token, purpose=purpose).error), UnauthenticatedError
        )
        assert visitor.incoming.descriptors == []
        assert visitor.is_at_the_end()


@pytest.mark.parametrize("right", Right)
def test_every_right_includes_reading(guarded_door: str, right: Right) -> None:
    with Visitor.at(guarded_door) as visitor:
        assert visitor.greet(token=TOKENS[right]).error == b""


def test_calls_of_this_host_take_their_own_rights(guarded: ServerProcess) -> None:
    with paramd.connect(guarded.address, token=TOKENS[Right.TRAIN]) as session:
        make(session, "guarded", 1, 10)
    with paramd.connect(guarded.address, token=TOKENS[Right.READ], transport="shm") as session:
        assert reads_in_place(session, "guarded") == 1
        with pytest.raises(PermissionDeniedError, match="train"):
            make(session, "guarded", 2, 10)
        assert reads_in_place(session, "guarded") == 1


# What is said


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"\xff" * 64, InvalidMessageError),
        ((64 << 10 | 1).to_bytes(4, "little"), InvalidMessageError),
        (b"\x03\0\0\0abc", InvalidMessageError),
        (b"\0\0\0\0", ProtocolMismatchError),
        (b"\x10\0\0\0\x08", None),
        (b"\x10", None),
        (b"", None),
    ],
    ids=["garbage", "too long", "no message", "empty", "cut off", "cut off at once", "nothing"],
)
def test_a_wrong_hello_gets_an_error(
    server: ServerProcess, door: str, sent: bytes, expected: type[ParamdError] | None
) -> None:
    with Visitor.at(door) as visitor:
        visitor.connection.sendall(sent)
        if expected is None:
            visitor.connection.shutdown(socket.SHUT_WR)
        else:
            assert isinstance(refusal(visitor.welcome().error), expected)
        assert visitor.is_at_the_end()
    assert server.trouble() == []


@pytest.mark.parametrize("purpose", [0, 3, 77])
def test_an_unknown_purpose_gets_an_error(door: str, purpose: int) -> None:
    with Visitor.at(door) as visitor:
        err = refusal(visitor.greet(purpose=purpose).error)
        assert isinstance(err, InvalidMessageError)
        assert str(purpose) in str(err)


def test_another_protocol_gets_an_error(door: str) -> None:
    with Visitor.at(door) as visitor:
        err = refusal(visitor.greet(protocol=99).error)
        assert isinstance(err, ProtocolMismatchError)
        assert "99" in str(err)


def test_who_is_silent_keeps_nobody_out(door: str) -> None:
    with Visitor.at(door), Visitor.at(door), Visitor.at(door) as third:
        greeted(third)


@pytest.mark.parametrize(
    "sent",
    [
        (b"\xff" * 64),
        ((8 << 20) + 1).to_bytes(4, "little"),
        b"\x03\0\0\0abc",
        b"\0\0\0\0",
    ],
    ids=["garbage", "too long", "no message", "no question"],
)
def test_a_wrong_question_gets_an_error(server: ServerProcess, door: str, sent: bytes) -> None:
    with Visitor.at(door) as visitor:
        os.close(greeted(visitor)[0])
        visitor.connection.sendall(sent)
        answer = visitor.incoming.receive()
        assert answer is not None
        error = local_pb2.LocalResponse.FromString(answer).error
        assert isinstance(refusal(error), InvalidMessageError)
        assert visitor.is_at_the_end()
    assert server.trouble() == []


def test_what_is_not_there_has_no_place(door: str) -> None:
    with Visitor.at(door) as visitor:
        os.close(greeted(visitor)[0])
        found = visitor.ask(locate("none", "small")).located.tensors
        assert [each.HasField("header") for each in found] == [False, True]
        assert [each.HasField("slot") for each in found] == [False, True]
        for number in (0, 1 << 40, (1 << 64) - 1):
            answer = visitor.ask(local_pb2.LocalRequest(segment=number))
            assert not answer.segment.HasField("size")
        assert visitor.incoming.descriptors == []
        # A part that is not what is here.
        tensor = pb.TensorSelector(name="small")
        tensor.part.shape.dimensions[:] = [20]
        tensor.part.rows.count = 10
        tensor.part.rows.step = 1
        asked = local_pb2.LocalRequest(locate=local_pb2.LocateRequest(tensors=[tensor]))
        assert not visitor.ask(asked).located.tensors[0].HasField("header")


def test_descriptors_that_are_sent_to_it_do_not_stay(server: ServerProcess, door: str) -> None:
    before = num_descriptors(server)
    with Visitor.at(door) as visitor, Path("/dev/null").open() as file:
        socket.send_fds(visitor.connection, [b"\0"], [file.fileno()] * 50)
        hello = b"\0\0\0"
        visitor.connection.sendall(hello)
        assert visitor.welcome().error != b""
    wait_until(lambda: num_descriptors(server) <= before, "its descriptors are closed")


# What they can do with it


@pytest.mark.parametrize("which", ["table", "arena", "segment"])
def test_nobody_else_can_change_the_memory(door: str, which: str) -> None:
    with Visitor.at(door) as visitor:
        descriptor, size = greeted(visitor)
        if which != "table":
            os.close(descriptor)
            descriptor, size = segment_of(visitor, "small" if which == "arena" else "large")
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            with pytest.raises(PermissionError):
                mmap.mmap(descriptor, size, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            with pytest.raises(PermissionError):
                os.write(descriptor, b"\1")
            for other in (0, size - 1, size + 4096):
                with pytest.raises(PermissionError):
                    os.ftruncate(descriptor, other)
            hole = libc.fallocate(
                descriptor, PUNCH_HOLE | KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(4096)
            )
            assert (hole, ctypes.get_errno()) == (-1, errno.EPERM)
            # Nor by way of a file of its own, or of what is mapped already.
            again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
            with pytest.raises(PermissionError):
                os.write(again, b"\1")
            os.close(again)
            assert not becomes_writable(libc, descriptor, size)
        finally:
            os.close(descriptor)


def becomes_writable(libc: Any, descriptor: int, size: int) -> bool:
    with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapping:
        array = np.frombuffer(mapping, np.uint8)
        both = mmap.PROT_READ | mmap.PROT_WRITE
        done = libc.mprotect(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(4096), both)
        del array
    return int(done) == 0


def segment_of(visitor: Visitor, name: str) -> tuple[int, int]:
    """The descriptor and the size of the segment that a parameter is in."""
    (found,) = visitor.ask(locate(name)).located.tensors
    assert found.HasField("slot")
    # Numbers begin at 1, and there are few.
    for number in range(1, 1000):
        answer = visitor.ask(local_pb2.LocalRequest(segment=number))
        if not answer.segment.HasField("size"):
            continue
        descriptor = visitor.incoming.descriptors.pop()
        if (answer.segment.size == 4 << 20) == (name == "small"):
            return descriptor, answer.segment.size
        os.close(descriptor)
    raise AssertionError(f"no segment is of the size of the one with {name!r}")


def test_the_table_says_what_it_is(door: str) -> None:
    with Visitor.at(door) as visitor:
        descriptor, size = greeted(visitor)
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as table:
            os.close(descriptor)
            assert int.from_bytes(table[:8], "little") == MAGIC


# How many they may be


def test_crowds_keep_nobody_from_being_served(server: ServerProcess, door: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * NUM_VISITORS:
        pytest.skip(f"a process may have {hard} descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * NUM_VISITORS), hard))
    descriptors, threads = num_descriptors(server), num_threads(server)
    with ExitStack() as stack, RawClient(server.address) as client:
        visitors = [stack.enter_context(Visitor.at(door)) for _ in range(NUM_VISITORS)]
        # Those beyond the limit are sent away at once, and all others after a time.
        assert visitors[-1].is_at_the_end()
        assert client.get("small").tolist() == [0] * 10
        assert num_descriptors(server) < descriptors + 1100
    wait_until(lambda: num_threads(server) <= threads, "its threads have ended")
    wait_until(lambda: num_descriptors(server) <= descriptors, "its descriptors are closed")
    with Visitor.at(door) as visitor:
        greeted(visitor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert server.trouble() == []
