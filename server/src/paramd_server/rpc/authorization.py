"""Which right each RPC takes, and the check, before anything of a call's messages is read.

This is the one table. A method that is not in it takes the right `admin`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent import futures
from types import MappingProxyType
from typing import Any, Final

import grpc

from paramd.errors import ParamdError, PermissionDeniedError, UnauthenticatedError
from paramd.wire.status import DETAIL_KEY, code_of, encode_error
from paramd_server.security import Right, Token, Tokens

__all__ = ["OPEN", "RIGHTS", "SERVER_FILES", "Authorization"]

_log = logging.getLogger(__name__)

_READ, _TRAIN, _ADMIN = Right.READ, Right.TRAIN, Right.ADMIN

RIGHTS: Final = MappingProxyType(
    {
        "/paramd.v1.ParameterService/Declare": _TRAIN,
        "/paramd.v1.ParameterService/List": _READ,
        "/paramd.v1.ParameterService/Delete": _ADMIN,
        "/paramd.v1.ParameterService/Initialize": _TRAIN,
        "/paramd.v1.ParameterService/GetData": _READ,
        "/paramd.v1.ParameterService/SetData": _TRAIN,
        "/paramd.v1.ParameterService/GetGrad": _READ,
        "/paramd.v1.ParameterService/SetGrad": _TRAIN,
        "/paramd.v1.ParameterService/ZeroGrad": _TRAIN,
        "/paramd.v1.ParameterService/ResetCtx": _TRAIN,
        "/paramd.v1.ParameterService/Cast": _TRAIN,
        "/paramd.v1.ParameterService/SetAttributes": _TRAIN,
        "/paramd.v1.ParameterService/PullRowSparse": _READ,
        # With a file on the server's side these two take SERVER_FILES.
        "/paramd.v1.ParameterService/Save": _READ,
        "/paramd.v1.ParameterService/Load": _TRAIN,
        "/paramd.v1.SessionService/Hello": _READ,
        "/paramd.v1.SessionService/GetStatus": _READ,
        "/paramd.v1.SessionService/Once": _TRAIN,
        "/paramd.v1.SessionService/Join": _TRAIN,
        "/paramd.v1.SessionService/Heartbeat": _TRAIN,
        "/paramd.v1.SessionService/Leave": _TRAIN,
        "/paramd.v1.SessionService/Barrier": _TRAIN,
        "/paramd.v1.TrainingService/DeclareTrainer": _TRAIN,
        "/paramd.v1.TrainingService/ListTrainers": _READ,
        "/paramd.v1.TrainingService/DeleteTrainer": _ADMIN,
        "/paramd.v1.TrainingService/JoinTrainer": _TRAIN,
        "/paramd.v1.TrainingService/LeaveTrainer": _TRAIN,
        "/paramd.v1.TrainingService/SetLearningRate": _TRAIN,
        "/paramd.v1.TrainingService/Step": _TRAIN,
        "/paramd.v1.TrainingService/AwaitStep": _TRAIN,
        "/paramd.v1.TrainingService/HoldSteps": _READ,
        "/paramd.v1.TrainingService/Update": _TRAIN,
        "/paramd.v1.TrainingService/AllreduceGrads": _TRAIN,
        "/paramd.v1.TrainingService/SaveStates": _READ,
        "/paramd.v1.TrainingService/LoadStates": _TRAIN,
        "/paramd.v1.ClusterService/RegisterShard": _ADMIN,
        "/paramd.v1.ClusterService/Follow": _ADMIN,
        "/paramd.v1.ClusterService/LeaveCluster": _ADMIN,
        "/paramd.v1.ClusterService/ReportPart": _ADMIN,
        "/paramd.v1.SnapshotService/SaveSnapshot": _ADMIN,
        "/paramd.v1.SnapshotService/AwaitSnapshot": _READ,
        "/paramd.v1.SnapshotService/ListSnapshots": _READ,
        # Each call on the stream takes its own right beside that.
        "/paramd.v1.CallService/StreamCalls": _READ,
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _READ,
    }
)
"""The right of each RPC, by its path."""

OPEN: Final = frozenset(("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"))
"""What probes may call without a token: it tells whether the server serves, and nothing else."""

SERVER_FILES: Final = Right.ADMIN
"""What Save and Load take where they name a file on the server's side."""

_KEY: Final = "authorization"
_SCHEME: Final = "bearer"
_LOG_EVERY_S: Final = 10.0

Metadata = Iterable[tuple[str, str | bytes]]


class Authorization(grpc.ServerInterceptor):
    """Lets a call through where its token has the right that the method takes.

    A call costs one digest and a comparison with each known token; a stream is checked once, when
    it is opened. Calls that come over a stream that stays open are checked one by one.

    Args:
        tokens: gives the tokens as they are now.
        refusing: the threads that answer calls that are refused, so that they use up no others.
    """

    def __init__(self, tokens: Callable[[], Tokens], refusing: futures.ThreadPoolExecutor) -> None:
        self._tokens = tokens
        self._refusing = refusing
        self._refusals = _RefusalLog()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The method's own handler, or one that refuses."""
        method: str = handler_call_details.method
        if method in OPEN:
            return continuation(handler_call_details)
        try:
            self.check(method, handler_call_details.invocation_metadata)
        except (UnauthenticatedError, PermissionDeniedError) as err:
            return self._handler(err)
        return continuation(handler_call_details)

    def check(self, method: str, metadata: Metadata | None) -> None:
        """Checks that a caller has the right that a method takes, and logs where not.

        Args:
            method: its path.
            metadata: of the call, or of the stream on which it comes.

        Raises:
            UnauthenticatedError, PermissionDeniedError: where not.
        """
        try:
            self._check(method, metadata, None)
        except (UnauthenticatedError, PermissionDeniedError) as err:
            self._refusals.note(method, err)
            raise

    def require_server_files(self, context: grpc.ServicerContext) -> None:
        """Checks that the caller may name files on the server's side.

        Raises:
            UnauthenticatedError, PermissionDeniedError: where not.
        """
        self._check("files of the server", context.invocation_metadata(), SERVER_FILES)

    def _check(self, what: str, metadata: Metadata | None, right: Right | None) -> None:
        token = self._caller(metadata or ())
        needed = RIGHTS.get(what, _ADMIN) if right is None else right
        if token.right < needed:
            raise PermissionDeniedError(
                f"{what.rpartition('/')[2]} takes the right {needed.word!r}, and the token "
                f"{token.name!r} has {token.right.word!r}"
            )

    def _caller(self, metadata: Metadata) -> Token:
        values = [value for key, value in metadata if key == _KEY]
        if not values:
            raise UnauthenticatedError(
                "this server asks for a token: give token=, or set PARAMD_TOKEN or "
                "PARAMD_TOKEN_FILE"
            )
        scheme, _, shown = values[0].partition(" ") if isinstance(values[0], str) else ("", "", "")
        if len(values) > 1 or scheme.lower() != _SCHEME or not shown.strip():
            raise UnauthenticatedError(
                "the call's metadata 'authorization' is not one 'Bearer TOKEN'"
            )
        token = self._tokens().find(shown.strip())
        if token is None:
            raise UnauthenticatedError("the server does not know this token")
        return token

    def _handler(self, error: ParamdError) -> grpc.RpcMethodHandler[Any, Any]:
        def refuse(_messages: object, context: grpc.ServicerContext) -> None:
            context.set_trailing_metadata(((DETAIL_KEY, encode_error(error)),))
            context.abort(code_of(error), str(error))

        refuse.experimental_thread_pool = self._refusing  # type: ignore[attr-defined]
        # Of this kind whatever the method is: with a single request gRPC would read it first.
        return grpc.stream_stream_rpc_method_handler(refuse)


class _RefusalLog:
    """Logs refusals, but not as fast as somebody can cause them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._silent_until = 0.0  # guarded by _lock
        self._num_silent = 0  # guarded by _lock

    def note(self, method: str, error: ParamdError) -> None:
        """Logs one, with the number of those since the one before."""
        with self._lock:
            if time.monotonic() < self._silent_until:
                self._num_silent += 1
                return
            self._silent_until = time.monotonic() + _LOG_EVERY_S
            others, self._num_silent = self._num_silent, 0
        since = f" ({others} more since the last such line)" if others else ""
        _log.warning("refused %.200s: %s%s", method, error, since)
