"""Docker's engine, images and clusters for container tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import docker
import pytest

from tests.container.cluster import Cluster, Options
from tests.container.engine import connect_engine, remove_leftovers
from tests.container.images import Images, make_images

StartCluster = Callable[..., Cluster]


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    client = connect_engine()
    remove_leftovers(client)
    yield client
    client.close()


@pytest.fixture(scope="session")
def images(engine: docker.DockerClient) -> Images:
    return make_images(engine)


@pytest.fixture
def start_cluster(engine: docker.DockerClient, images: Images) -> Iterator[StartCluster]:
    """Starts clusters; all that they consist of is removed after the test."""
    with ExitStack() as stack:

        def start(**options: Any) -> Cluster:
            return stack.enter_context(Cluster(engine, images, Options(**options)))

        yield start


@pytest.fixture
def cluster(start_cluster: StartCluster) -> Cluster:
    return start_cluster()
