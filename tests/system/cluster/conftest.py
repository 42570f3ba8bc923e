"""A cluster of three shards, over which nearly every parameter is spread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import paramd
from paramd import Session
from paramd.transport.calls import Calls
from paramd.transport.connection import Connection, ConnectionOptions
from tests.support.clusters import small_cluster


@pytest.fixture(scope="session")
def target() -> Iterator[str]:
    with small_cluster(3) as found:
        yield found


@pytest.fixture
def session(target: str) -> Iterator[Session]:
    """A session; every parameter is removed after the test."""
    with paramd.connect(target) as opened:
        yield opened
        opened.delete([info.current.name for info in opened.calls.list_parameters()])


@pytest.fixture
def other(target: str) -> Iterator[Session]:
    """Another client."""
    opened = paramd.connect(target)
    yield opened
    opened.close()


@pytest.fixture
def raw(target: str) -> Iterator[list[Calls]]:
    """The calls of each shard alone, of a client that knows nothing of clusters."""
    connections = [Connection(address, ConnectionOptions()) for address in target.split(",")]
    yield [Calls(connection) for connection in connections]
    for connection in connections:
        connection.close()
