"""A server whose memory is shared with the tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from paramd import cpu
from paramd.session import Session, connect
from paramd.spec import ParameterSpec, Selector
from paramd.transport.records import TensorWrite
from paramd.wire.directory import is_supported
from tests.support.server_process import ServerProcess, serve


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if is_supported():
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="this processor's memory is not shared"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for the tests of a module."""
    with serve(tmp_path_factory.mktemp("server")) as process:
        yield process
        assert process.trouble() == []


@pytest.fixture
def in_place(server: ServerProcess) -> Iterator[Session]:
    """A session that reads in shared memory, and fails at once where it would make a call."""
    with connect(server.address, transport="shm", timeout=5, stall_timeout=5) as session:
        yield session


@pytest.fixture
def calling(server: ServerProcess) -> Iterator[Session]:
    """A session that makes calls."""
    with connect(server.address, transport="tcp") as session:
        yield session


@contextmanager
def halted(server: ServerProcess) -> Iterator[None]:
    """The server does nothing while the block runs."""
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def make(session: Session, name: str, value: float, size: int) -> None:
    """A parameter whose elements are all of a value; written where it is there already."""
    write = TensorWrite(name, np.full(size, value, "f4"))
    session.calls.declare([(ParameterSpec(name, (size,)), frozenset())])
    session.calls.set_data([write], initialize=True, contexts=[cpu(0)], force_reinit=True)


def get(session: Session, name: str) -> float:
    """The value of the elements of a parameter, however it is read."""
    (found,) = session.calls.get_values([Selector(name)], cpu(0))
    assert isinstance(found, np.ndarray)
    assert (found == found[0]).all()
    return float(found[0])


def reads_in_place(session: Session, name: str) -> float:
    """As `get`; fails where it is not read in place."""
    get(session, name)
    local = session._connection.local.values()
    assert local is not None
    found = local.get([Selector(name)], cpu(0), None)
    assert found is not None
    assert isinstance(found[0], np.ndarray)
    assert (found[0] == found[0][0]).all()
    return float(found[0][0])
