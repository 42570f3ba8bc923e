"""The one table of errors, both ways: exception class, stable reason, gRPC status code."""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf.message import DecodeError

from paramd import errors
from paramd.errors import ParamdError
from paramd.v1 import error_pb2

__all__ = ["DETAIL_KEY", "MAX_DETAIL_BYTES", "code_of", "decode_error", "encode_error"]

DETAIL_KEY: Final = "paramd-error-bin"
MAX_DETAIL_BYTES: Final = 2048

_Code = grpc.StatusCode

_CODES: Final[dict[type[ParamdError], grpc.StatusCode]] = {
    errors.DeferredInitializationError: _Code.FAILED_PRECONDITION,
    errors.NotInitializedError: _Code.FAILED_PRECONDITION,
    errors.UninitializedValueError: _Code.FAILED_PRECONDITION,
    errors.UninitializedContextError: _Code.FAILED_PRECONDITION,
    errors.ParameterNotFoundError: _Code.NOT_FOUND,
    errors.AttributeMismatchError: _Code.FAILED_PRECONDITION,
    errors.ShapeMismatchError: _Code.INVALID_ARGUMENT,
    errors.BroadcastError: _Code.INVALID_ARGUMENT,
    errors.DTypeMismatchError: _Code.INVALID_ARGUMENT,
    errors.UnknownShapeError: _Code.FAILED_PRECONDITION,
    errors.InitializerError: _Code.INVALID_ARGUMENT,
    errors.ContextNotAvailableError: _Code.INVALID_ARGUMENT,
    errors.ContextWithoutCopyError: _Code.FAILED_PRECONDITION,
    errors.ContextMismatchError: _Code.FAILED_PRECONDITION,
    errors.NoGradientError: _Code.FAILED_PRECONDITION,
    errors.WrongStorageTypeError: _Code.FAILED_PRECONDITION,
    errors.RowIdError: _Code.OUT_OF_RANGE,
    errors.InvalidRegionError: _Code.OUT_OF_RANGE,
    errors.InvalidNameError: _Code.INVALID_ARGUMENT,
    errors.InvalidArgumentError: _Code.INVALID_ARGUMENT,
    errors.InvalidMessageError: _Code.INVALID_ARGUMENT,
    errors.InvalidStreamError: _Code.INVALID_ARGUMENT,
    errors.MemoryLimitError: _Code.RESOURCE_EXHAUSTED,
    errors.ParameterMissingError: _Code.FAILED_PRECONDITION,
    errors.ParameterUnexpectedError: _Code.FAILED_PRECONDITION,
    errors.FileFormatError: _Code.DATA_LOSS,
    errors.FileFailedError: _Code.FAILED_PRECONDITION,
    errors.FileMissingError: _Code.NOT_FOUND,
    errors.PathNotAllowedError: _Code.PERMISSION_DENIED,
    errors.ClaimLostError: _Code.ABORTED,
    errors.BarrierMismatchError: _Code.FAILED_PRECONDITION,
    errors.OperationExpiredError: _Code.FAILED_PRECONDITION,
    errors.TrainerNotFoundError: _Code.NOT_FOUND,
    errors.TrainerMismatchError: _Code.FAILED_PRECONDITION,
    errors.StatesMismatchError: _Code.INVALID_ARGUMENT,
    errors.ScheduledLearningRateError: _Code.FAILED_PRECONDITION,
    errors.StaleGradientError: _Code.FAILED_PRECONDITION,
    errors.NonFiniteGradientError: _Code.INVALID_ARGUMENT,
    errors.WorkerNotJoinedError: _Code.FAILED_PRECONDITION,
    errors.LeaseEndedError: _Code.FAILED_PRECONDITION,
    errors.WorkerLostError: _Code.ABORTED,
    errors.ClockMismatchError: _Code.FAILED_PRECONDITION,
    errors.RolledBackError: _Code.FAILED_PRECONDITION,
    errors.ClusterMismatchError: _Code.FAILED_PRECONDITION,
    errors.SnapshotFailedError: _Code.FAILED_PRECONDITION,
    errors.UnauthenticatedError: _Code.UNAUTHENTICATED,
    errors.PermissionDeniedError: _Code.PERMISSION_DENIED,
    errors.ProtocolMismatchError: _Code.FAILED_PRECONDITION,
    errors.InternalServerError: _Code.INTERNAL,
    errors.ServerUnavailable: _Code.UNAVAILABLE,
    errors.StalledError: _Code.ABORTED,
    errors.DeadlineExceededError: _Code.DEADLINE_EXCEEDED,
}

_CLASSES: Final = {cls.reason: cls for cls in _CODES}

# What a status code without a detail (from gRPC itself, or a proxy between) means.
_BY_CODE: Final[dict[grpc.StatusCode, type[ParamdError]]] = {
    _Code.UNAVAILABLE: errors.ServerUnavailable,
    _Code.CANCELLED: errors.ServerUnavailable,
    _Code.DEADLINE_EXCEEDED: errors.DeadlineExceededError,
    _Code.RESOURCE_EXHAUSTED: errors.MemoryLimitError,
    _Code.INVALID_ARGUMENT: errors.InvalidMessageError,
    _Code.UNIMPLEMENTED: errors.ProtocolMismatchError,
    _Code.UNAUTHENTICATED: errors.UnauthenticatedError,
    _Code.PERMISSION_DENIED: errors.PermissionDeniedError,
}


def code_of(error: ParamdError) -> grpc.StatusCode:
    """The gRPC status code that an error travels under."""
    for cls in type(error).__mro__:
        code = _CODES.get(cls)
        if code is not None:
            return code
    return grpc.StatusCode.INTERNAL


def _clip(text: str, size: int) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= size:
        return text
    return data[: size - 3].decode("utf-8", "ignore") + "..."


def encode_error(error: ParamdError) -> bytes:
    """The serialized ErrorDetail of an error, at most 2 KiB.

    Args:
        error: of a class that has a reason.
    """
    detail = error_pb2.ErrorDetail(
        reason=error.reason or errors.InternalServerError.reason,
        message=_clip(str(error), 1400),
        parameter=_clip(error.parameter, 500),
    )
    return detail.SerializeToString()


def decode_error(code: grpc.StatusCode, detail: bytes | None, text: str) -> ParamdError:
    """The exception that a failed call stands for.

    Args:
        code: gRPC status code.
        detail: serialized ErrorDetail from the trailing metadata, if there was one.
        text: gRPC's own description, used only where there is no detail.
    """
    if detail is not None:
        try:
            parsed = error_pb2.ErrorDetail.FromString(detail)
        except DecodeError:
            # From something else than our server; the status code is all there is.
            return decode_error(code, None, f"{text} (with details that cannot be read)")
        cls = _CLASSES.get(parsed.reason)
        if cls is not None:
            return cls(parsed.message, parameter=parsed.parameter)
        text = parsed.message
    return _BY_CODE.get(code, errors.InternalServerError)(text or code.name)
