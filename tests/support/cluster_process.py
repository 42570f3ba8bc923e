"""Shards as processes of their own, on ports that stay theirs: stopped, killed, started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc

from paramd.v1 import session_service_pb2
from paramd.wire.protocol import PROTOCOL
from tests.support.server_process import server_environment
from tests.support.waiting import wait_until

__all__ = ["ClusterProcess", "cluster_of_processes"]

START_S: Final = 60.0
STOP_S: Final = 60.0
_HELLO: Final = "/paramd.v1.SessionService/Hello"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class ClusterProcess:
    """The shards of one cluster; each is started and ended by itself.

    Args:
        directory: for logs and snapshots.
        num_shards: how many.
        snapshots: whether each has a snapshot directory, of its own.
        options: further options of each.
        coordinator: how the others reach shard 0; None: where it listens.
    """

    def __init__(
        self,
        directory: Path,
        num_shards: int = 2,
        *,
        snapshots: bool = True,
        options: Sequence[str] = ("--split-elements", "4"),
        coordinator: str | None = None,
    ) -> None:
        self.num_shards = num_shards
        self.addresses = [f"127.0.0.1:{port}" for port in _free_ports(num_shards)]
        self.coordinator = self.addresses[0] if coordinator is None else coordinator
        self._directory = directory
        self._snapshots = snapshots
        self._options = list(options)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def target(self) -> str:
        """As `connect` takes it."""
        return ",".join(self.addresses)

    def snapshot_dir(self, shard: int) -> Path:
        return self._directory / f"shard-{shard}"

    def log(self, shard: int) -> str:
        """Of all starts of a shard."""
        path = self._directory / f"shard-{shard}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def said(self, shard: int, *words: str) -> list[str]:
        """The lines of a log that contain one of some words."""
        return [line for line in self.log(shard).splitlines() if any(w in line for w in words)]

    # Processes

    def command(self, shard: int, *options: str) -> list[str]:
        command = [sys.executable, "-m", "paramd_server", "--listen", self.addresses[shard]]
        command += ["--shard", f"{shard}/{self.num_shards}"]
        if shard:
            command += ["--coordinator", self.coordinator]
        if self._snapshots:
            command += ["--snapshot-dir", str(self.snapshot_dir(shard))]
        return [*command, *self._options, *options]

    def start(self, *shards: int, options: Sequence[str] = ()) -> None:
        """Starts shards, all of them where none is named. Does not wait for them."""
        for shard in shards or range(self.num_shards):
            assert shard not in self._processes, f"shard {shard} runs"
            with (self._directory / f"shard-{shard}.log").open("ab") as log:
                self._processes[shard] = subprocess.Popen(
                    self.command(shard, *options),
                    env=server_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )

    def kill(self, *shards: int) -> None:
        """Kills shards with SIGKILL, and waits for their ends."""
        for shard in shards:
            self._processes[shard].kill()
        for shard in shards:
            self._processes.pop(shard).wait(STOP_S)

    def halt(self, shard: int) -> None:
        """Has a shard do nothing any more, as one that hangs (SIGSTOP)."""
        process = self._processes[shard]
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self, shard: int) -> None:
        """Ends `halt`."""
        self._processes[shard].send_signal(signal.SIGCONT)

    def terminate(self, *shards: int) -> None:
        """Asks shards to end (SIGTERM)."""
        for shard in shards or range(self.num_shards):
            self._processes[shard].terminate()

    def await_end(self, *shards: int) -> None:
        """Waits for shards that have been asked to end: they have to end well."""
        for shard in shards or range(self.num_shards):
            status = self._processes.pop(shard).wait(STOP_S)
            assert status == 0, f"shard {shard} ended with {status}"

    def runs(self, shard: int) -> bool:
        process = self._processes.get(shard)
        return process is not None and process.poll() is None

    def close(self) -> None:
        """Ends what runs, by its own id."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait(STOP_S)
        self._processes.clear()

    # Readiness

    def hello(self, shard: int) -> session_service_pb2.Cluster | None:
        """What a shard says of the cluster; None where it does not serve."""
        request = session_service_pb2.HelloRequest(protocol=PROTOCOL, identity=os.urandom(16))
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self.addresses[shard], options=options) as channel:
            call: Any = channel.unary_unary(_HELLO)
            try:
                answer = call(request.SerializeToString(), timeout=5.0)
            except grpc.RpcError:
                return None
        return session_service_pb2.HelloResponse.FromString(answer).cluster

    def await_formed(self, *, other_than: int = 0) -> int:
        """Waits until all shards serve in one generation, and gives that.

        Args:
            other_than: a generation that is over.
        """
        found: list[int] = []

        def formed() -> bool:
            clusters = [self.hello(shard) for shard in range(self.num_shards)]
            found[:] = [0 if each is None else each.generation for each in clusters]
            for shard, process in self._processes.items():
                assert process.poll() is None, f"shard {shard} ended:\n{self.log(shard)[-3000:]}"
            return len(set(found)) == 1 and found[0] not in (0, other_than)

        try:
            wait_until(formed, "the cluster has formed", timeout_s=START_S)
        except AssertionError:
            print(f"generations {found}, not {other_than}")
            raise
        return found[0]


@contextmanager
def cluster_of_processes(
    directory: Path, num_shards: int = 2, *, start: bool = True, **settings: Any
) -> Iterator[ClusterProcess]:
    """Shards that have formed a cluster; they have ended when the block ends.

    Args:
        directory: for logs and snapshots.
        num_shards: how many.
        start: whether they are started.
        settings: see ClusterProcess.
    """
    cluster = ClusterProcess(directory, num_shards, **settings)
    try:
        if start:
            cluster.start()
            cluster.await_formed()
        yield cluster
    finally:
        cluster.close()
        # pytest shows it where the test fails.
        for shard in range(num_shards):
            print(f"--- log of shard {shard}\n{cluster.log(shard)}")
