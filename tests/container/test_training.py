"""Workers in containers train on real data; what the cluster holds outlives its containers."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.container.cluster import Cluster, await_end, log_of
from tests.container.conftest import StartCluster

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]

WORKERS = ("worker-a", "worker-b")
# Of the number of shards that a cluster may have.
SHARDS = (2,)
REQUIRED = 0.93


def train(cluster: Cluster, steps: int, *, kvstore: str = "dist_sync") -> list[float]:
    """Runs both workers to their end, and gives the accuracy that each has printed."""
    arguments = ("--kvstore", kvstore, "--steps", str(steps))
    workers = [cluster.add_worker(name, *arguments) for name in WORKERS]
    codes = [await_end(each) for each in workers]
    assert codes == [0, 0], "\n".join(map(log_of, workers))
    return [accuracy_in(log_of(each)) for each in workers]


def accuracy_in(log: str) -> float:
    found = re.findall(r"accuracy on held-out digits after \d+ steps: (\d\.\d+)", log)
    assert len(found) == 1, log
    return float(found[0])


@pytest.mark.parametrize("num_shards", SHARDS)
@pytest.mark.parametrize(("kvstore", "steps"), [("dist_sync", 200), ("dist_async", 400)])
def test_workers_reach_the_accuracy(
    start_cluster: StartCluster, num_shards: int, kvstore: str, steps: int
) -> None:
    cluster = start_cluster(num_shards=num_shards)
    reached = train(cluster, steps, kvstore=kvstore)
    assert min(reached) >= REQUIRED
    with cluster.connect() as session:
        (trainer,) = session.trainers()
    # A step for both workers, or one for each.
    assert trainer.num_steps == (steps if kvstore == "dist_sync" else 2 * steps)


@pytest.mark.parametrize("num_shards", SHARDS)
def test_everything_comes_back_with_the_volumes(
    start_cluster: StartCluster, num_shards: int
) -> None:
    """All containers are removed and made again; training goes on from where it was."""
    cluster = start_cluster(num_shards=num_shards)
    train(cluster, 200)
    with cluster.connect() as session:
        before = session.parameters().pull()
        (trainer,) = session.trainers()
    cluster.stop_servers()
    for shard in range(num_shards):
        cluster.add_server(shard)
    cluster.await_serving()
    with cluster.connect() as session:
        after = session.parameters().pull()
        (again,) = session.trainers()
    assert sorted(before) == sorted(after)
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    assert (again.num_steps, again.spec) == (trainer.num_steps, trainer.spec)
    assert min(train(cluster, 250)) >= REQUIRED
    assert "begins at clock 200" in log_of(cluster.container(WORKERS[0]))
    with cluster.connect() as session:
        assert session.trainers()[0].num_steps == 250
