"""Handwritten digits, trained by two worker processes on one parameter server.

Run `make demo`, or `python -m examples.digits` in the project's folder. The server holds the
parameters and the gradient buffers; the workers hold the images. At the end the model goes through
files into a fresh server, where it must recognize as much as before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paramd
from examples.digits_model import LEVELS, SHAPES, accuracy, load_digits, row_ids
from examples.digits_worker import NUM_WORKERS

ROOT = Path(__file__).parents[1]
REQUIRED = 0.93


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Runs a server for as long as the block does, and gives its address."""
    port_file = folder / "port.json"
    command = [sys.executable, "-m", "paramd_server", "--listen", "127.0.0.1:0"]
    command += ["--port-file", str(port_file), "--log-level", "warning"]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + 30
            while not port_file.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the server did not start")
                time.sleep(0.05)
            address: str = json.loads(port_file.read_text())["addresses"][0]
            yield address
        finally:
            process.terminate()


def run_workers(target: str) -> None:
    """Runs the workers to their end."""
    environment = {**os.environ, "PARAMD_TARGET": target}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "examples.digits_worker", str(rank)], cwd=ROOT, env=environment
        )
        for rank in range(NUM_WORKERS)
    ]
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any(codes):
        raise RuntimeError(f"workers ended with {codes}")


def network_accuracy(params: paramd.ParameterDict) -> float:
    """On the digits that were held out."""
    _, _, images, labels = load_digits()
    values = {name.removeprefix("net_"): value for name, value in params.pull().items()}
    return accuracy(values, images, labels)


def table_accuracy(table: paramd.Parameter) -> float:
    """On the digits that were held out."""
    _, _, images, labels = load_digits()
    rows = table.row_sparse_data(range(64 * LEVELS)).data.asnumpy()
    return float((rows[row_ids(images)].sum(axis=1).argmax(axis=1) == labels).mean())


def train(folder: Path) -> float:
    """Trains on a server of its own, saves the network, and gives its accuracy."""
    (folder / "train").mkdir()
    with server(folder / "train") as target:
        print(f"server at {target}, {NUM_WORKERS} workers", flush=True)
        run_workers(target)
        with paramd.connect(target) as session:
            params = session.parameters("net_")
            reached = network_accuracy(params)
            print(f"accuracy of the network on held-out digits: {reached:.3f}")
            table = session.parameters("table")["table"]
            print(f"accuracy of the row_sparse table:           {table_accuracy(table):.3f}")
            for worker in session.workers():
                if worker.num_pushes:
                    print(f"pushes counted from {worker.worker}: {worker.num_pushes}")
            for suffix in ("params", "safetensors"):
                params.save(str(folder / f"digits.{suffix}"))
    return reached


def check_files(folder: Path, reached: float) -> None:
    """Loads each file into a fresh server and compares the accuracy."""
    for suffix in ("params", "safetensors"):
        (folder / suffix).mkdir()
        with server(folder / suffix) as target, paramd.connect(target):
            params = paramd.ParameterDict("net_")
            for name, shape in SHAPES.items():
                params.get(name, shape=shape)
            params.load(str(folder / f"digits.{suffix}"))
            again = network_accuracy(params)
            print(f"loaded from digits.{suffix} into a fresh server: {again:.3f}")
            if again != reached:
                raise RuntimeError(f"expected {reached}, but got {again}")


def main() -> int:
    """Gives the exit status: 0 when everything was as it should be."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reached = train(folder)
        check_files(folder, reached)
    if reached < REQUIRED:
        print(f"expected an accuracy of {REQUIRED} or better", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
