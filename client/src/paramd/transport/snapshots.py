"""The calls of `paramd.v1.SnapshotService`, with plain values in and out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from paramd.errors import DeadlineExceededError
from paramd.transport.connection import Connection
from paramd.v1 import snapshot_service_pb2 as pb

__all__ = ["Snapshot", "SnapshotCalls"]

# How long the server keeps one question waiting.
_POLL_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that is whole: the state of a server, or of all shards of a cluster.

    Attributes:
        number: counts the snapshots of a server or cluster.
        directory: the name that it was given, below the server's snapshot directory; '' for one
            that has a number alone, which goes when newer ones have come.
        size_bytes: of its files, on all shards.
        created: seconds since 1970.
        num_shards: how many parts it has.
    """

    number: int
    directory: str
    size_bytes: int
    created: float
    num_shards: int


class SnapshotCalls:
    """Calls about snapshots. Thread-safe.

    Args:
        connection: sends them.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def save(self, directory: str = "", *, timeout: float | None = None) -> Snapshot:
        """Has a snapshot saved, and waits until it is whole.

        Args:
            directory: the name that it is to have; '' for a number alone.
            timeout: seconds; None to wait without end.

        Raises:
            SnapshotFailedError: where it could not be saved.
            PathNotAllowedError: where the name is none below the server's snapshot directory.
            DeadlineExceededError: where it is not whole in time; the server goes on with it.
        """
        give_up_at = None if timeout is None else time.monotonic() + timeout
        with self._connection.operations.begin() as operation:
            number = self._connection.unary(
                "SaveSnapshot",
                pb.SaveSnapshotRequest(directory=directory),
                pb.SaveSnapshotResponse,
                operation=operation,
            ).number
        while True:
            asked_at = time.monotonic()
            left = _POLL_SECONDS if give_up_at is None else give_up_at - asked_at
            wait = max(0.0, min(left, _POLL_SECONDS))
            answer = self._connection.unary(
                "AwaitSnapshot",
                pb.AwaitSnapshotRequest(number=number, wait_ms=int(wait * 1000)),
                pb.AwaitSnapshotResponse,
            )
            if answer.HasField("snapshot"):
                return _from_wire(answer.snapshot)
            if left <= 0:
                raise DeadlineExceededError(
                    f"snapshot {number} was not whole within {timeout:g} seconds; the server goes "
                    "on with it"
                )
            # A server with too many waiting callers answers at once.
            self._connection.attempts.sleep(max(0.0, 0.1 - (time.monotonic() - asked_at)))

    def list(self) -> list[Snapshot]:
        """The snapshots that are whole, from the oldest."""
        answer = self._connection.unary(
            "ListSnapshots", pb.ListSnapshotsRequest(), pb.ListSnapshotsResponse
        )
        return [_from_wire(each) for each in answer.snapshots]


def _from_wire(message: pb.Snapshot) -> Snapshot:
    return Snapshot(
        message.number,
        message.directory,
        message.size_bytes,
        message.created,
        message.num_shards,
    )
