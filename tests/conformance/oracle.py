"""MXNet 1.9.1 as a process of its own that answers one line of JSON with one line of JSON."""

from __future__ import annotations

import json
import os
import select
import subprocess
from pathlib import Path
from typing import Any, Self

__all__ = ["ORACLE_PYTHON", "Oracle", "OracleError"]

_ROOT = Path(__file__).resolve().parents[2]
ORACLE_PYTHON = _ROOT / ".cache" / "oracle" / "bin" / "python"
# The longest program takes less than a second; MXNet's engine has been seen to stand still.
_PATIENCE_S = 30.0
_HOW_TO_BUILD = "`make conformance` builds it (requirements/conformance-oracle.txt, Python 3.11)"


class OracleError(Exception):
    """The oracle cannot be started, or died on a program."""


class Oracle:
    """One running MXNet.

    Args:
        folder: folder for the files that programs write, and for the log.

    Raises:
        OracleError: if its environment has not been built.
    """

    def __init__(self, folder: Path) -> None:
        if not ORACLE_PYTHON.exists():
            raise OracleError(f"no MXNet 1.9.1 at {ORACLE_PYTHON}: {_HOW_TO_BUILD}")
        self._folder = folder
        self._log = (folder / "oracle.log").open("ab")
        self._process = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._log.close()

    def run(self, program: list[dict[str, Any]], *, as_is: bool = False) -> list[dict[str, Any]]:
        """Runs a program.

        Args:
            program: its steps.
            as_is: without the forward pass and the Trainer that programs get otherwise.

        Returns:
            One outcome for each step.

        Raises:
            OracleError: if MXNet died; the next program gets a new one.
        """
        outcomes: list[dict[str, Any]] = self._ask({"program": program, "as_is": as_is})
        return outcomes

    def inspect(self) -> dict[str, Any]:
        """Members and signatures, as `describe_members` gives them."""
        described: dict[str, Any] = self._ask({"inspect": True})
        return described

    def _ask(self, request: dict[str, Any]) -> Any:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], _PATIENCE_S)
            answer = process.stdout.readline() if ready else b""
        except BrokenPipeError:
            ready, answer = [], b""
        if not answer:
            if not ready:
                process.kill()
            code = process.wait(timeout=10)
            self._stop()
            self._process = self._start()
            tail = (self._folder / "oracle.log").read_text(errors="replace")[-2000:]
            raise OracleError(f"MXNet ended with {code} on {json.dumps(request)[:4000]}\n{tail}")
        return json.loads(answer)

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "MXNET_STORAGE_FALLBACK_LOG_VERBOSE": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(_ROOT),
        }
        return subprocess.Popen(
            [str(ORACLE_PYTHON), "-m", "tests.conformance.mxnet_library", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            cwd=self._folder,
        )

    def _stop(self) -> None:
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)
