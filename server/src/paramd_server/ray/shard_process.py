"""The server of one shard, as the child of the process that keeps it running."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from paramd.transport.fork_support import VARIABLE
from paramd_server.port_file import read_port_file, write_port_file
from paramd_server.ray.plan import ShardPlan
from paramd_server.supervisor import RestartLimits

__all__ = ["ShardProcess"]

_log = logging.getLogger(__name__)

_COMMAND: Final = (sys.executable, "-m", "paramd_server")
# How often the port file is looked for while a server starts, and a lock or shard 0 is tried.
_POLL_S: Final = 0.05
_RETRY_S: Final = 0.25
# How often it is asked whether shard 0 has moved.
_LOOK_S: Final = 5.0
_TAIL_BYTES: Final = 2000


class ShardProcess:
    """Keeps the server of a shard running, in a thread of its own.

    A server that dies is started again, at the port it had where that is free. When shard 0 has
    moved, the others end in order, keeping their state, and start again with its new address.

    Args:
        plan: what it is started with.
        host: to listen on.
        directory: of this shard on this machine: its port, and the lock which says that a server
            of the shard still runs, perhaps one whose keeper has been killed.
        coordinator: gives the address of shard 0; '' while that is not known.
        forgive: whether a server that ends before it ever served is started again all the same:
            the shard has served before, at another time.
        limits: the pauses between restarts.
        command: what is started; the options follow.

    Attributes:
        address: where it serves; '' while it does not.
        pid: of the server; 0 while there is none.
        num_starts: how many have been started.
        failure: why it was given up; ''.
    """

    def __init__(
        self,
        plan: ShardPlan,
        host: str,
        directory: Path,
        *,
        coordinator: Callable[[], str],
        forgive: bool,
        limits: RestartLimits | None = None,
        command: Sequence[str] = _COMMAND,
    ) -> None:
        self._plan = plan
        self._host = host
        self._directory = directory
        self._coordinator = coordinator
        self._forgive = forgive
        self._limits = limits or RestartLimits()
        self._command = tuple(command)
        self.address = ""
        self.pid = 0
        self.num_starts = 0
        self.failure = ""
        self._deaths = 0
        self._served_at = time.monotonic()
        self._status = 0
        self._stopping = threading.Event()
        self._wake_reader, self._wake_writer = os.pipe()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="shard", daemon=True)
        self._thread.start()

    def await_address(self, wait_s: float) -> str:
        """Waits a moment until it serves, or has failed. Gives the address; '' where there is none.

        Args:
            wait_s: seconds.
        """
        with self._changed:
            self._changed.wait_for(lambda: bool(self.address or self.failure), wait_s)
            return self.address

    def stop(self) -> int:
        """Ends the server in order, and gives its exit status; killed if it takes too long."""
        self._stopping.set()
        os.write(self._wake_writer, b"\0")
        self._thread.join()
        return self._status

    def _run(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            # The children have this very lock, and so it is held as long as one of them lives.
            with (self._directory / "lock").open("ab") as lock:
                if self._take(lock.fileno()):
                    self._keep_running(lock.fileno())
        except (OSError, subprocess.SubprocessError) as err:
            self._fail(f"shard {self._plan.shard} cannot be kept running: {err}")

    def _take(self, lock: int) -> bool:
        """Waits for the end of a server that has lost its keeper. Gives whether to go on."""
        said = False
        while not self._stopping.is_set():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not said:
                    _log.warning("waiting for the former server of this shard to end")
                said = True
                self._stopping.wait(_RETRY_S)
            else:
                return True
        return False

    def _keep_running(self, lock: int) -> None:
        while not self._stopping.is_set():
            coordinator = self._await_coordinator()
            if self._stopping.is_set():
                return
            moved = self._run_once(coordinator, lock)
            if not moved and not self._stopping.is_set() and not self._pause_after_death():
                return

    def _await_coordinator(self) -> str:
        address = ""
        while self._plan.shard and not address and not self._stopping.is_set():
            address = self._coordinator()
            if not address:
                self._stopping.wait(_RETRY_S)
        return address

    def _run_once(self, coordinator: str, lock: int) -> bool:
        """Runs a server to its end. Gives whether that was because shard 0 has moved."""
        port_file = self._directory / "serving.json"
        port_file.unlink(missing_ok=True)
        process = subprocess.Popen(
            [
                *self._command,
                *self._plan.arguments(self._address_to_take(), coordinator),
                *("--port-file", str(port_file), "--parent-pid", str(os.getpid())),
            ],
            stdin=subprocess.DEVNULL,
            env=_environment(),
            pass_fds=(lock,),
            # Signals to the keeper's group are not for the server.
            start_new_session=True,
        )
        self.pid, self.num_starts = process.pid, self.num_starts + 1
        descriptor = os.pidfd_open(process.pid)
        moved = False
        try:
            moved = self._watch(descriptor, port_file, coordinator)
        finally:
            self._status = self._end(process, descriptor)
            os.close(descriptor)
            with self._changed:
                self.address, self.pid = "", 0
        return moved

    def _watch(self, process: int, port_file: Path, coordinator: str) -> bool:
        """Waits until the server has ended or has to. Gives whether shard 0 has moved."""
        while not self._stopping.is_set():
            wait_s = _LOOK_S if self._plan.shard else None
            ready, _, _ = select.select(
                [process, self._wake_reader], [], [], wait_s if self.address else _POLL_S
            )
            if ready:
                return False
            if not self.address:
                self._look_whether_it_serves(port_file)
            elif self._coordinator() not in ("", coordinator):
                _log.warning("shard 0 has moved: this shard follows it")
                return True
        return False

    def _look_whether_it_serves(self, port_file: Path) -> None:
        addresses = read_port_file(port_file)
        if addresses is None:
            return
        write_port_file(self._directory / "kept.json", addresses)
        self._forgive = True
        self._served_at = time.monotonic()
        with self._changed:
            self.address = addresses[0]
            self._changed.notify_all()

    def _end(self, process: subprocess.Popen[bytes], descriptor: int) -> int:
        process.terminate()
        ended, _, _ = select.select([descriptor], [], [], self._plan.stop_s)
        if not ended:
            _log.error("the server has not ended in %g s, and is killed", self._plan.stop_s)
            process.kill()
        return process.wait()

    def _pause_after_death(self) -> bool:
        """Sees to a server that has died. Gives whether there is to be another one."""
        how = f"the server of shard {self._plan.shard} ended with status {self._status}"
        if not self._forgive and self._status >= 0:
            self._fail(f"{how} before it served{_said()}")
            return False
        served_s = time.monotonic() - self._served_at
        self._deaths = 1 if served_s >= self._limits.steady_s else self._deaths + 1
        pause_s = self._limits.pause_s(min(self._deaths, 32))
        _log.warning("%s: it is started again in %g s", how, pause_s)
        self._stopping.wait(pause_s)
        return True

    def _fail(self, failure: str) -> None:
        _log.error("%s", failure)
        with self._changed:
            self.failure = failure
            self._changed.notify_all()

    def _address_to_take(self) -> str:
        """The address of before, where its port is free; the planned one, or any, where not."""
        if self._plan.port:
            return f"{self._host}:{self._plan.port + self._plan.shard}"
        kept = read_port_file(self._directory / "kept.json")
        port = int(kept[0].rpartition(":")[2]) if kept else 0
        return f"{self._host}:{port if port and _is_free(self._host, port) else 0}"


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family) as probe:
        # As a server that listens does: connections of before that linger do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError:
            return False
    return True


def _environment() -> dict[str, str]:
    """Without PARAMD_..., which are meant for clients, and for servers that stand alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PARAMD_")}
    # The server never forks.
    return {**kept, VARIABLE: "0"}


def _said() -> str:
    """The end of what this process and its children have written to a log file; ''."""
    try:
        with open("/proc/self/fd/2", "rb") as log:
            if not stat.S_ISREG(os.fstat(log.fileno()).st_mode):
                return ""
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = log.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""
    return f"; the end of its log:\n{text}" if text else ""
