"""One worker of a Gluon job that trains the embedding model with `dist_async`.

`pslite` starts its cluster. Prints its samples a second.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import mxnet as mx
from mxnet import autograd, gluon

from benchmarks.embedding_model import (
    BATCH,
    FIELDS,
    HIDDEN,
    LEARNING_RATE,
    TABLE_ROWS,
    WIDTH,
    batches,
    steps,
)

__all__: list[str] = []


class _Model(gluon.Block):  # type: ignore[misc]  # MXNet has no types.
    def __init__(self) -> None:
        super().__init__()
        with self.name_scope():
            self.embedding = gluon.contrib.nn.SparseEmbedding(TABLE_ROWS, WIDTH)
            self.hidden = gluon.nn.Dense(HIDDEN, activation="relu", in_units=FIELDS * WIDTH)
            self.output = gluon.nn.Dense(1, in_units=HIDDEN)

    def forward(self, ids: Any) -> Any:
        embedded = self.embedding(ids).reshape((-1, FIELDS * WIDTH))
        return self.output(self.hidden(embedded))


def main() -> None:
    """Trains."""
    uncounted, counted = steps(quick="--quick" in sys.argv)
    store: Any = mx.kv.create("dist_async")
    model = _Model()
    model.initialize()
    arguments = {"learning_rate": LEARNING_RATE}
    trainer = gluon.Trainer(model.collect_params(), "sgd", arguments, kvstore=store)
    loss_of = gluon.loss.SigmoidBCELoss()
    samples = [(mx.nd.array(ids), mx.nd.array(labels)) for ids, labels in batches(store.rank)]
    start = 0.0
    for step in range(uncounted + counted):
        if step == uncounted:
            mx.nd.waitall()
            store._barrier()
            start = time.perf_counter()
        ids, labels = samples[step % len(samples)]
        with autograd.record():
            loss = loss_of(model(ids), labels).mean()
        loss.backward()
        trainer.step(1)
    mx.nd.waitall()
    rate = counted * BATCH / (time.perf_counter() - start)
    print(json.dumps({"samples_per_second": rate}), flush=True)


if __name__ == "__main__":
    main()
