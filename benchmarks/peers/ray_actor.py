"""A Ray actor as a parameter server, values in Ray's shared-memory object store: the peer `ray`.

What is pulled is an array in that store, which the actor has copied it to and the client maps.
Updates are NumPy, as somebody would write them in an actor.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import numpy as np
import ray

from benchmarks.clients import pulls_until, record_latency
from benchmarks.system import Calls, Options, System, measure, parse_options
from benchmarks.timing import Call
from benchmarks.workloads import (
    LATENCY_BYTES,
    MOVING_SECTIONS,
    ROW,
    Ids,
    Workload,
    latency_counts,
    latency_seconds,
    table_rows,
)

__all__: list[str] = []

Array = np.ndarray[Any, np.dtype[np.float32]]
_NAME: Final = "ray"
_STORE_BYTES: Final = 4 << 30
_LEARNING_RATE: Final = 1e-3
_BETA1: Final = 0.9
_BETA2: Final = 0.999
_EPSILON: Final = 1e-8
_WARM_UP: Final = 20
_LEAD_S: Final = 0.5


class _Server:
    """The actor. It copies what it keeps: arguments are read-only views of the object store."""

    def __init__(self) -> None:
        self._values: dict[str, Array] = {}
        self._moments: dict[str, tuple[Array, Array]] = {}
        self._counts: dict[str, int] = {}

    def create(self, shapes: dict[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            self._values[name] = np.ones(shape, np.float32)

    def forget(self, names: Sequence[str]) -> None:
        for name in names:
            self._values.pop(name, None)
            self._moments.pop(name, None)

    def pull(self, name: str) -> Array:
        return self._values[name]

    def push(self, name: str, grad: Array) -> None:
        np.copyto(self._values[name], grad)

    def push_pull(self, name: str, grad: Array) -> Array:
        self.push(name, grad)
        return self._values[name]

    def pull_rows(self, name: str, ids: Ids) -> Array:
        return np.take(self._values[name], ids, axis=0)

    def push_rows(self, name: str, ids: Ids, rows: Array) -> None:
        self._values[name][ids] = rows

    def pull_all(self, names: Sequence[str]) -> list[Array]:
        return [self._values[name] for name in names]

    def push_all(self, grads: dict[str, Array]) -> None:
        for name, grad in grads.items():
            np.copyto(self._values[name], grad)

    def update(self, name: str, optimizer: str, grad: Array) -> None:
        value = self._values[name]
        if optimizer == "sgd":
            value -= _LEARNING_RATE * grad
            return
        if name not in self._moments:
            self._moments[name] = np.zeros_like(value), np.zeros_like(value)
            self._counts[name] = 0
        self._counts[name] += 1
        first, second = self._moments[name]
        first *= _BETA1
        first += (1 - _BETA1) * grad
        second *= _BETA2
        second += (1 - _BETA2) * np.square(grad)
        count = self._counts[name]
        scale = np.sqrt(1 - _BETA2**count) / (1 - _BETA1**count)
        value -= np.float32(_LEARNING_RATE * scale) * first / (np.sqrt(second) + _EPSILON)

    def step(self, name: str, optimizer: str, grad: Array) -> Array:
        self.update(name, optimizer, grad)
        return self._values[name]


class _Client:
    """One of many actors that pull."""

    def __init__(self, server: Any) -> None:
        self._server = server
        for _ in range(_WARM_UP):
            self._pull()

    def _pull(self) -> Any:
        return ray.get(self._server.pull.remote("latency"))

    def ready(self) -> None:
        """Returns when the client has warmed up."""

    def pull_for(self, start: float, seconds: float) -> list[float]:
        return pulls_until(self._pull, start, seconds)


class RayActor(System):
    """A driver that calls the actor."""

    name = _NAME

    def __init__(self, server: Any, num_rows: int) -> None:
        self._server = server
        self._num_rows = num_rows
        self._has_table = False
        self._stored: list[str] = []
        self._received: list[Array] = []

    def _call(self, method: str, *arguments: Any) -> Any:
        return ray.get(getattr(self._server, method).remote(*arguments))

    def _create(self, workload: Workload) -> list[str]:
        self._stored = [str(index) for index in range(workload.count)]
        self._call("create", dict.fromkeys(self._stored, workload.shape))
        return self._stored

    def _receiving(self, method: str, *arguments: Any) -> Call:
        def call() -> None:
            # The last array leaves the store first, which would otherwise hold two.
            self._received = []
            self._received = [self._call(method, *arguments)]

        return call

    def dense(self, workload: Workload) -> Calls:
        (name,), grad = self._create(workload), np.ones(workload.shape, np.float32)
        return {
            "pull": self._receiving("pull", name),
            "push": partial(self._call, "push", name, grad),
            "push+pull": self._receiving("push_pull", name, grad),
        }

    def rows(self, workload: Workload, ids: Sequence[Ids]) -> Calls:
        if not self._has_table:
            self._call("create", {"table": (self._num_rows, ROW)})
            self._has_table = True
        sets, rows = cycle(ids), np.ones(workload.shape, np.float32)

        def pull() -> None:
            self._received = [self._call("pull_rows", "table", next(sets))]

        return {"pull": pull, "push": lambda: self._call("push_rows", "table", next(sets), rows)}

    def bulk(self, workload: Workload) -> Calls:
        names = self._create(workload)
        grads = {name: np.ones(workload.shape, np.float32) for name in names}

        def pull() -> None:
            self._received = self._call("pull_all", names)

        return {"pull": pull, "push": partial(self._call, "push_all", grads)}

    def steps(self, workload: Workload) -> Calls:
        (name,), grad = self._create(workload), np.ones(workload.shape, np.float32)
        return {
            "update": partial(self._call, "update", name, workload.optimizer, grad),
            "step": self._receiving("step", name, workload.optimizer, grad),
        }

    def received(self) -> Iterable[Array]:
        return self._received

    def release(self) -> None:
        self._received = []
        self._call("forget", self._stored)
        self._stored = []


def _measure_latency(server: Any, options: Options) -> None:
    counts, seconds = latency_counts(quick=options.quick), latency_seconds(quick=options.quick)
    ray.get(server.create.remote({"latency": (LATENCY_BYTES // 4,)}))
    actor = ray.remote(num_cpus=0)(_Client)
    clients = [actor.remote(server) for _ in range(max(counts))]
    ray.get([client.ready.remote() for client in clients])
    for count in counts:
        start = time.monotonic() + _LEAD_S
        times = ray.get([each.pull_for.remote(start, seconds) for each in clients[:count]])
        record_latency(options, _NAME, count, seconds, times)


def main() -> None:
    """Measures what the command line says."""
    options = parse_options(__doc__)
    versions = {"ray": ray.__version__, "numpy": np.__version__}
    options.records.add(system=_NAME, versions=versions)
    # Beyond shared memory the store would be on the disk.
    shared = Path("/dev/shm")
    room = shutil.disk_usage(shared).free // 2 if shared.is_dir() else _STORE_BYTES
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=min(_STORE_BYTES, room),
    )
    server = ray.remote(num_cpus=1)(_Server).remote()
    sections = [each for each in options.sections if each in MOVING_SECTIONS]
    if sections:
        measure([RayActor(server, table_rows(quick=options.quick))], options, sections)
    if "latency" in options.sections:
        _measure_latency(server, options)
    ray.shutdown()


if __name__ == "__main__":
    main()
