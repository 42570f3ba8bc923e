"""One worker of the digits example: `python -m examples.digits_worker RANK`."""

from __future__ import annotations

import sys

import numpy as np
from tqdm import tqdm

import paramd
from examples.digits_model import (
    LEVELS,
    SHAPES,
    Floats,
    gradients,
    load_digits,
    row_ids,
    table_gradient,
)
from paramd import RowSparseNDArray, cpu

NUM_WORKERS = 2
ROUNDS = 400
TABLE_ROUNDS = 60
BATCH = 16
RATE = 0.3
TABLE_RATE = 0.02
CONTEXTS = [cpu(rank) for rank in range(NUM_WORKERS)]


def train(session: paramd.Session, rank: int) -> None:
    """Trains the network: each worker on its own context, one of them applies the sum."""
    images, labels, _, _ = load_digits()
    params = paramd.ParameterDict("net_")
    for name, shape in SHAPES.items():
        init = "zeros" if name.endswith("bias") else paramd.init.Xavier()
        params.get(name, shape=shape, init=init, grad_req="add")
    paramd.random.seed(0)
    params.initialize(ctx=CONTEXTS)
    values = params.pull(ctx=CONTEXTS[rank])
    generator = np.random.default_rng(rank)
    for _ in tqdm(range(ROUNDS), desc="network", disable=rank > 0):
        params.pull(out=values, ctx=CONTEXTS[rank])
        batch = generator.integers(rank * 700, rank * 700 + 700, BATCH)
        short = {name.removeprefix("net_"): value for name, value in values.items()}
        grads = gradients(short, images[batch], labels[batch])
        params.push({f"net_{name}": grad for name, grad in grads.items()}, ctx=CONTEXTS[rank])
        session.barrier("pushed")
        if rank == 0:
            apply_sum(params, values)
        session.barrier("applied")


def apply_sum(params: paramd.ParameterDict, values: dict[str, Floats]) -> None:
    """One step of gradient descent on what all workers pushed; then the buffers are zero."""
    for name, parameter in params.items():
        total = np.sum([grad.asnumpy() for grad in parameter.list_grad()], axis=0)
        values[name] -= RATE / (BATCH * NUM_WORKERS) * total
    params.set_data(values)
    params.zero_grad()


def train_table(session: paramd.Session, rank: int) -> None:
    """Trains a table of rows, of which each batch pulls and updates only what it touches."""
    images, labels, _, _ = load_digits()
    table = paramd.Parameter(
        "table",
        shape=(64 * LEVELS, 10),
        init="zeros",
        stype="row_sparse",
        grad_stype="row_sparse",
        grad_req="add",
    )
    table.initialize(ctx=CONTEXTS)
    params = session.parameters("table")
    generator = np.random.default_rng(100 + rank)
    touched = 0
    for _ in tqdm(range(TABLE_ROUNDS), desc="table", disable=rank > 0):
        batch = generator.integers(rank * 700, rank * 700 + 700, 4)
        ids, places = np.unique(row_ids(images[batch]), return_inverse=True)
        with CONTEXTS[rank]:
            rows = table.row_sparse_data(ids).data.asnumpy()
            touched += len(ids)
            gradient = table_gradient(rows, places.reshape(len(batch), -1), labels[batch])
            params.push({"table": (ids, gradient)})
        session.barrier("pushed")
        if rank == 0:
            update_rows(table)
        session.barrier("applied")
    print(
        f"worker {rank}: the table has {64 * LEVELS} rows, a batch pulled and updated "
        f"{touched / TABLE_ROUNDS:.0f} of them on average",
        flush=True,
    )


def update_rows(table: paramd.Parameter) -> None:
    """Gradient descent on the rows that are in the buffers, and on no others."""
    for grad in table.list_grad():
        assert isinstance(grad, RowSparseNDArray)
        ids, gradient = grad.indices.asnumpy(), grad.data.asnumpy()
        rows = table.row_sparse_data(ids).data.asnumpy()
        table.set_row_sparse_data(ids, rows - TABLE_RATE * gradient)
    table.zero_grad()


def main() -> None:
    """Trains both models against the server of PARAMD_TARGET."""
    rank = int(sys.argv[1])
    with paramd.connect(worker=f"worker-{rank}", num_workers=NUM_WORKERS) as session:
        train(session, rank)
        train_table(session, rank)


if __name__ == "__main__":
    main()
