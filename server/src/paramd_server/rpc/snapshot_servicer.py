"""The RPCs of paramd.v1.SnapshotService. Their contract stands in the proto file."""

from __future__ import annotations

import grpc

from paramd.v1 import snapshot_service_pb2 as pb
from paramd_server.core.operations import OperationWindow
from paramd_server.core.snapshot import SnapshotInfo
from paramd_server.core.snapshotting import Snapshots
from paramd_server.rpc.requests import operation_from_wire
from paramd_server.rpc.waiting import WaitingSlots

__all__ = ["SnapshotServicer"]


class SnapshotServicer:
    """Answers the calls of one server.

    Args:
        snapshots: takes the orders.
        operations: what makes repeated calls safe.
        polls: how many calls may wait at a time.
    """

    def __init__(
        self, snapshots: Snapshots, operations: OperationWindow, *, polls: WaitingSlots
    ) -> None:
        self._snapshots = snapshots
        self._operations = operations
        self._polls = polls

    def SaveSnapshot(
        self, request: pb.SaveSnapshotRequest, _context: grpc.ServicerContext
    ) -> bytes:
        """Orders a snapshot."""

        def carry_out() -> bytes:
            number = self._snapshots.request(request.directory)
            return pb.SaveSnapshotResponse(number=number).SerializeToString()

        return self._operations.run(operation_from_wire(request.operation), carry_out)

    def AwaitSnapshot(
        self, request: pb.AwaitSnapshotRequest, _context: grpc.ServicerContext
    ) -> pb.AwaitSnapshotResponse:
        """Tells how a snapshot stands."""
        with self._polls.take(request.wait_ms) as wait_s:
            info = self._snapshots.wait(request.number, wait_s)
        return pb.AwaitSnapshotResponse(snapshot=None if info is None else _to_wire(info))

    def ListSnapshots(
        self, _request: pb.ListSnapshotsRequest, _context: grpc.ServicerContext
    ) -> pb.ListSnapshotsResponse:
        """Lists the snapshots that are whole."""
        return pb.ListSnapshotsResponse(
            snapshots=[_to_wire(info) for info in self._snapshots.all()]
        )


def _to_wire(info: SnapshotInfo) -> pb.Snapshot:
    return pb.Snapshot(
        number=info.name.number,
        directory=info.name.directory,
        size_bytes=info.size_bytes,
        created=info.created,
        num_shards=info.num_shards,
    )
