"""Handwritten digits, trained by two worker processes on one parameter server.

Run `make demo`, or `python -m examples.digits` in the project's folder. First the workers train in
step with each other; then each at its own pace, and one of them is killed half-way and started
again. The server holds the parameters and steps the optimizer; the workers hold the images. At the
end the model goes through files into a fresh server, where it must recognize as much as before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import paramd
from examples.digits_model import LEVELS, accuracy, load_digits, table_accuracy
from examples.digits_worker import STEPS, WORKERS, parameters, trainer_of

ROOT = Path(__file__).parents[1]
REQUIRED = 0.93
SUFFIXES = ("params", "safetensors")


@contextmanager
def running(program: str, *arguments: str, target: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Runs one of Python's modules as a process that ends with the block."""
    environment = {**os.environ, "PARAMD_TARGET": target}
    command = [sys.executable, "-m", program, *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            yield process
        finally:
            process.terminate()


def ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process ends within a moment."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


@contextmanager
def server() -> Iterator[str]:
    """Runs a server for as long as the block does, and gives its address."""
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port.json"
        options = ["--listen", "127.0.0.1:0", "--port-file", str(port_file)]
        with running("paramd_server", *options, "--log-level", "warning") as process:
            while not port_file.exists():
                if ended(process, 0.05):
                    raise RuntimeError(f"the server ended with {process.returncode}")
            address: str = json.loads(port_file.read_text())["addresses"][0]
            yield address


def train(kvstore: str, folder: Path, *, kill: bool) -> float:
    """Trains on a server of its own, saves the network, and gives its accuracy."""
    with server() as target, paramd.connect(target) as session, ExitStack() as stack:

        def start(name: str) -> subprocess.Popen[bytes]:
            program = "examples.digits_worker"
            return stack.enter_context(running(program, name, kvstore, target=target))

        print(f"\n{kvstore}: server at {target}, {len(WORKERS)} workers", flush=True)
        workers = {name: start(name) for name in WORKERS}
        # As each worker does: whoever is first creates them, the others attach.
        params = parameters()
        trainer = trainer_of(params, kvstore)
        if kill:
            name = WORKERS[-1]
            wait_for_clock(trainer, name, workers[name], STEPS[kvstore] // 2)
            workers[name].kill()
            print(f"{name}: killed half-way, and started again", flush=True)
            workers[name] = start(name)
        finish(workers)
        for suffix in SUFFIXES:
            params.save(folder / f"digits.{suffix}")
        return show(session, params)


def wait_for_clock(
    trainer: paramd.Trainer, name: str, process: subprocess.Popen[bytes], clock: int
) -> None:
    """Asks the server until a worker has made that many steps."""
    while {each.worker: each.clock for each in trainer.info().workers}.get(name, 0) < clock:
        if ended(process, 0.01):
            raise RuntimeError(f"{name} ended with {process.returncode}")


def finish(workers: dict[str, subprocess.Popen[bytes]]) -> None:
    """Waits for the workers' end; where one fails, the others would wait for it."""
    while workers:
        for name, process in list(workers.items()):
            if ended(process, 0.05):
                del workers[name]
                if process.returncode:
                    raise RuntimeError(f"{name} ended with {process.returncode}")


def show(session: paramd.Session, params: paramd.ParameterDict) -> float:
    """Prints what the server holds after training, and gives the network's accuracy."""
    _, _, images, labels = load_digits()
    reached = accuracy(params.pull(), images, labels)
    print(f"accuracy of the network on held-out digits: {reached:.3f}")
    table = session.parameters("table")["table"]
    rows = table.row_sparse_data(range(64 * LEVELS)).data.asnumpy()
    print(f"accuracy of the row_sparse table: {table_accuracy(rows, images, labels):.3f}")
    for each in session.trainers():
        print(f"{each.num_steps} steps of {each.spec.optimizer.name} committed")
    return reached


def check_files(folder: Path, reached: float) -> None:
    """Loads each file into a fresh server and compares the accuracy."""
    _, _, images, labels = load_digits()
    for suffix in SUFFIXES:
        with server() as target, paramd.connect(target) as session:
            params = parameters()
            # Were there several workers, a late one would undo what the others did since.
            with session.once("load") as first:
                if first:
                    params.load(folder / f"digits.{suffix}")
            again = accuracy(params.pull(), images, labels)
            print(f"loaded from digits.{suffix} into a fresh server: {again:.3f}")
            if again != reached:
                raise RuntimeError(f"expected {reached}, but got {again}")


def main() -> int:
    """Gives the exit status: 0 when everything was as it should be."""
    reached = {}
    with tempfile.TemporaryDirectory() as name:
        for kvstore, kill in (("dist_sync", False), ("dist_async", True)):
            reached[kvstore] = train(kvstore, Path(name), kill=kill)
        check_files(Path(name), reached["dist_async"])
    for kvstore, each in reached.items():
        if each < REQUIRED:
            print(f"{kvstore}: expected {REQUIRED} or better, but got {each:.3f}", file=sys.stderr)
    return int(min(reached.values()) < REQUIRED)


if __name__ == "__main__":
    sys.exit(main())
