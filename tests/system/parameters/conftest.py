"""An embedded server for a module of tests, and parameters on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import paramd
from paramd import (
    Parameter,
    ParameterDict,
    Session,
    cpu,
)
from tests.support.proxies import Counting, ramp


@pytest.fixture(scope="module")
def server_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    directory = tmp_path_factory.mktemp("snapshots")
    with paramd.connect("local", snapshot_dir=directory) as session:
        yield session


@pytest.fixture
def session(server_session: Session) -> Iterator[Session]:
    """The module's session; every parameter is removed after the test."""
    yield server_session
    server_session.delete([info.current.name for info in server_session.calls.list_parameters()])


@pytest.fixture
def counting(session: Session, monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting(session.calls)
    monkeypatch.setattr(session, "calls", counting)
    return counting


@pytest.fixture
def params(session: Session) -> ParameterDict:
    found = ParameterDict("net_")
    found.get("a", shape=(2, 3))
    found.get("b", shape=(3,), dtype="float16")
    found.get("n", shape=(2,), dtype="int64")
    found.initialize("ones")
    return found


@pytest.fixture
def table(session: Session) -> Parameter:
    parameter = Parameter("t", shape=(10, 2), stype="row_sparse", grad_stype="row_sparse")
    parameter.initialize(ctx=[cpu(0), cpu(1)])
    parameter.set_data(ramp(10, 2))
    return parameter
