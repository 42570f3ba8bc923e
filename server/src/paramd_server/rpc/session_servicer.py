"""The RPCs of paramd.v1.SessionService. Their contract stands in the proto file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import grpc

from paramd.errors import InvalidArgumentError, ProtocolMismatchError
from paramd.spec import check_name
from paramd.v1 import parameter_pb2
from paramd.v1 import session_service_pb2 as pb
from paramd.wire.messages import context_to_wire
from paramd.wire.protocol import PROTOCOL
from paramd_server import __version__
from paramd_server.core.coordination import Barriers, Claims
from paramd_server.core.registry import Registry
from paramd_server.core.snapshotting import Snapshots
from paramd_server.core.training.members import Members
from paramd_server.core.workers import Workers
from paramd_server.rpc.requests import check_identity, operation_from_wire
from paramd_server.rpc.waiting import WaitingSlots

__all__ = ["SessionServicer"]

_DEVICE_NUMBERS: Final = {"cpu": 1, "gpu": 2, "cpu_pinned": 3, "cpu_shared": 4}
_MAX_WORKER_BYTES: Final = 256


class SessionServicer:
    """Answers the calls of one server.

    Args:
        registry: the parameters.
        claims: work that is done once.
        barriers: meeting points.
        workers: who is there.
        members: those who have joined as workers.
        polls: how many calls may wait at a time.
        snapshots: of the server.
        cluster: tells which of which cluster the server is.
        local_socket: gives the name of the socket for processes of the same host, or ''.
    """

    def __init__(
        self,
        registry: Registry,
        claims: Claims,
        barriers: Barriers,
        workers: Workers,
        members: Members,
        *,
        polls: WaitingSlots,
        snapshots: Snapshots,
        cluster: Callable[[], pb.Cluster],
        local_socket: Callable[[], str],
    ) -> None:
        self._registry = registry
        self._claims = claims
        self._barriers = barriers
        self._workers = workers
        self._members = members
        self._polls = polls
        self._snapshots = snapshots
        self._cluster = cluster
        self._local_socket = local_socket
        self._started = time.monotonic()

    def Hello(self, request: pb.HelloRequest, _context: grpc.ServicerContext) -> pb.HelloResponse:
        """Greets a session."""
        if request.protocol != PROTOCOL:
            raise ProtocolMismatchError(
                f"the server speaks protocol {PROTOCOL} (paramd-server {__version__}), but the "
                f"client speaks {request.protocol} (paramd {request.client_version[:40]}): "
                "install the same version on both sides"
            )
        check_identity(request.identity)
        _check_worker(request.worker)
        self._workers.greet(request.identity, request.worker)
        devices = self._registry.devices
        return pb.HelloResponse(
            protocol=PROTOCOL,
            server_version=__version__,
            epoch=self._registry.epoch,
            num_gpus=devices.num_gpus,
            device_types=[_DEVICE_NUMBERS[each] for each in devices.device_types],  # type: ignore[misc]
            cluster=self._cluster(),
            local_socket=self._local_socket(),
        )

    def GetStatus(
        self, _request: pb.GetStatusRequest, _context: grpc.ServicerContext
    ) -> pb.GetStatusResponse:
        """Describes the server."""
        devices = self._registry.devices
        account = devices.account
        snapshots = self._snapshots.counts()
        last = snapshots.last
        return pb.GetStatusResponse(
            server_version=__version__,
            epoch=self._registry.epoch,
            uptime_ms=int((time.monotonic() - self._started) * 1000),
            num_parameters=len(self._registry),
            memory_bytes=account.used_bytes,
            memory_limit_bytes=account.limit_bytes,
            num_gpus=devices.num_gpus,
            num_snapshots=snapshots.num_saved,
            num_failed_snapshots=snapshots.num_failed,
            last_snapshot=0 if last is None else last.name.number,
            last_snapshot_created=0.0 if last is None else last.created,
            workers=[
                pb.WorkerStatus(
                    worker=each.worker,
                    identity=each.identity,
                    num_pushes=each.num_pushes,
                    num_pushed_tensors=each.num_pushed_tensors,
                )
                for each in self._workers.all()
            ],
            devices=[
                pb.DeviceStatus(
                    context=context_to_wire(each.context),
                    name=each.name,
                    memory_bytes=each.used_bytes,
                    memory_limit_bytes=each.limit_bytes,
                    total_bytes=each.total_bytes,
                )
                for each in devices.statuses()
            ],
        )

    def Once(self, request: pb.OnceRequest, _context: grpc.ServicerContext) -> pb.OnceResponse:
        """Claims, renews, finishes or gives up a piece of work."""
        name = check_name(request.name)
        ticket = _ticket(request.operation)
        lease_s = request.lease_ms / 1000
        if request.action == pb.ONCE_ACTION_CLAIM:
            with self._polls.take(request.wait_ms) as wait_s:
                state = self._claims.claim(name, ticket, lease_s=lease_s, wait_s=wait_s)
            states = {
                "claimed": pb.ONCE_STATE_CLAIMED,
                "busy": pb.ONCE_STATE_BUSY,
                "done": pb.ONCE_STATE_DONE,
            }
            return pb.OnceResponse(state=states[state])
        if request.action == pb.ONCE_ACTION_RENEW:
            self._claims.renew(name, ticket, lease_s=lease_s)
            return pb.OnceResponse(state=pb.ONCE_STATE_CLAIMED)
        if request.action == pb.ONCE_ACTION_COMPLETE:
            self._claims.complete(name, ticket)
            return pb.OnceResponse(state=pb.ONCE_STATE_DONE)
        if request.action == pb.ONCE_ACTION_ABANDON:
            self._claims.abandon(name, ticket)
            return pb.OnceResponse(state=pb.ONCE_STATE_OPEN)
        raise InvalidArgumentError(f"Once has no action number {request.action}")

    def Join(self, request: pb.JoinRequest, _context: grpc.ServicerContext) -> pb.JoinResponse:
        """Joins the workers."""
        check_identity(request.identity)
        _check_worker(request.worker)
        member = self._members.join(
            request.identity, request.worker, lease_s=request.lease_ms / 1000
        )
        return pb.JoinResponse(rank=member.rank, num_workers=len(self._members.all()))

    def Heartbeat(
        self, request: pb.HeartbeatRequest, _context: grpc.ServicerContext
    ) -> pb.HeartbeatResponse:
        """Renews a lease."""
        member = self._members.check(request.identity)
        return pb.HeartbeatResponse(rank=member.rank, num_workers=len(self._members.all()))

    def Leave(self, request: pb.LeaveRequest, _context: grpc.ServicerContext) -> pb.LeaveResponse:
        """Leaves the workers."""
        self._members.leave(request.identity)
        return pb.LeaveResponse()

    def Barrier(
        self, request: pb.BarrierRequest, _context: grpc.ServicerContext
    ) -> pb.BarrierResponse:
        """Arrives at a barrier, or leaves it."""
        name = check_name(request.name)
        ticket = _ticket(request.operation)
        self._members.renew(ticket[0])
        if request.leave:
            return pb.BarrierResponse(open=self._barriers.leave(name, ticket))
        if not request.num_workers:
            # It waits for the workers, and they for it.
            self._members.check(ticket[0])
        with self._polls.take(request.wait_ms) as wait_s:
            arrival = self._barriers.arrive(name, ticket, request.num_workers, wait_s=wait_s)
        return pb.BarrierResponse(
            open=arrival.open, num_arrived=arrival.num_arrived, index=arrival.index
        )


def _check_worker(worker: str) -> None:
    if len(worker.encode()) > _MAX_WORKER_BYTES:
        raise InvalidArgumentError(f"a worker's name has at most {_MAX_WORKER_BYTES} bytes")


def _ticket(message: parameter_pb2.Operation) -> tuple[bytes, int]:
    operation = operation_from_wire(message)
    # Tickets are kept: one of any size would be memory that nobody counts.
    operation.check()
    return operation.identity, operation.sequence
