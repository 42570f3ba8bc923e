"""The proxy that injects faults does what it counts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import MagicMock

import grpc
import pytest

from paramd.errors import OperationExpiredError, ParameterNotFoundError
from paramd.wire.calls import (
    END,
    READY,
    Answer,
    code_of_status,
    decode_response,
    encode_message,
    encode_opening,
)
from paramd.wire.status import DETAIL_KEY, decode_error
from tests.support.fake_server import FakeServer, fail, fail_with
from tests.support.faults.connections import ConnectionProxy
from tests.support.faults.plan import Fault, FaultPlan
from tests.support.faults.proxy import FaultProxy, fault_proxy
from tests.support.faults.streams import answer_stream

PUSH = "/paramd.v1.ParameterService/SetGrad"
PULL = "/paramd.v1.ParameterService/GetData"
ROWS = "/paramd.v1.ParameterService/PullRowSparse"
DELETE = "/paramd.v1.ParameterService/Delete"
MESSAGES = [b"open", b"x" * 100, b"y" * 50, b"end"]
LOSSES = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
}
DEADLINE_S = 20.0


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


class Collector:
    """What a server's streams brought, and what it answers: by default how many came before."""

    def __init__(self, server: FakeServer) -> None:
        self.complete: list[list[bytes]] = []
        self.broken: list[list[bytes]] = []
        self.begun, self.ended = threading.Event(), threading.Event()
        server.on("SetGrad", self._take)

    def answer(self, _context: grpc.ServicerContext) -> bytes:
        return b"done"

    def _take(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        taken: list[bytes] = []
        # gRPC may show a cancelled stream like one that has ended: the last message tells.
        with suppress(grpc.RpcError):
            for message in requests:
                taken.append(message)
                self.begun.set()
        if taken[-1:] != MESSAGES[-1:]:
            self.broken.append(taken)
            self.ended.set()
            fail(context, grpc.StatusCode.INVALID_ARGUMENT)
        self.complete.append(taken)
        return self.answer(context)


@contextmanager
def through(server: FakeServer, *faults: Fault, **options: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Proxy, plan and channel; the first calls meet the faults, one each."""
    plan = FaultPlan(
        1, {each: faults.count(each) for each in faults}, num_calls=len(faults), methods=["SetGrad"]
    )
    with fault_proxy(server.target, plan, **options) as proxy, channel_to(proxy) as channel:
        yield proxy, plan, channel


@contextmanager
def channel_to(proxy: FaultProxy) -> Iterator[grpc.Channel]:
    options = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))
    with grpc.insecure_channel(proxy.address, options=options) as channel:
        yield channel


def push(channel: Any) -> bytes:
    answer: bytes = channel.stream_unary(PUSH)(iter(MESSAGES), timeout=DEADLINE_S)
    return answer


def lost_push(channel: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        push(channel)
    assert isinstance(caught.value, grpc.Call)
    code = caught.value.code()
    assert code in LOSSES
    return code


def test_passes_every_kind_of_call_on(server: FakeServer) -> None:
    collector = Collector(server)
    server.on("Delete", lambda request, _context: request * 2)
    server.on("GetData", lambda request, _context: iter([request, b"", request]))
    server.on("PullRowSparse", lambda requests, _context: (each * 2 for each in requests))
    with through(server) as (_, plan, channel):
        assert push(channel) == b"done"
        assert channel.unary_unary(DELETE)(b"a", timeout=DEADLINE_S) == b"aa"
        assert list(channel.unary_stream(PULL)(b"b", timeout=DEADLINE_S)) == [b"b", b"", b"b"]
        assert list(channel.stream_stream(ROWS)(iter([b"c", b"d"]), timeout=DEADLINE_S)) == [
            b"cc",
            b"dd",
        ]
    assert collector.complete == [MESSAGES]
    assert plan.report() == "0 faults (seed 1):"


def test_replies_come_before_the_client_has_sent_everything(server: FakeServer) -> None:
    server.on("PullRowSparse", lambda requests, _context: requests)
    answered = threading.Event()

    def messages() -> Iterator[bytes]:
        yield b"one"
        assert answered.wait(DEADLINE_S)
        yield b"two"

    with through(server) as (_, _, channel):
        replies = channel.stream_stream(ROWS)(messages(), timeout=DEADLINE_S)
        assert next(replies) == b"one"
        answered.set()
        assert list(replies) == [b"two"]


def test_passes_errors_and_metadata_on(server: FakeServer) -> None:
    seen: list[dict[str, Any]] = []

    def delete(_request: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append(dict(context.invocation_metadata() or ()))
        fail_with(context, ParameterNotFoundError("no such thing", parameter="w"))
        raise AssertionError

    server.on("Delete", delete)
    with through(server) as (_, _, channel), pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(DELETE)(b"", metadata=(("who", "me"),), timeout=DEADLINE_S)
    call: Any = caught.value
    trailing = dict(call.trailing_metadata())
    error = decode_error(call.code(), trailing[DETAIL_KEY], "")
    assert isinstance(error, ParameterNotFoundError)
    assert error.parameter == "w"
    assert call.details() == "injected"
    assert seen[0]["who"] == "me"


def test_client_that_cancels_ends_the_call_at_the_server(server: FakeServer) -> None:
    collector = Collector(server)
    over = threading.Event()

    def messages() -> Iterator[bytes]:
        yield from MESSAGES[:2]
        over.wait(DEADLINE_S)

    with through(server) as (_, _, channel):
        call = channel.stream_unary(PUSH).future(messages(), timeout=DEADLINE_S)
        assert collector.begun.wait(DEADLINE_S)
        call.cancel()
        over.set()
        assert collector.ended.wait(DEADLINE_S)
    assert collector.complete == []


def test_dropped_call_never_reaches_the_server(server: FakeServer) -> None:
    collector = Collector(server)
    with through(server, Fault.DROP) as (_, plan, channel):
        lost_push(channel)
        assert collector.complete == []
        assert push(channel) == b"done"
    assert plan.done(Fault.DROP) == 1


def test_delayed_call_arrives(server: FakeServer) -> None:
    collector = Collector(server)
    with through(server, Fault.DELAY) as (_, plan, channel):
        assert push(channel) == b"done"
    assert collector.complete == [MESSAGES]
    assert plan.done(Fault.DELAY) == 1


@pytest.mark.parametrize("fault", [Fault.TWICE, Fault.TWICE_AT_ONCE])
def test_request_arrives_twice(server: FakeServer, fault: Fault) -> None:
    collector = Collector(server)
    with through(server, fault) as (proxy, plan, channel):
        assert push(channel) == b"done"
        proxy.settle()
    assert collector.complete == [MESSAGES, MESSAGES]
    assert plan.done(fault) == 1


@pytest.mark.parametrize("fault", [Fault.TWICE, Fault.TWICE_AT_ONCE, Fault.REPLAY])
def test_second_answer_that_differs_is_noticed(
    server: FakeServer, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector(server)
    answers = iter([b"1", b"2"])
    monkeypatch.setattr(collector, "answer", lambda _context: next(answers))
    with through(server, fault) as (proxy, _, channel):
        push(channel)
        with pytest.raises(AssertionError, match="SetGrad: first OK"):
            proxy.settle()


def test_request_is_sent_again_after_a_later_call(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector(server)

    def answer(context: grpc.ServicerContext) -> bytes:
        if len(collector.complete) == 3:
            fail_with(context, OperationExpiredError("it was acknowledged"))
        return b"done"

    monkeypatch.setattr(collector, "answer", answer)
    with through(server, Fault.REPLAY) as (proxy, plan, channel):
        push(channel)
        assert len(collector.complete) == 1
        push(channel)
        proxy.settle()
    assert len(collector.complete) == 3
    assert plan.done(Fault.REPLAY) == 1


def test_cut_request_arrives_without_its_end(server: FakeServer) -> None:
    collector = Collector(server)
    faults = [Fault.CUT_REQUEST] * 10
    with through(server, *faults) as (_, plan, channel):
        for _ in faults:
            lost_push(channel)
        assert push(channel) == b"done"
    assert collector.complete == [MESSAGES]
    assert plan.done(Fault.CUT_REQUEST) == 10
    assert len({len(front) for front in collector.broken}) > 1, "always cut at the same place"
    for front in collector.broken:
        assert front == MESSAGES[: len(front)]


def test_lost_reply_is_lost_after_the_server_has_answered(server: FakeServer) -> None:
    collector = Collector(server)
    with through(server, *[Fault.LOSE_REPLY] * 20) as (_, plan, channel):
        codes = {lost_push(channel) for _ in range(20)}
    assert collector.complete == [MESSAGES] * 20
    assert plan.done(Fault.LOSE_REPLY) == 20
    assert codes == LOSSES


def test_held_reply_ends_with_the_patience_of_the_client(server: FakeServer) -> None:
    collector = Collector(server)
    with through(server, Fault.HOLD_REPLY) as (_, plan, channel):
        with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
            channel.stream_unary(PUSH)(iter(MESSAGES), timeout=0.5)
        assert push(channel) == b"done"
    assert collector.complete == [MESSAGES] * 2
    assert plan.done(Fault.HOLD_REPLY) == 1


def test_connection_is_lost_after_the_server_has_answered(server: FakeServer) -> None:
    collector = Collector(server)
    with through(server, Fault.LOSE_CONNECTION) as (proxy, plan, channel):
        with channel_to(proxy) as other:
            grpc.channel_ready_future(other).result(DEADLINE_S)
            # gRPC tells a reset connection as one or the other.
            lost = lost_push(channel)
            assert lost in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            assert push(other) == b"done"
        assert push(channel) == b"done"
    assert collector.complete == [MESSAGES] * 3
    assert plan.done(Fault.LOSE_CONNECTION) == 1


def test_restart_happens_after_the_answer_and_later_calls_go_to_the_new_address(
    server: FakeServer,
) -> None:
    after = FakeServer()
    try:
        first, second = Collector(server), Collector(after)

        def restart() -> str:
            assert first.complete == [MESSAGES]
            server.stop()
            return after.target

        with through(server, Fault.RESTART, restart=restart) as (_, plan, channel):
            lost_push(channel)
            assert push(channel) == b"done"
        assert second.complete == [MESSAGES]
        assert plan.done(Fault.RESTART) == 1
    finally:
        after.stop()


@pytest.mark.parametrize(
    "fault", [Fault.TWICE, Fault.TWICE_AT_ONCE, Fault.REPLAY, Fault.LOSE_REPLY, Fault.RESTART]
)
def test_fault_waits_for_a_call_that_succeeds(
    server: FakeServer, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector(server)

    def refuse(context: grpc.ServicerContext) -> bytes:
        fail(context, grpc.StatusCode.INVALID_ARGUMENT)
        raise AssertionError

    monkeypatch.setattr(collector, "answer", refuse)
    with through(server, fault, restart=lambda: server.target) as (_, plan, channel):
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
            push(channel)
        assert (plan.done(fault), plan.left()) == (0, 1)
        monkeypatch.undo()
        call = channel.stream_unary(PUSH).future(iter(MESSAGES), timeout=DEADLINE_S)
        assert call.code() in {grpc.StatusCode.OK, *LOSSES}
        assert (plan.done(fault), plan.left()) == (1, 0)


def test_connection_is_cut_after_a_number_of_bytes() -> None:
    plan = FaultPlan(3, {}, num_calls=0, methods=[])
    data = b"z" * 10_000
    received: list[int] = []

    def echo(listener: socket.socket) -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            with link:
                count = 0
                try:
                    while block := link.recv(4096):
                        count += len(block)
                        link.sendall(block)
                except ConnectionError:
                    pass
                received.append(count)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=echo, args=(listener,))
        thread.start()
        upstream = f"127.0.0.1:{listener.getsockname()[1]}"
        returned: list[int] = []
        with ConnectionProxy(upstream, plan, num_cuts=8, longest_bytes=6000) as proxy:
            host, _, port = proxy.address.rpartition(":")
            for _ in range(9):
                with socket.create_connection((host, int(port)), DEADLINE_S) as link:
                    returned.append(_send_and_read(link, data))
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert all(count < len(data) for count in returned[:8])
    assert (returned[8], received[8]) == (len(data), len(data))
    assert plan.done(Fault.CUT_UP, Fault.CUT_DOWN) == 8
    assert plan.done(Fault.CUT_UP) > 0
    assert plan.done(Fault.CUT_DOWN) > 0


def _send_and_read(link: socket.socket, data: bytes) -> int:
    """How many bytes come back until all have, or the connection is lost."""
    count = 0
    try:
        link.sendall(data)
        while count < len(data) and (block := link.recv(4096)):
            count += len(block)
    except ConnectionError:
        pass
    return count


def test_threads_end_with_the_proxy(server: FakeServer) -> None:
    Collector(server)
    with through(server) as (_, _, channel):
        push(channel)
    assert [each for each in threading.enumerate() if each.name.startswith("fault-")] == []


def test_plan_deals_the_same_faults_for_the_same_seed() -> None:
    counts = {Fault.DROP: 5, Fault.TWICE: 7, Fault.RESTART: 2}

    def dealt(seed: int) -> list[tuple[Fault, float] | None]:
        plan = FaultPlan(seed, counts, num_calls=40, methods=["SetGrad"])
        cards = [plan.draw("SetGrad") for _ in range(40)]
        assert plan.draw("SetGrad") is None
        return [(card.fault, card.rng.random()) if card else None for card in cards]

    cards = dealt(1)
    assert cards == dealt(1)
    assert cards != dealt(2)
    faults = [card[0] for card in cards if card]
    assert {fault: faults.count(fault) for fault in counts} == counts
    restarts = [n for n, card in enumerate(cards) if card and card[0] == Fault.RESTART]
    assert all(8 <= n <= 32 for n in restarts)


def test_plan_leaves_other_methods_alone_and_refuses_too_many_faults() -> None:
    plan = FaultPlan(1, {Fault.DROP: 1}, num_calls=1, methods=["SetGrad"])
    assert plan.draw("GetData") is None
    assert plan.left() == 1
    with pytest.raises(ValueError, match="2 faults for 1 calls"):
        FaultPlan(1, {Fault.DROP: 2}, num_calls=1, methods=["SetGrad"])


def test_a_call_on_a_stream_is_given_up_while_a_message_is_read() -> None:
    """As by a server that is lost: gRPC's thread still waits for the next message to send."""
    reading, go_on = threading.Event(), threading.Event()

    def requests() -> Iterator[bytes]:
        yield encode_opening(PUSH, [b"open"], complete=False)
        reading.set()
        assert go_on.wait(DEADLINE_S)
        yield encode_message(b"rest")
        yield END

    def lose(_method: str, messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        assert next(messages) == b"open"
        reader = threading.Thread(target=lambda: list(messages))
        reader.start()
        assert reading.wait(DEADLINE_S)
        threading.Timer(0.05, go_on.set).start()
        context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
        yield b""

    ready, answer = answer_stream(lose, requests(), MagicMock(grpc.ServicerContext))
    assert ready == READY
    response = decode_response(answer)
    assert isinstance(response, Answer)
    assert response.status is not None
    assert code_of_status(response.status) is grpc.StatusCode.UNAVAILABLE
