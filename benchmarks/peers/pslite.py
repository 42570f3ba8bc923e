"""MXNet 1.9.1's parameter server (ps-lite over ZeroMQ): the peer `ps-lite`.

Runs clusters one after the other, each with a scheduler, a server and its workers as processes of
their own: `pslite_worker` for calls one by one, with `dist_sync` where the server keeps what is
pushed and `dist_async` where it updates; many workers for latencies; `mxnet_embedding` end to end.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from benchmarks.clients import measure_latency
from benchmarks.embedding_model import CASE, WORKERS
from benchmarks.peers.pslite_worker import NAME, pull_small
from benchmarks.system import Options, parse_options
from benchmarks.workloads import latency_counts

__all__: list[str] = []


@contextmanager
def _cluster(num_workers: int, threads: int) -> Iterator[dict[str, str]]:
    """A scheduler and a server; gives the environment of a worker.

    Args:
        num_workers: how many will come.
        threads: of arithmetic, in each process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = {
        **os.environ,
        "DMLC_PS_ROOT_URI": "127.0.0.1",
        "DMLC_PS_ROOT_PORT": str(port),
        "DMLC_NUM_SERVER": "1",
        "DMLC_NUM_WORKER": str(num_workers),
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
    }
    with ExitStack() as stack:
        for role in ("scheduler", "server"):
            # Importing MXNet in such a role serves.
            process = subprocess.Popen(
                [sys.executable, "-c", "import mxnet"], env={**cluster, "DMLC_ROLE": role}
            )
            stack.enter_context(process)
            stack.callback(process.kill)
        yield {**cluster, "DMLC_ROLE": "worker"}


def _measure_calls(options: Options, kvstore: str, sections: Sequence[str]) -> None:
    chosen = replace(options, sections=tuple(sections))
    command = [sys.executable, "-m", "benchmarks.peers.pslite_worker", *chosen.arguments]
    with _cluster(1, threads=2) as environment:
        subprocess.run(command, env={**environment, "BENCH_KVSTORE": kvstore}, check=True)


def _measure_latency(options: Options) -> None:
    with _cluster(max(latency_counts(quick=options.quick)), threads=1) as environment:
        # The clients are forked off a process that is started now.
        os.environ.update(environment)
        measure_latency(NAME, pull_small, options, preload=("mxnet",))


def _measure_embedding(options: Options) -> None:
    command = [sys.executable, "-m", "benchmarks.peers.mxnet_embedding"]
    if options.quick:
        command.append("--quick")
    with _cluster(WORKERS, threads=1) as environment:
        workers = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            for _ in range(WORKERS)
        ]
        rates = []
        for worker in workers:
            # Libraries write there, too.
            lines = worker.communicate()[0].splitlines()
            rates += [json.loads(line)["samples_per_second"] for line in lines if line[:1] == "{"]
    if len(rates) != WORKERS:
        raise RuntimeError(f"{len(rates)} of {WORKERS} workers have trained")
    options.records.add(
        system=NAME, section="embedding", case=CASE, samples_per_second=sum(rates), each=rates
    )


def main() -> None:
    """Measures what the command line says."""
    options = parse_options(__doc__)
    sections = options.sections
    kept = [each for each in ("dense", "rows", "bulk") if each in sections]
    if kept:
        _measure_calls(options, "dist_sync", kept)
    if "steps" in sections:
        _measure_calls(options, "dist_async", ["steps"])
    if "embedding" in sections:
        _measure_embedding(options)
    if "latency" in sections:
        _measure_latency(options)


if __name__ == "__main__":
    main()
