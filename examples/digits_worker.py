"""One worker of the digits example: `python -m examples.digits_worker NAME KVSTORE`.

Every worker runs this same script: the first one creates parameters and trainers on the server,
the others attach to them. One that has died and is started again goes on where the others are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np
from tqdm import tqdm

import paramd
from examples.digits_model import (
    LEVELS,
    SHAPES,
    Floats,
    Ints,
    gradients,
    load_digits,
    row_ids,
    table_gradient,
)

WORKERS = ("worker-a", "worker-b")
STEPS = {"dist_sync": 200, "dist_async": 800}
TABLE_STEPS = 60
BATCH = 64
TABLE_BATCH = 4


def parameters() -> paramd.ParameterDict:
    """The parameters of the network."""
    params = paramd.ParameterDict()
    for name, shape in SHAPES.items():
        params.get(name, shape=shape, init="zeros" if "bias" in name else paramd.init.Xavier())
    paramd.random.seed(0)
    params.initialize()
    return params


def trainer_of(params: paramd.ParameterDict, kvstore: str) -> paramd.Trainer:
    """The trainer of the network: 'dist_sync' or 'dist_async' is all that differs."""
    adam = {"learning_rate": 0.01}
    return paramd.Trainer(params, "adam", adam, kvstore, num_workers=len(WORKERS))


def table_parameter() -> paramd.Parameter:
    """A table with a row for each grey level of each pixel."""
    table = paramd.Parameter(
        "table", shape=(64 * LEVELS, 10), init="zeros", stype="row_sparse", grad_stype="row_sparse"
    )
    table.initialize()
    return table


def train_network(name: str, kvstore: str) -> None:
    """Each step pushes gradients and brings the new values back, in one call."""
    params = parameters()
    trainer = trainer_of(params, kvstore)
    clock, rank = trainer.join(), trainer.rank
    print(f"{name}: rank {rank}, begins at clock {clock}", flush=True)
    images, labels = share_of(rank)
    generator = np.random.default_rng((rank, clock))
    values = params.pull()
    for _ in progress("network", rank, clock, STEPS[kvstore]):
        batch = generator.integers(0, len(images), BATCH)
        grads = gradients(values, images[batch], labels[batch])
        trainer.step(BATCH, grads=grads, pull=True, out=values)


def train_table(name: str, kvstore: str) -> None:
    """Each step pulls and pushes only the rows that its batch touches."""
    table = table_parameter()
    trainer = paramd.Trainer([table], "adagrad", {"learning_rate": 0.2}, kvstore)
    clock, rank = trainer.join(), trainer.rank
    images, labels = share_of(rank)
    generator = np.random.default_rng((rank, clock))
    touched = []
    for _ in progress("table", rank, clock, TABLE_STEPS):
        batch = generator.integers(0, len(images), TABLE_BATCH)
        ids, places = np.unique(row_ids(images[batch]), return_inverse=True)
        rows = table.row_sparse_data(ids).data.asnumpy()
        grad = table_gradient(rows, places.reshape(TABLE_BATCH, -1), labels[batch])
        trainer.step(TABLE_BATCH, grads={"table": (ids, grad)})
        touched.append(len(ids))
    if touched:
        print(
            f"{name}: each step pulled and pushed {np.mean(touched):.0f} of the table's "
            f"{64 * LEVELS} rows",
            flush=True,
        )


def share_of(rank: int) -> tuple[Floats, Ints]:
    """The images that this worker trains on, and their labels."""
    images, labels, _, _ = load_digits()
    return images[rank :: len(WORKERS)], labels[rank :: len(WORKERS)]


def progress(title: str, rank: int, clock: int, end: int) -> Iterable[int]:
    """The steps from a clock to the end. One worker shows a bar, where stderr is a terminal."""
    hidden = None if rank == 0 else True
    return tqdm(range(clock, end), title, initial=clock, total=end, disable=hidden)


def main() -> None:
    """Trains both models on the server of PARAMD_TARGET."""
    name, kvstore = sys.argv[1:]
    with paramd.connect(worker=name, num_workers=len(WORKERS)) as session:
        train_network(name, kvstore)
        session.barrier("network trained")
        train_table(name, kvstore)


if __name__ == "__main__":
    main()
