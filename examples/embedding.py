"""Word vectors in PyTorch, trained by two worker processes on one parameter server.

Run `python -m examples.embedding` in the project's folder, with PyTorch installed. The server
holds the model and runs Adagrad; a worker pulls the word vectors that its batch needs, and pushes
gradients of those alone. At the end the model is read back, and has to tell the topics of texts
that no worker has seen.
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

import torch

import paramd
import paramd.torch
from examples.embedding_worker import HELD_OUT, NUM_WORKERS, TOPICS, Classifier, load_texts

ROOT = Path(__file__).parents[1]
REQUIRED = 0.9


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
    command = [sys.executable, "-m", "examples.embedding_worker"]
    workers = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment)
        for rank in range(NUM_WORKERS)
    ]
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any(codes):
        raise RuntimeError(f"workers ended with {codes}")


def accuracy(model: torch.nn.Module) -> float:
    """The share of held-out texts whose topic is told."""
    texts, topics = (part[-HELD_OUT:] for part in load_texts())
    with torch.no_grad():
        return float((model(texts).argmax(dim=1) == topics).float().mean())


def main() -> int:
    """Gives the exit status: 0 when the model has learned."""
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as target:
        print(f"server at {target}, {NUM_WORKERS} workers", flush=True)
        run_workers(target)
        model = Classifier()
        print(f"accuracy on held-out texts before: {accuracy(model):.3f} (chance {1 / TOPICS})")
        with paramd.connect(target):
            remote = paramd.torch.attach(model, prefix="net_")  # no optimizer: it only reads
            remote.pull_rows({"words": None})
        reached = accuracy(model)
        print(f"accuracy on held-out texts after:  {reached:.3f}")
    if reached < REQUIRED:
        print(f"expected an accuracy of {REQUIRED} or better", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
