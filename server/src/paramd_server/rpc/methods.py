"""Servicers to gRPC: handlers that take and give bytes, and turn exceptions into statuses."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from paramd.errors import (
    InternalServerError,
    InvalidMessageError,
    MemoryLimitError,
    ParamdError,
    ServerUnavailable,
)
from paramd.wire.status import DETAIL_KEY, code_of, encode_error
from paramd_server.rpc.streams import OpenStreams

__all__ = ["ServiceMethods", "service_handler"]

_log = logging.getLogger(__name__)

# gRPC carries the status message in a header, so it stays short; the detail has the whole text.
_MAX_STATUS_CHARS: Final = 200


@dataclass(frozen=True)
class ServiceMethods:
    """A servicer and where its calls run.

    Attributes:
        descriptor: the service.
        servicer: has a method of the name of each RPC. A unary request comes decoded, a stream of
            requests as an iterator of bytes; a unary response is a message or bytes, a stream of
            responses an iterator of bytes.
        pools: the threads for some RPCs, by name; the others use the server's.
        streams: where streaming calls are watched.
        serving: not set while calls are put off, because the cluster has not formed; None for
            calls that never are.
    """

    descriptor: ServiceDescriptor
    servicer: object
    pools: dict[str, futures.ThreadPoolExecutor]
    streams: OpenStreams
    serving: threading.Event | None = None


def service_handler(methods: ServiceMethods) -> grpc.GenericRpcHandler:
    """The handlers of all methods of a service.

    Raises:
        AttributeError: where the servicer lacks one.
    """
    handlers = {}
    for method in methods.descriptor.methods:
        behavior = _behavior(method, methods)
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


def _behavior(method: MethodDescriptor, methods: ServiceMethods) -> Callable[..., Any]:
    function = _gated(getattr(methods.servicer, method.name), methods.serving)
    request_class = None if method.client_streaming else GetMessageClass(method.input_type)
    if method.server_streaming:
        return _streaming(function, request_class, methods.streams)
    if method.client_streaming:
        return _collecting(function, methods.streams)
    return _unary(function, request_class)


def _gated(function: Callable[..., Any], serving: threading.Event | None) -> Callable[..., Any]:
    """Puts calls off with UNAVAILABLE, which clients wait for, until the server may serve."""
    if serving is None:
        return function

    def call(argument: Any, context: grpc.ServicerContext) -> Any:
        if not serving.is_set():
            raise ServerUnavailable("the shards of the cluster are not all there yet")
        return function(argument, context)

    return call


def _unary(function: Callable[..., Any], request_class: Any) -> Callable[..., Any]:
    """Bytes to bytes."""

    def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return _encode(function(_decode(request_class, request), context))
        except Exception as err:
            _abort(context, err)

    return handle


def _collecting(function: Callable[..., Any], streams: OpenStreams) -> Callable[..., Any]:
    """A stream of bytes to bytes."""

    def handle(messages: Iterable[bytes], context: grpc.ServicerContext) -> bytes:
        with streams.open(context) as stream:
            try:
                return _encode(function(stream.received(messages), context))
            except Exception as err:
                _abort(context, err)

    return handle


def _streaming(
    function: Callable[..., Any], request_class: Any, streams: OpenStreams
) -> Callable[..., Any]:
    """Bytes, or without a class a stream of them, to a stream of bytes."""

    def handle(request: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        with streams.open(context) as stream:
            try:
                if request_class is None:
                    argument: Any = stream.received(request)
                else:
                    argument = _decode(request_class, request)
                yield from stream.sent(function(argument, context))
            except Exception as err:
                _abort(context, err)

    return handle


def _decode(request_class: Any, request: bytes) -> Message:
    try:
        message: Message = request_class.FromString(request)
    except DecodeError as err:
        raise InvalidMessageError(
            f"{len(request)} bytes are no {request_class.DESCRIPTOR.name} message"
        ) from err
    return message


def _encode(result: Message | bytes) -> bytes:
    return result if isinstance(result, bytes) else result.SerializeToString()


def _abort(context: grpc.ServicerContext, err: Exception) -> NoReturn:
    if isinstance(err, grpc.RpcError):
        # The client has gone, or was cut off: there is nobody to tell. gRPC keeps the exception
        # in a cycle, and with its traceback it would keep what has been staged.
        raise err.with_traceback(None)
    error = _as_paramd_error(err)
    context.set_trailing_metadata(((DETAIL_KEY, encode_error(error)),))
    text = str(error).encode("ascii", "replace").decode()[:_MAX_STATUS_CHARS]
    context.abort(code_of(error), text)


def _as_paramd_error(err: Exception) -> ParamdError:
    if isinstance(err, ParamdError):
        return err
    if isinstance(err, MemoryError):
        return MemoryLimitError("the system has no memory for it")
    _log.error("a call failed in a way that it should not", exc_info=err)
    return InternalServerError("the server failed; its log has the details")
