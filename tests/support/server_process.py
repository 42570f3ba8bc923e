"""A real `python -m paramd_server` in a child process, for tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

START_S = 30.0
STOP_S = 20.0
# Not the SO_ERROR of gRPC's warnings.
_TROUBLE = re.compile(r"(?<!SO_)ERROR|CRITICAL|Traceback \(most recent call last\)")


@dataclass
class ServerProcess:
    """A child that serves, and its files."""

    process: subprocess.Popen[bytes]
    port_file: Path
    log_file: Path
    addresses: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def trouble(self) -> list[str]:
        """The lines of the log that a user should never see."""
        return [line for line in self.log.splitlines() if _TROUBLE.search(line)]

    def await_start(self) -> None:
        """Waits for the port file. Fails with the log where the child ends before."""
        deadline = time.monotonic() + START_S
        while not self.port_file.exists():
            if self.process.poll() is not None:
                raise AssertionError(
                    f"the server ended with {self.process.returncode}:\n{self.log}"
                )
            if time.monotonic() > deadline:
                raise AssertionError(f"the server did not start in {START_S} s:\n{self.log}")
            time.sleep(0.01)
        self.addresses = json.loads(self.port_file.read_text())["addresses"]

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def await_end(self) -> int:
        return self.process.wait(STOP_S)

    def end(self) -> None:
        """Ends the child however it is, by its own id."""
        if self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def memory_bytes(self, entry: str = "VmRSS") -> int:
        """A line of /proc/PID/status, such as VmRSS or VmHWM (the peak), in bytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(rf"^{entry}:\s+(\d+) kB$", text, re.MULTILINE)
        assert match is not None, f"no {entry} in /proc/{self.process.pid}/status"
        return int(match[1]) * 1024

    def reset_peak(self) -> None:
        """Makes VmHWM what is resident now (man 5 proc, clear_refs)."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


@dataclass
class GivenServer:
    """Servers that run already, and that nothing but their addresses is known of."""

    addresses: list[str]

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def process(self) -> GivenServer:
        return self

    def poll(self) -> None:
        """As that of a process which runs."""

    def trouble(self) -> list[str]:
        """Whoever runs them reads their logs."""
        return []

    def memory_bytes(self, entry: str = "VmRSS") -> int:
        pytest.skip(f"{entry} of {self.address} cannot be seen from here")

    def reset_peak(self) -> None:
        self.memory_bytes()


def server_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment with `extra`, and without PARAMD_ variables but those of the tests."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("PARAMD_") or key.startswith("PARAMD_TEST_")
    }
    return {**kept, **(extra or {})}


def run_server(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end: for calls that refuse to serve, or only print."""
    return subprocess.run(
        [sys.executable, "-m", "paramd_server", *arguments],
        env=server_environment(environment),
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )


@contextmanager
def serve(
    directory: Path,
    *arguments: str,
    listen: Sequence[str] | None = ("127.0.0.1:0",),
    environment: Mapping[str, str] | None = None,
    **popen: Any,
) -> Iterator[ServerProcess]:
    """A server that serves; it has ended when the block ends.

    Args:
        directory: for its port file and log.
        arguments: further options.
        listen: its addresses; None leaves out the option.
        environment: further variables.
        popen: further arguments of subprocess.Popen.
    """
    number = len(list(directory.glob("server-*.log")))
    log_file = directory / f"server-{number}.log"
    port_file = directory / f"server-{number}.json"
    command = [sys.executable, "-m", "paramd_server", "--port-file", str(port_file)]
    for address in listen or ():
        command += ["--listen", address]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*command, *arguments],
            env=server_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            **popen,
        )
    server = ServerProcess(process, port_file, log_file)
    try:
        server.await_start()
        yield server
    finally:
        server.end()
        # pytest shows it where the test fails.
        print(f"--- log of {' '.join([*command[1:], *arguments])}\n{server.log}")
