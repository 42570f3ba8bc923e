"""Calls of all services over streams that stay open, whatever carries the streams.

A carrier (gRPC's CallService here) gives a `CallLoop` the CallRequests that come, and sends the
CallResponses that it makes. The methods are those of gRPC, in a `CallDispatcher`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, closing
from typing import Any, Final, Protocol

import grpc

from paramd.errors import InvalidStreamError, ParamdError, ProtocolMismatchError
from paramd.v1 import call_service_pb2 as pb
from paramd.wire.calls import OK, READY, Opening, decode_request, encode_answer
from paramd.wire.envelope import Payload, encode_data, whole
from paramd.wire.status import code_of, encode_error
from paramd_server.rpc.authorization import Authorization
from paramd_server.rpc.methods import FLUSH, Method, abort, as_paramd_error, status_text
from paramd_server.rpc.running_calls import RunningCalls

__all__ = ["BlockOpener", "CallDispatcher", "CallLoop", "StreamContext", "call_stream_handler"]

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["CallService"]

# Answers up to this size come in one response with their status. Of a larger one the payload is
# copied once and not twice.
_ANSWER_BYTES: Final = 256 << 10

BlockOpener = Callable[[pb.RingBlock], AbstractContextManager[memoryview]]
"""Gives the bytes of a block; when the block of code ends, they have been used."""


class StreamContext(Protocol):
    """What a call needs to know of the stream that it comes over, as of grpc.ServicerContext."""

    def invocation_metadata(self) -> Any:
        """Pairs of keys and values that the client has opened the stream with."""
        ...

    def cancel(self) -> Any:
        """Ends the stream, because nothing moves in it."""
        ...


class CallDispatcher:
    """Carries out calls that are known by the paths of their methods.

    Args:
        methods: those that may be called.
        calls: counts the calls.
        authorization: of each call, as if it had come by itself; None for no tokens.
    """

    def __init__(
        self,
        methods: Iterable[Method],
        calls: RunningCalls,
        authorization: Authorization | None,
    ) -> None:
        self._methods = {method.path: method for method in methods}
        self._authorization = authorization
        self.calls = calls

    def run(
        self, path: str, requests: Iterator[Payload], context: StreamContext
    ) -> Generator[Payload, None, None]:
        """Carries out one call.

        Args:
            path: of the method: '/paramd.v1.ParameterService/GetData'.
            requests: its messages.
            context: of the stream.

        Returns:
            Its answers. A view among them is valid until the next one is asked for.

        Raises:
            UnauthenticatedError, PermissionDeniedError: where the caller may not call it.
            ProtocolMismatchError: where there is no such method, or none that is called so.
            ParamdError: whatever becomes of the call.
            grpc.RpcError: where the stream has ended.
        """
        servicer_context: Any = context
        try:
            if self._authorization is not None:
                self._authorization.check(path, context.invocation_metadata())
            method = self._methods.get(path)
            if method is None:
                raise ProtocolMismatchError(f"no stream of calls takes the method {path[:200]!r}")
            yield from method.answers(requests, servicer_context)
        except (ParamdError, grpc.RpcError):
            raise
        except Exception as err:
            raise as_paramd_error(err) from err


class CallLoop:
    """One stream: takes one call after the other.

    Args:
        dispatcher: carries them out.
        context: of the stream.
        block: opens blocks of a ring; None where no memory is shared.
    """

    def __init__(
        self,
        dispatcher: CallDispatcher,
        context: StreamContext,
        *,
        block: BlockOpener | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._context = context
        self._block = block

    def responses(self, requests: Iterator[bytes]) -> Iterator[bytes]:
        """The CallResponses to CallRequests, until those end.

        Raises:
            InvalidStreamError, InvalidMessageError: where what comes is no call. The stream cannot
                go on then. What is wrong with a call is told in its answer.
            grpc.RpcError: where the stream has ended.
        """
        yield READY
        calls = self._dispatcher.calls
        for request in requests:
            opening = decode_request(request)
            if not isinstance(opening, Opening):
                raise InvalidStreamError("a call begins with open, but something else came")
            messages = _Messages(opening, requests, self._block)
            try:
                calls.begin()
            except ParamdError as err:
                yield encode_answer((), _status_of(err))
            else:
                try:
                    yield from self._answers(opening.method, messages)
                finally:
                    calls.end()
            messages.skip()

    def _answers(self, method: str, messages: Iterator[Payload]) -> Iterator[bytes]:
        waiting: list[Payload] = []
        size = 0
        status = OK
        try:
            with closing(self._dispatcher.run(method, messages, self._context)) as run:
                for message in run:
                    if message is FLUSH:
                        yield encode_answer(waiting, None)
                        waiting, size = [], 0
                        continue
                    size += len(message)
                    if size <= _ANSWER_BYTES:
                        # It is valid for now only.
                        waiting.append(whole(message))
                        continue
                    if waiting or isinstance(message, bytes):
                        yield encode_answer((*waiting, message), None)
                    else:
                        yield encode_data(message)
                    waiting, size = [], 0
        except ParamdError as err:
            status = _status_of(err)
        yield encode_answer(waiting, status)


class _Messages:
    """The messages of one call, out of the parts of a stream.

    Args:
        opening: the first part.
        requests: the others, and those of the calls after it.
        block: opens blocks.
    """

    def __init__(
        self, opening: Opening, requests: Iterator[bytes], block: BlockOpener | None
    ) -> None:
        self._block = block
        self._messages = self._take(opening, requests)
        # Not the exception, which holds what the call has staged.
        self._broken = ""

    def __iter__(self) -> _Messages:
        return self

    def __next__(self) -> Payload:
        try:
            return next(self._messages)
        except ParamdError as err:
            self._broken = str(err)
            raise

    def skip(self) -> None:
        """Takes what the call has left, so that the next one can begin.

        Raises:
            InvalidStreamError: where it has ended in something else.
        """
        if self._broken:
            raise InvalidStreamError(self._broken)
        for _ in self:
            pass

    def _take(self, opening: Opening, requests: Iterator[bytes]) -> Iterator[Payload]:
        yield from opening.messages
        if opening.complete:
            return
        for request in requests:
            part = decode_request(request)
            if isinstance(part, bytes | memoryview):
                yield part
                continue
            kind = "open" if isinstance(part, Opening) else part.WhichOneof("part")
            if kind == "end":
                return
            if kind != "block" or self._block is None or isinstance(part, Opening):
                raise InvalidStreamError(f"a call goes on with its messages, but got {kind}")
            with self._block(part.block) as payload:
                yield payload
        raise InvalidStreamError("the stream ended within a call")


def _status_of(error: ParamdError) -> pb.CallStatus:
    number: int = code_of(error).value[0]
    return pb.CallStatus(code=number, details=status_text(error), error=encode_error(error))


def call_stream_handler(
    dispatcher: CallDispatcher, pool: futures.ThreadPoolExecutor
) -> grpc.GenericRpcHandler:
    """The handler of CallService for gRPC.

    Args:
        dispatcher: carries out the calls.
        pool: a thread for each open stream. One that gets none is not told that it is ready.
    """

    def handle(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            yield from CallLoop(dispatcher, context).responses(requests)
        except Exception as err:
            abort(context, err)

    handle.experimental_thread_pool = pool  # type: ignore[attr-defined]
    (method,) = _SERVICE.methods
    return grpc.method_handlers_generic_handler(
        _SERVICE.full_name, {method.name: grpc.stream_stream_rpc_method_handler(handle)}
    )
