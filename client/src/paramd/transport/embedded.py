"""A server of this process's own, in a child process: `connect("local")`."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path

from paramd.errors import FileFailedError, ServerUnavailable
from paramd.transport.fork_support import VARIABLE

__all__ = ["EmbeddedServer"]

_STOP_SECONDS = 10.0
# A server with a snapshot directory writes all that it holds.
_SAVE_SECONDS = 600.0
_TAIL_BYTES = 2000


class EmbeddedServer:
    """A server on a Unix socket that ends with this process, or the shards of a cluster.

    Args:
        options: command line options of `paramd-server` and their values.
        timeout: seconds for it to be ready.
        num_shards: 1 for one server; with more, that many shards, which are started again when
            they die.

    Attributes:
        targets: an address of each shard, in their order.
        target: all of them, as `connect` takes them.

    Raises:
        ValueError: for a number of shards below 1.
        ModuleNotFoundError: where paramd-server is not installed.
        ServerUnavailable: where it does not come up; with the end of what it said.
    """

    def __init__(self, options: Mapping[str, str], *, timeout: float, num_shards: int = 1) -> None:
        if num_shards < 1:
            raise ValueError(f"num_shards is 1 or more, but got {num_shards!r}")
        if importlib.util.find_spec("paramd_server") is None:
            raise ModuleNotFoundError(
                "connect('local') runs a server of its own, which is not installed: "
                "pip install paramd-server",
                name="paramd_server",
            )
        self._owner = os.getpid()
        # mkdtemp makes it with mode 0700: nobody else can connect.
        self._directory = Path(tempfile.mkdtemp(prefix="paramd-"))
        try:
            self._process = self._start(options, num_shards)
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        saves = "--snapshot-dir" in options
        # Also runs when the interpreter ends.
        self._finalizer = weakref.finalize(
            self, _end, self._process, str(self._directory), self._owner, saves
        )
        try:
            self.targets = self._wait_until_ready(timeout)
        except BaseException:
            self.close()
            raise
        self.target = ",".join(self.targets)

    @property
    def pid(self) -> int:
        """The process id of the server, or of what runs the shards."""
        return self._process.pid

    def _start(self, options: Mapping[str, str], num_shards: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "paramd_server"]
        command += ["--listen", f"unix:{self._directory}/s"]
        command += ["--port-file", f"{self._directory}/p.json"]
        command += ["--parent-pid", str(self._owner)]
        if num_shards > 1:
            command += ["--shards", str(num_shards)]
        for option, value in options.items():
            command += [option, value]
        # The server never forks; and PARAMD_... are meant for servers that stand alone.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PARAMD_")
        }
        environment[VARIABLE] = "0"
        with open(self._directory / "log", "wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                # Ctrl-C is for the client, which ends the server when it is done with it.
                start_new_session=True,
            )

    def _wait_until_ready(self, timeout: float) -> tuple[str, ...]:
        port_file = self._directory / "p.json"
        give_up_at = time.monotonic() + timeout
        while True:
            if port_file.exists():
                return tuple(json.loads(port_file.read_bytes())["addresses"])
            ended = self.end_of_server()
            if ended is not None:
                raise ServerUnavailable(ended)
            if time.monotonic() > give_up_at:
                said = _tail(str(self._directory))
                raise ServerUnavailable(
                    f"the embedded server was not ready within {timeout:g} s{said}"
                )
            time.sleep(0.005)

    def end_of_server(self) -> str | None:
        """How the server ended, with the end of what it said; None while it runs."""
        if os.getpid() != self._owner or not self._finalizer_alive():
            return None
        code = self._process.poll()
        if code is None:
            return None
        return f"the embedded server ended with status {code}{_tail(str(self._directory))}"

    def _finalizer_alive(self) -> bool:
        return self._finalizer.alive

    def close(self) -> None:
        """Ends the server and removes its directory. Only its owner does; a forked child not.

        Raises:
            FileFailedError: where the server could not save what it held to its snapshot directory.
        """
        self._finalizer()


def _end(process: subprocess.Popen[bytes], directory: str, owner: int, saves: bool) -> None:
    if os.getpid() != owner:
        # A forked child: the server is its parent's. It has no child process to wait for.
        process.returncode = 0
        return
    ran = process.poll() is None
    failure = ""
    process.terminate()
    try:
        process.wait(_SAVE_SECONDS if saves else _STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        failure = f"had not saved its state after {_SAVE_SECONDS:g} s and was killed"
    if process.returncode > 0:
        failure = f"ended with status {process.returncode}"
    said = _tail(directory)
    shutil.rmtree(directory, ignore_errors=True)
    if ran and saves and failure:
        raise FileFailedError(f"the embedded server {failure}{said}")


def _tail(directory: str) -> str:
    """The end of what the server said."""
    try:
        with open(os.path.join(directory, "log"), "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = log.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""
    return f"; it said:\n{text}" if text else ""
