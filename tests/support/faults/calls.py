"""A gRPC proxy that injects faults into calls of any method: bytes in, bytes out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NoReturn

import grpc

from paramd.v1 import error_pb2
from paramd.wire.status import DETAIL_KEY
from tests.support.faults.plan import LOST_REPLIES, Fault, FaultPlan, Injection
from tests.support.faults.streams import IS_STREAM, answer_stream

__all__ = ["CallProxy"]

_CALL_S: Final = 60.0
_STOP_S: Final = 20.0
_LONGEST_DELAY_S: Final = 0.02
_NUM_THREADS: Final = 64

Replies = tuple[bytes, ...]
Metadata = tuple[tuple[str, str | bytes], ...]

# What a client may see of a connection that breaks.
_LOSSES: Final = (
    (grpc.StatusCode.UNAVAILABLE, "injected: connection lost"),
    (grpc.StatusCode.UNAVAILABLE, "injected: GOAWAY received"),
    (grpc.StatusCode.INTERNAL, "injected: Received RST_STREAM with error code 2"),
    (grpc.StatusCode.UNKNOWN, "injected: Stream removed"),
    (grpc.StatusCode.CANCELLED, "injected: cancelled"),
)

_UPSTREAM_OPTIONS: Final = (
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 200),
)


@dataclass(frozen=True)
class _Recorded:
    """A request as it came: it can be sent any number of times."""

    path: str
    messages: tuple[bytes, ...]
    metadata: Metadata


@dataclass(frozen=True)
class _Outcome:
    """How a call to the server ended."""

    replies: Replies
    code: grpc.StatusCode
    details: str
    trailing: Metadata

    @property
    def ok(self) -> bool:
        return self.code is grpc.StatusCode.OK

    @property
    def reason(self) -> str:
        """The reason in the error detail of our server; '' where there is none."""
        for key, value in self.trailing:
            if key == DETAIL_KEY and isinstance(value, bytes):
                return error_pb2.ErrorDetail.FromString(value).reason
        return ""

    def __str__(self) -> str:
        if not self.ok:
            return f"{self.code.name} {self.reason} {self.details!r}"
        return f"OK with {[reply[:80] for reply in self.replies[:3]]}"


class _Relay:
    """Passes a client's messages on to gRPC. A client that has gone is no end of its stream."""

    def __init__(self, requests: Iterable[bytes]) -> None:
        self._requests = iter(requests)
        self._bound = threading.Event()
        self._call: Any = None

    def bind(self, call: Any) -> None:
        self._call = call
        self._bound.set()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._requests)
        except grpc.RpcError:
            self._bound.wait(_CALL_S)
            self._call.cancel()
            raise StopIteration from None


class CallProxy:
    """Stands between clients and a server, whose address may change while it runs.

    On the wire a unary call is a stream of one message, so that one way serves every method.
    A call that meets a fault is recorded before it is sent on: its client must not wait for
    replies before it has sent all of its messages.

    Args:
        upstream: 'host:port' of the server.
        plan: which call meets which fault.
        restart: starts the server again, and gives its new address.
        same: whether the second replies to a request, sent twice, agree with the first ones; given
            the method and both.

    Attributes:
        address: where it listens.
        lose_connection: loses the connection that comes from a port on loopback; False where there
            is none.
        violations: what the server answered wrongly, in words.
    """

    def __init__(
        self,
        upstream: str,
        plan: FaultPlan,
        *,
        restart: Callable[[], str] | None = None,
        same: Callable[[str, Replies, Replies], bool] = lambda _method, one, two: one == two,
    ) -> None:
        self._plan = plan
        self.lose_connection: Callable[[int], bool] = lambda _port: False
        self._restart = restart
        self._same = same
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._channels: list[grpc.Channel] = []  # guarded by _lock; the last one is in use
        self._replays: deque[tuple[_Recorded, _Outcome]] = deque()  # guarded by _lock
        self._restarting = threading.Lock()
        self.violations: list[str] = []
        self.set_upstream(upstream)
        self._pool = futures.ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="fault-call")
        self._server = grpc.server(self._pool, options=(("grpc.so_reuseport", 0),))
        self._server.add_generic_rpc_handlers((_Handlers(self._handle),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def set_upstream(self, address: str) -> None:
        """Sends later calls to another server. Calls under way stay where they are."""
        with self._lock:
            self._channels.append(grpc.insecure_channel(address, options=_UPSTREAM_OPTIONS))

    def settle(self) -> None:
        """Sends again what waits to be sent again."""
        while self._replay_one():
            pass

    def close(self) -> None:
        """Ends all calls, and waits for the threads."""
        self._ended.set()
        self._server.stop(None).wait(_STOP_S)
        with self._lock:
            for channel in self._channels:
                channel.close()
        self._pool.shutdown()

    def __enter__(self) -> CallProxy:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _handle(
        self, path: str, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        injection = self._plan.draw(_method(path))
        if injection is None:
            yield from self._pass_on(path, requests, context)
            self._replay_one()
        elif injection.fault == Fault.DROP:
            self._plan.count(Fault.DROP)
            _lose(context, injection)
        elif injection.fault == Fault.DELAY:
            self._ended.wait(injection.rng.uniform(0.001, _LONGEST_DELAY_S))
            self._plan.count(Fault.DELAY)
            yield from self._pass_on(path, requests, context)
        else:
            done = False
            try:
                recorded = _Recorded(path, tuple(requests), _metadata_of(context))
                outcome = self._inject(injection, recorded, context)
                done = True
            finally:
                if not done:
                    self._plan.put_back(injection.fault)
            yield from outcome.replies
            _finish(context, outcome)

    def _inject(
        self, injection: Injection, recorded: _Recorded, context: grpc.ServicerContext
    ) -> _Outcome:
        """Sends a recorded request with a fault, and gives what the client is told."""
        fault = injection.fault
        if fault == Fault.CUT_REQUEST:
            self._cut(recorded, injection, context)
            self._plan.count(fault)
            return _lost(injection)
        if fault == Fault.TWICE_AT_ONCE:
            outcome, happened = self._send_twice_at_once(recorded, context)
        else:
            outcome = self._send(recorded, context)
            happened = outcome.ok and self._after_commit(injection, recorded, outcome, context)
        if not happened:
            self._plan.put_back(fault)
            return outcome
        self._plan.count(fault)
        if fault in LOST_REPLIES:
            # Of a stream of replies, the first ones may arrive.
            some = injection.rng.randrange(len(outcome.replies)) if outcome.replies else 0
            return _lost(injection, outcome.replies[:some])
        return outcome

    def _after_commit(
        self,
        injection: Injection,
        recorded: _Recorded,
        outcome: _Outcome,
        context: grpc.ServicerContext,
    ) -> bool:
        """What a fault does once the server has answered; whether it could be done."""
        if injection.fault == Fault.TWICE:
            again = self._send(recorded, context)
            self._compare(recorded, outcome, again)
            return again.ok
        if injection.fault == Fault.REPLAY:
            with self._lock:
                self._replays.append((recorded, outcome))
        elif injection.fault == Fault.HOLD_REPLY:
            gone = threading.Event()
            if context.add_callback(gone.set):
                return gone.wait(_CALL_S)
        elif injection.fault == Fault.LOSE_CONNECTION:
            return self.lose_connection(int(context.peer().rpartition(":")[2]))
        elif injection.fault == Fault.RESTART:
            assert self._restart is not None, "the plan has restarts, but nothing does them"
            with self._restarting:
                self.set_upstream(self._restart())
        return True

    def _send(self, recorded: _Recorded, context: grpc.ServicerContext | None) -> _Outcome:
        call = self._start(recorded.path, iter(recorded.messages), recorded.metadata, context)
        replies: list[bytes] = []
        with suppress(grpc.RpcError):  # The outcome says it.
            replies.extend(call)
        return _Outcome(tuple(replies), call.code(), call.details() or "", _visible(call))

    def _send_twice_at_once(
        self, recorded: _Recorded, context: grpc.ServicerContext
    ) -> tuple[_Outcome, bool]:
        with futures.ThreadPoolExecutor(2) as pool:
            one, two = pool.map(lambda _: self._send(recorded, context), range(2))
        if one.ok and two.ok:
            # Either may have been the first.
            in_order = self._same(_method(recorded.path), one.replies, two.replies)
            self._compare(recorded, *((one, two) if in_order else (two, one)))
        return (one if one.ok else two), one.ok and two.ok

    def _replay_one(self) -> bool:
        with self._lock:
            if not self._replays:
                return False
            recorded, first = self._replays.popleft()
        again = self._send(recorded, None)
        # The client may have said meanwhile that it has the answer.
        if again.reason != "OPERATION_EXPIRED":
            self._compare(recorded, first, again)
        return True

    def _compare(self, recorded: _Recorded, first: _Outcome, again: _Outcome) -> None:
        if again.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return  # The server is starting again, or the client has gone.
        method = _method(recorded.path)
        if not again.ok or not self._same(method, first.replies, again.replies):
            self.violations.append(f"{method}: first {first}, then {again}")

    def _cut(
        self, recorded: _Recorded, injection: Injection, context: grpc.ServicerContext
    ) -> None:
        """Sends the front of a request, at most all but its last message, and cancels it."""
        sizes = [len(message) for message in recorded.messages]
        num_bytes = injection.rng.randint(0, sum(sizes[:-1]))
        num_sent = next(n for n in range(len(sizes) + 1) if sum(sizes[:n]) >= num_bytes)
        sent, over = threading.Event(), threading.Event()

        def front() -> Iterator[bytes]:
            yield from recorded.messages[:num_sent]
            sent.set()
            over.wait(_CALL_S)

        call = self._start(recorded.path, front(), recorded.metadata, context)
        call.add_done_callback(lambda _: sent.set())
        sent.wait(_CALL_S)
        call.cancel()
        over.set()

    def _start(
        self,
        path: str,
        messages: Iterator[bytes],
        metadata: Metadata,
        context: grpc.ServicerContext | None,
    ) -> Any:
        with self._lock:
            channel = self._channels[-1]
        seconds = _CALL_S
        if context is not None:
            seconds = min(context.time_remaining() or _CALL_S, _CALL_S)
        start: Any = channel.stream_stream(path)
        call = start(messages, timeout=seconds, metadata=metadata)
        if context is not None and not context.add_callback(call.cancel):
            call.cancel()
        return call

    def _pass_on(
        self, path: str, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        relay = _Relay(requests)
        call = self._start(path, relay, _metadata_of(context), context)
        relay.bind(call)
        with suppress(grpc.RpcError):  # Its status is passed on.
            yield from call
        _finish(context, _Outcome((), call.code(), call.details() or "", _visible(call)))


class _Handlers(grpc.GenericRpcHandler):
    """One handler for every method."""

    def __init__(
        self,
        handle: Callable[[str, Iterator[bytes], grpc.ServicerContext], Iterator[bytes]],
    ) -> None:
        self._handle = handle

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler[Any, Any]:
        path: str = handler_call_details.method
        if path == IS_STREAM:
            return grpc.stream_stream_rpc_method_handler(
                lambda requests, context: answer_stream(self._handle, requests, context)
            )
        return grpc.stream_stream_rpc_method_handler(
            lambda requests, context: self._handle(path, requests, context)
        )


def _method(path: str) -> str:
    return path.rpartition("/")[2]


def _passed(metadata: Sequence[Any] | None) -> Metadata:
    """Metadata without what belongs to one hop."""
    return tuple(
        (key, value)
        for key, value in metadata or ()
        if key != "user-agent" and not key.startswith(("grpc-", ":"))
    )


def _metadata_of(context: grpc.ServicerContext) -> Metadata:
    return _passed(context.invocation_metadata())


def _visible(call: Any) -> Metadata:
    return _passed(call.trailing_metadata())


def _lost(injection: Injection, replies: Replies = ()) -> _Outcome:
    code, details = injection.rng.choice(_LOSSES)
    return _Outcome(replies, code, details, ())


def _lose(context: grpc.ServicerContext, injection: Injection) -> NoReturn:
    lost = _lost(injection)
    context.abort(lost.code, lost.details)


def _finish(context: grpc.ServicerContext, outcome: _Outcome) -> None:
    context.set_trailing_metadata(outcome.trailing)
    if not outcome.ok:
        context.abort(outcome.code, outcome.details)
