"""A channel to one server, and its methods as bytes in, bytes out."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Final

import grpc

from paramd.errors import (
    DeadlineExceededError,
    FileFailedError,
    FileFormatError,
    FileMissingError,
    ParamdError,
    PermissionDeniedError,
    ServerUnavailable,
    UnauthenticatedError,
)
from paramd.transport.attempts import Attempts
from paramd.transport.call_stream_pool import CallStreamPool
from paramd.transport.call_streams import StreamedMethod
from paramd.transport.credentials import Credentials, Secrets
from paramd.transport.handshake import Examiner
from paramd.v1 import (
    call_service_pb2,
    cluster_service_pb2,
    parameter_service_pb2,
    session_service_pb2,
    snapshot_service_pb2,
    training_service_pb2,
)
from paramd.wire.envelope import whole

__all__ = ["Channel", "RenewableChannel", "grpc_target"]

# Calls that go over open streams: those of training and serving, which are small or end soon. What
# waits for others, takes long by its nature or is made once goes by itself.
_STREAMED: Final = frozenset(
    (
        *("GetData", "GetGrad", "SetData", "SetGrad", "ZeroGrad", "PullRowSparse", "List"),
        *("Step", "Update", "HoldSteps", "SetLearningRate"),
    )
)

# sun_path of unix(7) has 108 bytes, one of them the final zero.
_MAX_SOCKET_PATH: Final = 107

_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
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
            f"target {target!r} names several servers where one is meant: give one 'host:port'"
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
        secrets: what secures it, and what it shows to the server; None for nothing.
        attempts: those of the connection, for streams that stay open; None: each call goes by
            itself.
    """

    def __init__(
        self, target: str, secrets: Secrets | None = None, attempts: Attempts | None = None
    ) -> None:
        secrets = secrets or Secrets()
        if secrets.tls:
            credentials = grpc.ssl_channel_credentials(secrets.ca, secrets.key, secrets.chain)
            options = _OPTIONS
            if secrets.server_name:
                options += (("grpc.ssl_target_name_override", secrets.server_name),)
            self._channel = grpc.secure_channel(target, credentials, options=options)
        else:
            self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self._metadata = (("authorization", f"Bearer {secrets.token}"),) if secrets.token else ()
        self._streams: CallStreamPool | None = None
        if attempts is not None:
            (streaming,) = call_service_pb2.DESCRIPTOR.services_by_name["CallService"].methods
            self._streams = CallStreamPool(self._bind(streaming), attempts)
            # A session that is dropped without having been closed leaves no streams behind.
            weakref.finalize(self, self._streams.close)
        self._methods: dict[str, _Method | StreamedMethod] = {}
        for module, service in (
            (parameter_service_pb2, "ParameterService"),
            (session_service_pb2, "SessionService"),
            (training_service_pb2, "TrainingService"),
            (snapshot_service_pb2, "SnapshotService"),
            (cluster_service_pb2, "ClusterService"),
        ):
            for method in module.DESCRIPTOR.services_by_name[service].methods:
                bound = self._bind(method)
                self._methods[method.name] = (
                    StreamedMethod(_path_of(method), bound, self._streams)
                    if self._streams is not None and method.name in _STREAMED
                    else bound
                )

    def _bind(self, method: Any) -> _Method:
        # No SingleThreadedUnaryStream (15% of a 4 KB pull): a call of that kind that was cancelled
        # is never drained, and then every later fork leaves a child that hangs (grpcio 1.85).
        if method.client_streaming:
            streams = method.server_streaming
            bind: Any = self._channel.stream_stream if streams else self._channel.stream_unary
        else:
            streams = method.server_streaming
            bind = self._channel.unary_stream if streams else self._channel.unary_unary
        return _Method(bind(_path_of(method)), self._metadata, uploads=method.client_streaming)

    def method(self, name: str) -> Any:
        """The multi-callable of an RPC, without serializers.

        Where the requests are a stream, a view among them is a payload; it is valid until the next
        one is asked for.
        """
        return self._methods[name]

    def ask(self, path: str, request: bytes, timeout: float) -> bytes:
        """One call of a method that is none of paramd's.

        Raises:
            grpc.RpcError: where it fails.
        """
        call: Any = self._channel.unary_unary(path)
        answer: bytes = call(request, timeout=timeout)
        return answer

    def retire(self) -> None:
        """Lets the calls end that are under way, and keeps no stream open for others."""
        if self._streams is not None:
            self._streams.close()

    def close(self) -> None:
        """Ends all calls and the connection."""
        self.retire()
        self._channel.close()


def _path_of(method: Any) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


class _Method:
    """A multi-callable of gRPC that sends metadata with each call, and payloads as messages."""

    def __init__(self, bound: Any, metadata: tuple[tuple[str, str], ...], *, uploads: bool) -> None:
        self._bound = bound
        self._metadata = metadata or None
        self._uploads = uploads

    def __call__(self, request: Any, timeout: float | None = None) -> Any:
        sent = map(whole, request) if self._uploads else request
        return self._bound(sent, timeout=timeout, metadata=self._metadata)

    def future(self, request: Any, timeout: float | None = None) -> Any:
        sent = map(whole, request) if self._uploads else request
        return self._bound.future(sent, timeout=timeout, metadata=self._metadata)


class RenewableChannel:
    """The channel to one server, with the certificates and the token that there are now.

    It is opened when first used. Where a call fails because of them, the files are read again, and
    if they have changed it is opened anew.

    Args:
        target: as `grpc_target` gives it.
        credentials: where the secrets are.
        attempts: as of `Channel`.

    Attributes:
        served: set when the server has answered: then it is not TLS that this side lacks.
    """

    def __init__(
        self, target: str, credentials: Credentials, attempts: Attempts | None = None
    ) -> None:
        self._target = target
        self._credentials = credentials
        self._attempts = attempts
        self._examiner = Examiner(target)
        self.served = False
        self._lock = threading.Lock()
        self._closed = False  # guarded by _lock
        self._channel: Channel | None = None  # guarded by _lock
        self._secrets: Secrets | None = None  # guarded by _lock; those of _channel
        self._retired: list[Channel] = []  # guarded by _lock; calls may be under way in them

    @property
    def secrets(self) -> Secrets | None:
        """What the channel was opened with; None before."""
        return self._secrets

    def method(self, name: str) -> Any:
        """The multi-callable of an RPC.

        Raises:
            ValueError: where it has been closed, as from gRPC.
            FileMissingError, FileFailedError, FileFormatError: where a secret cannot be read.
        """
        with self._lock:
            if self._closed:
                raise ValueError("the channel is closed")
            if self._channel is None:
                self._secrets = self._credentials.load()
                self._channel = Channel(self._target, self._secrets, self._attempts)
            return self._channel.method(name)

    def move(self, target: str) -> None:
        """Goes to another address from the next call on.

        Args:
            target: as `grpc_target` gives it.
        """
        with self._lock:
            if target == self._target:
                return
            self._target, self._examiner = target, Examiner(target)
            self.served = False
            if self._channel is not None:
                self._retire(self._channel)
            self._channel = None

    def renewed_after(self, failure: ParamdError, used: Secrets | None, seconds: float) -> bool:
        """Whether the secrets have been replaced since a call failed because of them.

        False also where it failed for another reason.

        Args:
            failure: of the call.
            used: `secrets` before the call.
            seconds: that looking for the reason may take.

        Raises:
            TLSError, UnauthenticatedError, PermissionDeniedError: where they have not.
        """
        trouble: ParamdError | None = None
        if isinstance(failure, UnauthenticatedError | PermissionDeniedError):
            trouble = failure
        elif isinstance(failure, ServerUnavailable | DeadlineExceededError) and (
            self._credentials.tls is not None or not self.served
        ):
            trouble = self._examiner.trouble(used or self._secrets or Secrets(), seconds)
        if trouble is None:
            return False
        if not self._renew(used):
            raise trouble from None
        return True

    def _renew(self, used: Secrets | None) -> bool:
        with self._lock:
            if self._closed or self._channel is None:
                return False
            if used is not None and used is not self._secrets:
                # Another thread was faster.
                return True
            try:
                secrets = self._credentials.load()
            except (FileMissingError, FileFailedError, FileFormatError):
                # The caller raises what these secrets were to mend.
                return False
            if secrets == self._secrets:
                return False
            self._retire(self._channel)
            self._secrets = secrets
            self._channel = Channel(self._target, secrets, self._attempts)
            return True

    def _retire(self, channel: Channel) -> None:
        channel.retire()
        self._retired.append(channel)

    def close(self) -> None:
        """Ends all calls and the connections. Closing twice is the same."""
        with self._lock:
            self._closed = True
            channels = self._retired
            if self._channel is not None:
                channels = [*channels, self._channel]
            self._retired, self._channel = [], None
        for channel in channels:
            channel.close()
