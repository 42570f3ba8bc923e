"""Runs the shards of a cluster as actors of Ray: `pip install paramd-server[ray]`.

    ray.init()
    with paramd_server.ray.start(num_shards=2, snapshot_dir="/shared/run-1") as cluster:
        ray.get([train.remote(cluster.target) for _ in range(4)])

Nothing of paramd imports this package, which imports Ray.
"""

from paramd_server.ray.cluster import NAME, Cluster, attach, connect, start, target
from paramd_server.ray.plan import ShardStatus

__all__ = ["NAME", "Cluster", "ShardStatus", "attach", "connect", "start", "target"]
