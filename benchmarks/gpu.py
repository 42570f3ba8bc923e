"""What a GPU gives: pulls from it, updates on it, rows gathered there. `make gpu-test` runs it.

Each line has an aim:

- a pull of 256 MB from gpu(0) at 0.9 of the speed of the same pull from cpu(0), or better;
- sgd and adam on 256 MB of float32 at 0.6 of the bandwidth of a copy within the GPU, or better;
- 100,000 rows of 64 float32 gathered, and ready in pinned memory, in less than 1 ms.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np

import paramd
from benchmarks.serving import paramd_server, started
from benchmarks.timing import Call, Spread, in_turn
from paramd.optimizer import SGD, Adam, Optimizer
from paramd_server.arrays.backend import ArrayBackend, Buffer
from paramd_server.arrays.cuda.runtime import load_runtime
from paramd_server.arrays.devices import Devices
from paramd_server.arrays.kinds import DeviceError
from paramd_server.arrays.memory import MemoryAccount
from paramd_server.core.optimizers import rule_for

__all__ = ["GpuLine", "measure_gpu", "report_gpu"]

_GPU: Final = paramd.gpu(0)
_BYTES: Final = 256 << 20
_QUICK_BYTES: Final = 4 << 20
_ROW: Final = 64
# Work that is put on the GPU before it is waited for once.
_BATCH: Final = 20


@dataclass(frozen=True)
class GpuLine:
    """One line of the table.

    Attributes:
        case: what was measured.
        time: of one call, or one update.
        beside: of what it is compared with; None where the aim is a time.
        value: the ratio to that in bandwidth, or the time in milliseconds.
        aim: what `value` should be.
        met: whether it is.
    """

    case: str
    time: Spread
    beside: Spread | None
    value: float
    aim: str
    met: bool


def measure_gpu(*, quick: bool) -> list[GpuLine]:
    """Runs every case on gpu(0).

    Raises:
        ContextNotAvailableError: where there is none.
    """
    devices = Devices(MemoryAccount(64 << 30))
    backend = devices.backend(_GPU)
    lines = [_update_line(backend, optimizer, quick=quick) for optimizer in (SGD(), Adam())]
    lines.append(_rows_line(backend, quick=quick))
    return [*lines, _pull_line(quick=quick)]


def _waiting(backend: ArrayBackend, buffer: Buffer, call: Callable[[], object]) -> Call:
    """Many calls, and a wait for the last of them."""

    def run() -> None:
        for _ in range(_BATCH):
            call()
        backend.flat(buffer, 0, 1)

    return run


def _update_line(backend: ArrayBackend, optimizer: Optimizer, *, quick: bool) -> GpuLine:
    size = (_QUICK_BYTES if quick else _BYTES) // 4
    single = np.dtype(np.float32)
    rule, counter = rule_for(optimizer), count(1)
    weight, gradient, other = (backend.zeros((size,), single, _GPU) for _ in range(3))
    backend.write(gradient, np.full((), 0.5, single), mode="assign")
    states = rule.create_states(weight, backend)

    def update() -> None:
        rule.update(
            backend,
            weight,
            gradient,
            states,
            ids=None,
            count=next(counter),
            learning_rate=0.01,
            weight_decay=1e-4,
            rescale=1.0,
        )

    calls = {
        "update": _waiting(backend, weight, update),
        "copy": _waiting(backend, other, partial(backend.copy, gradient, other)),
    }
    spreads = in_turn(calls, repeats=3 if quick else 15)
    moved = (3 + 2 * len(states)) * weight.nbytes
    ratio = moved / spreads["update"].median_ms / (2 * weight.nbytes / spreads["copy"].median_ms)
    update_ms, copy_ms = (_of_one(spreads[each]) for each in ("update", "copy"))
    case = f"{optimizer.name}, {weight.nbytes >> 20} MB"
    return GpuLine(case, update_ms, copy_ms, ratio, "0.6 of a copy's bandwidth", ratio >= 0.6)


def _of_one(spread: Spread) -> Spread:
    return replace(
        spread,
        median_ms=spread.median_ms / _BATCH,
        low_ms=spread.low_ms / _BATCH,
        high_ms=spread.high_ms / _BATCH,
    )


def _rows_line(backend: ArrayBackend, *, quick: bool) -> GpuLine:
    num_rows, taken = (10_000, 1_000) if quick else (1_000_000, 100_000)
    table = backend.zeros((num_rows, _ROW), np.dtype(np.float32), _GPU)
    ids = np.sort(np.random.default_rng(0).choice(num_rows, taken, replace=False))
    out = backend.row_memory((taken, _ROW), np.dtype(np.float32))
    take: Call = partial(backend.take_rows, table, ids, out)
    spread = in_turn({"rows": take}, repeats=3 if quick else 50)["rows"]
    case = f"{taken:,} rows of {_ROW} into pinned memory"
    return GpuLine(case, spread, None, spread.median_ms, "1 ms", spread.median_ms < 1)


def _pull_line(*, quick: bool) -> GpuLine:
    size = _QUICK_BYTES if quick else _BYTES
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "server.json"
        with (
            started(paramd_server(port_file), port_file) as (address,),
            paramd.connect(address, transport="tcp"),
        ):
            out = np.ones(size // 4, np.float32)
            calls: dict[str, Call] = {}
            for context in (paramd.cpu(0), _GPU):
                params = paramd.ParameterDict(f"{context.device_type}_")
                weight = params.get("weight", shape=out.shape, init="zeros")
                params.initialize(ctx=context)
                calls[context.device_type] = partial(params.pull, out={weight.name: out})
            spreads = in_turn(calls, repeats=3 if quick else 15)
    ratio = spreads["cpu"].median_ms / spreads["gpu"].median_ms
    case = f"pull of {size >> 20} MB"
    return GpuLine(
        case, spreads["gpu"], spreads["cpu"], ratio, "0.9 of cpu(0)'s speed", ratio >= 0.9
    )


def report_gpu(lines: list[GpuLine]) -> str:
    """The table, in Markdown."""
    rows = [
        "| case | ms | beside it, ms | aim | |",
        "| --- | ---: | ---: | --- | --- |",
    ]
    for line in lines:
        beside = "-" if line.beside is None else f"{line.beside.median_ms:.3f}"
        verdict = "met" if line.met else "**missed**"
        rows.append(
            f"| {line.case} | {line.time.median_ms:.3f} ({line.time.low_ms:.3f}-"
            f"{line.time.high_ms:.3f}) | {beside} | {line.aim} | {line.value:.2f}: {verdict} |"
        )
    return "\n".join(rows)


def _machine() -> dict[str, Any]:
    runtime, _ = load_runtime()
    return {"cuda": runtime.describe(), "gpu": runtime.device_name(0), "numpy": np.__version__}


def main() -> None:
    """Measures and reports, where there is a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions")
    parser.add_argument("--output", type=Path, default=Path("bench-results/gpu.json"))
    options = parser.parse_args()
    try:
        machine = _machine()
    except DeviceError as err:
        print(f"nothing measured: {err}")
        return
    lines = measure_gpu(quick=options.quick)
    print(report_gpu(lines))
    print(f"\nmedians (10th to 90th percentile); {machine}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine, "lines": [asdict(line) for line in lines]}
    options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
