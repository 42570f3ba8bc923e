"""Handwritten digits, trained by Ray's remote tasks on a cluster of two shards.

It needs `pip install "paramd-server[ray]"`; run `python -m examples.ray_training` in the project's
folder. It uses the Ray cluster of RAY_ADDRESS where that is set, and starts one on this machine
where not. The shards are actors, which Ray starts again where they die; each worker is a task.
"""

from __future__ import annotations

import os
import sys
import tempfile

import numpy as np
import ray

import paramd
import paramd_server.ray
from examples.digits_model import SHAPES, Floats, Ints, accuracy, gradients, load_digits

NUM_SHARDS = 2
NUM_WORKERS = 2
STEPS = 200
BATCH = 64
REQUIRED = 0.93
CPUS = 0.5


def parameters() -> paramd.ParameterDict:
    """The parameters of the network: whoever is first creates them, the others attach."""
    params = paramd.ParameterDict()
    for name, shape in SHAPES.items():
        params.get(name, shape=shape, init="zeros" if "bias" in name else paramd.init.Xavier())
    paramd.random.seed(0)
    params.initialize()
    return params


def train(cluster: str, rank: int, images: Floats, labels: Ints) -> int:
    """Trains on a share of the images, in step with the other tasks. Gives the last clock.

    Args:
        cluster: the name of the cluster of shards.
        rank: of this worker, so that one that Ray runs again takes the place of its former self.
        images: its share.
        labels: of the images.
    """
    session = paramd_server.ray.connect(
        cluster, worker=f"worker-{rank}", num_workers=NUM_WORKERS, timeout=60.0
    )
    with session:
        params = parameters()
        trainer = paramd.Trainer(params, "adam", {"learning_rate": 0.01}, "dist_sync")
        clock = trainer.join()
        generator = np.random.default_rng((rank, clock))
        values = params.pull()
        while clock < STEPS:
            batch = generator.integers(0, len(images), BATCH)
            grads = gradients(values, images[batch], labels[batch])
            try:
                trainer.step(BATCH, grads=grads, pull=True, out=values)
            except (paramd.errors.RolledBackError, paramd.errors.LeaseEndedError) as err:
                # A shard has died, and all went back to their last snapshot: so does this worker.
                clock = trainer.join()
                params.pull(out=values)
                print(f"worker {rank}: {type(err).__name__}, goes on at clock {clock}", flush=True)
            else:
                clock += 1
        session.barrier("trained")
    return clock


def main() -> int:
    """Gives the exit status: 0 when the digits have been learned."""
    images, labels, held_out, their_labels = load_digits()
    # None: a Ray cluster of this process alone.
    address = os.environ.get("RAY_ADDRESS")
    cpus = None if address else max(2, os.cpu_count() or 1)
    ray.init(address, num_cpus=cpus, include_dashboard=None if address else False)
    with (
        tempfile.TemporaryDirectory() as folder,
        paramd_server.ray.start(
            NUM_SHARDS, name="digits", snapshot_dir=folder, snapshot_every=5.0, num_cpus=CPUS
        ) as cluster,
    ):
        for each in cluster.shards():
            print(f"shard {each.shard} serves at {each.address}, on node {each.node_id[:8]}")
        # A task that dies is run again, under its worker's name.
        task = ray.remote(num_cpus=CPUS, max_retries=3)(train)
        work = [
            task.remote(cluster.name, rank, images[rank::NUM_WORKERS], labels[rank::NUM_WORKERS])
            for rank in range(NUM_WORKERS)
        ]
        print(f"clocks of the workers: {ray.get(work)}")
        with cluster.connect() as session:
            reached = accuracy(session.parameters().pull(), held_out, their_labels)
            (trainer,) = session.trainers()
    ray.shutdown()
    print(f"{trainer.num_steps} steps; accuracy on held-out digits: {reached:.3f}")
    if reached < REQUIRED:
        print(f"expected {REQUIRED} or better", file=sys.stderr)
    return int(reached < REQUIRED)


if __name__ == "__main__":
    sys.exit(main())
