"""The RPCs of paramd.v1.ClusterService. Their contract stands in the proto file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import grpc

from paramd.errors import ClusterMismatchError
from paramd.v1 import cluster_service_pb2 as pb
from paramd_server.core.cluster.coordinator import Coordinator
from paramd_server.core.cluster.standing import (
    GO_ON,
    RESTART,
    WAIT,
    Cluster,
    Standing,
)
from paramd_server.core.training.trainer import StoredTrainer
from paramd_server.core.training.trainers import Trainers
from paramd_server.rpc.cluster_messages import operation_from_record, record_to_wire

__all__ = ["VERDICTS", "ClusterServicer", "PartReport"]

VERDICTS: Final = {WAIT: 1, GO_ON: 2, RESTART: 3}
_MAX_WAIT_S: Final = 2.0

# Called with the shard, the number and directory of the snapshot, the part's entry and an error.
PartReport = Callable[[int, int, str, bytes, str], None]


class ClusterServicer:
    """Answers the other shards.

    Args:
        coordinator: gives that of the cluster; None on a shard that is not it.
        trainers: of this server.
        report: takes what shards tell of their parts of snapshots.
    """

    def __init__(
        self, coordinator: Callable[[], Coordinator | None], trainers: Trainers, report: PartReport
    ) -> None:
        self._coordinator = coordinator
        self._trainers = trainers
        self._report = report

    def RegisterShard(
        self, request: pb.RegisterShardRequest, _context: grpc.ServicerContext
    ) -> pb.RegisterShardResponse:
        """Takes a shard in."""
        coordinator = self._find()
        verdict = coordinator.register(
            request.shard,
            Cluster(request.cluster_id, request.num_shards, request.split_elements),
            Standing(
                request.epoch,
                request.generation,
                request.position,
                request.snapshot,
                frozenset(request.snapshots),
                request.whole_steps,
            ),
            _wait_s(request.wait_ms),
        )
        return pb.RegisterShardResponse(
            verdict=VERDICTS[verdict.action],  # type: ignore[arg-type]
            cluster_id=coordinator.id,
            generation=verdict.generation,
            position=verdict.position,
            snapshot=verdict.snapshot,
        )

    def Follow(
        self, request: pb.FollowRequest, _context: grpc.ServicerContext
    ) -> pb.FollowResponse:
        """Gives records."""
        coordinator = self._find()
        coordinator.check_registered(request.shard, request.epoch)
        dropped = [each for each in request.old if self._refuse(each)]
        followed = coordinator.follow(
            request.shard,
            request.epoch,
            request.generation,
            request.position,
            0.0 if dropped else _wait_s(request.wait_ms),
        )
        return pb.FollowResponse(
            verdict=VERDICTS[WAIT if followed.ended else GO_ON],  # type: ignore[arg-type]
            records=[record_to_wire(position, record) for position, record in followed.records],
            head=followed.head,
            dropped=dropped,
        )

    def LeaveCluster(
        self, request: pb.LeaveClusterRequest, _context: grpc.ServicerContext
    ) -> pb.LeaveClusterResponse:
        """Lets a shard go."""
        return pb.LeaveClusterResponse(head=self._find().leave(request.shard, request.epoch))

    def ReportPart(
        self, request: pb.ReportPartRequest, _context: grpc.ServicerContext
    ) -> pb.ReportPartResponse:
        """Takes what a shard tells of its part of a snapshot."""
        coordinator = self._find()
        coordinator.check_registered(request.shard, request.epoch)
        if not request.part:
            # Of a part that is written: the snapshot is whole there, or it could not be made so.
            coordinator.note_finished(request.shard, request.epoch, request.number, request.error)
        if request.part or request.error:
            self._report(
                request.shard, request.number, request.directory, request.part, request.error
            )
        return pb.ReportPartResponse()

    def _find(self) -> Coordinator:
        coordinator = self._coordinator()
        if coordinator is None:
            raise ClusterMismatchError("this server is not the coordinator: that is shard 0")
        return coordinator

    def _refuse(self, push: pb.KeptPush) -> bool:
        """Whether a push that a shard has kept for long will not be committed."""
        for trainer in self._trainers.all():
            if trainer.spec.name == push.trainer and isinstance(trainer, StoredTrainer):
                return trainer.refuse(operation_from_record(push.operation))
        return True


def _wait_s(wait_ms: int) -> float:
    return min(max(wait_ms / 1000, 0.0), _MAX_WAIT_S)
