"""One server or a cluster for all of these tests, and parameters on it.

Every test runs on one server, and on clusters of two and five shards over which nearly every
parameter is spread.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import paramd
from paramd import (
    Parameter,
    ParameterDict,
    Session,
)
from tests.support.clusters import NUM_SHARDS, ids_of, small_cluster
from tests.support.contexts import device
from tests.support.proxies import Counting, ramp


@pytest.fixture(scope="session", params=NUM_SHARDS, ids=ids_of)
def num_shards(request: pytest.FixtureRequest) -> int:
    """How many servers share the parameters."""
    found: int = request.param
    return found


@pytest.fixture(scope="session")
def target(num_shards: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with small_cluster(num_shards, tmp_path_factory.mktemp("snapshots")) as found:
        yield found


@pytest.fixture(scope="module")
def server_session(target: str) -> Iterator[Session]:
    with paramd.connect(target) as session:
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
    parameter.initialize(ctx=[device(0), device(1)])
    parameter.set_data(ramp(10, 2))
    return parameter
