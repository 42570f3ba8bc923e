from __future__ import annotations

from collections.abc import Iterator

import pytest

from paramd.transport.calls import Calls
from paramd.transport.connection import Connection, ConnectionOptions
from paramd.transport.retry import RetryPolicy
from tests.support.fake_server import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture
def connection(server: FakeServer) -> Iterator[Connection]:
    options = ConnectionOptions(
        timeout=3.0, stall_timeout=1.0, retry=RetryPolicy(first=0.01, longest=0.05)
    )
    connection = Connection(server.target, options)
    yield connection
    connection.close()


@pytest.fixture
def calls(connection: Connection) -> Calls:
    return Calls(connection)
