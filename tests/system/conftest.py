"""Servers for system tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paramd.spec import ParameterSpec
from tests.support.clusters import GIVEN
from tests.support.contexts import device, memory_limit
from tests.support.raw_calls import SHAPE, VALUE, RawClient
from tests.support.server_process import GivenServer, ServerProcess, serve


@pytest.fixture(scope="module")
def shared_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerProcess | GivenServer]:
    """One server for the tests of a module, with a small memory limit and a snapshot directory."""
    if GIVEN:
        yield GivenServer(GIVEN.split(","))
        return
    directory: Path = tmp_path_factory.mktemp("server")
    snapshots = str(directory / "snapshots")
    with serve(directory, *memory_limit(64), "--snapshot-dir", snapshots) as server:
        yield server


@pytest.fixture
def raw(shared_server: ServerProcess) -> Iterator[RawClient]:
    """A client of the shared server. The test fails where the server logs an error."""
    before = len(shared_server.trouble())
    with RawClient(shared_server.address) as client:
        yield client
    assert shared_server.trouble()[before:] == []
    assert shared_server.process.poll() is None


@pytest.fixture(scope="module")
def world(shared_server: ServerProcess) -> None:
    """One parameter of each kind."""
    with RawClient(shared_server.address) as client:
        client.create("dense", SHAPE, grad_req="add")
        client.create("two", SHAPE, contexts=(device(0), device(1)))
        client.create("whole", (6,), dtype=np.dtype("<i4"))
        client.create("frozen", SHAPE, grad_req="null")
        client.create("table", (10, 3), stype="row_sparse", grad_stype="row_sparse")
        client.create("embedding", (10, 3), grad_stype="row_sparse", grad_req="add")
        client.declare(ParameterSpec("declared", shape=SHAPE))
        client.declare(ParameterSpec("deferred", shape=(0, 5), allow_deferred_init=True))
        client.declare(ParameterSpec("formless", allow_deferred_init=True))
        client.declare(ParameterSpec("shapeless"))
        client.initialize("deferred", "formless")
        client.set("dense", VALUE)
        client.push("dense", VALUE)


@pytest.fixture
def unchanged(raw: RawClient, world: None) -> Iterator[RawClient]:
    """A client: whatever the test did, nothing has changed in the end and no memory is held."""
    before, used = raw.everything(), raw.used_bytes()
    yield raw
    assert raw.everything() == before
    assert raw.used_bytes() == used
    assert raw.health() == 1
