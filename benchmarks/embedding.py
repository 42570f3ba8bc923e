"""Two workers in NumPy that train the embedding model with paramd, beside MXNet `dist_async`.

Run as a program it is one of them, and prints its samples a second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Final

import numpy as np

import paramd
from benchmarks.embedding_model import (
    BATCH,
    CASE,
    FIELDS,
    LEARNING_RATE,
    SHAPES,
    TABLE_ROWS,
    WIDTH,
    WORKERS,
    DistinctIds,
    batches,
    gradients,
    steps,
)
from benchmarks.system import Options

__all__ = ["ONE_THREAD", "measure_embedding"]

ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of a worker: its matrices take one core, the other workers the others."""

_PREFIX: Final = "embedding_"
_TABLE: Final = f"{_PREFIX}table"
_PATIENCE_S: Final = 120.0


def measure_embedding(system: str, target: str, transport: str, options: Options) -> None:
    """Runs the workers at the same time, and records their samples a second.

    Args:
        system: its name in the results.
        target: the server.
        transport: by which the workers connect to it.
        options: of this program.
    """
    command = [sys.executable, "-m", "benchmarks.embedding", target, transport]
    with ExitStack() as stack:
        workers = []
        for rank in range(WORKERS):
            worker = subprocess.Popen(
                [*command, str(rank), *(["--quick"] if options.quick else [])],
                env={**os.environ, **ONE_THREAD},
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(worker)
            stack.callback(worker.kill)
            workers.append(worker)
        rates = [float(worker.communicate(timeout=_PATIENCE_S)[0]) for worker in workers]
    with paramd.connect(target) as session:
        for trainer in session.trainers():
            session.delete_trainer(trainer.spec.name)
        session.delete(list(session.parameters(_PREFIX)))
    options.records.add(
        system=system,
        section="embedding",
        case=CASE,
        samples_per_second=sum(rates),
        each=rates,
    )


def _train(session: paramd.Session, rank: int, *, quick: bool) -> float:
    """Trains as one worker; gives its samples a second, without the first steps."""
    params = paramd.ParameterDict(_PREFIX)
    table = params.get(
        "table",
        shape=(TABLE_ROWS, WIDTH),
        init="uniform",
        stype="row_sparse",
        grad_stype="row_sparse",
    )
    for name, shape in SHAPES.items():
        params.get(name, shape=shape, init="uniform")
    params.initialize()
    trainer = paramd.Trainer(
        params, "sgd", {"learning_rate": LEARNING_RATE}, "dist_async", num_workers=WORKERS
    )
    dense = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    out = {_PREFIX + name: value for name, value in dense.items()}
    session.parameters(_PREFIX).pull(out=out)
    uncounted, counted = steps(quick=quick)
    samples, distinct_ids = batches(rank), DistinctIds(TABLE_ROWS)
    memory = np.empty((BATCH * FIELDS, WIDTH), np.float32)
    start = 0.0
    for step in range(uncounted + counted):
        if step == uncounted:
            session.barrier("timed", num_workers=WORKERS, timeout=_PATIENCE_S)
            start = time.perf_counter()
        ids, labels = samples[step % len(samples)]
        distinct, places = distinct_ids.find(ids.ravel())
        rows = table.row_sparse_data(distinct, out=memory[: len(distinct)])
        embedded = np.take(rows, places, axis=0).reshape(BATCH, FIELDS * WIDTH)
        of_embedded, of_dense = gradients(embedded, labels, dense)
        grads = {_PREFIX + name: value for name, value in of_dense.items()}
        sums = distinct_ids.add_up(places, of_embedded.reshape(-1, WIDTH))
        trainer.step(1, grads={**grads, _TABLE: (distinct, sums)}, pull=True, out=out)
    return counted * BATCH / (time.perf_counter() - start)


def main() -> None:
    """Works."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="address of the server")
    parser.add_argument("transport", help="as of `paramd.connect`")
    parser.add_argument("rank", type=int, help="of this worker, from 0")
    parser.add_argument("--quick", action="store_true", help="few steps")
    found = parser.parse_args()
    with paramd.connect(found.target, transport=found.transport) as session:
        print(_train(session, found.rank, quick=found.quick))


if __name__ == "__main__":
    main()
