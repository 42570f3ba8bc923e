"""The way of a shard to its coordinator: registers, follows the log, reports, and leaves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message

from paramd.errors import ClusterMismatchError, ParamdError
from paramd.transport.channel import RenewableChannel
from paramd.transport.retry import error_of
from paramd.v1 import cluster_service_pb2 as pb
from paramd.wire.parsing import parse_message
from paramd_server.core.cluster.follower import Follower
from paramd_server.core.cluster.standing import GO_ON, RESTART, WAIT, Cluster, Standing
from paramd_server.rpc.cluster_messages import (
    operation_from_record,
    operation_to_record,
    record_from_wire,
)
from paramd_server.rpc.cluster_servicer import VERDICTS

__all__ = ["CoordinatorLink"]

_log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

_WAIT_S: Final = 1.0
_TIMEOUT_S: Final = 5.0
_PAUSE_S: Final = 0.2
_LEAVE_S: Final = 5.0
_LAST_WORD_S: Final = 1.0


class CoordinatorLink:
    """Keeps one shard in step with its coordinator, on a thread of its own.

    Args:
        channel: to the coordinator.
        shard: the number of this shard.
        cluster: what all are to agree on; its id may be ''.
        standing: tells where this server stands now.
        follower: carries out what comes.
        formed: called with the cluster's id and generation when this shard may serve.
        restart: has this server start again from a snapshot; 0 for nothing.
    """

    def __init__(
        self,
        channel: RenewableChannel,
        shard: int,
        cluster: Cluster,
        standing: Callable[[int], Standing],
        follower: Follower,
        *,
        formed: Callable[[str, int], None],
        restart: Callable[[int], None],
    ) -> None:
        self._channel = channel
        self._shard = shard
        self._cluster = cluster
        self._id = cluster.id
        self._standing = standing
        self._follower = follower
        self._formed = formed
        self._restart = restart
        self._generation = 0
        self._epoch = 0
        self._leaving = threading.Event()
        # The coordinator has said that it stops, and this shard has all that it decided.
        self._coordinator_stops = threading.Event()
        self._until: int | None = None
        self._thread = threading.Thread(target=self._run, name="following", daemon=True)
        self._said = ""

    @property
    def generation(self) -> int:
        """Of the cluster that this shard follows; 0 before it has registered."""
        return self._generation

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def leave(self) -> None:
        """Says that this shard stops, and carries out what is left. Gives up after a moment."""
        if not self._generation:
            self._leaving.set()
            return
        request = pb.LeaveClusterRequest(shard=self._shard, epoch=self._epoch)
        if not self._coordinator_stops.is_set():
            try:
                answer = self._ask("LeaveCluster", request, pb.LeaveClusterResponse)
                self._until = answer.head
            except ParamdError as err:
                # Both may be stopping: then its last word is on its way.
                if not self._coordinator_stops.wait(_LAST_WORD_S):
                    _log.warning("stopping without a word to the coordinator: %s", err)
        self._leaving.set()
        self._thread.join(_LEAVE_S)
        self._channel.close()

    def report(self, number: int, directory: str, part: bytes, error: str) -> None:
        """Tells the coordinator of a part of a snapshot. What cannot be told is logged."""
        request = pb.ReportPartRequest(
            shard=self._shard,
            epoch=self._epoch,
            number=number,
            directory=directory,
            part=part,
            error=error[:1000],
        )
        give_up_at = time.monotonic() + 60
        while not self._leaving.is_set():
            try:
                self._ask("ReportPart", request, pb.ReportPartResponse)
                return
            except ParamdError as err:
                if time.monotonic() > give_up_at:
                    _log.error("the coordinator was not told of snapshot %d: %s", number, err)
                    return
            self._leaving.wait(_PAUSE_S)

    def _run(self) -> None:
        while not self._has_ended():
            try:
                if not self._generation:
                    self._register()
                else:
                    self._follow()
                self._said = ""
            except ClusterMismatchError as err:
                if not self._generation:
                    self._complain("the coordinator does not take this shard in: %s", err)
                self._generation = 0
                self._leaving.wait(_PAUSE_S)
            except ParamdError as err:
                self._complain("the coordinator is not there: %s", err)
                if self._leaving.wait(_PAUSE_S):
                    return

    def _has_ended(self) -> bool:
        if not self._leaving.is_set():
            return False
        return self._until is None or self._follower.position >= self._until

    def _register(self) -> None:
        standing = self._standing(self._follower.position)
        self._epoch = standing.epoch
        request = pb.RegisterShardRequest(
            cluster_id=self._id,
            shard=self._shard,
            num_shards=self._cluster.num_shards,
            split_elements=self._cluster.split_elements,
            epoch=standing.epoch,
            generation=standing.generation,
            position=standing.position,
            snapshot=standing.snapshot,
            snapshots=sorted(standing.snapshots),
            whole_steps=standing.whole_steps,
            wait_ms=int(_WAIT_S * 1000),
        )
        answer = self._ask("RegisterShard", request, pb.RegisterShardResponse)
        if answer.verdict == VERDICTS[GO_ON]:
            self._follower.position = answer.position
            self._generation, self._id = answer.generation, answer.cluster_id
            self._coordinator_stops.clear()
            self._formed(answer.cluster_id, answer.generation)
        elif answer.verdict == VERDICTS[RESTART]:
            self._leaving.set()
            self._restart(answer.snapshot)

    def _follow(self) -> None:
        asked_at = time.monotonic()
        old = self._follower.old_pushes()
        request = pb.FollowRequest(
            shard=self._shard,
            epoch=self._epoch,
            generation=self._generation,
            position=self._follower.position,
            wait_ms=int(_WAIT_S * 1000),
            old=[
                pb.KeptPush(trainer=name, operation=operation_to_record(operation))
                for name, operation in old
            ],
        )
        answer = self._ask("Follow", request, pb.FollowResponse)
        for message in answer.records:
            if message.position != self._follower.position + 1:
                raise ClusterMismatchError(f"record {message.position} came out of its order")
            self._follower.carry_out(message.position, record_from_wire(message))
        dropped = [(each.trainer, operation_from_record(each.operation)) for each in answer.dropped]
        self._follower.drop(dropped, asked_at)
        if answer.verdict == VERDICTS[WAIT]:
            self._coordinator_stops.set()
            self._leaving.wait(_PAUSE_S)

    def _complain(self, message: str, err: ParamdError) -> None:
        said = str(err)
        if said != self._said:
            self._said = said
            level = logging.INFO if self._coordinator_stops.is_set() else logging.WARNING
            _log.log(level, message, said)

    def _ask(self, method: str, request: Message, answer_class: type[M]) -> M:
        """Makes a call; once more where certificates or the token have been replaced since."""
        while True:
            used = self._channel.secrets
            try:
                call: Any = self._channel.method(method)
                answer = call(request.SerializeToString(), timeout=_TIMEOUT_S)
            except grpc.RpcError as err:
                failure = error_of(err, method, "the coordinator")
            except ValueError as err:
                # gRPC's words for a channel that has been closed.
                raise ClusterMismatchError(str(err)) from err
            else:
                self._channel.served = True
                return parse_message(answer_class, answer)
            if not self._channel.renewed_after(failure, used, _TIMEOUT_S):
                raise failure
