"""One worker of MXNet's parameter server that times its calls; `pslite` starts its cluster.

Calls of MXNet return before they have happened: each waits until everything has.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import cycle
from typing import Any, Final

import mxnet as mx
import numpy as np

from benchmarks.system import Calls, System, measure, parse_options
from benchmarks.timing import Call
from benchmarks.workloads import LATENCY_BYTES, ROW, Ids, Workload, table_rows

__all__ = ["NAME", "PsLite", "pull_small"]

NAME: Final = "ps-lite"
_LEARNING_RATE: Final = 1e-3


def _waiting(call: Call) -> Call:
    def call_and_wait() -> None:
        call()
        mx.nd.waitall()

    return call_and_wait


class PsLite(System):
    """A worker's key-value store. It cannot delete keys, so each workload has new ones."""

    name = NAME

    def __init__(self, kvstore: str, num_rows: int) -> None:
        self._store: Any = mx.kv.create(kvstore)
        self._num_rows = num_rows
        self._keys = 0
        self._has_table = False
        self._outs: list[Any] = []

    def _create(self, workload: Workload) -> list[str]:
        keys = [str(self._keys + index) for index in range(workload.count)]
        self._keys += workload.count
        self._store.init(keys, [mx.nd.ones(workload.shape) for _ in keys])
        mx.nd.waitall()
        return keys

    def dense(self, workload: Workload) -> Calls:
        (key,), grad = self._create(workload), mx.nd.ones(workload.shape)
        out = mx.nd.zeros(workload.shape)
        self._outs = [out]
        return {
            "pull": _waiting(partial(self._store.pull, key, out=out)),
            "push": _waiting(partial(self._store.push, key, grad)),
            "push+pull": _waiting(partial(self._store.pushpull, key, grad, out=out)),
        }

    def bulk(self, workload: Workload) -> Calls:
        keys = self._create(workload)
        grads = [mx.nd.ones(workload.shape) for _ in keys]
        outs = [mx.nd.zeros(workload.shape) for _ in keys]
        self._outs = outs
        return {
            "pull": _waiting(partial(self._store.pull, keys, out=outs)),
            "push": _waiting(partial(self._store.push, keys, grads)),
        }

    def rows(self, workload: Workload, ids: Sequence[Ids]) -> Calls:
        shape = (self._num_rows, ROW)
        if not self._has_table:
            self._store.init("table", mx.nd.ones(shape).tostype("row_sparse"))
            mx.nd.waitall()
            self._has_table = True
        out = mx.nd.sparse.zeros("row_sparse", shape)
        wanted = cycle([mx.nd.array(each, dtype="int64") for each in ids])
        ones = np.ones(workload.shape, np.float32)
        grads = cycle([mx.nd.sparse.row_sparse_array((ones, each), shape=shape) for each in ids])

        def pull() -> None:
            self._store.row_sparse_pull("table", out=out, row_ids=next(wanted))
            mx.nd.waitall()
            self._outs = [out.data]

        def push() -> None:
            self._store.push("table", next(grads))
            mx.nd.waitall()

        return {"pull": pull, "push": push}

    def steps(self, workload: Workload) -> Calls:
        (key,), grad = self._create(workload), mx.nd.ones(workload.shape)
        out = mx.nd.zeros(workload.shape)
        optimizer = mx.optimizer.create(workload.optimizer, learning_rate=_LEARNING_RATE)
        self._store.set_optimizer(optimizer)
        return {
            "update": _waiting(partial(self._store.push, key, grad)),
            "step": _waiting(partial(self._store.pushpull, key, grad, out=out)),
        }

    def received(self) -> Iterable[Any]:
        return [each.asnumpy() for each in self._outs]

    def release(self) -> None:
        self._outs = []


def pull_small(number: int) -> Call:
    """Connects one of many workers, all of which do so at the same time."""
    store: Any = mx.kv.create("dist_sync")
    store.init("latency", mx.nd.ones((LATENCY_BYTES // 4,)))
    out = mx.nd.zeros((LATENCY_BYTES // 4,))
    return _waiting(partial(store.pull, "latency", out=out))


def main() -> None:
    """Measures what the command line says."""
    options = parse_options(__doc__)
    versions = {"mxnet": mx.__version__, "numpy": np.__version__}
    options.records.add(system=NAME, versions=versions)
    system = PsLite(os.environ["BENCH_KVSTORE"], table_rows(quick=options.quick))
    measure([system], options, options.sections)


if __name__ == "__main__":
    main()
