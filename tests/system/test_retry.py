"""The session and a server that goes away and comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paramd.errors import ParameterNotFoundError, ServerUnavailable
from paramd.session import connect
from paramd.spec import ParameterSpec, Selector
from paramd.transport.calls import TensorWrite
from paramd.transport.protocols import SessionCalls
from tests.support.contexts import device


class _Server:
    """`paramd-server` on one Unix socket, started and stopped at will."""

    def __init__(self, directory: Path) -> None:
        self.target = f"unix:{directory}/s"
        self._port_file = directory / "p.json"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        self._port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "paramd_server", "--listen", self.target]
        command += ["--port-file", str(self._port_file), "--parent-pid", str(os.getpid())]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        give_up_at = time.monotonic() + 30
        while wait and not self._port_file.exists():
            assert self._process.poll() is None
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        if wait:
            assert json.loads(self._port_file.read_text())["addresses"]

    def stop(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Server]:
    server = _Server(tmp_path_factory.mktemp("r"))
    server.start()
    yield server
    server.stop(signal.SIGKILL)


def _create(calls: SessionCalls, size: int) -> None:
    calls.declare([(ParameterSpec("w", (size,)), frozenset())])
    calls.set_data([TensorWrite("w", np.ones(size, "f4"))], initialize=True, contexts=[device(0)])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "drained"])
def test_session_goes_on_with_a_server_that_comes_back(server: _Server, number: int) -> None:
    with connect(server.target, worker="w7") as session:
        _create(session.calls, 10)
        epoch = session.status().epoch
        server.stop(number)
        server.start(wait=False)
        # Called while the server is starting: waited for.
        status = session.status()
        assert status.epoch != epoch
        assert [worker.worker for worker in status.workers] == ["w7"]
        with pytest.raises(ParameterNotFoundError):
            session.calls.get_data([Selector("w")], device(0))
        _create(session.calls, 10)


def test_server_may_start_after_its_clients(server: _Server) -> None:
    server.stop(signal.SIGKILL)
    found: list[int] = []

    def work() -> None:
        with connect(server.target) as session:
            found.append(session.status().num_parameters)

    thread = threading.Thread(target=work)
    thread.start()
    server.start()
    thread.join(30)
    assert found == [0]


def test_server_that_stays_away_is_reported_in_time(server: _Server) -> None:
    with connect(server.target, timeout=1.0) as session:
        server.stop(signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(ServerUnavailable, match=r"/s could not serve GetStatus within 1 s"):
            session.status()
        assert time.monotonic() - start < 10


def test_write_that_loses_its_server_is_reported(server: _Server) -> None:
    size = 1 << 24
    with connect(server.target, timeout=1.0) as session:
        _create(session.calls, size)
        errors: list[BaseException] = []
        writing = threading.Event()

        def write() -> None:
            try:
                while True:
                    session.calls.set_data([TensorWrite("w", np.ones(size, "f4"))])
                    writing.set()
            except BaseException as err:
                errors.append(err)

        thread = threading.Thread(target=write)
        thread.start()
        assert writing.wait(30)
        server.stop(signal.SIGKILL)
        thread.join(30)
        assert isinstance(errors[0], ServerUnavailable)
