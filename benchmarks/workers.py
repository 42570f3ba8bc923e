"""Steps per second of 1 to 8 worker processes on one server.

All workers are started once; in each case the first so many step the same small model, and the
others wait. Run as a program it is one worker; `worker_lines` starts them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from tqdm import tqdm

import paramd
from benchmarks.timing import Spread, spread_of

__all__ = ["WorkerLine", "report_workers", "worker_lines"]

_KVSTORES: Final = ("dist_sync", "dist_async")
_NUM_WORKERS: Final = (1, 2, 4, 8)
_QUICK_NUM_WORKERS: Final = (1, 2)
# Four parameters of 25 KB.
_PARAMETERS: Final = 4
_ELEMENTS: Final = 6400
# A worker that fails must not keep the others at a barrier for ever.
_PATIENCE_S: Final = 120.0


@dataclass(frozen=True)
class WorkerLine:
    """One line of the table.

    Attributes:
        kvstore: 'dist_sync' or 'dist_async'.
        num_workers: that step at the same time.
        step: times of one worker's step, pull included: a mean over many steps, several times.
    """

    kvstore: str
    num_workers: int
    step: Spread

    @property
    def case(self) -> str:
        """What was measured."""
        return f"{self.kvstore}, {self.num_workers} worker{'s' * (self.num_workers > 1)}"

    @property
    def steps_per_second(self) -> float:
        """Steps that all workers together make in a second."""
        return self.num_workers / self.step.median_ms * 1e3


def worker_lines(target: str, *, quick: bool) -> Iterator[WorkerLine]:
    """Starts the workers, and gives the lines as they come."""
    numbers = _QUICK_NUM_WORKERS if quick else _NUM_WORKERS
    command = [sys.executable, "-m", "benchmarks.workers", target, *(["--quick"] if quick else [])]
    with ExitStack() as stack:
        workers = []
        for index in range(max(numbers)):
            worker = subprocess.Popen(
                [*command, str(index)], stdout=subprocess.PIPE if index == 0 else None, text=True
            )
            stack.enter_context(worker)
            stack.callback(worker.kill)
            workers.append(worker)
        assert workers[0].stdout is not None
        total = len(numbers) * len(_KVSTORES)
        for text in tqdm(workers[0].stdout, desc="workers", total=total, leave=False, disable=None):
            document = json.loads(text)
            yield WorkerLine(**{**document, "step": Spread(**document["step"])})
        for index, worker in enumerate(workers):
            if worker.wait(_PATIENCE_S):
                raise RuntimeError(f"worker {index} ended with {worker.returncode}")


def _work(target: str, index: int, *, quick: bool) -> None:
    """Takes part in the cases that need this worker; the first one reports."""
    numbers = _QUICK_NUM_WORKERS if quick else _NUM_WORKERS
    with paramd.connect(target) as session:
        for num_workers in numbers:
            for kvstore in _KVSTORES:
                if index < num_workers:
                    times = _step_times(session, kvstore, num_workers, quick=quick)
                    line = WorkerLine(kvstore, num_workers, spread_of(times))
                    if index == 0:
                        print(json.dumps(asdict(line)), flush=True)
                session.barrier("case", num_workers=max(numbers), timeout=_PATIENCE_S)


def _step_times(
    session: paramd.Session, kvstore: str, num_workers: int, *, quick: bool
) -> list[float]:
    """Milliseconds of a step, once for each repetition."""
    steps, repeats = (10, 2) if quick else (50, 5)
    case = f"{kvstore}_{num_workers}"
    params = paramd.ParameterDict(f"{case}_")
    for index in range(_PARAMETERS):
        params.get(str(index), shape=(_ELEMENTS,), init="zeros")
    params.initialize()
    momentum = {"learning_rate": 1e-3, "momentum": 0.9}
    trainer = paramd.Trainer(params, "sgd", momentum, kvstore, num_workers=num_workers)
    trainer.join()
    grads = {name: np.full(_ELEMENTS, 1e-3, np.float32) for name in params}
    values = params.pull()
    times = []
    for _ in range(1 + repeats):
        session.barrier(case, num_workers=num_workers, timeout=_PATIENCE_S)
        start = time.perf_counter()
        for _ in range(steps):
            trainer.step(1, grads=grads, pull=True, out=values)
        session.barrier(case, num_workers=num_workers, timeout=_PATIENCE_S)
        times.append((time.perf_counter() - start) * 1e3 / steps)
    trainer.leave()
    return times[1:]


def report_workers(lines: list[WorkerLine]) -> str:
    """The table, in Markdown."""
    rows = [
        "| steps of 100 KB with pull | one worker's step, ms | steps/s of all |",
        "| --- | ---: | ---: |",
    ]
    rows += [
        f"| {line.case} | {line.step.median_ms:.3f} "
        f"({line.step.low_ms:.3f}-{line.step.high_ms:.3f}) | {line.steps_per_second:,.0f} |"
        for line in lines
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(description=__doc__)
    _parser.add_argument("target", help="address of the server")
    _parser.add_argument("index", type=int, help="of this worker, from 0")
    _parser.add_argument("--quick", action="store_true", help="few workers, few repetitions")
    _options = _parser.parse_args()
    _work(_options.target, _options.index, quick=_options.quick)
