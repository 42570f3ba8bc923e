"""From a configuration to a running server."""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from paramd.initial_values import check_arguments
from paramd.spec import ParameterSpec
from paramd.transport.channel import RenewableChannel, grpc_target
from paramd.v1 import (
    cluster_service_pb2,
    parameter_service_pb2,
    session_service_pb2,
    snapshot_service_pb2,
    training_service_pb2,
)
from paramd_server.arrays.devices import Devices
from paramd_server.arrays.memory import MemoryAccount
from paramd_server.cluster_snapshots import ClusterOrders, FollowedSnapshots
from paramd_server.config import ServerConfig
from paramd_server.core.capture import Standstill
from paramd_server.core.cluster.standing import Standing
from paramd_server.core.coordination import Barriers, Claims
from paramd_server.core.operations import OperationWindow
from paramd_server.core.registry import Registry
from paramd_server.core.snapshot import Section, SnapshotOrigin
from paramd_server.core.snapshot_parameters import ParametersSection
from paramd_server.core.snapshot_sessions import ClaimsSection, OperationsSection, WorkersSection
from paramd_server.core.training.members import Members
from paramd_server.core.training.records import SnapshotRecord, SnapshotResult
from paramd_server.core.training.sections import MembersSection, TrainersSection
from paramd_server.core.training.state import TrainerState
from paramd_server.core.training.trainer import World
from paramd_server.core.training.trainers import Trainers
from paramd_server.core.workers import Workers
from paramd_server.local.service import LocalService, open_local_service
from paramd_server.port_file import write_port_file
from paramd_server.rpc.authorization import Authorization
from paramd_server.rpc.call_streams import CallDispatcher, call_stream_handler
from paramd_server.rpc.cluster_servicer import ClusterServicer
from paramd_server.rpc.file_calls import FileCalls
from paramd_server.rpc.methods import ServiceMethods, service_handler
from paramd_server.rpc.parameter_servicer import ParameterServicer
from paramd_server.rpc.running_calls import RunningCalls
from paramd_server.rpc.session_servicer import SessionServicer
from paramd_server.rpc.snapshot_servicer import SnapshotServicer
from paramd_server.rpc.streams import OpenStreams
from paramd_server.rpc.training_servicer import STEP_ANSWERS, TrainingServicer
from paramd_server.rpc.waiting import WaitingSlots
from paramd_server.security import Security, peer_credentials
from paramd_server.shard_role import RoleHooks, ShardRole
from paramd_server.state_keeping import StateKeeper
from paramd_server.storage.directory import SnapshotDirectory

__all__ = ["Server"]

_log = logging.getLogger(__name__)

_PARAMETERS: Final = parameter_service_pb2.DESCRIPTOR.services_by_name["ParameterService"]
_SESSIONS: Final = session_service_pb2.DESCRIPTOR.services_by_name["SessionService"]
_TRAINING: Final = training_service_pb2.DESCRIPTOR.services_by_name["TrainingService"]
_CLUSTER: Final = cluster_service_pb2.DESCRIPTOR.services_by_name["ClusterService"]
_SNAPSHOTS: Final = snapshot_service_pb2.DESCRIPTOR.services_by_name["SnapshotService"]
_SERVICES: Final = (_PARAMETERS, _SESSIONS, _TRAINING, _SNAPSHOTS)
_SERVICE_NAMES: Final = tuple(service.full_name for service in _SERVICES)
_NUM_CLUSTER_THREADS: Final = 64
_NUM_CONTROL_THREADS: Final = 8
_NUM_WAITING_THREADS: Final = 64
_NUM_PROBE_THREADS: Final = 2
_NUM_REFUSING_THREADS: Final = 2
# Each holds one open stream of calls. Clients without one make their calls by themselves.
_NUM_STREAM_THREADS: Final = 256
_TICK_S: Final = 1.0

# Calls of a few kilobytes that others wait for. They run on threads of their own, so that streams
# cannot use them up.
_CONTROL: Final = (
    *("Declare", "List", "SetAttributes", "ZeroGrad", "Delete"),
    *("Hello", "GetStatus", "Join", "Heartbeat", "Leave"),
    *("DeclareTrainer", "ListTrainers", "DeleteTrainer", "JoinTrainer", "LeaveTrainer"),
    *("SetLearningRate", "HoldSteps", "SaveSnapshot", "ListSnapshots"),
)
_WAITING: Final = ("Once", "Barrier", "AwaitStep", "AwaitSnapshot")

_OPTIONS: Final = (
    # Two servers on one port would share its connections between them.
    ("grpc.so_reuseport", 0),
    ("grpc.max_metadata_size", 16 << 10),
    # Clients that keep an idle connection alive are welcome.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


class Server:
    """One paramd server in this process.

    Args:
        config: its settings.
        restart: called when the server has to be started again from another snapshot, whose number
            is in `restart_from` then.

    Attributes:
        restart_from: the number of that snapshot, of which 0 is nothing; else None.
    """

    def __init__(self, config: ServerConfig, *, restart: Callable[[], None] = lambda: None) -> None:
        self._config = config
        self._restart = restart
        self.restart_from: int | None = None
        self._devices = Devices(
            MemoryAccount(config.memory_limit), gpu_memory_limit=config.gpu_memory_limit
        )
        self._streams = OpenStreams(stall_s=config.stall_s)
        self._calls = RunningCalls()
        self._stopped = threading.Event()
        self._control = _pool("control", _NUM_CONTROL_THREADS)
        self._waiting = _pool("waiting", _NUM_WAITING_THREADS)
        self._data = _pool("data", config.num_threads)
        self._call_streams = _pool("calls", _NUM_STREAM_THREADS)
        self._probes = _pool("probe", _NUM_PROBE_THREADS)
        self._health = health.HealthServicer(
            experimental_non_blocking=True, experimental_thread_pool=self._probes
        )
        self._security = Security(config)
        self._refusing = _pool("refusing", _NUM_REFUSING_THREADS)
        token_file = self._security.token_file
        self._authorization = (
            None if token_file is None else Authorization(lambda: token_file.tokens, self._refusing)
        )
        self._server = grpc.server(
            self._data,
            interceptors=[] if self._authorization is None else [self._authorization],
            options=_OPTIONS,
        )
        self._role = ShardRole(
            config,
            RoleHooks(
                snapshots=self._restorable,
                snapshot=self._on_snapshot,
                restart=self._start_again,
                lost=self._abandon_snapshot,
                formed=self._on_formed,
            ),
            self._open_channel,
        )
        self._followed = FollowedSnapshots(self._role)
        self._cluster_calls = _pool("cluster", _NUM_CLUSTER_THREADS)
        self._local: LocalService | None = None
        self._add_services()
        self.addresses: tuple[str, ...] = ()

    def start(self) -> None:
        """Serves, and writes the port file.

        Raises:
            OSError: where an address cannot be bound.
            SnapshotError: where the state of before cannot be taken up.
        """
        self._keeper.take_up()
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING, *_SERVICE_NAMES)
        self._role.begin(
            self._keeper.origin.cluster_id, self._standing(), self._trainers, self._operations
        )
        self.addresses = tuple(self._bind(address) for address in self._config.listen)
        self._open_local()
        self._server.start()
        self._members.begin_leases()
        # That the process lives. Its services are ready when the cluster has formed.
        self._set_health(health_pb2.HealthCheckResponse.SERVING, "")
        threading.Thread(target=self._keep_house, name="housekeeping", daemon=True).start()
        if self._config.port_file is not None:
            write_port_file(self._config.port_file, self.addresses)
        self._role.start()
        self._keeper.snapshots.start()
        threading.Thread(target=self._trainers.warm_up, name="warm-up", daemon=True).start()
        _log.info("serving on %s", ", ".join(self.addresses))

    def _open_local(self) -> None:
        """Shares memory with processes of this host."""
        if not self._config.shared_memory:
            return
        if self._config.client_ca is not None:
            _log.info("no memory is shared: there is no certificate to ask a process for")
            return
        authorization = self._authorization

        def authorize(shown: str) -> None:
            if authorization is not None:
                metadata = (("authorization", shown),) if shown else ()
                authorization.check("/paramd.v1.ParameterService/GetData", metadata)

        self._local = open_local_service(self._registry, self._dispatcher, authorize)

    def _standing(self) -> Standing:
        """Where this server stands when it starts."""
        origin, taken_up = self._keeper.origin, self._keeper.taken_up
        return Standing(
            self._registry.epoch,
            # Of a snapshot of all shards every one of them can be made to start.
            generation=0 if taken_up is not None else origin.generation,
            position=origin.position,
            snapshot=0 if taken_up is None else taken_up.number,
            snapshots=self._restorable(),
            whole_steps=self._trainers.whole_steps,
        )

    def _restorable(self) -> frozenset[int]:
        return self._keeper.restorable()

    def _on_snapshot(self, record: SnapshotRecord | SnapshotResult) -> None:
        self._followed.carry_out(record)

    def _abandon_snapshot(self, why: str) -> None:
        self._keeper.snapshots.abandon(why)

    def _on_formed(self) -> None:
        self._keeper.forget_stopped()
        self._set_health(health_pb2.HealthCheckResponse.SERVING, *_SERVICE_NAMES)

    def _set_health(
        self, status: health_pb2.HealthCheckResponse.ServingStatus, *names: str
    ) -> None:
        for name in names:
            self._health.set(name, status)

    def _cluster(self) -> session_service_pb2.Cluster:
        """Which of which cluster this server is."""
        return session_service_pb2.Cluster(
            id=self._role.cluster_id,
            shard=self._config.shard,
            num_shards=self._config.num_shards,
            split_elements=self._config.split_elements,
            generation=self._role.generation,
        )

    @property
    def cluster_id(self) -> str:
        """The name of the cluster; '' before it is known."""
        return self._role.cluster_id

    def _start_again(self, snapshot: int) -> None:
        self.restart_from = snapshot
        self._restart()

    def _open_channel(self, target: str) -> RenewableChannel:
        return RenewableChannel(grpc_target(target), peer_credentials(self._config))

    def stop(self, grace_s: float | None = None) -> None:
        """Takes no new calls, lets those that run finish, saves the state, and ends.

        Args:
            grace_s: how long they may take; by default as configured.

        Raises:
            SnapshotError: where the state cannot be saved.
        """
        if self._stopped.is_set():
            return
        self._stopped.set()
        if self._local is not None:
            self._local.stop_sharing()
        if self.restart_from is None:
            self._role.leave()
        self._health.enter_graceful_shutdown()
        self._keeper.stop_snapshots()
        _log.info("draining %d calls", len(self._calls))
        if self.restart_from is not None:
            # What goes on now goes on in a past that is being left.
            grace_s = 0.0
        self._calls.drain(self._config.grace_s if grace_s is None else grace_s)
        # What is left now is open streams without a call, watches of health, and calls that took
        # longer than the grace.
        if self._local is not None:
            self._local.close()
        self._server.stop(0).wait()
        for pool in (
            self._cluster_calls,
            self._refusing,
            self._probes,
            self._control,
            self._waiting,
            self._data,
            self._call_streams,
        ):
            # A call that was cut off may be committing: it is saved with its effect, or not at all.
            pool.shutdown(wait=self._keeper.store is not None, cancel_futures=True)
        if self._config.port_file is not None:
            self._config.port_file.unlink(missing_ok=True)
        self._followed.close()
        if self.restart_from is None:
            self._keeper.save_last(
                SnapshotOrigin(self._role.cluster_id, self._role.generation, self._role.position)
            )
        else:
            self._keeper.leave()
        _log.info("stopped")

    def _add_services(self) -> None:
        # An epoch orders nothing; it only tells one start of a server from another.
        registry = Registry(self._devices, secrets.randbits(63) | 1, _check_declared)
        operations, workers, claims = OperationWindow(), Workers(), Claims()
        members = Members()
        self._members = members
        operations.listen(members.renew)
        trainers = Trainers(
            World(
                registry,
                members,
                operations,
                STEP_ANSWERS,
                workers,
                commits=self._role,
                shard=self._config.shard,
            )
        )
        self._registry, self._operations, self._trainers = registry, operations, trainers
        sections: tuple[Section, ...] = (
            ParametersSection(registry),
            OperationsSection(operations),
            ClaimsSection(claims),
            WorkersSection(workers),
            MembersSection(members),
            TrainersSection(registry, trainers),
        )
        clustered = self._config.num_shards > 1
        orders = ClusterOrders(self._role) if clustered else None
        self._keeper = StateKeeper(
            self._config,
            sections,
            Standstill(
                operations.gate,
                lambda: [each.condition for each in sorted(trainers.all(), key=_name_of)],
                registry,
            ),
            self._devices,
            orders=orders,
        )
        self._followed.saver = self._keeper.saver
        if orders is not None:
            orders.saver = self._keeper.saver
        directory = SnapshotDirectory(self._config.snapshot_dir)
        polls = WaitingSlots(_NUM_WAITING_THREADS - 8)
        services = {
            _PARAMETERS: ParameterServicer(
                registry,
                operations,
                workers,
                FileCalls(registry, operations, directory, self._authorization),
            ),
            _SESSIONS: SessionServicer(
                registry,
                claims,
                Barriers(members.identities),
                workers,
                members,
                polls=polls,
                snapshots=self._keeper.snapshots,
                cluster=self._cluster,
                local_socket=lambda: "" if self._local is None else self._local.socket_name,
            ),
            _TRAINING: TrainingServicer(
                registry,
                trainers,
                members,
                self._role,
                operations,
                waiting=WaitingSlots(max(1, self._config.num_threads // 4)),
                polls=polls,
            ),
            _SNAPSHOTS: SnapshotServicer(self._keeper.snapshots, operations, polls=polls),
        }
        pools = dict.fromkeys(_CONTROL, self._control) | dict.fromkeys(_WAITING, self._waiting)
        methods = [
            ServiceMethods(service, servicer, pools, self._streams, self._calls, self._role.serving)
            for service, servicer in services.items()
        ]
        self._server.add_generic_rpc_handlers(tuple(map(service_handler, methods)))
        self._add_call_streams(methods)
        self._add_cluster_service(trainers)
        self._add_health()
        reflection.enable_server_reflection(
            (
                *_SERVICE_NAMES,
                health.SERVICE_NAME,
                reflection.SERVICE_NAME,
            ),
            self._server,
        )

    def _add_call_streams(self, services: Sequence[ServiceMethods]) -> None:
        # Those that wait have threads of their own, so that they hold up nothing else.
        methods = [
            method
            for service in services
            for method in service.methods()
            if method.name not in _WAITING
        ]
        self._dispatcher = CallDispatcher(methods, self._calls, self._authorization)
        self._server.add_generic_rpc_handlers(
            (call_stream_handler(self._dispatcher, self._call_streams),)
        )

    def _add_cluster_service(self, trainers: Trainers) -> None:
        servicer = ClusterServicer(lambda: self._role.coordinator, trainers, self._on_part)
        pools = dict.fromkeys((each.name for each in _CLUSTER.methods), self._cluster_calls)
        self._server.add_generic_rpc_handlers(
            (
                service_handler(
                    ServiceMethods(_CLUSTER, servicer, pools, self._streams, self._calls)
                ),
            )
        )

    def _on_part(self, shard: int, number: int, directory: str, part: bytes, error: str) -> None:
        try:
            entry = json.loads(part) if part else None
        except ValueError as err:
            entry, error = None, f"shard {shard} reports what is no JSON: {err}"
        if error:
            error = f"shard {shard}: {error}"
        self._keeper.snapshots.report(number, shard, entry, error)

    def _add_health(self) -> None:
        answer = self._health.Check

        def check(
            request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
        ) -> health_pb2.HealthCheckResponse:
            return answer(request, context)

        # The servicer's own pool is for Watch alone. A check must wait for no other call.
        check.experimental_thread_pool = self._probes  # type: ignore[attr-defined]
        self._health.Check = check
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def _bind(self, address: str) -> str:
        try:
            port = self._security.add_port(self._server, address)
        except RuntimeError as err:
            raise OSError(f"cannot listen on {address}: {err}") from err
        if address.startswith("unix:"):
            return address
        if port == 0:
            raise OSError(f"cannot listen on {address}")
        return f"{address.rpartition(':')[0]}:{port}"

    def _keep_house(self) -> None:
        while not self._stopped.wait(_TICK_S):
            self._streams.cut_stalled()
            self._members.expire()
            self._devices.trim()
            self._security.refresh()
            self._role.check()


def _name_of(trainer: TrainerState) -> str:
    return trainer.spec.name


def _check_declared(spec: ParameterSpec) -> None:
    if spec.init is not None:
        check_arguments(spec.init, spec.name)


def _pool(name: str, size: int) -> futures.ThreadPoolExecutor:
    return futures.ThreadPoolExecutor(size, thread_name_prefix=name)
