"""What the images are: small, without rights, checked by the engine, and gone when told to."""

from __future__ import annotations

import time
from typing import Any

import docker
import numpy as np
import pytest

import paramd
from tests.container.cluster import SNAPSHOTS, Cluster, await_end, await_health, log_of
from tests.container.conftest import StartCluster
from tests.container.images import Images
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]

# Megabytes upon the base image. llvmlite, which compiles the optimizers, is half of the server's;
# scikit-learn and SciPy, for the digits alone, most of the worker's.
SIZES = {"server": 400, "client": 120, "worker": 450}
STOPS_WITHIN_S = 8.0
SECOND_NS = 1_000_000_000
PRODUCTS = sorted(SIZES)


@pytest.fixture(params=PRODUCTS)
def image(request: pytest.FixtureRequest, engine: docker.DockerClient, images: Images) -> Any:
    return engine.images.get(getattr(images, request.param))


def test_image_has_no_root_and_ends_by_sigterm(image: Any) -> None:
    config = image.attrs["Config"]
    user, _, group = config["User"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert config["StopSignal"] == "SIGTERM"
    assert config["Labels"]["org.opencontainers.image.title"].startswith("paramd-")
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_image_runs_no_shell(image: Any) -> None:
    config = image.attrs["Config"]
    started = [*(config["Entrypoint"] or ()), *(config["Cmd"] or ())]
    assert started
    assert "sh" not in " ".join(started[:1])
    check = config.get("Healthcheck")
    assert check is None or check["Test"][0] == "CMD"


def test_server_image_has_a_health_check(engine: docker.DockerClient, images: Images) -> None:
    config = engine.images.get(images.server).attrs["Config"]
    assert config["Healthcheck"]["Test"][:4] == ["CMD", "paramd", "health", "--probe"]
    assert config["Healthcheck"]["StartPeriod"] > 0


@pytest.mark.parametrize("name", PRODUCTS)
def test_image_is_small(engine: docker.DockerClient, images: Images, name: str) -> None:
    base = engine.images.get(images.base).attrs["Size"]
    added = (engine.images.get(getattr(images, name)).attrs["Size"] - base) / 1e6
    assert added < SIZES[name], f"{added:.0f} MB upon the base image"


@pytest.mark.parametrize("name", PRODUCTS)
def test_image_holds_nothing_but_packages_and_examples(cluster: Cluster, name: str) -> None:
    """No sources, tests, caches or tools of the build have come along."""
    # Not the server's own program: what is there, as the image's user sees it.
    names = "import os; print(*(e for d in ('/build', '/wheels', '/opt', '/opt/paramd/bin')"
    program = f"{names} if os.path.isdir(d) for e in os.listdir(d)))"
    looked = cluster.add(
        "looks",
        getattr(cluster.images, name),
        entrypoint=["/opt/paramd/bin/python", "-c", program],
    )
    assert await_end(looked) == 0, log_of(looked)
    found = set(log_of(looked).split())
    assert {"paramd", "python"} <= found
    assert ("paramd-server" in found) == (name == "server")
    assert ("worker" in found) == (name == "worker")
    assert found.isdisjoint({"pip", "pip3", "wheels", "requirements", "client", "hatchling"})


def test_server_is_not_open_to_the_network_by_accident(cluster: Cluster) -> None:
    """Without TLS, it must be told to listen beyond the container."""
    refused = cluster.add("refuses", cluster.images.server)
    assert await_end(refused) == 1
    assert "--insecure" in log_of(refused)


def test_server_is_found_healthy_and_then_not(start_cluster: StartCluster) -> None:
    check = {
        "test": ["CMD", "paramd", "health", "--probe", "--timeout", "3"],
        "interval": SECOND_NS,
        "timeout": 5 * SECOND_NS,
        "retries": 1,
    }
    cluster = start_cluster(healthcheck=check)
    server = cluster.container("shard-0")
    await_health(server, "healthy")
    server.kill("SIGSTOP")
    await_health(server, "unhealthy")
    server.kill("SIGCONT")
    await_health(server, "healthy")


def test_server_without_a_volume_writes_nothing(cluster: Cluster) -> None:
    """Its root file system is read-only, and it has no other."""
    server = cluster.add("bare", cluster.images.server, command=["--insecure"])
    client = cluster.add(
        "asks",
        cluster.images.client,
        command=["paramd", "health", "--target", "bare:50051", "--timeout", "30"],
    )
    assert await_end(client) == 0, log_of(client)
    assert "serves" in log_of(client)
    server.stop(timeout=20)
    assert await_end(server) == 0, log_of(server)
    assert server.diff() is None


def test_server_stops_in_time_while_workers_wait(cluster: Cluster) -> None:
    """A long poll is open and a session holds a connection: still within `docker stop`'s 10 s."""
    with cluster.connect(worker="waits", num_workers=2) as session:
        weight = paramd.Parameter("w", shape=(3,), session=session)
        weight.initialize("ones")
        waiting = cluster.add_worker("worker-a")
        wait_until(lambda: "begins at" in log_of(waiting), "the worker trains", timeout_s=60)
        server = cluster.container("shard-0")
        began = time.monotonic()
        server.stop(timeout=10)
        took = time.monotonic() - began
        assert cluster.container("shard-0").attrs["State"]["ExitCode"] == 0
        assert took < STOPS_WITHIN_S, f"{took:.1f} s"
        assert "saved snapshot" in log_of(server)
    server.start()
    with cluster.connect() as session:
        value = session.parameters()["w"].data().asnumpy()
        np.testing.assert_array_equal(value, np.ones(3, "f4"))


def test_worker_leaves_on_sigterm(cluster: Cluster) -> None:
    """The others need not wait for its lease: it is no worker any more when it has ended."""
    with cluster.connect() as session:
        worker = cluster.add_worker("worker-a", "--kvstore", "dist_async", "--steps", "1000000")
        # To ask for it makes this session a worker, too.
        wait_until(lambda: session.num_workers == 2, "it has joined", timeout_s=60)
        began = time.monotonic()
        worker.stop(timeout=10)
        took = time.monotonic() - began
        assert await_end(worker) == 128 + 15, log_of(worker)
        assert took < STOPS_WITHIN_S, f"{took:.1f} s"
        assert session.num_workers == 1


def test_snapshot_directory_belongs_to_the_server(cluster: Cluster) -> None:
    """A named volume takes over the owner of the image's directory."""
    owner = cluster.engine.containers.get(cluster.container("shard-0").id)
    code, output = owner.exec_run(["stat", "-c", "%u:%g", SNAPSHOTS])
    assert code == 0
    assert output.decode().strip() == owner.attrs["Config"]["User"]
