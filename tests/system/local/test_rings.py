"""Payload that clients of the same host put into memory, of which a server believes nothing."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import pytest

import paramd
from paramd import ParameterDict
from paramd.errors import InvalidArgumentError, MemoryLimitError
from paramd.files import RowSparseRows
from paramd.transport.records import TensorWrite
from paramd.transport.sending import write_messages
from paramd.v1 import call_service_pb2, local_pb2
from paramd.v1 import parameter_service_pb2 as pb
from paramd.wire.calls import END, READY, decode_response, encode_message, encode_opening
from paramd.wire.local import send_message
from tests.support.local_door import Visitor, socket_name
from tests.support.raw_calls import RawClient
from tests.support.server_process import ServerProcess, serve
from tests.support.waiting import wait_until

pytestmark = pytest.mark.real_devices

MIB: Final = 1 << 20
RING_BYTES: Final = 4 * MIB
SET_GRAD: Final = "/paramd.v1.ParameterService/SetGrad"
SET_DATA: Final = "/paramd.v1.ParameterService/SetData"
# Around what goes with the call, a chunk, and the whole ring.
SIZES: Final = (1, 16_383, 16_384, 16_385, MIB // 4, MIB // 4 + 1, MIB, MIB + 1, 9 * MIB // 4 + 3)


@contextmanager
def ring_of(server: ServerProcess) -> Iterator[tuple[Visitor, mmap.mmap, int]]:
    """A connection for calls, its ring, and the ring's descriptor."""
    with Visitor.at(socket_name(server)) as visitor:
        welcome = visitor.greet(purpose=local_pb2.LOCAL_PURPOSE_CALL)
        assert welcome.error == b""
        assert welcome.size == RING_BYTES
        descriptor = visitor.incoming.descriptors.pop()
        try:
            with mmap.mmap(descriptor, welcome.size) as ring:
                assert visitor.incoming.receive() == READY
                yield visitor, ring, descriptor
        finally:
            os.close(descriptor)


def opened(client: RawClient, name: str, size: int) -> bytes:
    """The beginning of a write of a float32 value, without its payload."""
    opening = pb.SetDataRequest(open=pb.SetDataOpen(operation=client.operation()))
    value = np.zeros(size, "f4")
    header, *_ = write_messages([TensorWrite(name, value)], pb.SetDataRequest)
    return encode_opening(SET_DATA, [opening.SerializeToString(), bytes(header)], complete=False)


def block(offset: int, size: int) -> bytes:
    part = call_service_pb2.RingBlock(offset=offset, size=size)
    return call_service_pb2.CallRequest(block=part).SerializeToString()


def status_of(visitor: Visitor) -> int:
    """How the call that is under way ends."""
    while (message := visitor.incoming.receive()) is not None:
        answer = decode_response(message)
        status = getattr(answer, "status", None)
        if status is not None:
            return int(status.code)
    raise ConnectionResetError("the server ended the connection")


def ends_after_a_refusal(visitor: Visitor) -> bool:
    """Whether the connection ends, perhaps after an answer that says what is wrong."""
    try:
        assert status_of(visitor) != 0
    except ConnectionResetError:
        return True
    return visitor.is_at_the_end()


@pytest.mark.parametrize("size", SIZES)
def test_what_is_pushed_arrives(server: ServerProcess, size: int) -> None:
    with paramd.connect(server.address, transport="shm") as session:
        params = ParameterDict("sizes_", session=session)
        params.get(str(size), shape=(size,))
        params.initialize()
        rng = np.random.default_rng(size)
        for _ in range(2):
            value = rng.random(size, np.float32)
            params.push({f"sizes_{size}": value})
            np.testing.assert_array_equal(params[f"sizes_{size}"].grad().asnumpy(), value)
            params.set_data({f"sizes_{size}": value})
            np.testing.assert_array_equal(params.pull()[f"sizes_{size}"], value)
        session.delete([f"sizes_{size}"])


def test_a_write_by_hand(server: ServerProcess) -> None:
    with RawClient(server.address) as client, ring_of(server) as (visitor, ring, _):
        client.create("by hand", (MIB // 2,))
        ring[MIB : MIB + 2 * MIB] = np.full(MIB // 2, 7, "f4").tobytes()
        send_message(visitor.connection, opened(client, "by hand", MIB // 2))
        for index in (1, 2):
            send_message(visitor.connection, block(index * MIB, MIB))
        end = pb.SetDataRequest(end={}).SerializeToString()
        send_message(visitor.connection, encode_message(end))
        send_message(visitor.connection, END)
        assert status_of(visitor) == 0
        np.testing.assert_array_equal(client.get("by hand"), np.full(MIB // 2, 7, "f4"))


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (RING_BYTES, 1),
        (RING_BYTES - 1, 2),
        (0, 0),
        (0, RING_BYTES + 1),
        (2**64 - 1, 2),
        (2**64 - 4, 2**64 - 1),
    ],
)
def test_a_block_that_the_ring_does_not_have_ends_the_connection(
    server: ServerProcess, offset: int, size: int
) -> None:
    with RawClient(server.address) as client, ring_of(server) as (visitor, _, _):
        client.create("beyond", (MIB,))
        before = client.get("beyond")
        send_message(visitor.connection, opened(client, "beyond", MIB))
        send_message(visitor.connection, block(offset, size))
        assert ends_after_a_refusal(visitor)
        np.testing.assert_array_equal(client.get("beyond"), before)


def test_what_is_left_of_a_client_that_dies_within_a_push_is_nothing(
    server: ServerProcess,
) -> None:
    with RawClient(server.address) as client:
        client.create("half", (MIB,))
        before, used = client.get("half"), client.status().memory_bytes
        with ring_of(server) as (visitor, _, _):
            send_message(visitor.connection, opened(client, "half", MIB))
            send_message(visitor.connection, block(0, MIB))
            assert visitor.incoming.receive() is not None
            assert client.status().memory_bytes == used + RING_BYTES + 4 * MIB
        wait_until(lambda: client.status().memory_bytes == used, "all memory to be given back")
        np.testing.assert_array_equal(client.get("half"), before)


def test_the_size_of_a_ring_is_sealed(server: ServerProcess) -> None:
    with ring_of(server) as (_, _, descriptor):
        for size in (0, RING_BYTES // 2, 2 * RING_BYTES):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_who_scribbles_over_a_ring_harms_nobody(server: ServerProcess) -> None:
    """The rows, and their ids, change while the server reads them: it takes some, or refuses."""
    ended = threading.Event()
    seed = 11
    with RawClient(server.address) as client, ring_of(server) as (visitor, ring, _):
        client.create("scribbled", (1000, 64), stype="row_sparse")
        client.create("quiet", (1000,))
        quiet = client.get("quiet")

        def scribble() -> None:
            rng = np.random.default_rng(seed)
            while not ended.is_set():
                begin = int(rng.integers(0, MIB // 8)) * 8
                ring[begin : begin + 8] = rng.bytes(8)

        thread = threading.Thread(target=scribble)
        thread.start()
        try:
            for _ in range(50):
                send_message(visitor.connection, _rows_opened(client))
                send_message(visitor.connection, block(0, 900 * 8 + 900 * 64 * 4))
                end = pb.SetGradRequest(end={}).SerializeToString()
                send_message(visitor.connection, encode_message(end))
                send_message(visitor.connection, END)
                # Ids that are not in order are an argument that is wrong.
                assert status_of(visitor) in (0, 3, 11)
        finally:
            ended.set()
            thread.join()
        np.testing.assert_array_equal(client.get("quiet"), quiet)


def _rows_opened(client: RawClient) -> bytes:
    rows = RowSparseRows(np.arange(900), np.zeros((900, 64), "f4"), (1000, 64))
    write = TensorWrite("scribbled", rows, mode="by_grad_req")
    header, *_ = write_messages([write], pb.SetGradRequest)
    opening = pb.SetGradRequest(open=pb.SetGradOpen(operation=client.operation()))
    return encode_opening(SET_GRAD, [opening.SerializeToString(), bytes(header)], complete=False)


def test_a_push_that_fails_leaves_the_stream_as_it_was(tmp_path: Path) -> None:
    with (
        serve(tmp_path, "--memory-limit", "40M") as server,
        paramd.connect(server.address, transport="shm") as session,
    ):
        params = ParameterDict("n_", session=session)
        params.get("a", shape=(MIB,))
        params.get("b", shape=(4 * MIB,), grad_req="null")
        params.initialize()
        for _ in range(3):
            with pytest.raises(MemoryLimitError, match="n_b"):
                params.set_data({"n_b": np.ones(4 * MIB, "f4")})
            with pytest.raises((AssertionError, InvalidArgumentError)):
                params.push({"n_a": np.ones(7, "f4")})
            params.push({"n_a": np.full(MIB, 5, "f4")})
            assert (params["n_a"].grad().asnumpy() == 5).all()


def test_without_memory_for_a_ring_calls_go_over_grpc(tmp_path: Path) -> None:
    with (
        serve(tmp_path, "--memory-limit", "3M") as server,
        paramd.connect(server.address, transport="shm") as session,
    ):
        params = ParameterDict("n_", session=session)
        params.get("a", shape=(1000,))
        params.initialize()
        params.push({"n_a": np.full(1000, 3, "f4")})
        assert (params["n_a"].grad().asnumpy() == 3).all()
        assert session.status().memory_bytes < RING_BYTES
