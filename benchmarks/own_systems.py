"""What `benchmarks.own` measures: copies in memory, the raw gRPC floor, and paramd."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any, Final

import numpy as np

import paramd
from benchmarks.floor import Floor
from benchmarks.system import Calls, System
from benchmarks.timing import Call
from benchmarks.workloads import LATENCY_BYTES, ROW, Ids, Workload

__all__ = ["FloorRoute", "FloorSystem", "MemorySystem", "ParamdSystem", "Route"]

Array = np.ndarray[Any, np.dtype[np.float32]]
_LATENCY: Final = "latency"


class MemorySystem(System):
    """Copies within this process: `np.copyto` and `np.take`."""

    name = "memcpy"

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._table: Array = np.ones((0, ROW), np.float32)
        self._outs: list[Array] = []

    def dense(self, workload: Workload) -> Calls:
        value, self._outs = np.ones(workload.shape, np.float32), [_unwritten(workload)]
        pull = partial(np.copyto, self._outs[0], value)
        push = partial(np.copyto, value, self._outs[0])
        return {"pull": pull, "push": push, "push+pull": _both(push, pull)}

    def rows(self, workload: Workload, ids: Sequence[Ids]) -> Calls:
        if not len(self._table):
            self._table = np.ones((self._num_rows, ROW), np.float32)
        sets, rows, table = cycle(ids), np.ones(workload.shape, np.float32), self._table
        self._outs = [_unwritten(workload)]
        out = self._outs[0]
        return {
            "pull": lambda: np.take(table, next(sets), axis=0, out=out, mode="clip"),
            "push": lambda: table.__setitem__(next(sets), rows),
        }

    def bulk(self, workload: Workload) -> Calls:
        values = [np.ones(workload.shape, np.float32) for _ in range(workload.count)]
        self._outs = [_unwritten(workload) for _ in range(workload.count)]
        pairs = list(zip(values, self._outs, strict=True))

        def pull() -> None:
            for value, out in pairs:
                np.copyto(out, value)

        def push() -> None:
            for value, out in pairs:
                np.copyto(value, out)

        return {"pull": pull, "push": push}

    def received(self) -> Iterable[Array]:
        return self._outs

    def release(self) -> None:
        self._outs = []


class FloorSystem(System):
    """grpcio with bytes that mean nothing."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self._floor = Floor(address)
        self._outs: list[Array] = []

    def dense(self, workload: Workload) -> Calls:
        self._outs = [_unwritten(workload)]
        raw = self._outs[0].view(np.uint8)
        data = np.ones(workload.size_bytes, np.uint8)
        pull, push = partial(self._floor.pull, raw), partial(self._floor.push, data)
        return {"pull": pull, "push": push, "push+pull": _both(push, pull)}

    def steps(self, workload: Workload) -> Calls:
        calls = self.dense(workload)
        return {"update": calls["push"], "step": calls["push+pull"]}

    def rows(self, workload: Workload, ids: Sequence[Ids]) -> Calls:
        sets, self._outs = cycle(ids), [_unwritten(workload)]
        out = self._outs[0]
        data = np.ones(workload.size_bytes + workload.count * 8, np.uint8)
        return {
            "pull": lambda: self._floor.rows(next(sets), out),
            "push": partial(self._floor.push, data),
        }

    def bulk(self, workload: Workload) -> Calls:
        self._outs = [_unwritten(workload) for _ in range(workload.count)]
        outs = [each.view(np.uint8) for each in self._outs]
        data = np.ones(workload.size_bytes, np.uint8)
        return {"pull": partial(self._floor.tensors, outs), "push": partial(self._floor.push, data)}

    def received(self) -> Iterable[Array]:
        return self._outs

    def release(self) -> None:
        self._outs = []

    def close(self) -> None:
        self._floor.close()


class ParamdSystem(System):
    """A client of paramd's server, by one transport."""

    def __init__(self, name: str, session: paramd.Session, num_rows: int) -> None:
        self.name = name
        self._session = session
        self._num_rows = num_rows
        self._outs: list[Any] = []
        self._table: paramd.Parameter | None = None
        self._trainer: paramd.Trainer | None = None

    def _params(self, workload: Workload) -> paramd.ParameterDict:
        params = paramd.ParameterDict(f"{self.name}_", session=self._session)
        for index in range(workload.count):
            params.get(str(index), shape=workload.shape, init="ones")
        params.initialize()
        return params

    def dense(self, workload: Workload) -> Calls:
        params = self._params(workload)
        grads = {name: np.ones(workload.shape, np.float32) for name in params}
        out = {name: _unwritten(workload) for name in params}
        self._outs = list(out.values())
        pull, push = partial(params.pull, out=out), partial(params.push, grads)
        return {"pull": pull, "push": push, "push+pull": _both(push, pull)}

    def bulk(self, workload: Workload) -> Calls:
        calls = self.dense(workload)
        return {name: calls[name] for name in workload.calls}

    def rows(self, workload: Workload, ids: Sequence[Ids]) -> Calls:
        if self._table is None:
            self._table = paramd.Parameter(
                f"{self.name}_table",
                shape=(self._num_rows, ROW),
                init="ones",
                stype="row_sparse",
                grad_stype="row_sparse",
                session=self._session,
            )
            self._table.initialize()
        table, name = self._table, self._table.name
        params = self._session.parameters(name)
        sets, rows = cycle(ids), np.ones(workload.shape, np.float32)
        self._outs = [_unwritten(workload)]
        out = self._outs[0]
        return {
            "pull": lambda: table.row_sparse_data(next(sets), out=out),
            "push": lambda: params.push({name: (next(sets), rows)}),
        }

    def steps(self, workload: Workload) -> Calls:
        params = self._params(workload)
        grads = {name: np.ones(workload.shape, np.float32) for name in params}
        out = {name: _unwritten(workload) for name in params}
        arguments = {"learning_rate": 1e-3}
        trainer = paramd.Trainer(params, workload.optimizer, arguments, "dist_async")
        self._trainer = trainer
        return {
            "update": partial(trainer.step, 1, grads=grads),
            "step": partial(trainer.step, 1, grads=grads, pull=True, out=out),
        }

    def received(self) -> Iterable[Any]:
        return self._outs

    def release(self) -> None:
        self._outs = []
        if self._trainer is not None:
            self._trainer.delete()
            self._trainer = None
        stored = self._session.parameters(f"{self.name}_")
        kept = None if self._table is None else self._table.name
        self._session.delete([name for name in stored if name != kept])


def _unwritten(workload: Workload) -> Array:
    """An array to receive into, whose pages are there."""
    return np.full(workload.shape, 7, np.float32)


def _both(push: Call, pull: Call) -> Call:
    def push_and_pull() -> None:
        push()
        pull()

    return push_and_pull


@dataclass(frozen=True)
class Route:
    """How a client connects to paramd: picklable, since clients are processes."""

    target: str
    transport: str

    def session(self) -> paramd.Session:
        return paramd.connect(self.target, transport=self.transport)

    def __call__(self, number: int) -> Call:
        """Connects one of many clients."""
        params = paramd.ParameterDict(session=self.session())
        params.get(_LATENCY, shape=(LATENCY_BYTES // 4,), init="ones")
        params.initialize()
        return partial(params.pull, out={_LATENCY: np.zeros(LATENCY_BYTES // 4, np.float32)})


@dataclass(frozen=True)
class FloorRoute:
    target: str

    def __call__(self, number: int) -> Call:
        return partial(Floor(self.target).pull, np.zeros(LATENCY_BYTES, np.uint8))
