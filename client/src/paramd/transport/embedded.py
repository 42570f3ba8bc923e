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

from paramd.errors import ServerUnavailable
from paramd.transport.fork_support import VARIABLE

__all__ = ["EmbeddedServer"]

_STOP_SECONDS = 10.0
_TAIL_BYTES = 2000


class EmbeddedServer:
    """A server on a Unix socket that ends with this process.

    Args:
        options: command line options of `paramd-server` and their values.
        timeout: seconds for it to be ready.

    Raises:
        ModuleNotFoundError: where paramd-server is not installed.
        ServerUnavailable: where it does not come up; with the end of what it said.
    """

    def __init__(self, options: Mapping[str, str], *, timeout: float) -> None:
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
            self._process = self._start(options)
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        # Also runs when the interpreter ends.
        self._finalizer = weakref.finalize(
            self, _end, self._process, str(self._directory), self._owner
        )
        try:
            self.target = self._wait_until_ready(timeout)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    def _start(self, options: Mapping[str, str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "paramd_server"]
        command += ["--listen", f"unix:{self._directory}/s"]
        command += ["--port-file", f"{self._directory}/p.json"]
        command += ["--parent-pid", str(self._owner)]
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

    def _wait_until_ready(self, timeout: float) -> str:
        port_file = self._directory / "p.json"
        give_up_at = time.monotonic() + timeout
        while True:
            if port_file.exists():
                addresses: list[str] = json.loads(port_file.read_bytes())["addresses"]
                return addresses[0]
            ended = self.end_of_server()
            if ended is not None:
                raise ServerUnavailable(ended)
            if time.monotonic() > give_up_at:
                raise ServerUnavailable(
                    f"the embedded server was not ready within {timeout:g} s{self._tail()}"
                )
            time.sleep(0.005)

    def end_of_server(self) -> str | None:
        """How the server ended, with the end of what it said; None while it runs."""
        if os.getpid() != self._owner or not self._finalizer_alive():
            return None
        code = self._process.poll()
        if code is None:
            return None
        return f"the embedded server ended with status {code}{self._tail()}"

    def _finalizer_alive(self) -> bool:
        return self._finalizer.alive

    def _tail(self) -> str:
        try:
            with open(self._directory / "log", "rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                text = log.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""
        return f"; it said:\n{text}" if text else ""

    def close(self) -> None:
        """Ends the server and removes its directory. Only its owner does; a forked child not."""
        self._finalizer()


def _end(process: subprocess.Popen[bytes], directory: str, owner: int) -> None:
    if os.getpid() != owner:
        # A forked child: the server is its parent's. It has no child process to wait for.
        process.returncode = 0
        return
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(directory, ignore_errors=True)
