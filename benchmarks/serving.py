"""Servers of a benchmark: a process for as long as a block runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["paramd_server", "started"]

_START_S: Final = 60.0


def paramd_server(port_file: Path, *options: str) -> list[str]:
    """The command that starts a server on any free port of this machine."""
    command = [sys.executable, "-m", "paramd_server", "--listen", "127.0.0.1:0"]
    return [*command, "--port-file", str(port_file), "--log-level", "warning", *options]


@contextmanager
def started(command: Sequence[str], port_file: Path) -> Iterator[list[str]]:
    """Runs a server for as long as the block does, and gives its addresses."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + _START_S
            while not port_file.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[2]} did not start")
                time.sleep(0.02)
            yield json.loads(port_file.read_text())["addresses"]
        finally:
            process.terminate()
