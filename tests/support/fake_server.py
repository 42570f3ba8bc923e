"""A gRPC server whose every answer a test decides, to inject faults into the client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc

from paramd.errors import ParamdError
from paramd.v1 import call_service_pb2, parameter_service_pb2, session_service_pb2
from paramd.wire.protocol import PROTOCOL
from paramd.wire.status import DETAIL_KEY, code_of, encode_error

Behaviour = Callable[[Any, grpc.ServicerContext], Any]


def fail(context: grpc.ServicerContext, code: grpc.StatusCode, detail: bytes | None = None) -> None:
    """Ends a call with a status, and with these bytes where the error detail belongs."""
    if detail is not None:
        context.set_trailing_metadata(((DETAIL_KEY, detail),))
    context.abort(code, "injected")


def fail_with(context: grpc.ServicerContext, error: ParamdError) -> None:
    """Ends a call as the real server does."""
    fail(context, code_of(error), encode_error(error))


def _no_streams(_requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
    """Each call comes by itself, unless a test says otherwise."""
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "no streams")


class FakeServer:
    """Serves the methods that a test gives it: bytes in, bytes out.

    Attributes:
        target: where it listens.
        hellos: the identities of the handshakes so far.
    """

    def __init__(self) -> None:
        self._behaviours: dict[str, Behaviour] = {
            "Hello": self._hello,
            "StreamCalls": _no_streams,
        }
        self.hellos: list[bytes] = []
        self.ended = threading.Event()
        self._server = grpc.server(futures.ThreadPoolExecutor(16))
        for module, service in (
            (parameter_service_pb2, "ParameterService"),
            (session_service_pb2, "SessionService"),
            (call_service_pb2, "CallService"),
        ):
            descriptor = module.DESCRIPTOR.services_by_name[service]
            handlers = {method.name: self._handler(method) for method in descriptor.methods}
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(descriptor.full_name, handlers),)
            )
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def on(self, method: str, behaviour: Behaviour) -> None:
        """Decides what a method does: `behaviour(request or requests, context)`."""
        self._behaviours[method] = behaviour

    def stop(self) -> None:
        self.ended.set()
        self._server.stop(None).wait(5)

    def _hello(self, request: bytes, _context: grpc.ServicerContext) -> bytes:
        self.hellos.append(session_service_pb2.HelloRequest.FromString(request).identity)
        return session_service_pb2.HelloResponse(protocol=PROTOCOL).SerializeToString()

    def _handler(self, method: Any) -> grpc.RpcMethodHandler[Any, Any]:
        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            return self._behaviours[method.name](request, context)

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            yield from self._behaviours[method.name](request, context)

        make: Any = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.client_streaming, method.server_streaming]
        handler: grpc.RpcMethodHandler[Any, Any] = make(
            stream if method.server_streaming else unary
        )
        return handler
