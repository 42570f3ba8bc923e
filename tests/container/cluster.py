"""Servers and workers in containers, on a network of their own."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import docker

import paramd
from paramd.trainer_spec import TrainerInfo
from tests.container.engine import run_labels
from tests.container.images import Images

PORT = 50051
SNAPSHOTS = "/var/lib/paramd"
START_S = 60.0
STOP_S = 30
# As docker-compose.yml has it.
CONFINED: dict[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
}


@dataclass(frozen=True)
class Options:
    """How a cluster is made.

    Attributes:
        num_shards: how many servers.
        server: further options of each.
        coordinator: further options of shard 0 alone.
        healthcheck: other settings than the image's, as the engine takes them.
    """

    num_shards: int = 1
    server: Sequence[str] = ()
    coordinator: Sequence[str] = ()
    healthcheck: dict[str, Any] | None = None


class Cluster:
    """Servers with a volume each, and whoever else is put on their network.

    Args:
        engine: runs them.
        images: of the servers and workers.
        options: of the servers.
    """

    def __init__(self, engine: docker.DockerClient, images: Images, options: Options) -> None:
        self.engine = engine
        self.images = images
        self.options = options
        self.id = secrets.token_hex(4)
        self._labels = run_labels(self.id)
        self._made: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.push(self._stack)
            self.network = self.engine.networks.create(
                f"paramd-test-{self.id}", driver="bridge", labels=self._labels
            )
            self._stack.callback(self.network.remove)
            self._volumes = [self._volume(shard) for shard in range(self.options.num_shards)]
            for shard in range(self.options.num_shards):
                self.add_server(shard)
            self.await_serving()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _volume(self, shard: int) -> str:
        name = f"paramd-test-{self.id}-{shard}"
        volume = self.engine.volumes.create(name, labels=self._labels)
        self._stack.callback(volume.remove)
        return name

    # Containers

    def add(self, name: str, image: str, **options: Any) -> Any:
        """Starts a container that the network knows by a name, in the place of one of before."""
        if name in self._made:
            self.remove(name)
        host = {**CONFINED, **options.pop("host", {})}
        aliases = {self.network.name: self.engine.api.create_endpoint_config(aliases=[name])}
        created = self.engine.api.create_container(
            image,
            name=f"paramd-test-{self.id}-{name}",
            hostname=name,
            labels=self._labels,
            host_config=self.engine.api.create_host_config(network_mode=self.network.name, **host),
            networking_config=self.engine.api.create_networking_config(aliases),
            **options,
        )
        container = self.engine.containers.get(created["Id"])
        self._made[name] = container
        self._stack.callback(self._discard, container)
        container.start()
        return container

    def remove(self, name: str) -> None:
        """Removes a container; the volumes stay."""
        container = self._made.pop(name)
        self._show(container)
        container.remove(force=True)

    def _discard(self, container: Any) -> None:
        try:
            self._show(container)
            container.remove(force=True, v=True)
        except docker.errors.NotFound:
            # Another one has taken its place.
            return

    def _show(self, container: Any) -> None:
        # pytest shows it where the test fails.
        container.reload()
        state = container.attrs["State"]
        print(f"--- {container.name}: {state['Status']}, exit code {state['ExitCode']}")
        print(log_of(container))

    def container(self, name: str) -> Any:
        """The container of that name, with its state as it is now."""
        container = self._made[name]
        container.reload()
        return container

    # Servers

    def add_server(self, shard: int) -> Any:
        """Starts a shard with its volume."""
        number = self.options.num_shards
        command = ["--insecure", "--snapshot-dir", SNAPSHOTS, *self.options.server]
        if number > 1:
            command += ["--shard", f"{shard}/{number}"]
        if shard:
            command += ["--coordinator", f"shard-0:{PORT}"]
        else:
            command += self.options.coordinator
        return self.add(
            f"shard-{shard}",
            self.images.server,
            command=command,
            ports=[PORT],
            healthcheck=self.options.healthcheck,
            host={
                "port_bindings": {PORT: ("127.0.0.1", None)},
                "binds": {self._volumes[shard]: {"bind": SNAPSHOTS, "mode": "rw"}},
            },
        )

    @property
    def servers(self) -> list[str]:
        """The names of the servers' containers."""
        return [f"shard-{shard}" for shard in range(self.options.num_shards)]

    @property
    def target(self) -> str:
        """For clients on the network."""
        return ",".join(f"{name}:{PORT}" for name in self.servers)

    @property
    def published(self) -> str:
        """For clients on this machine. A server that is started again has another port."""
        bound = [
            self.container(name).attrs["NetworkSettings"]["Ports"][f"{PORT}/tcp"][0]
            for name in self.servers
        ]
        return ",".join(f"{each['HostIp']}:{each['HostPort']}" for each in bound)

    def connect(self, **options: Any) -> paramd.Session:
        """A session of this machine."""
        return paramd.connect(self.published, **{"timeout": START_S, **options})

    def await_serving(self) -> None:
        """Waits until all servers answer. Fails where one ends before."""
        for name in self.servers:
            assert self.container(name).status == "running", log_of(self.container(name))
        self.connect().close()

    def stop_servers(self) -> None:
        """Stops all servers in order, as `docker stop` does; each must end with 0."""
        for name in reversed(self.servers):
            self.container(name).stop(timeout=STOP_S)
            assert self.container(name).attrs["State"]["ExitCode"] == 0, log_of(self._made[name])

    # Workers

    def add_worker(self, name: str, *arguments: str, num_workers: int = 2) -> Any:
        """Starts a worker of the digits example."""
        program = ["python", "-m", "examples.cluster_worker", *arguments]
        environment = {
            "PARAMD_TARGET": self.target,
            "PARAMD_WORKER": name,
            "PARAMD_NUM_WORKERS": str(num_workers),
        }
        return self.add(name, self.images.worker, command=program, environment=environment)

    def await_clock(self, clock: int, *, timeout_s: float = 60.0) -> TrainerInfo:
        """Waits until every worker of the only trainer has made that many steps.

        Asks over a session of its own, so that servers may have been away.
        """
        deadline = time.monotonic() + timeout_s
        with self.connect() as session:
            while True:
                for info in session.trainers():
                    if info.workers and min(each.clock for each in info.workers) >= clock:
                        return info
                assert time.monotonic() < deadline, f"no clock {clock} within {timeout_s:g} s"
                time.sleep(0.02)


def log_of(container: Any) -> str:
    """What a container has printed."""
    log: bytes = container.logs()
    return log.decode(errors="replace")


def await_end(container: Any, *, timeout_s: float = 90.0) -> int:
    """Waits until a container has ended, and gives its exit code."""
    deadline = time.monotonic() + timeout_s
    while True:
        container.reload()
        if container.status == "exited":
            code: int = container.attrs["State"]["ExitCode"]
            return code
        assert time.monotonic() < deadline, f"{container.name} runs on after {timeout_s:g} s"
        time.sleep(0.05)


def await_health(container: Any, status: str, *, timeout_s: float = 60.0) -> None:
    """Waits for what the engine finds by the health check: 'healthy' or 'unhealthy'."""
    deadline = time.monotonic() + timeout_s
    while True:
        container.reload()
        health = container.attrs["State"]["Health"]
        if health["Status"] == status:
            return
        assert container.status == "running", log_of(container)
        assert time.monotonic() < deadline, f"not {status} within {timeout_s:g} s: {health}"
        time.sleep(0.1)
