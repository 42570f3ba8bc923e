"""The methods of servicers as functions on bytes, and gRPC's handlers for them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from paramd.errors import (
    InternalServerError,
    InvalidStreamError,
    MemoryLimitError,
    ParamdError,
    ServerUnavailable,
)
from paramd.wire.envelope import Payload, whole
from paramd.wire.parsing import parse_message
from paramd.wire.status import DETAIL_KEY, code_of, encode_error
from paramd_server.rpc.running_calls import RunningCalls
from paramd_server.rpc.streams import OpenStreams

__all__ = [
    "FLUSH",
    "Method",
    "ServiceMethods",
    "abort",
    "as_paramd_error",
    "service_handler",
    "status_text",
]

_log = logging.getLogger(__name__)

FLUSH: Final = bytes(bytearray(b"flush"))
"""Instead of an answer (by identity): those before it are to be sent now, since the call waits."""

# gRPC carries the status message in a header, so it stays short; the detail has the whole text.
_MAX_STATUS_CHARS: Final = 200


@dataclass(frozen=True)
class ServiceMethods:
    """A servicer and where its calls run.

    Attributes:
        descriptor: the service.
        servicer: has a method of the name of each RPC. A unary request comes decoded, a stream of
            requests as an iterator of `Payload`, in which a view is valid until the next message; a
            unary response is a message or bytes, a stream of responses such an iterator.
        pools: the threads for some RPCs, by name; the others use the server's.
        streams: where calls are watched.
        calls: counts them.
        serving: not set while calls are put off, because the cluster has not formed; None for
            calls that never are.
    """

    descriptor: ServiceDescriptor
    servicer: object
    pools: dict[str, futures.ThreadPoolExecutor]
    streams: OpenStreams
    calls: RunningCalls
    serving: threading.Event | None = None

    def methods(self) -> list[Method]:
        """Its RPCs.

        Raises:
            AttributeError: where the servicer lacks one.
        """
        return [Method(each, self) for each in self.descriptor.methods]


class Method:
    """One RPC of a servicer: messages as bytes in and out, however they travel.

    Args:
        descriptor: the RPC.
        methods: of its service.

    Attributes:
        name: of the RPC.
        path: what clients call it: '/paramd.v1.ParameterService/GetData'.
        client_streaming: whether its requests are a stream.
        server_streaming: whether its responses are one.
    """

    def __init__(self, descriptor: MethodDescriptor, methods: ServiceMethods) -> None:
        self.name: str = descriptor.name
        self.path = f"/{methods.descriptor.full_name}/{descriptor.name}"
        self.client_streaming: bool = descriptor.client_streaming
        self.server_streaming: bool = descriptor.server_streaming
        self._function: Callable[..., Any] = getattr(methods.servicer, descriptor.name)
        self._request_class = GetMessageClass(descriptor.input_type)
        self._streams = methods.streams
        self._serving = methods.serving

    def answers(
        self, requests: Iterator[Payload], context: grpc.ServicerContext
    ) -> Iterator[Payload]:
        """Carries out one call.

        Args:
            requests: its messages; of a unary request that one.
            context: of the call, or what stands for it: of it `invocation_metadata` and `cancel`
                are used.

        Raises:
            ServerUnavailable: where the server does not serve yet; clients wait for that.
            InvalidStreamError, InvalidMessageError: where a unary request is not one message.
            Whatever the servicer raises.
        """
        with self._streams.open(context) as stream:
            if self._serving is not None and not self._serving.is_set():
                raise ServerUnavailable("the shards of the cluster are not all there yet")
            coming = stream.received(requests)
            argument: Any = coming if self.client_streaming else self._single(coming)
            result = self._function(argument, context)
            if self.server_streaming:
                yield from stream.sent(result)
            else:
                yield result if isinstance(result, bytes) else result.SerializeToString()

    def _single(self, requests: Iterator[Payload]) -> Message:
        request = next(requests, None)
        if request is None or next(requests, None) is not None:
            raise InvalidStreamError(f"{self.name} takes one message, no more and no less")
        return parse_message(self._request_class, whole(request))


def service_handler(methods: ServiceMethods) -> grpc.GenericRpcHandler:
    """The handlers for gRPC of all methods of a service.

    Raises:
        AttributeError: where the servicer lacks one.
    """
    handlers = {}
    for method in methods.methods():
        behavior = (_streaming if method.server_streaming else _one_answer)(method, methods.calls)
        pool = methods.pools.get(method.name)
        if pool is not None:
            # The way by which grpcio lets a method run on threads of its own.
            behavior.experimental_thread_pool = pool  # type: ignore[attr-defined]
        handlers[method.name] = _HANDLERS[method.client_streaming, method.server_streaming](
            behavior
        )
    return grpc.method_handlers_generic_handler(methods.descriptor.full_name, handlers)


_HANDLERS: Final[dict[tuple[bool, bool], Callable[[Any], grpc.RpcMethodHandler[Any, Any]]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _one_answer(method: Method, calls: RunningCalls) -> Callable[..., Any]:
    """One response of bytes."""

    def handle(request: Any, context: grpc.ServicerContext) -> bytes:
        try:
            calls.begin_until_sent(context)
            (answer,) = method.answers(_requests(method, request), context)
            return whole(answer)
        except Exception as err:
            abort(context, err)

    return handle


def _streaming(method: Method, calls: RunningCalls) -> Callable[..., Any]:
    """A stream of responses of bytes."""

    def handle(request: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            calls.begin_until_sent(context)
            for answer in method.answers(_requests(method, request), context):
                # gRPC sends each at once.
                if answer is not FLUSH:
                    yield whole(answer)
        except Exception as err:
            abort(context, err)

    return handle


def _requests(method: Method, request: Any) -> Iterator[Payload]:
    messages: Iterable[Payload] = request if method.client_streaming else (request,)
    return iter(messages)


def abort(context: grpc.ServicerContext, err: Exception) -> NoReturn:
    """Ends a call of gRPC's with the status of an exception."""
    if isinstance(err, grpc.RpcError):
        # The client has gone, or was cut off: there is nobody to tell. gRPC keeps the exception
        # in a cycle, and with its traceback it would keep what has been staged.
        raise err.with_traceback(None)
    error = as_paramd_error(err)
    context.set_trailing_metadata(((DETAIL_KEY, encode_error(error)),))
    context.abort(code_of(error), status_text(error))


def status_text(error: ParamdError) -> str:
    """The text of an error beside its status, in ASCII."""
    return str(error).encode("ascii", "replace").decode()[:_MAX_STATUS_CHARS]


def as_paramd_error(err: Exception) -> ParamdError:
    """What a client is told of an exception. What it should not know is logged."""
    if isinstance(err, ParamdError):
        return err
    if isinstance(err, MemoryError):
        return MemoryLimitError("the system has no memory for it")
    _log.error("a call failed in a way that it should not", exc_info=err)
    return InternalServerError("the server failed; its log has the details")
