"""What the client makes of a server, or a network, that misbehaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from paramd.context import cpu
from paramd.errors import (
    DeadlineExceededError,
    DTypeMismatchError,
    InternalServerError,
    InvalidArgumentError,
    InvalidMessageError,
    InvalidStreamError,
    LeaseEndedError,
    ParameterNotFoundError,
    ServerUnavailable,
    SessionClosedError,
    ShapeMismatchError,
    StalledError,
)
from paramd.spec import LoadOptions, Selector, TensorHead, Version
from paramd.transport.calls import Calls, TensorWrite
from paramd.transport.connection import Connection, ConnectionOptions
from paramd.v1 import parameter_service_pb2 as pb
from paramd.v1 import tensor_pb2
from paramd.wire.envelope import encode_data
from paramd.wire.tensor_receiver import TensorReceiver
from paramd.wire.tensors import byte_view, data_messages, head_to_wire
from tests.support.fake_server import FakeServer, fail, fail_with
from tests.support.receiving import feed_all

VALUE = np.arange(700_000, dtype="<f4").reshape(700, 1000)  # three chunks
HEAD = TensorHead("w", VALUE.shape, VALUE.dtype, version=Version(1, 1))
HEADER = pb.GetDataResponse(header=head_to_wire(HEAD)).SerializeToString()
CHUNKS = list(map(encode_data, data_messages(byte_view(VALUE))))
ONE_VERSION = pb.SetDataResponse(versions=[tensor_pb2.Version(epoch=1, counter=1)])


def pull(calls: Calls, **kwargs: Any) -> Any:
    return calls.get_data([Selector("w")], cpu(0), **kwargs)[0][1]


def serve(*messages: bytes) -> Any:
    return lambda _request, _context: iter(messages)


def test_lost_reply_is_asked_for_again_with_the_same_operation(
    server: FakeServer, calls: Calls
) -> None:
    seen: list[tuple[bytes, int]] = []

    def delete(data: bytes, context: grpc.ServicerContext) -> bytes:
        operation = pb.DeleteRequest.FromString(data).operation
        seen.append((operation.identity, operation.sequence))
        if len(seen) == 1:
            fail(context, grpc.StatusCode.UNAVAILABLE)
        return b""

    server.on("Delete", delete)
    calls.delete(["w"])
    calls.delete(["w"])
    assert seen[0] == seen[1]
    assert [sequence for _, sequence in seen] == [1, 1, 2]
    assert len(seen[0][0]) == 16


def test_acknowledges_only_what_was_answered(server: FakeServer, calls: Calls) -> None:
    floors: dict[int, int] = {}
    entered, released = threading.Event(), threading.Event()

    def delete(data: bytes, _context: grpc.ServicerContext) -> bytes:
        request = pb.DeleteRequest.FromString(data)
        floors[request.operation.sequence] = request.operation.acknowledged_below
        if request.names[0] == "slow":
            entered.set()
            assert released.wait(10)
        return b""

    server.on("Delete", delete)
    calls.delete(["a"])
    slow = threading.Thread(target=calls.delete, args=(["slow"],))
    slow.start()
    assert entered.wait(10)
    calls.delete(["b"])
    calls.delete(["c"])
    released.set()
    slow.join(10)
    calls.delete(["d"])
    assert floors == {1: 1, 2: 2, 3: 2, 4: 2, 5: 5}


@pytest.mark.parametrize("times", [1, 4])
def test_upload_is_sent_again_whole(server: FakeServer, calls: Calls, times: int) -> None:
    seen: list[tuple[int, int]] = []

    def set_data(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        parts = [pb.SetDataRequest.FromString(message) for message in messages]
        size = sum(len(part.data) for part in parts)
        seen.append((parts[0].open.operation.sequence, size))
        if len(seen) <= times:
            fail(context, grpc.StatusCode.UNAVAILABLE)
        return ONE_VERSION.SerializeToString()

    server.on("SetData", set_data)
    assert calls.set_data([TensorWrite("w", VALUE)]) == [Version(1, 1)]
    assert seen == [(1, VALUE.nbytes)] * (times + 1)


def test_cut_download_starts_again_and_overwrites(server: FakeServer, calls: Calls) -> None:
    attempts = []

    def get_data(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        attempts.append(1)
        yield HEADER
        yield from CHUNKS[: len(attempts)]
        if len(attempts) < 3:
            fail(context, grpc.StatusCode.UNAVAILABLE)

    server.on("GetData", get_data)
    out = np.full(VALUE.shape, -1, "f4")
    assert pull(calls, out=[out]) is out
    np.testing.assert_array_equal(out, VALUE)
    assert len(attempts) == 3


def test_gives_up_with_server_unavailable_at_the_timeout(server: FakeServer, calls: Calls) -> None:
    server.on("List", lambda _r, context: fail(context, grpc.StatusCode.UNAVAILABLE))
    start = time.monotonic()
    with pytest.raises(ServerUnavailable, match=server.target) as info:
        calls.describe(["w"])
    assert 2.0 < time.monotonic() - start < 6.0
    assert info.value.__cause__ is None
    assert info.value.__suppress_context__


def test_stream_that_breaks_at_the_same_place_is_given_up(server: FakeServer, calls: Calls) -> None:
    def get_data(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield HEADER
        yield CHUNKS[0]
        fail(context, grpc.StatusCode.UNAVAILABLE)

    server.on("GetData", get_data)
    with pytest.raises(ServerUnavailable, match="GetData"):
        pull(calls)


def test_waits_for_a_server_that_restarts(server: FakeServer, calls: Calls) -> None:
    attempts = []

    def listing(_request: bytes, context: grpc.ServicerContext) -> bytes:
        attempts.append(1)
        if len(attempts) < 3:
            fail_with(context, ServerUnavailable("going down"))
        return b""

    server.on("List", listing)
    assert calls.list_parameters() == []
    # After a lost server the session introduces itself again: the next one does not know it.
    assert len(server.hellos) == 3


def test_typed_error_comes_from_the_detail(server: FakeServer, calls: Calls) -> None:
    error = ParameterNotFoundError("no parameter 'w'", parameter="w")
    server.on("List", lambda _r, context: fail_with(context, error))
    with pytest.raises(ParameterNotFoundError, match="no parameter 'w'") as info:
        calls.describe(["w"])
    assert info.value.parameter == "w"
    assert info.value.__suppress_context__


@pytest.mark.parametrize("detail", [b"\xff\xff garbage", b"\x0a\xff", b""])
def test_garbage_in_the_metadata_falls_back_on_the_status(
    server: FakeServer, calls: Calls, detail: bytes
) -> None:
    server.on("List", lambda _r, context: fail(context, grpc.StatusCode.INTERNAL, detail))
    with pytest.raises(InternalServerError):
        calls.describe(["w"])


def test_unary_call_has_a_deadline(server: FakeServer, connection: Connection) -> None:
    server.on("List", lambda _r, _c: server.ended.wait(20) and b"")
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"within 0\.5 s"):
        connection.unary("List", pb.ListRequest(), pb.ListResponse, timeout=0.5)
    assert time.monotonic() - start < 5


def test_stalled_download_is_cut(server: FakeServer, calls: Calls) -> None:
    def get_data(_request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield HEADER
        yield CHUNKS[0]
        server.ended.wait(20)

    server.on("GetData", get_data)
    start = time.monotonic()
    with pytest.raises(StalledError, match="GetData"):
        pull(calls)
    # It is tried again until the limit of 3 s, and the last attempt stalls for 1 s.
    assert 0.9 < time.monotonic() - start < 9


def test_stalled_upload_is_cut(server: FakeServer, calls: Calls) -> None:
    server.on("SetData", lambda _m, _c: server.ended.wait(20) and b"")
    with pytest.raises(StalledError, match="SetData"):
        calls.set_data([TensorWrite("w", VALUE)])


def test_slow_stream_may_last_longer_than_every_limit(server: FakeServer, calls: Calls) -> None:
    def get_data(_request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield HEADER
        for chunk in CHUNKS:
            # The slowness is what is tested: below the limit of a message, above it together.
            server.ended.wait(0.6)
            yield chunk

    server.on("GetData", get_data)
    np.testing.assert_array_equal(pull(calls), VALUE)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([HEADER, *CHUNKS[:-1]], "early"),
        ([HEADER, *CHUNKS, b"\x12\x01x"], "without a header"),
        ([HEADER, *CHUNKS[:-1], CHUNKS[0]], "runs over"),
        ([CHUNKS[0]], "without a header"),
        ([], "ended before parameter 'w'"),
        ([HEADER, *CHUNKS, HEADER, *CHUNKS], "expected"),
    ],
)
def test_wrong_number_of_bytes_is_an_error(
    server: FakeServer, calls: Calls, messages: list[bytes], error: str
) -> None:
    server.on("GetData", serve(*messages))
    with pytest.raises(InvalidStreamError, match=error):
        pull(calls)


def test_bytes_that_are_no_message_are_an_error(server: FakeServer, calls: Calls) -> None:
    server.on("GetData", serve(b"\xff\xff\xff"))
    server.on("List", lambda _r, _c: b"\xff\xff\xff")
    with pytest.raises(InvalidMessageError):
        pull(calls)
    with pytest.raises(InvalidMessageError, match="ListResponse"):
        calls.describe(["w"])


def test_another_parameter_than_asked_for_is_an_error(server: FakeServer, calls: Calls) -> None:
    server.on("GetData", serve(HEADER, *CHUNKS))
    with pytest.raises(InvalidStreamError, match="'w' where 'v' was expected"):
        calls.get_data([Selector("v")], cpu(0))


@pytest.mark.parametrize(
    ("out", "error"),
    [
        (np.zeros((1000, 700), "f4"), ShapeMismatchError),
        (np.zeros((700, 1000), "f8"), DTypeMismatchError),
        (np.zeros((700, 1000), ">f4"), DTypeMismatchError),
        ([0.0], InvalidArgumentError),
    ],
)
def test_out_that_does_not_fit_is_refused(
    server: FakeServer, calls: Calls, out: Any, error: type[Exception]
) -> None:
    server.on("GetData", serve(HEADER, *CHUNKS))
    with pytest.raises(error, match="'w'"):
        pull(calls, out=[out])


def test_read_only_out_is_refused(server: FakeServer, calls: Calls) -> None:
    server.on("GetData", serve(HEADER, *CHUNKS))
    out = np.zeros((700, 1000), "f4")
    out.flags.writeable = False
    with pytest.raises(InvalidArgumentError, match=r"'w'.*read-only"):
        pull(calls, out=[out])


def test_out_may_have_any_layout(server: FakeServer, calls: Calls) -> None:
    server.on("GetData", serve(HEADER, *CHUNKS))
    whole = np.full((1000, 1400), -1, "f4")
    out = whole[:, ::2].T
    assert pull(calls, out=[out]) is out
    np.testing.assert_array_equal(out, VALUE)
    assert np.all(whole[:, 1::2] == -1)


@pytest.mark.parametrize("value", [VALUE.T, VALUE[::-1, ::3], VALUE.astype(">f4"), VALUE[0, 0]])
def test_any_layout_and_byte_order_is_sent_right(
    server: FakeServer, calls: Calls, value: np.ndarray[Any, Any]
) -> None:
    received: list[np.ndarray[Any, Any]] = []

    def set_data(messages: Iterator[bytes], _context: grpc.ServicerContext) -> bytes:
        def place(head: TensorHead) -> list[memoryview]:
            received.append(np.empty(head.shape, head.dtype))
            return [byte_view(received[-1])]

        receiver = TensorReceiver(pb.SetDataRequest, place, other=lambda _message: None)
        feed_all(receiver, messages)
        return ONE_VERSION.SerializeToString()

    server.on("SetData", set_data)
    calls.set_data([TensorWrite("w", np.asarray(value))])
    (array,) = received
    assert array.shape == value.shape
    assert array.dtype == np.dtype("<f4")
    np.testing.assert_array_equal(array, value)


def test_failing_iterator_never_completes_a_load(server: FakeServer, calls: Calls) -> None:
    completed = threading.Event()
    ended = threading.Event()

    def load(messages: Iterator[bytes], _context: grpc.ServicerContext) -> bytes:
        try:
            # That the stream just ends proves nothing: gRPC may show a cancelled one so.
            for message in messages:
                if pb.LoadRequest.FromString(message).WhichOneof("part") == "end":
                    completed.set()
        finally:
            ended.set()
        return b""

    def tensors() -> Iterator[TensorWrite]:
        yield TensorWrite("w", VALUE)
        raise KeyError("broken file")

    server.on("Load", load)
    with pytest.raises(KeyError, match="broken file"):
        calls.load(tensors, LoadOptions(names=("w", "v")))
    assert ended.wait(10)
    assert not completed.is_set()


def test_load_reads_afresh_for_each_attempt(server: FakeServer, calls: Calls) -> None:
    opened: list[int] = []

    def load(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        # The opening message, then the first of the tensors.
        next(messages), next(messages)
        if len(opened) < 3:
            fail(context, grpc.StatusCode.UNAVAILABLE)
        list(messages)
        return pb.LoadResponse(loaded=["w"]).SerializeToString()

    def tensors() -> Iterator[TensorWrite]:
        opened.append(1)
        yield TensorWrite("w", VALUE)

    server.on("Load", load)
    assert calls.load(tensors, LoadOptions(names=("w",))) == ["w"]
    assert len(opened) == 3


def test_close_ends_pending_calls(server: FakeServer, connection: Connection) -> None:
    entered = threading.Event()
    errors: list[BaseException] = []

    def block(_request: Any, _context: grpc.ServicerContext) -> Any:
        entered.set()
        server.ended.wait(20)
        return b""

    def ask() -> None:
        try:
            Calls(connection).list_parameters()
        except BaseException as err:
            errors.append(err)

    server.on("List", block)
    thread = threading.Thread(target=ask)
    thread.start()
    assert entered.wait(10)
    connection.close()
    connection.close()
    thread.join(10)
    assert isinstance(errors[0], SessionClosedError)
    with pytest.raises(SessionClosedError):
        Calls(connection).list_parameters()


def test_unreachable_server_is_named() -> None:
    with pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1:1 "):
        Connection("127.0.0.1:1", ConnectionOptions(timeout=0.5)).hello()


def test_pull_of_rows_checks_their_bytes(server: FakeServer, calls: Calls) -> None:
    head = TensorHead("w", (10, 2), np.dtype("<f4"), stype="row_sparse")
    header = pb.PullRowSparseResponse(header=head_to_wire(head)).SerializeToString()

    def rows(size: int) -> bytes:
        return pb.PullRowSparseResponse(data=bytes(size)).SerializeToString()

    ids = np.array([1, 4], "i8")
    server.on("PullRowSparse", serve(header, rows(16)))
    got, values = calls.pull_rows("w", ids, None, cpu(0))
    assert (got.shape, values.shape) == ((10, 2), (2, 2))
    for messages, words in [((header, rows(8)), "8 bytes of rows came, of 16"),
                            ((header, rows(24)), "run over"), ((rows(16),), "before the header"),
                            ((), "before the header")]:  # fmt: skip
        server.on("PullRowSparse", serve(*messages))
        with pytest.raises(InvalidStreamError, match=words):
            calls.pull_rows("w", ids, None, cpu(0))


def test_a_lease_that_ends_because_the_session_closes_is_no_failure_of_its_own(
    server: FakeServer, connection: Connection
) -> None:
    server.on("List", lambda _request, context: fail_with(context, LeaseEndedError("left")))
    with pytest.raises(LeaseEndedError):
        connection.unary("List", pb.ListRequest(), pb.ListResponse)
    connection.closing = True
    with pytest.raises(SessionClosedError):
        connection.unary("List", pb.ListRequest(), pb.ListResponse)
