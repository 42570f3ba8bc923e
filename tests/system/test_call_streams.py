"""Calls over streams that stay open: they do what calls by themselves do, and harm nobody."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import paramd
from paramd.errors import (
    DeadlineExceededError,
    ParameterNotFoundError,
    PermissionDeniedError,
    ServerUnavailable,
    ShapeMismatchError,
    UnauthenticatedError,
)
from paramd.v1 import call_service_pb2, parameter_pb2, session_service_pb2, tensor_pb2
from paramd.v1 import parameter_service_pb2 as pb
from paramd.wire.calls import READY
from paramd_server import app
from paramd_server.app import Server
from paramd_server.config import ServerConfig
from paramd_server.security import Right
from tests.support.call_streams import PATH, RawStream, await_stream, num_streams, pools_of
from tests.support.clusters import NUM_SHARDS, ids_of, small_cluster
from tests.support.fake_server import FakeServer
from tests.support.raw_calls import (
    SHAPE,
    VALUE,
    RawClient,
    data_stream,
    grad_stream,
    received,
    refused,
    selector,
)
from tests.support.security import TOKENS, make_keys, write_tokens
from tests.support.server_process import ServerProcess, serve
from tests.support.waiting import wait_until

END = pb.SetDataRequest(end=tensor_pb2.StreamEnd())
BIG = (3 << 20,)
READ = pb.GetDataRequest(tensors=[selector("dense")])


@pytest.fixture
def stream(unchanged: RawClient) -> RawStream:
    """A stream on which nothing that a test does may change anything."""
    return RawStream(unchanged.channel).ready()


def _still_serves(stream: RawStream) -> None:
    ended = stream.call_method("GetData", [READ])
    assert ended.error is None
    ((_, value),) = received(pb.GetDataResponse, ended.messages)
    np.testing.assert_array_equal(value, VALUE)


def _change(client: RawClient, *tensors: tuple[str, Any]) -> list[bytes]:
    stream = [*data_stream(client.operation(), *tensors), END]
    return [each if isinstance(each, bytes) else each.SerializeToString() for each in stream]


# What goes wrong on a stream.


def test_error_of_a_call_leaves_the_stream_to_the_next(stream: RawStream) -> None:
    unknown = pb.GetDataRequest(tensors=[selector("unknown")])
    assert isinstance(stream.call_method("GetData", [unknown]).error, ParameterNotFoundError)
    _still_serves(stream)


@pytest.mark.parametrize(
    "method",
    [
        *("Once", "Barrier", "AwaitStep", "AwaitSnapshot"),
        *(PATH, "", "GetData", "/grpc.health.v1.Health/Check", "/" + "x" * 3_000_000, "/\n\x00é"),
    ],
)
def test_method_that_streams_do_not_take(stream: RawStream, method: str) -> None:
    named = call_service_pb2.CallOpen(method=method, messages=[b""], complete=True)
    if method in ("Once", "Barrier", "AwaitStep", "AwaitSnapshot"):
        stream.open(method, [b""])
    else:
        stream.send(call_service_pb2.CallRequest(open=named))
    ended = stream.end_of_call()
    assert ended.error is not None
    assert ended.error.reason == "PROTOCOL_MISMATCH"
    assert len(str(ended.error)) < 2000
    _still_serves(stream)


@pytest.mark.parametrize("messages", [[], [READ, READ], [b"\xff"]], ids=["none", "two", "garbage"])
def test_request_that_is_not_one_message(stream: RawStream, messages: list[Any]) -> None:
    ended = stream.call_method("GetData", messages)
    assert ended.error is not None
    assert ended.error.reason in ("INVALID_STREAM", "INVALID_MESSAGE")
    _still_serves(stream)


@pytest.mark.parametrize(
    "request_",
    [
        b"\xff\xff",
        b"",
        b"\x0a\x05\x0a\x02\xff\xff\x18",
        call_service_pb2.CallRequest(data=b"1234"),
        call_service_pb2.CallRequest(message=b"1234"),
        call_service_pb2.CallRequest(end=call_service_pb2.CallEnd()),
        call_service_pb2.CallRequest(block=call_service_pb2.RingBlock(offset=0, size=2**40)),
    ],
    ids=["garbage", "nothing", "torn", "data", "message", "end", "block"],
)
def test_what_opens_no_call_ends_the_stream(stream: RawStream, request_: Any) -> None:
    stream.send(request_)
    with refused("INVALID_STREAM", "INVALID_MESSAGE"):
        stream.receive()


@pytest.mark.parametrize("part", ["open", "block", "nothing", "the end"])
def test_what_cannot_come_within_a_call_ends_the_stream(
    stream: RawStream, unchanged: RawClient, part: str
) -> None:
    stream.open("SetData", _change(unchanged, ("dense", 2 * VALUE))[:-1], complete=False)
    if part == "open":
        stream.open("GetData", [READ])
    elif part == "block":
        block = call_service_pb2.RingBlock(offset=0, size=8)
        stream.send(call_service_pb2.CallRequest(block=block))
    elif part == "nothing":
        stream.send(b"")
    else:
        stream.finish()
    ended = stream.end_of_call()
    assert ended.error is not None
    assert ended.error.reason == "INVALID_STREAM"
    with refused("INVALID_STREAM"):
        stream.receive()


def test_rest_of_a_call_that_failed_is_skipped(stream: RawStream, unchanged: RawClient) -> None:
    wrong = np.ones((7, 7), "f4")
    opening, header, *rest = _change(unchanged, ("dense", wrong))
    stream.open("SetData", [opening, header], complete=False)
    ended = stream.end_of_call()
    assert isinstance(ended.error, ShapeMismatchError)
    for message in [*rest, b"\xff\xff"]:
        stream.send(call_service_pb2.CallRequest(message=message))
    stream.send(call_service_pb2.CallRequest(data=b"x" * (2 << 20)))
    stream.send(call_service_pb2.CallRequest(end=call_service_pb2.CallEnd()))
    _still_serves(stream)


def test_call_without_end_is_cut_off_like_any_other(tmp_path: Path) -> None:
    with (
        serve(tmp_path, "--stall-timeout", "1") as server,
        RawClient(server.address) as client,
        RawClient(server.address) as other,
    ):
        client.create("dense", SHAPE)
        idle = RawStream(other.channel).ready()
        stalled = RawStream(client.channel).ready()
        stalled.open("SetData", _change(client, ("dense", VALUE))[:1], complete=False)
        with pytest.raises(grpc.RpcError):
            stalled.receive()
        assert stalled.call.code() is grpc.StatusCode.CANCELLED
        # A stream on which no call is under way may be silent.
        assert idle.call_method("GetData", [READ]).error is None
        assert not client.get("dense").any()


def test_payload_in_any_form_is_the_same(raw: RawClient) -> None:
    raw.create("forms", SHAPE)
    stream = RawStream(raw.channel).ready()
    opening, header, payload, end = _change(raw, ("forms", VALUE))
    data = pb.SetDataRequest.FromString(payload).data
    stream.open("SetData", [opening], complete=False)
    stream.send(call_service_pb2.CallRequest(message=header))
    stream.send(call_service_pb2.CallRequest(data=data[:40]))
    left = pb.SetDataRequest(data=data[40:]).SerializeToString()
    stream.send(call_service_pb2.CallRequest(message=left))
    stream.send(call_service_pb2.CallRequest(message=end))
    stream.send(call_service_pb2.CallRequest(end=call_service_pb2.CallEnd()))
    assert stream.end_of_call().error is None
    np.testing.assert_array_equal(raw.get("forms"), VALUE)
    assert stream.call_method("SetData", _change(raw, ("forms", 2 * VALUE))).error is None
    np.testing.assert_array_equal(raw.get("forms"), 2 * VALUE)


# Rights.


def test_each_call_takes_its_own_right(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens")
    with serve(tmp_path, "--token-file", str(tokens)) as server:
        with paramd.connect(server.address, token=TOKENS[Right.TRAIN]) as session:
            paramd.Parameter("dense", shape=(4,), init="ones", session=session).initialize()
        with RawClient(server.address) as client:
            stream = RawStream(client.channel, TOKENS[Right.READ]).ready()
            error = stream.call_method(
                "SetData", _change(client, ("dense", np.zeros(4, "f4")))
            ).error
            assert isinstance(error, PermissionDeniedError)
            assert stream.call_method("GetData", [READ]).error is None
            error = stream.call_method("Delete", [pb.DeleteRequest(names=["dense"])]).error
            assert isinstance(error, PermissionDeniedError)
            with refused("UNAUTHENTICATED"):
                RawStream(client.channel, "unknown").ready()
            # As the tokens are now, and not as they were when the stream was opened.
            write_tokens(tokens, {Right.TRAIN: TOKENS[Right.TRAIN]})

            def refuses() -> bool:
                error = stream.call_method("GetData", [READ]).error
                return isinstance(error, UnauthenticatedError)

            wait_until(refuses, "a token that was removed is refused")
        assert server.trouble() == []


def test_token_that_is_replaced(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens")
    own = tmp_path / "own.token"
    own.touch(mode=0o600)
    own.write_text(TOKENS[Right.TRAIN])
    with (
        serve(tmp_path, "--token-file", str(tokens)) as server,
        paramd.connect(server.address, token=own, transport="tcp") as session,
    ):
        weight = paramd.Parameter("w", shape=(4,), init="ones", session=session)
        weight.initialize()
        await_stream(session)
        renewed = "another-secret-0123456789"
        write_tokens(tokens, {Right.TRAIN: renewed})
        own.write_text(renewed)

        with RawClient(server.address) as client:

            def refuses() -> bool:
                stream = RawStream(client.channel, TOKENS[Right.TRAIN])
                try:
                    stream.ready()
                except grpc.RpcError:
                    return True
                stream.call.cancel()
                return False

            wait_until(refuses, "the old token is refused")
        weight.set_data(np.full(4, 2, "f4"))
        assert weight.data().asnumpy().sum() == 8
        await_stream(session)
        assert weight.data().asnumpy().sum() == 8


# Sessions.


@pytest.fixture(params=NUM_SHARDS, ids=ids_of, scope="module")
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    with small_cluster(request.param) as target:
        yield target


def test_values_of_any_size_both_ways(target: str) -> None:
    sizes = [0, 1, 1000, 1 << 14, (1 << 17) + 1, 1 << 18, (1 << 18) + 7, (9 << 18) + 5]
    with paramd.connect(target, transport="tcp") as session:
        params = paramd.ParameterDict("sizes_", session=session)
        for index, size in enumerate(sizes):
            params.get(str(index), shape=(max(size, 1),), init="zeros", grad_req="add")
        table = params.get("table", shape=(50_000, 8), stype="row_sparse", grad_stype="row_sparse")
        params.initialize()
        await_stream(session)
        ids = np.arange(0, 50_000, 3)
        for step in range(1, 4):
            values = {
                name: np.random.default_rng(step).random(params[name].shape, "f4")
                for name in params
                if name != table.name
            }
            params.set_data(values)
            for name, value in values.items():
                np.testing.assert_array_equal(params[name].data().asnumpy(), value)
            table.set_data(np.full((50_000, 8), step, "f4"))
            rows = table.row_sparse_data(ids)
            assert (rows.data.asnumpy() == step).all()
        assert num_streams(session) > 0


def test_many_threads_share_a_session(target: str) -> None:
    with paramd.connect(target, transport="tcp") as session:
        params = paramd.ParameterDict("threads_", session=session)
        for index in range(12):
            params.get(str(index), shape=(1000,), init="zeros", grad_req="add")
        params.initialize()
        await_stream(session)

        def work(index: int) -> float:
            weight = params[f"threads_{index}"]
            for _ in range(30):
                weight.grad()[:] += np.ones(1000, "f4")
            return float(weight.grad().asnumpy().sum())

        with futures.ThreadPoolExecutor(12) as pool:
            assert list(pool.map(work, range(12))) == [30_000.0] * 12


def test_array_that_does_not_fit_leaves_the_session_as_it_was(shared_server: ServerProcess) -> None:
    with paramd.connect(shared_server.address, transport="tcp") as session:
        params = paramd.ParameterDict("unfit_", session=session)
        params.get("w", shape=BIG, init="ones")
        params.initialize()
        await_stream(session)
        for _ in range(3):
            with pytest.raises(ShapeMismatchError):
                params.pull(out={"unfit_w": np.zeros(7, "f4")})
            assert params.pull()["unfit_w"].sum() == BIG[0]
        session.delete(["unfit_w"])


def test_what_fails_while_it_is_sent_commits_nothing(shared_server: ServerProcess) -> None:
    with paramd.connect(shared_server.address, transport="tcp") as session:
        params = paramd.ParameterDict("failing_", session=session)
        for name in ("a", "b"):
            params.get(name, shape=(4,), init="ones")
        params.initialize()
        await_stream(session)

        def messages() -> Iterator[Any]:
            yield pb.SetDataRequest(
                open=pb.SetDataOpen(
                    operation=parameter_pb2.Operation(identity=b"i" * 16, sequence=1)
                )
            ).SerializeToString()
            raise RuntimeError("what makes the messages fails")

        calls: Any = session.calls
        with pytest.raises(RuntimeError, match="what makes"):
            calls._connection.upload("SetData", messages, pb.SetDataResponse)
        assert params.pull()["failing_a"].sum() == 4
        # The call took its stream with it, and another one is opened.
        await_stream(session)
        session.delete(["failing_a", "failing_b"])


def test_over_tls(tmp_path: Path) -> None:
    keys = make_keys(tmp_path)
    with (
        serve(tmp_path, *keys.serving(client_ca="ca")) as server,
        paramd.connect(server.address, tls=keys.tls("client")) as session,
    ):
        weight = paramd.Parameter("w", shape=(100_000,), init="ones", session=session)
        weight.initialize()
        await_stream(session)
        weight.set_data(np.full(100_000, 3, "f4"))
        assert weight.data().asnumpy().sum() == 300_000


def test_server_that_starts_again_commits_once(tmp_path: Path) -> None:
    folder = str(tmp_path / "state")
    socket = f"unix:{tmp_path}/socket"
    with serve(tmp_path, "--snapshot-dir", folder, listen=(socket,)) as server:
        session = paramd.connect(socket, transport="tcp", timeout=60)
        weight = paramd.Parameter("w", shape=(1000,), init="zeros", grad_req="add", session=session)
        weight.initialize()
        await_stream(session)
        stop = threading.Event()
        pushes = [0]

        def push() -> None:
            while not stop.is_set():
                weight.grad()[:] += np.ones(1000, "f4")
                pushes[0] += 1

        with futures.ThreadPoolExecutor(1) as pool:
            pushing = pool.submit(push)
            wait_until(lambda: pushes[0] > 20, "pushes")
            server.terminate()
            assert server.await_end() == 0
            with serve(tmp_path, "--snapshot-dir", folder, listen=(socket,)):
                before = pushes[0]
                wait_until(lambda: pushes[0] > before + 20, "pushes to the server that came back")
                stop.set()
                pushing.result(60)
                np.testing.assert_array_equal(weight.grad().asnumpy(), float(pushes[0]))
                session.close()


def test_clients_beyond_the_threads_for_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_NUM_STREAM_THREADS", 1)
    server = Server(ServerConfig(listen=("127.0.0.1:0",)))
    server.start()
    try:
        with RawClient(server.addresses[0]) as client:
            held = RawStream(client.channel).ready()
            with paramd.connect(server.addresses[0], transport="tcp") as session:
                weight = paramd.Parameter("w", shape=(4,), init="ones", session=session)
                weight.initialize()
                for _ in range(20):
                    assert weight.data().asnumpy().sum() == 4
                assert num_streams(session) == 0
                held.finish()
                await_stream(session)
    finally:
        server.stop(0)


@contextmanager
def silent_server() -> Iterator[tuple[FakeServer, threading.Event]]:
    """A server that never answers on a stream, and whether a call has come on one."""
    server = FakeServer()
    asked = threading.Event()

    def stream(requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield READY
        for _ in requests:
            asked.set()

    server.on("List", lambda _request, _context: pb.ListResponse().SerializeToString())
    server.on("StreamCalls", stream)
    try:
        yield server, asked
    finally:
        server.stop()


def test_unary_call_has_its_deadline_on_a_stream() -> None:
    with (
        silent_server() as (server, asked),
        paramd.connect(server.target, transport="tcp", timeout=1.0) as session,
    ):
        await_stream(session)
        with pytest.raises(DeadlineExceededError):
            session.parameters()
        assert asked.is_set()


def test_session_ends_the_calls_on_its_streams_when_it_is_closed() -> None:
    with silent_server() as (server, asked), futures.ThreadPoolExecutor(1) as pool:
        session = paramd.connect(server.target, transport="tcp")
        await_stream(session)
        call = pool.submit(session.parameters)
        assert asked.wait(20)
        session.close()
        with pytest.raises(paramd.errors.SessionClosedError):
            call.result(20)


# The end of a server, and forks.


def test_idle_stream_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with serve(tmp_path, "--grace", "300") as server, RawClient(server.address) as client:
        streams = [RawStream(client.channel).ready() for _ in range(3)]
        server.terminate()
        # START_S and STOP_S are a tenth of the grace.
        assert server.await_end() == 0
        for stream in streams:
            with pytest.raises(grpc.RpcError):
                stream.receive()
        assert server.trouble() == []


def test_call_on_a_stream_finishes_before_the_end(tmp_path: Path) -> None:
    with serve(tmp_path) as server, RawClient(server.address) as client:
        client.create("dense", (16 << 20,))
        client.set("dense", np.full(16 << 20, 7, "f4"))
        stream = RawStream(client.channel).ready()
        later = RawStream(client.channel).ready()
        stream.open("GetData", [READ])
        first = stream.receive()
        server.terminate()

        def refuses() -> bool:
            error = later.call_method("GetStatus", [b""]).error
            return isinstance(error, ServerUnavailable)

        wait_until(refuses, "calls are refused while the server stops")
        ended = stream.end_of_call()
        assert ended.error is None
        messages = [*first.answer.messages, *ended.messages]
        ((_, value),) = received(pb.GetDataResponse, messages)
        np.testing.assert_array_equal(value, np.full(16 << 20, 7, "f4"))
        assert server.await_end() == 0
        assert server.trouble() == []


def test_forked_children_have_streams_of_their_own(shared_server: ServerProcess) -> None:
    with paramd.connect(shared_server.address, transport="tcp") as session:
        weight = paramd.Parameter("forked", shape=(1000,), init="ones", session=session)
        weight.initialize()
        for repetition in range(10):
            await_stream(session)
            child = os.fork()
            if not child:
                status = 1
                try:
                    # Whatever hangs is killed, and shows as a signal.
                    signal.alarm(30)
                    await_stream(session)
                    assert weight.data().asnumpy().sum() == 1000
                    status = 0
                finally:
                    os._exit(status)
            assert weight.data().asnumpy().sum() == 1000
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, repetition
        session.delete(["forked"])


def test_session_that_is_dropped_leaves_no_stream(shared_server: ServerProcess) -> None:
    session = paramd.connect(shared_server.address, transport="tcp")
    await_stream(session)
    (pool,) = pools_of(session)
    assert pool._all
    del session

    def ended() -> bool:
        gc.collect()
        return not pool._all

    wait_until(ended, "the streams of a session that is gone end")


def test_status_is_answered_over_a_stream(shared_server: ServerProcess) -> None:
    with RawClient(shared_server.address) as client:
        stream = RawStream(client.channel).ready()
        (message,) = stream.call_method("GetStatus", [b""]).messages
        assert session_service_pb2.GetStatusResponse.FromString(message).server_version


def test_call_that_is_cancelled_half_way_changes_nothing(
    stream: RawStream, unchanged: RawClient
) -> None:
    opening, header, payload = grad_stream(unchanged.operation(), ("dense", np.ones(SHAPE, "f4")))
    stream.open("SetGrad", [opening, header, payload], complete=False)
    stream.call.cancel()
    with pytest.raises(grpc.RpcError):
        stream.receive()
