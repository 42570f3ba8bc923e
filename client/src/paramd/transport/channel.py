"""A channel to one server, and its methods as bytes in, bytes out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import grpc

from paramd.v1 import parameter_service_pb2, session_service_pb2, training_service_pb2

__all__ = ["Channel", "grpc_target"]

# sun_path of unix(7) has 108 bytes, one of them the final zero.
_MAX_SOCKET_PATH: Final = 107

_OPTIONS: Final = (
    # We retry by ourselves: only we know what is safe to send again.
    ("grpc.enable_retries", 0),
    # Each session has connections of its own, so that a forked child never meets its parent's.
    ("grpc.use_local_subchannel_pool", 1),
    # A parameter server is not behind the proxy of the web.
    ("grpc.enable_http_proxy", 0),
    # A peer that vanished without a word is noticed while calls wait for it.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    # How often gRPC itself tries to connect, and how long one try may take: below our own pauses.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


def grpc_target(target: str) -> str:
    """The name under which gRPC knows a target.

    Args:
        target: 'host:port', '[IPv6]:port' or 'unix:PATH'.

    Raises:
        ValueError: for anything else, and for several servers.
    """
    if "," in target:
        raise ValueError(
            f"target {target!r} names several servers; one server is supported so far: give one "
            "'host:port'"
        )
    if target.startswith("unix:"):
        path = target.removeprefix("unix:")
        path = os.path.abspath("/" + path.lstrip("/") if path.startswith("//") else path)
        if path == os.path.abspath("") or len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            raise ValueError(
                f"target {target!r}: the path of a Unix socket has 1 to {_MAX_SOCKET_PATH} bytes"
            )
        return f"unix:{path}"
    host, colon, port = target.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(
            f"target {target!r}: expected 'host:port', '[IPv6]:port', 'unix:PATH' or 'local'"
        )
    if (":" in host and not bracketed) or any(char in host for char in "/@ "):
        raise ValueError(f"target {target!r}: write an IPv6 address in brackets: '[::1]:50051'")
    return target


class Channel:
    """One gRPC channel. It connects when first used, and again when the connection is lost.

    Args:
        target: as `grpc_target` gives it.
    """

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self._methods: dict[str, Callable[..., Any]] = {}
        for module, service in (
            (parameter_service_pb2, "ParameterService"),
            (session_service_pb2, "SessionService"),
            (training_service_pb2, "TrainingService"),
        ):
            for method in module.DESCRIPTOR.services_by_name[service].methods:
                self._methods[method.name] = self._bind(method)

    def _bind(self, method: Any) -> Callable[..., Any]:
        path = f"/{method.containing_service.full_name}/{method.name}"
        # No SingleThreadedUnaryStream (15% of a 4 KB pull): a call of that kind that was cancelled
        # is never drained, and then every later fork leaves a child that hangs (grpcio 1.85).
        if method.client_streaming:
            streams = method.server_streaming
            bind: Any = self._channel.stream_stream if streams else self._channel.stream_unary
        else:
            streams = method.server_streaming
            bind = self._channel.unary_stream if streams else self._channel.unary_unary
        bound: Callable[..., Any] = bind(path)
        return bound

    def method(self, name: str) -> Any:
        """The multi-callable of an RPC, without serializers."""
        return self._methods[name]

    def close(self) -> None:
        """Ends all calls and the connection."""
        self._channel.close()
