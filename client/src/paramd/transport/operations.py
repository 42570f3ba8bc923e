"""The identity and the numbered operations of one session in one process."""

from __future__ import annotations

import os
import threading

from paramd.v1 import parameter_pb2

__all__ = ["IDENTITY_BYTES", "Operation", "Operations", "ProcessOperations"]

IDENTITY_BYTES = 16


class Operation:
    """One changing call. It keeps its number however often the call is sent.

    It counts as unanswered until the `with` block ends that it is used in.

    Args:
        operations: what it is one of.
        sequence: its number.
    """

    __slots__ = ("_operations", "sequence")

    def __init__(self, operations: Operations, sequence: int) -> None:
        self._operations = operations
        self.sequence = sequence

    def __enter__(self) -> Operation:
        return self

    def __exit__(self, *_error: object) -> None:
        self._operations.end(self.sequence)

    def to_wire(self) -> parameter_pb2.Operation:
        """The message of this operation, with what is acknowledged by now."""
        return parameter_pb2.Operation(
            identity=self._operations.identity,
            sequence=self.sequence,
            acknowledged_below=self._operations.acknowledged_below(),
        )


class Operations:
    """Numbers the operations of one identity, and knows which are still open.

    Attributes:
        identity: 16 random bytes.
    """

    def __init__(self) -> None:
        self.identity = os.urandom(IDENTITY_BYTES)
        self._lock = threading.Lock()
        self._next = 1  # guarded by _lock
        self._open: set[int] = set()  # guarded by _lock

    def begin(self) -> Operation:
        """An operation, for a `with` block."""
        with self._lock:
            sequence = self._next
            self._next += 1
            self._open.add(sequence)
        return Operation(self, sequence)

    def end(self, sequence: int) -> None:
        """Notes that nobody waits for an operation's answer any more."""
        with self._lock:
            self._open.discard(sequence)

    def acknowledged_below(self) -> int:
        """The lowest number that is not answered yet."""
        with self._lock:
            return min(self._open, default=self._next)


class ProcessOperations:
    """The operations of one session: in a forked child others, the same for all connections."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._operations = Operations()

    def get(self) -> Operations:
        """Those of this process. A child asks first while it has one thread only."""
        if self._process != os.getpid():
            self._process, self._operations = os.getpid(), Operations()
        return self._operations
