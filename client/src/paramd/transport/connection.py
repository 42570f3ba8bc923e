"""One session's way to its server in this process: sends calls, again where that is safe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from paramd.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    LeaseEndedError,
    ParamdError,
    ServerUnavailable,
    SessionClosedError,
    StalledError,
)
from paramd.transport import fork_support, forks
from paramd.transport.attempts import Attempt, Attempts, CallCancelledError
from paramd.transport.call_streams import StreamCall
from paramd.transport.channel import RenewableChannel, grpc_target
from paramd.transport.credentials import Credentials
from paramd.transport.local.access import LocalAccess
from paramd.transport.operations import Operation, ProcessOperations
from paramd.transport.requests import Requests
from paramd.transport.retry import Backoff, RetryPolicy, error_of, is_retried
from paramd.v1 import session_service_pb2
from paramd.wire.envelope import Payload
from paramd.wire.parsing import parse_message
from paramd.wire.protocol import PROTOCOL

__all__ = ["Connection", "ConnectionOptions", "Receiver"]

T = TypeVar("T")
M = TypeVar("M", bound=Message)
R_co = TypeVar("R_co", covariant=True)

# gRPC's default limit, which a server keeps.
_MAX_REQUEST_BYTES = 4 << 20

# Into how many attempts a changing call divides its time, and the shortest one.
_ATTEMPTS = 3
_MIN_ATTEMPT_SECONDS = 1.0


@dataclass(frozen=True)
class ConnectionOptions:
    """How patient a connection is, and who it says it is.

    Attributes:
        timeout: seconds for a unary call with its retries; for a stream, seconds of retrying
            without getting further.
        stall_timeout: seconds in which something must move in a stream.
        worker: the name that the server counts pushes under, or ''.
        client_version: for the server's log.
        retry: the pauses between attempts.
        credentials: TLS and the token.
        transport: 'auto', 'tcp' or 'shm': whether values may, or must, be read in the memory of a
            server of this host.
    """

    timeout: float = 30.0
    stall_timeout: float = 60.0
    worker: str = ""
    client_version: str = ""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    credentials: Credentials = field(default_factory=Credentials)
    transport: str = "auto"


class Receiver(Protocol[R_co]):
    """Takes the messages of one answer."""

    def feed(self, message: Payload) -> None:
        """Takes the next message: bytes, or from an open stream a view of one's payload alone."""
        ...

    def finish(self) -> R_co:
        """Checks that nothing is missing, and gives what came."""
        ...


class Connection:
    """Sends calls to one server.

    Thread-safe. After a fork it starts over in the child, with an identity of its own.

    Args:
        target: 'host:port' or 'unix:PATH'.
        options: patience, and what is shown to the server.
        end_of_server: says why the server is gone for good, or None if that is not known; asked
            when it cannot be reached.
        check: raises where a server that answers the handshake is not the one that is meant.
        operations: of the session, where it has several connections.
        locate: gives the address of the server; asked when it cannot be reached. None: that of the
            target for ever.

    Attributes:
        local: the server's memory, where it is shared with this process.
    """

    def __init__(
        self,
        target: str,
        options: ConnectionOptions,
        *,
        end_of_server: Callable[[], str | None] = lambda: None,
        check: Callable[[session_service_pb2.HelloResponse], None] = lambda _answer: None,
        operations: ProcessOperations | None = None,
        locate: Callable[[], str] | None = None,
    ) -> None:
        self.target = target
        self.options = options
        self._grpc_target = grpc_target(target)
        self._credentials = options.credentials.over(target)
        self._end_of_server = end_of_server
        self._locate = locate
        self._check = check
        self._operations = operations or ProcessOperations()
        self._unusable = ""
        # Set when the session says its last words: what fails for them fails because it closes.
        self.closing = False
        self._begin()
        self.local = LocalAccess(
            options.transport,
            target,
            socket_name=self._local_socket,
            authorization=self._authorization,
            lost=self._greet_again,
        )
        forks.watch_forks(self)

    def _begin(self) -> None:
        self.operations = self._operations.get()
        self.attempts = Attempts()
        self._channel = RenewableChannel(self._grpc_target, self._credentials, self.attempts)
        self._greeted: session_service_pb2.HelloResponse | None = None

    def start_over_in_child(self, *, quiet: bool) -> None:
        """Forgets the parent's identity, operations and channel."""
        closed = self.attempts.closed
        self._begin()
        self.local.start_over_in_child()
        if closed:
            self.attempts.close()
        if not fork_support.ENABLED:
            self._unusable = (
                "this process was forked, and gRPC had been imported without fork support: "
                f"import paramd before grpc, or set {fork_support.VARIABLE}=1 in the environment"
            )
        elif not quiet:
            self._unusable = (
                "this process was forked while another thread was inside gRPC and could not be "
                "interrupted: connect before the thread starts its call, or fork earlier"
            )

    def close(self) -> None:
        """Ends every call with SessionClosedError. Closing twice is the same."""
        self.attempts.close()
        self.local.close()
        self._channel.close()

    def hello(self) -> session_service_pb2.HelloResponse:
        """What the server said in the handshake."""
        return self._run("Hello", self._greet, self.options.timeout)

    def greeted(self) -> session_service_pb2.HelloResponse:
        """What the server said when it was greeted last; greets it where that is still to come."""
        return self._greeted or self.hello()

    def _local_socket(self) -> str | None:
        return None if self._greeted is None else self._greeted.local_socket

    def _greet_again(self) -> None:
        self._greeted = None

    def _authorization(self) -> str:
        secrets = self._channel.secrets
        return f"Bearer {secrets.token}" if secrets is not None and secrets.token else ""

    def unary(
        self,
        method: str,
        request: Message,
        response_class: type[M],
        *,
        operation: Operation | None = None,
        timeout: float | None = None,
    ) -> M:
        """A call with one request and one answer.

        Args:
            method: the RPC.
            request: the request.
            response_class: of the answer.
            operation: of a changing call: goes into the request's field of that name, anew for
                each attempt.
            timeout: seconds, instead of the connection's own.
        """
        limit = self.options.timeout if timeout is None else timeout

        def send(attempt: Attempt, seconds: float) -> M:
            if operation is not None:
                request.operation.CopyFrom(operation.to_wire())  # type: ignore[attr-defined]
                # An answer that got lost without a word is asked for again, while there is time.
                seconds = min(seconds, max(limit / _ATTEMPTS, _MIN_ATTEMPT_SECONDS))
            return self._ask(method, request, response_class, attempt, seconds)

        return self._run(method, send, limit)

    def download(
        self,
        method: str,
        request: Message,
        receiver: Callable[[ExitStack], Receiver[T]],
    ) -> T:
        """A call with one request and a stream of answers, which a retry starts from the front.

        Args:
            method: the RPC.
            request: the request.
            receiver: makes what takes the answers, anew for each attempt; what it puts on the
                stack is left when the attempt ends.
        """
        data = self._encode(method, request)

        def send(attempt: Attempt, _seconds: float) -> T:
            call = self._method(method)(data)
            attempt.bind(call)
            return _receive(call, attempt, receiver)

        return self._run(method, send, self.options.timeout, self.options.stall_timeout)

    def upload(
        self, method: str, messages: Callable[[], Iterator[Payload]], response_class: type[M]
    ) -> M:
        """A call with a stream of requests, made anew for each attempt, and one answer."""

        def send(attempt: Attempt, _seconds: float) -> M:
            with Requests(messages(), attempt, self.attempts) as requests:
                call = self._method(method).future(requests)
                requests.bind(call)
                return parse_message(response_class, call.result())

        return self._run(method, send, self.options.timeout, self.options.stall_timeout)

    def exchange(
        self,
        method: str,
        messages: Callable[[], Iterator[Payload]],
        receiver: Callable[[ExitStack], Receiver[T]],
    ) -> T:
        """A call with streams both ways, which a retry starts from the front."""

        def send(attempt: Attempt, _seconds: float) -> T:
            with Requests(messages(), attempt, self.attempts) as requests:
                call = self._method(method)(requests)
                requests.bind(call)
                return _receive(call, attempt, receiver)

        return self._run(method, send, self.options.timeout, self.options.stall_timeout)

    def _run(
        self,
        method: str,
        send: Callable[[Attempt, float], T],
        limit: float,
        stall_limit: float | None = None,
    ) -> T:
        backoff = Backoff(self.options.retry, limit)
        while True:
            failure: ParamdError | None
            used = self._channel.secrets
            with self.attempts.begin(stall_limit) as attempt:
                if self._unusable:
                    raise ServerUnavailable(self._unusable)
                try:
                    if self._greeted is None and method != "Hello":
                        self._greet(attempt, backoff.remaining())
                    return send(attempt, backoff.remaining())
                except (grpc.RpcError, grpc.FutureCancelledError) as err:
                    failure = self._failure(err, attempt, method, limit)
                except ValueError:
                    # gRPC's words for a channel that close() has closed under the call.
                    if not self.attempts.closed:
                        raise
                    failure = self._closed_error()
            # Raised here, `from None`: gRPC's traceback names nothing that a user has written.
            if failure is None:
                continue
            if self._channel.renewed_after(failure, used, backoff.remaining()):
                continue
            if not is_retried(failure):
                raise failure from None
            self._greeted = None
            self._follow_server()
            backoff.got_to(attempt.moved)
            self._pause_after(failure, backoff, method, limit)

    def _follow_server(self) -> None:
        """Turns to where the server is now, if it has moved."""
        if self._locate is None:
            return
        target = self._locate()
        if target != self.target:
            moved, credentials = grpc_target(target), self.options.credentials.over(target)
            self._channel.move(moved)
            self.target, self._grpc_target, self._credentials = target, moved, credentials

    def _pause_after(
        self, failure: ParamdError, backoff: Backoff, method: str, limit: float
    ) -> None:
        gone = self._end_of_server()
        if gone is not None:
            raise ServerUnavailable(gone) from None
        pause = backoff.next_pause()
        if pause is None:
            if isinstance(failure, StalledError | DeadlineExceededError):
                raise failure from None
            raise ServerUnavailable(
                f"{self.target} could not serve {method} within {limit:g} s; the last failure: "
                f"{failure}"
            ) from None
        self.attempts.sleep(pause)

    def _failure(
        self,
        err: grpc.RpcError | grpc.FutureCancelledError,
        attempt: Attempt,
        method: str,
        limit: float,
    ) -> ParamdError | None:
        """What a failed attempt means; None where a fork interrupted it."""
        if attempt.failure is not None:
            raise attempt.failure from None
        if attempt.ended_by == "fork":
            return None
        if attempt.ended_by == "close":
            return self._closed_error()
        if attempt.ended_by == "cancel":
            raise CallCancelledError from None
        if attempt.ended_by == "deadline":
            return self._late(method, limit)
        if attempt.ended_by == "stall":
            return StalledError(
                f"{method} at {self.target}: nothing moved for {attempt.stall_limit:g} s "
                f"(stall_timeout), after {attempt.moved} bytes"
            )
        if isinstance(err, grpc.FutureCancelledError):
            # Cancelled on this side, and by none of the above: only the channel is left.
            return ServerUnavailable(f"{method} at {self.target}: the channel was closed")
        failure = error_of(err, method, self.target)
        if self.closing and isinstance(failure, LeaseEndedError):
            # The session has just left the workers, and takes no more calls.
            return self._closed_error()
        if isinstance(failure, DeadlineExceededError):
            return self._late(method, limit)
        return failure

    def _late(self, method: str, limit: float) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"{method}: no answer from {self.target} within {limit:g} s (timeout)"
        )

    def _closed_error(self) -> SessionClosedError:
        return SessionClosedError(f"the session with {self.target} was closed")

    def _method(self, name: str) -> Any:
        if self.attempts.closed:
            raise self._closed_error()
        return self.local.method(name, self._channel.method(name))

    def _encode(self, method: str, request: Message) -> bytes:
        data = request.SerializeToString()
        if len(data) > _MAX_REQUEST_BYTES:
            raise InvalidArgumentError(
                f"{method}: the request has {len(data)} bytes, of at most {_MAX_REQUEST_BYTES}; "
                "ask for fewer parameters at a time"
            )
        return data

    def _ask(
        self,
        method: str,
        request: Message,
        response_class: type[M],
        attempt: Attempt,
        seconds: float,
    ) -> M:
        # A future, because another thread can cancel it, unlike a blocking call.
        call = self._method(method).future(self._encode(method, request), timeout=seconds)
        attempt.bind(call)
        if isinstance(call, StreamCall):
            # Of its own it has no deadline, since the stream has none.
            self.attempts.limit(attempt, seconds)
        return parse_message(response_class, call.result())

    def _greet(self, attempt: Attempt, seconds: float) -> session_service_pb2.HelloResponse:
        request = session_service_pb2.HelloRequest(
            protocol=PROTOCOL,
            client_version=self.options.client_version,
            identity=self.operations.identity,
            worker=self.options.worker,
        )
        answer = self._ask("Hello", request, session_service_pb2.HelloResponse, attempt, seconds)
        self._channel.served = True
        self._check(answer)
        self._greeted = answer
        return answer


def _receive(
    call: Iterator[Payload], attempt: Attempt, make_receiver: Callable[[ExitStack], Receiver[T]]
) -> T:
    with ExitStack() as stack:
        receiver = make_receiver(stack)
        feed = receiver.feed
        for message in call:
            attempt.move(len(message))
            feed(message)
        return receiver.finish()
