"""Servers and workers that die, are cut off, or are replaced, while training goes on."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from tests.container.cluster import STOP_S, Cluster, await_end, log_of
from tests.container.conftest import StartCluster
from tests.container.test_training import REQUIRED, SHARDS, WORKERS, accuracy_in

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]

# Some seconds of training: long enough for the fault to come in its middle.
STEPS = 1500
MIDDLE = 300
CUT_OFF_S = 20.0
SNAPSHOT_EVERY_S = 1


def begin(cluster: Cluster, steps: int = STEPS) -> None:
    """Starts both workers, and waits until training has got going."""
    for name in WORKERS:
        cluster.add_worker(name, "--steps", str(steps))
    cluster.await_clock(MIDDLE)


def finish(cluster: Cluster, steps: int = STEPS) -> int:
    """Waits for the workers' ends, which must be good ones; gives the number of steps made."""
    workers = [cluster.container(name) for name in WORKERS]
    codes = [await_end(each) for each in workers]
    assert codes == [0, 0], "\n".join(map(log_of, workers))
    assert min(accuracy_in(log_of(each)) for each in workers) >= REQUIRED
    with cluster.connect() as session:
        (trainer,) = session.trainers()
        assert {each.clock for each in trainer.workers} <= {steps}
        return trainer.num_steps


def still_training(cluster: Cluster) -> None:
    """The fault came in the middle: otherwise the test would show nothing."""
    for name in WORKERS:
        worker = cluster.container(name)
        assert worker.status == "running", log_of(worker)
        assert f"clock {STEPS}" not in log_of(worker)


def rollbacks(cluster: Cluster) -> list[tuple[int, int]]:
    """For each time that a worker went back: its clock before and after."""
    logs = "".join(log_of(cluster.container(name)) for name in WORKERS)
    found = re.findall(r"RolledBackError at clock (\d+), goes on at clock (\d+)", logs)
    return [(int(before), int(after)) for before, after in found]


@pytest.mark.parametrize("num_shards", SHARDS)
def test_rolling_restart_loses_no_step(start_cluster: StartCluster, num_shards: int) -> None:
    """Each server in its turn is stopped, replaced by a new container, and takes its state up."""
    cluster = start_cluster(num_shards=num_shards)
    begin(cluster)
    for shard, name in enumerate(cluster.servers):
        cluster.container(name).stop(timeout=STOP_S)
        assert cluster.container(name).attrs["State"]["ExitCode"] == 0
        still_training(cluster)
        cluster.add_server(shard)
        cluster.await_serving()
    assert finish(cluster) == STEPS
    assert rollbacks(cluster) == []


@pytest.mark.parametrize("num_shards", SHARDS)
def test_killed_worker_is_replaced(start_cluster: StartCluster, num_shards: int) -> None:
    """The new container has the name, and so the rank, of the one that was killed."""
    cluster = start_cluster(num_shards=num_shards)
    begin(cluster)
    gone = cluster.container(WORKERS[1])
    gone.kill("SIGKILL")
    assert await_end(gone) == 128 + 9
    before = begun(gone)
    still = cluster.container(WORKERS[0])
    assert still.status == "running", log_of(still)
    new = cluster.add_worker(WORKERS[1], "--steps", str(STEPS))
    assert finish(cluster) == STEPS
    (rank, clock), (rank_before, _) = begun(new), before
    assert rank == rank_before
    assert MIDDLE <= clock < STEPS


def begun(worker: Any) -> tuple[int, int]:
    """The rank of a worker, and the clock at which it began."""
    found = re.search(r"rank (\d+), begins at clock (\d+)", log_of(worker))
    assert found is not None, log_of(worker)
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("num_shards", SHARDS)
def test_killed_worker_is_not_waited_for(start_cluster: StartCluster, num_shards: int) -> None:
    """Its lease ends, and the other one goes on alone; to meet at the end it needs nobody."""
    cluster = start_cluster(num_shards=num_shards)
    begin(cluster)
    cluster.container(WORKERS[1]).kill("SIGKILL")
    left = cluster.container(WORKERS[0])
    before = steps_of(cluster)
    deadline = time.monotonic() + 60
    while steps_of(cluster) < before + 50:
        assert time.monotonic() < deadline, "the other worker does not go on"
        assert left.status == "running", log_of(left)
        time.sleep(0.2)


def steps_of(cluster: Cluster) -> int:
    with cluster.connect() as session:
        return session.trainers()[0].num_steps


@pytest.mark.parametrize("num_shards", SHARDS)
def test_server_cut_off_for_20_seconds_comes_back(
    start_cluster: StartCluster, num_shards: int
) -> None:
    """Longer than the workers' leases. No step is lost, and none is made twice."""
    cluster = start_cluster(num_shards=num_shards)
    begin(cluster)
    name = cluster.servers[-1]
    server = cluster.container(name)
    cluster.network.disconnect(server)
    # This is how long the fault lasts, and nothing to wait for.
    time.sleep(CUT_OFF_S)
    still_training(cluster)
    cluster.network.connect(server, aliases=[name])
    assert finish(cluster) == STEPS
    assert rollbacks(cluster) == []


@pytest.mark.parametrize("num_shards", SHARDS)
def test_killed_server_goes_back_to_its_snapshot(
    start_cluster: StartCluster, num_shards: int
) -> None:
    """Steps since the snapshot are made again; from there on each one is counted once."""
    every = ("--snapshot-every", str(SNAPSHOT_EVERY_S))
    cluster = start_cluster(num_shards=num_shards, coordinator=every)
    begin(cluster)
    name = cluster.servers[-1]
    await_line(cluster.container(cluster.servers[0]), "saved snapshot")
    cluster.container(name).kill("SIGKILL")
    assert await_end(cluster.container(name)) == 128 + 9
    still_training(cluster)
    cluster.container(name).start()
    assert finish(cluster) == STEPS
    went_back = rollbacks(cluster)
    assert all(after < before for before, after in went_back), went_back


def await_line(container: Any, text: str, *, timeout_s: float = 30.0) -> None:
    """Waits until a container has printed something."""
    deadline = time.monotonic() + timeout_s
    while text not in log_of(container):
        assert time.monotonic() < deadline, f"no {text!r} within {timeout_s:g} s"
        time.sleep(0.05)
