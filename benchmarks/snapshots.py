"""What a snapshot costs a training run, and how soon a server serves again.

One server with about 1 GB of state (a table of rows and dense values, with adam's states) and one
client that steps it without end, on one machine. Run it alone: `python -m benchmarks.snapshots`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

import paramd
from paramd import gluon

__all__ = ["SnapshotFigures", "measure_snapshots", "report_snapshots"]

_WIDTH: Final = 64
_NUM_DENSE: Final = 16
_ROWS_A_STEP: Final = 10_000
_START_S: Final = 120.0


@dataclass(frozen=True)
class SnapshotFigures:
    """What was measured.

    Attributes:
        size_bytes: of a snapshot.
        steps_alone: steps a second without a snapshot.
        steps_beside: steps a second while one is written.
        cost: the part of its steps that a run loses while a snapshot is written: the median over
            snapshots, each beside the rates right before it and after it.
        snapshot_s: how long one took beside the steps.
        longest_step_ms: the longest step while one was written.
        restart_s: from the start of the process until it serves, with the snapshot taken up.
        start_s: the same without a snapshot.
        read_s: reading the snapshot's files, which are not in the page cache.
    """

    size_bytes: int
    steps_alone: float
    steps_beside: float
    cost: float
    snapshot_s: float
    longest_step_ms: float
    restart_s: float
    start_s: float
    read_s: float

    @property
    def restart_ratio(self) -> float:
        """How many times as long as reading the files a restart takes."""
        return self.restart_s / self.read_s


class _Steps:
    """A training loop on a thread."""

    def __init__(self, session: paramd.Session, num_rows: int, dense_size: int) -> None:
        params = gluon.ParameterDict(session=session)
        params.get(
            "table",
            shape=(num_rows, _WIDTH),
            stype="row_sparse",
            grad_stype="row_sparse",
            init="uniform",
        )
        for index in range(_NUM_DENSE):
            params.get(f"dense{index}", shape=(dense_size,), init="uniform")
        params.initialize()
        self._trainer = gluon.Trainer(params, "adam", {"learning_rate": 1e-3}, kvstore="local")
        self._random = np.random.default_rng(1)
        self._num_rows = num_rows
        self._rows = self._random.standard_normal((_ROWS_A_STEP, _WIDTH), np.float32)
        self._dense = {
            f"dense{index}": self._random.standard_normal(dense_size, np.float32)
            for index in range(_NUM_DENSE)
        }
        self._end = threading.Event()
        self.times: list[float] = []
        self._failure: BaseException | None = None

    def step(self) -> None:
        ids = self._random.choice(self._num_rows, _ROWS_A_STEP, replace=False)
        self._trainer.step(1, grads={"table": (np.sort(ids), self._rows), **self._dense})
        self.times.append(time.perf_counter())

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                self.step()
        except BaseException as err:
            self._failure = err

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        yield
        self._end.set()
        thread.join()
        if self._failure is not None:
            raise self._failure

    def rate(self, begin: float, end: float) -> float:
        """Steps a second in a span of time, of those that began and ended in it."""
        inside = [each for each in self.times if begin <= each <= end]
        return (len(inside) - 1) / (inside[-1] - inside[0])

    def longest(self, begin: float, end: float) -> float:
        """The longest time between two steps in a span of time, in seconds."""
        inside = [each for each in self.times if begin <= each <= end]
        return float(np.max(np.diff(inside)))


@contextmanager
def _server(folder: Path, name: str, *arguments: str) -> Iterator[tuple[str, float]]:
    """A server that is killed at the end: its address, and how long it took to serve."""
    port_file = folder / f"{name}.json"
    command = [sys.executable, "-m", "paramd_server", "--port-file", str(port_file)]
    command += ["--listen", f"unix:{folder}/{name}.sock", "--log-level", "warning", *arguments]
    # As an installed server, which finds its modules compiled.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    begin = time.perf_counter()
    with subprocess.Popen(command, env=environment) as process:
        try:
            while not port_file.exists():
                if process.poll() is not None or time.perf_counter() - begin > _START_S:
                    raise RuntimeError("the server did not start")
                time.sleep(0.005)
            took = time.perf_counter() - begin
            yield json.loads(port_file.read_text())["addresses"][0], took
        finally:
            process.kill()


def _newest(folder: Path) -> list[Path]:
    """The files of the newest snapshot."""
    marker = max((folder / "state" / "snapshots").glob("*/COMMITTED"))
    return sorted(marker.parent.iterdir())


def _forget(paths: list[Path]) -> None:
    """Has the system drop files from its page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_time(paths: list[Path]) -> float:
    block = bytearray(1 << 20)
    begin = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
    return time.perf_counter() - begin


def measure_snapshots(folder: Path, *, quick: bool = False, rounds: int = 3) -> SnapshotFigures:
    """Measures on this machine.

    Args:
        folder: an empty directory, on the disk to be measured.
        quick: with a sixteenth of the state.
        rounds: how many snapshots are measured.
    """
    scale = 16 if quick else 1
    kept = ("--snapshot-dir", str(folder / "state"))
    alone: list[float] = []
    beside: list[float] = []
    spans: list[float] = []
    longest = 0.0
    with (
        _server(folder, "training", *kept) as (address, start_s),
        paramd.connect(address) as session,
    ):
        steps = _Steps(session, (1 << 20) // scale, (1 << 20) // scale)
        for _ in range(3):
            steps.step()
        size = session.save_snapshot().size_bytes
        with steps.running():
            time.sleep(1.0)
            alone.append(_rate_alone(steps, quick=quick))
            for _ in range(rounds):
                begin = time.perf_counter()
                session.save_snapshot()
                end = time.perf_counter()
                beside.append(steps.rate(begin, end))
                longest = max(longest, steps.longest(begin, end))
                spans.append(end - begin)
                time.sleep(1.0)
                alone.append(_rate_alone(steps, quick=quick))
    costs = [1 - beside[i] / np.mean(alone[i : i + 2]) for i in range(rounds)]
    reads: list[float] = []
    restarts: list[float] = []
    newest = _newest(folder)
    for number in range(rounds):
        _forget(newest)
        reads.append(_read_time(newest))
        _forget(newest)
        with _server(folder, f"again{number}", *kept) as (_, restart_s):
            restarts.append(restart_s)
    return SnapshotFigures(
        size,
        float(np.median(alone)),
        float(np.median(beside)),
        float(np.median(costs)),
        float(np.median(spans)),
        longest * 1e3,
        float(np.median(restarts)),
        start_s,
        float(np.median(reads)),
    )


def _rate_alone(steps: _Steps, *, quick: bool) -> float:
    begin = time.perf_counter()
    time.sleep(2.0 if quick else 8.0)
    return steps.rate(begin, time.perf_counter())


def report_snapshots(figures: SnapshotFigures) -> list[str]:
    """Lines for people."""
    gigabytes = figures.size_bytes / 1e9
    return [
        f"a snapshot of {gigabytes:.2f} GB takes {figures.snapshot_s:.2f} s beside a training run "
        f"({figures.size_bytes / figures.snapshot_s / 1e6:.0f} MB/s)",
        f"steps a second: {figures.steps_alone:.2f} alone, {figures.steps_beside:.2f} meanwhile: "
        f"{figures.cost:.0%} fewer; the longest took {figures.longest_step_ms:.0f} ms",
        f"restart to serving: {figures.restart_s:.2f} s ({figures.start_s:.2f} s with nothing to "
        f"take up), {figures.restart_ratio:.2f} times as long as reading the files, "
        f"{figures.read_s:.2f} s",
    ]


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the state")
    parser.add_argument("--rounds", type=int, default=3)
    arguments: Any = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure_snapshots(Path(folder), quick=arguments.quick, rounds=arguments.rounds)
    for line in report_snapshots(figures):
        print(line)


if __name__ == "__main__":
    _main()
