"""torch.distributed.rpc over TensorPipe as a parameter server: the peer `torch-rpc`.

Values and gradients are tensors of a server's process, which functions called remotely change.
Pulled values come as new tensors.
"""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any, Final

import numpy as np
import torch
from torch.distributed import rpc

from benchmarks.clients import measure_latency
from benchmarks.system import Calls, System, measure, parse_options
from benchmarks.timing import Call
from benchmarks.workloads import (
    LATENCY_BYTES,
    MOVING_SECTIONS,
    ROW,
    Ids,
    Workload,
    latency_counts,
    table_rows,
)

_NAME: Final = "torch-rpc"
_SERVER: Final = "server"
_LEARNING_RATE: Final = 1e-3
_TIMEOUT_S: Final = 120.0

# The server's state: of its own process.
_values: dict[str, torch.Tensor] = {}
_optimizers: dict[str, torch.optim.Optimizer] = {}


def _store(name: str, shape: tuple[int, ...]) -> None:
    _values[name] = torch.ones(shape)


def _optimize(name: str, optimizer: str) -> None:
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    _optimizers[name] = kinds[optimizer]([_values[name]], lr=_LEARNING_RATE)


def _forget(names: Sequence[str]) -> None:
    for name in names:
        _values.pop(name, None)
        _optimizers.pop(name, None)


def _get(name: str) -> torch.Tensor:
    return _values[name]


def _put(name: str, grad: torch.Tensor) -> None:
    _values[name].copy_(grad)


def _put_and_get(name: str, grad: torch.Tensor) -> torch.Tensor:
    return _values[name].copy_(grad)


def _get_rows(name: str, ids: torch.Tensor) -> torch.Tensor:
    return _values[name].index_select(0, ids)


def _put_rows(name: str, ids: torch.Tensor, rows: torch.Tensor) -> None:
    _values[name].index_copy_(0, ids, rows)


def _get_all(names: Sequence[str]) -> list[torch.Tensor]:
    return [_values[name] for name in names]


def _put_all(names: Sequence[str], grads: Sequence[torch.Tensor]) -> None:
    for name, grad in zip(names, grads, strict=True):
        _values[name].copy_(grad)


def _update(name: str, grad: torch.Tensor) -> None:
    _values[name].grad = grad
    _optimizers[name].step()


def _step(name: str, grad: torch.Tensor) -> torch.Tensor:
    _update(name, grad)
    return _values[name]


def _call(function: Any, *arguments: Any) -> Any:
    return rpc.rpc_sync(_SERVER, function, arguments)


class TorchRpc(System):
    """A client of such a server."""

    name = _NAME

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._has_table = False
        self._stored: list[str] = []
        self._received: list[torch.Tensor] = []

    def _create(self, workload: Workload) -> list[str]:
        self._stored = [str(index) for index in range(workload.count)]
        for name in self._stored:
            _call(_store, name, workload.shape)
        return self._stored

    def _receiving(self, function: Any, *arguments: Any) -> Call:
        def call() -> None:
            self._received = [_call(function, *arguments)]

        return call

    def dense(self, workload: Workload) -> Calls:
        (name,), grad = self._create(workload), torch.ones(workload.shape)
        return {
            "pull": self._receiving(_get, name),
            "push": partial(_call, _put, name, grad),
            "push+pull": self._receiving(_put_and_get, name, grad),
        }

    def rows(self, workload: Workload, ids: Sequence[Ids]) -> Calls:
        if not self._has_table:
            _call(_store, "table", (self._num_rows, ROW))
            self._has_table = True
        sets, rows = cycle([torch.from_numpy(each) for each in ids]), torch.ones(workload.shape)

        def pull() -> None:
            self._received = [_call(_get_rows, "table", next(sets))]

        return {"pull": pull, "push": lambda: _call(_put_rows, "table", next(sets), rows)}

    def bulk(self, workload: Workload) -> Calls:
        names = self._create(workload)
        grads = [torch.ones(workload.shape) for _ in names]

        def pull() -> None:
            self._received = _call(_get_all, names)

        return {"pull": pull, "push": partial(_call, _put_all, names, grads)}

    def steps(self, workload: Workload) -> Calls:
        (name,), grad = self._create(workload), torch.ones(workload.shape)
        _call(_optimize, name, workload.optimizer)
        return {
            "update": partial(_call, _update, name, grad),
            "step": self._receiving(_step, name, grad),
        }

    def received(self) -> Iterable[torch.Tensor]:
        return self._received

    def release(self) -> None:
        self._received = []
        _call(_forget, self._stored)
        self._stored = []


def _join(name: str, rank: int, world_size: int, port: int) -> None:
    # The server's threads serve; those of its arithmetic are PyTorch's own choice.
    options = rpc.TensorPipeRpcBackendOptions(
        init_method=f"tcp://127.0.0.1:{port}", rpc_timeout=_TIMEOUT_S
    )
    rpc.init_rpc(name, rank=rank, world_size=world_size, rpc_backend_options=options)


def _serve(world_size: int, port: int) -> None:
    _store("latency", (LATENCY_BYTES // 4,))
    _join(_SERVER, 0, world_size, port)
    rpc.shutdown()


@contextmanager
def _server(world_size: int) -> Iterator[int]:
    """A server in a process of its own, and the port at which it meets its clients."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(world_size, port), daemon=True)
    process.start()
    try:
        yield port
    finally:
        process.kill()
        process.join()


@dataclass(frozen=True)
class _Route:
    """How one of many clients connects."""

    port: int
    world_size: int

    def __call__(self, number: int) -> Call:
        _join(f"client{number}", 1 + number, self.world_size, self.port)
        return partial(_call, _get, "latency")


def main() -> None:
    """Measures what the command line says."""
    options = parse_options(__doc__)
    options.records.add(
        system=_NAME, versions={"torch": torch.__version__, "numpy": np.__version__}
    )
    sections = [each for each in options.sections if each in MOVING_SECTIONS]
    if sections:
        with _server(2) as port:
            _join("client", 1, 2, port)
            measure([TorchRpc(table_rows(quick=options.quick))], options, sections)
            rpc.shutdown(graceful=False)
    if "latency" in options.sections:
        world_size = 1 + max(latency_counts(quick=options.quick))
        with _server(world_size) as port:
            route = _Route(port, world_size)
            measure_latency(_NAME, route, options, preload=("torch.distributed.rpc",))


if __name__ == "__main__":
    main()
