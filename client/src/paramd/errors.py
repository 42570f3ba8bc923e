"""Exceptions of paramd, on both sides of the wire.

Each class that can cross the wire has a `reason`, the stable name under which it travels (see
`paramd.wire.status`), and derives from the built-in class that MXNet raises in the same place, so
that code written for MXNet catches it unchanged.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AttributeMismatchError",
    "BarrierMismatchError",
    "BarrierTimeoutError",
    "BroadcastError",
    "ClaimLostError",
    "ClockMismatchError",
    "ClusterMismatchError",
    "ContextMismatchError",
    "ContextNotAvailableError",
    "ContextWithoutCopyError",
    "DTypeMismatchError",
    "DeadlineExceededError",
    "DeferredInitializationError",
    "FileFailedError",
    "FileFormatError",
    "FileMissingError",
    "InitializerError",
    "InternalServerError",
    "InvalidArgumentError",
    "InvalidMessageError",
    "InvalidNameError",
    "InvalidRegionError",
    "InvalidStreamError",
    "LeaseEndedError",
    "MXNetError",
    "MemoryLimitError",
    "NoGradientError",
    "NoSessionError",
    "NonFiniteGradientError",
    "NotInitializedError",
    "OperationExpiredError",
    "ParamdError",
    "ParameterMissingError",
    "ParameterNotFoundError",
    "ParameterUnexpectedError",
    "PathNotAllowedError",
    "PermissionDeniedError",
    "ProtocolMismatchError",
    "RolledBackError",
    "RowIdError",
    "ScheduledLearningRateError",
    "ServerUnavailable",
    "TransportUnavailableError",
    "SessionClosedError",
    "ShapeMismatchError",
    "SnapshotFailedError",
    "StaleGradientError",
    "StalledError",
    "StatesMismatchError",
    "TLSError",
    "TornReadError",
    "TrainerMismatchError",
    "TrainerNotFoundError",
    "UnauthenticatedError",
    "UninitializedContextError",
    "UninitializedValueError",
    "UnknownShapeError",
    "WorkerLostError",
    "WorkerNotJoinedError",
    "WrongStorageTypeError",
]


class ParamdError(Exception):
    """Base of every exception that paramd raises on purpose.

    Attributes:
        parameter: name of the parameter that it is about, or ''.
    """

    reason: ClassVar[str] = ""

    def __init__(self, message: str = "", *, parameter: str = "") -> None:
        super().__init__(message)
        self.parameter = parameter

    def __str__(self) -> str:
        # KeyError would show the repr of its argument.
        return str(self.args[0]) if self.args else ""


class MXNetError(RuntimeError):
    """The name that MXNet gives to errors of its engine; base of those that mirror them."""


class DeferredInitializationError(ParamdError, MXNetError):
    """The parameter was initialized, but its shape or its value is not known yet."""

    reason = "DEFERRED"


class NotInitializedError(ParamdError, RuntimeError):
    """The parameter has never been initialized."""

    reason = "NOT_INITIALIZED"


class UninitializedValueError(ParamdError, AssertionError):
    """A value was set on a parameter that was never initialized."""

    reason = "UNINITIALIZED_VALUE"


class UninitializedContextError(ParamdError, ValueError):
    """A parameter that was never initialized has no contexts to move."""

    reason = "UNINITIALIZED_CONTEXT"


class ParameterNotFoundError(ParamdError, KeyError):
    """The server holds no parameter of that name: never declared, or deleted."""

    reason = "PARAMETER_NOT_FOUND"


class AttributeMismatchError(ParamdError, AssertionError):
    """A parameter of that name exists, declared with another attribute value."""

    reason = "ATTRIBUTE_MISMATCH"


class ShapeMismatchError(ParamdError, AssertionError):
    """A shape that does not fit the parameter's."""

    reason = "SHAPE_MISMATCH"


class BroadcastError(ParamdError, MXNetError, ValueError):
    """A value that does not broadcast to the part of the array that it is written to."""

    reason = "BROADCAST"


class DTypeMismatchError(ParamdError, AssertionError):
    """A dtype that is not the parameter's."""

    reason = "DTYPE_MISMATCH"


class UnknownShapeError(ParamdError, ValueError):
    """A parameter cannot be initialized because its shape is not known."""

    reason = "UNKNOWN_SHAPE"


class InitializerError(ParamdError, MXNetError, ValueError):
    """An initializer that does not exist, or that cannot fill this parameter."""

    reason = "INITIALIZER_FAILED"


class ContextNotAvailableError(ParamdError, MXNetError, ValueError):
    """The server has no such context."""

    reason = "CONTEXT_NOT_AVAILABLE"


class ContextWithoutCopyError(ParamdError, RuntimeError):
    """The parameter has no copy on that context."""

    reason = "CONTEXT_WITHOUT_COPY"


class ContextMismatchError(ParamdError, AssertionError):
    """Loading asked for other contexts than those that the parameter is on."""

    reason = "CONTEXT_MISMATCH"


class NoGradientError(ParamdError, RuntimeError):
    """The parameter has no gradient buffer, since its grad_req is 'null'."""

    reason = "NO_GRADIENT"


class WrongStorageTypeError(ParamdError, RuntimeError):
    """The call is for parameters of another storage type."""

    reason = "WRONG_STORAGE_TYPE"


class RowIdError(ParamdError, IndexError):
    """Row ids that are out of range, or no whole numbers."""

    reason = "ROW_ID_OUT_OF_RANGE"


class InvalidRegionError(ParamdError, IndexError):
    """A part of an array that the array does not have."""

    reason = "INVALID_REGION"


class InvalidNameError(ParamdError, ValueError):
    """A name that no parameter, claim or barrier can have."""

    reason = "INVALID_NAME"


class InvalidArgumentError(ParamdError, ValueError):
    """An argument that the server refuses."""

    reason = "INVALID_ARGUMENT"


class InvalidMessageError(ParamdError, ValueError):
    """Bytes that are no message of the protocol."""

    reason = "INVALID_MESSAGE"


class InvalidStreamError(ParamdError, ValueError):
    """Messages of a stream that come in the wrong order, number or size."""

    reason = "INVALID_STREAM"


class MemoryLimitError(ParamdError, MemoryError):
    """The server's memory limit leaves no room for it."""

    reason = "MEMORY_LIMIT"


class ParameterMissingError(ParamdError, AssertionError):
    """A file does not hold a parameter that is to be loaded from it."""

    reason = "PARAMETER_MISSING"


class ParameterUnexpectedError(ParamdError, AssertionError):
    """A file holds a parameter that is not among those to be loaded."""

    reason = "PARAMETER_UNEXPECTED"


class FileFormatError(ParamdError, ValueError):
    """A file that is not what its format demands. The message names the file and the place."""

    reason = "FILE_FORMAT"


class FileFailedError(ParamdError, MXNetError, OSError):
    """A file could not be read or written."""

    reason = "FILE_FAILED"


class FileMissingError(FileFailedError, FileNotFoundError):
    """A file, or the folder that it is to be in, does not exist."""

    reason = "FILE_MISSING"


class PathNotAllowedError(ParamdError, ValueError):
    """A path on the server's side that is not below its snapshot directory."""

    reason = "PATH_NOT_ALLOWED"


class ClaimLostError(ParamdError, RuntimeError):
    """The lease on a `session.once` claim ended before the work was done."""

    reason = "CLAIM_LOST"


class BarrierMismatchError(ParamdError, ValueError):
    """Workers that meet at one barrier disagree on how many they are."""

    reason = "BARRIER_MISMATCH"


class OperationExpiredError(ParamdError, RuntimeError):
    """A changing call was sent again after the server had forgotten its answer."""

    reason = "OPERATION_EXPIRED"


class TrainerNotFoundError(ParamdError, KeyError):
    """The server holds no trainer of that name: never declared, or deleted."""

    reason = "TRAINER_NOT_FOUND"


class TrainerMismatchError(ParamdError, RuntimeError):
    """A trainer of that name exists with other settings, or steps the same parameters."""

    reason = "TRAINER_MISMATCH"


class StatesMismatchError(ParamdError, ValueError):
    """Optimizer states that belong to another optimizer or to other parameters."""

    reason = "STATES_MISMATCH"


class ScheduledLearningRateError(ParamdError, UserWarning):
    """The learning rate cannot be set, because a scheduler sets it. MXNet raises UserWarning."""

    reason = "SCHEDULED_LEARNING_RATE"


class StaleGradientError(ParamdError, UserWarning):
    """A gradient has not been written since the last step. MXNet raises UserWarning."""

    reason = "STALE_GRADIENT"


class NonFiniteGradientError(ParamdError, FloatingPointError):
    """A gradient holds NaN or infinity, and the trainer's policy is 'error'."""

    reason = "NON_FINITE_GRADIENT"


class WorkerNotJoinedError(ParamdError, RuntimeError):
    """A push of a worker that never joined."""

    reason = "WORKER_NOT_JOINED"


class LeaseEndedError(ParamdError, RuntimeError):
    """A push of a worker whose lease has ended, or whose place another one has taken."""

    reason = "LEASE_ENDED"


class WorkerLostError(ParamdError, RuntimeError):
    """The lease of another worker has ended, and the trainer stops until that worker is back."""

    reason = "WORKER_LOST"


class ClockMismatchError(ParamdError, RuntimeError):
    """A push whose clock is not the one that the worker has reached."""

    reason = "CLOCK_MISMATCH"


class RolledBackError(ClockMismatchError):
    """The cluster went back to a snapshot, and the worker's clock: `trainer.join()` tells it."""

    reason = "ROLLED_BACK"


class ClusterMismatchError(ParamdError, RuntimeError):
    """A server of another cluster, or the shards in another order or number than they have."""

    reason = "CLUSTER_MISMATCH"


class SnapshotFailedError(ParamdError, OSError):
    """A snapshot could not be saved; the ones of before are as they were."""

    reason = "SNAPSHOT_FAILED"


class UnauthenticatedError(ParamdError, PermissionError):
    """A call without a token, or with one that the server does not know."""

    reason = "UNAUTHENTICATED"


class PermissionDeniedError(ParamdError, PermissionError):
    """A call that needs a right that its token does not have."""

    reason = "PERMISSION_DENIED"


class ProtocolMismatchError(ParamdError, RuntimeError):
    """Client and server speak different versions of the protocol."""

    reason = "PROTOCOL_MISMATCH"


class InternalServerError(ParamdError, RuntimeError):
    """The server failed in a way that it should not; its log has the details."""

    reason = "INTERNAL"


class ServerUnavailable(ParamdError, ConnectionError):
    """The server cannot be reached, or the connection was lost."""

    reason = "UNAVAILABLE"


class TransportUnavailableError(ParamdError, ConnectionError):
    """`transport='shm'` was asked for, and the server shares no memory with this process.

    Raised by the client.
    """


class TLSError(ParamdError, ConnectionError):
    """The connection cannot be secured as asked. Raised by the client.

    A certificate that is not accepted, on either side, or TLS on one side only.
    """


class StalledError(ParamdError, TimeoutError):
    """A stream in which nothing moved for longer than the stall limit."""

    reason = "STALLED"


class DeadlineExceededError(ParamdError, TimeoutError):
    """A call that was not answered within its deadline."""

    reason = "DEADLINE_EXCEEDED"


class BarrierTimeoutError(ParamdError, TimeoutError):
    """Not all workers came to the barrier in time. Raised by the client."""


class TornReadError(ParamdError, RuntimeError):
    """Values of several shards that were never of one step. Raised by the client."""


class NoSessionError(ParamdError, RuntimeError):
    """No session is open, or several are and none is the current one. Raised by the client."""


class SessionClosedError(ParamdError, RuntimeError):
    """The session has been closed. Raised by the client."""
