"""From a configuration to a running server."""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from concurrent import futures
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from paramd.initial_values import check_arguments
from paramd.spec import ParameterSpec
from paramd.v1 import parameter_service_pb2, session_service_pb2, training_service_pb2
from paramd_server.arrays.devices import Devices
from paramd_server.arrays.memory import MemoryAccount
from paramd_server.config import ServerConfig
from paramd_server.core.coordination import Barriers, Claims
from paramd_server.core.operations import OperationWindow
from paramd_server.core.registry import Registry
from paramd_server.core.snapshot import Section, restore_sections, save_sections
from paramd_server.core.snapshot_parameters import ParametersSection
from paramd_server.core.snapshot_sessions import ClaimsSection, OperationsSection, WorkersSection
from paramd_server.core.training.members import Members
from paramd_server.core.training.sections import MembersSection, TrainersSection
from paramd_server.core.training.trainer import World
from paramd_server.core.training.trainers import Trainers
from paramd_server.core.workers import Workers
from paramd_server.rpc.file_calls import FileCalls
from paramd_server.rpc.methods import ServiceMethods, service_handler
from paramd_server.rpc.parameter_servicer import ParameterServicer
from paramd_server.rpc.session_servicer import SessionServicer
from paramd_server.rpc.streams import OpenStreams
from paramd_server.rpc.training_servicer import STEP_ANSWERS, TrainingServicer
from paramd_server.rpc.waiting import WaitingSlots
from paramd_server.storage.directory import SnapshotDirectory
from paramd_server.storage.snapshots import SnapshotStore

__all__ = ["Server"]

_log = logging.getLogger(__name__)

_PARAMETERS: Final = parameter_service_pb2.DESCRIPTOR.services_by_name["ParameterService"]
_SESSIONS: Final = session_service_pb2.DESCRIPTOR.services_by_name["SessionService"]
_TRAINING: Final = training_service_pb2.DESCRIPTOR.services_by_name["TrainingService"]
_SERVICES: Final = (_PARAMETERS, _SESSIONS, _TRAINING)
_NUM_CONTROL_THREADS: Final = 8
_NUM_WAITING_THREADS: Final = 64
_NUM_PROBE_THREADS: Final = 2
_TICK_S: Final = 1.0

# Calls of a few kilobytes that others wait for. They run on threads of their own, so that streams
# cannot use them up.
_CONTROL: Final = (
    *("Declare", "List", "SetAttributes", "ZeroGrad", "Delete"),
    *("Hello", "GetStatus", "Join", "Heartbeat", "Leave"),
    *("DeclareTrainer", "ListTrainers", "DeleteTrainer", "JoinTrainer", "LeaveTrainer"),
    "SetLearningRate",
)
_WAITING: Final = ("Once", "Barrier", "AwaitStep")

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
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._devices = Devices(MemoryAccount(config.memory_limit))
        self._streams = OpenStreams(stall_s=config.stall_s)
        self._stopped = threading.Event()
        self._control = _pool("control", _NUM_CONTROL_THREADS)
        self._waiting = _pool("waiting", _NUM_WAITING_THREADS)
        self._data = _pool("data", config.num_threads)
        self._probes = _pool("probe", _NUM_PROBE_THREADS)
        self._health = health.HealthServicer(
            experimental_non_blocking=True, experimental_thread_pool=self._probes
        )
        self._server = grpc.server(self._data, options=_OPTIONS)
        directory = config.snapshot_dir
        self._store = None if directory is None else SnapshotStore(directory)
        self._sections: tuple[Section, ...] = ()
        self._add_services()
        self.addresses: tuple[str, ...] = ()

    def start(self) -> None:
        """Serves, and writes the port file.

        Raises:
            OSError: where an address cannot be bound.
            SnapshotError: where the state of before cannot be taken up.
        """
        if self._store is not None:
            self._take_up(self._store)
        self.addresses = tuple(self._bind(address) for address in self._config.listen)
        self._server.start()
        self._members.begin_leases()
        for name in ("", *(service.full_name for service in _SERVICES)):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        threading.Thread(target=self._keep_house, name="housekeeping", daemon=True).start()
        if self._config.port_file is not None:
            _write_atomically(
                self._config.port_file, json.dumps({"addresses": list(self.addresses)}) + "\n"
            )
        _log.info("serving on %s", ", ".join(self.addresses))

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
        self._health.enter_graceful_shutdown()
        _log.info("draining %d streams", len(self._streams))
        self._server.stop(self._config.grace_s if grace_s is None else grace_s).wait()
        for pool in (self._probes, self._control, self._waiting, self._data):
            # A call that was cut off may be committing: it is saved with its effect, or not at all.
            pool.shutdown(wait=self._store is not None, cancel_futures=True)
        if self._config.port_file is not None:
            self._config.port_file.unlink(missing_ok=True)
        if self._store is not None:
            self._save(self._store)
        _log.info("stopped")

    def _take_up(self, store: SnapshotStore) -> None:
        store.lock()
        number = store.choose(self._config.restore)
        if number is not None:
            _log.info("taking up snapshot %d", number)
            with store.taking_up(number) as snapshot:
                restore_sections(self._sections, snapshot)
            _log.info("took up snapshot %d", number)

    def _save(self, store: SnapshotStore) -> None:
        try:
            saved = save_sections(self._sections)
            if store.taken_up is None and all(section.blank for section in saved.values()):
                return
            _log.info("saved snapshot %d", store.save(saved))
        finally:
            store.unlock()

    def _add_services(self) -> None:
        # An epoch orders nothing; it only tells one start of a server from another.
        registry = Registry(self._devices, secrets.randbits(63) | 1, _check_declared)
        operations, workers, claims = OperationWindow(), Workers(), Claims()
        members = Members()
        self._members = members
        operations.listen(members.renew)
        trainers = Trainers(World(registry, members, operations, STEP_ANSWERS, workers))
        self._sections = (
            ParametersSection(registry),
            OperationsSection(operations),
            ClaimsSection(claims),
            WorkersSection(workers),
            MembersSection(members),
            TrainersSection(registry, trainers),
        )
        directory = SnapshotDirectory(self._config.snapshot_dir)
        polls = WaitingSlots(_NUM_WAITING_THREADS - 8)
        services = {
            _PARAMETERS: ParameterServicer(
                registry, operations, workers, FileCalls(registry, operations, directory)
            ),
            _SESSIONS: SessionServicer(
                registry, claims, Barriers(members.identities), workers, members, polls=polls
            ),
            _TRAINING: TrainingServicer(
                registry,
                trainers,
                members,
                operations,
                waiting=WaitingSlots(max(1, self._config.num_threads // 4)),
                polls=polls,
            ),
        }
        pools = dict.fromkeys(_CONTROL, self._control) | dict.fromkeys(_WAITING, self._waiting)
        self._server.add_generic_rpc_handlers(
            tuple(
                service_handler(ServiceMethods(service, servicer, pools, self._streams))
                for service, servicer in services.items()
            )
        )
        self._add_health()
        reflection.enable_server_reflection(
            (
                *(service.full_name for service in _SERVICES),
                health.SERVICE_NAME,
                reflection.SERVICE_NAME,
            ),
            self._server,
        )

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
            port = self._server.add_insecure_port(address)
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
            self._devices.spares.trim()


def _check_declared(spec: ParameterSpec) -> None:
    if spec.init is not None:
        check_arguments(spec.init, spec.name)


def _pool(name: str, size: int) -> futures.ThreadPoolExecutor:
    return futures.ThreadPoolExecutor(size, thread_name_prefix=name)


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
