"""Many clients at a time: processes, each of which pulls as fast as it can.

Processes and not threads: clients of one process would wait for each other's interpreter lock, and
the time would be theirs and not the server's. They are forked off a process that has imported what
they need and holds no connection, so that 32 of them start in seconds.

NumPy and the standard library only: the peers' programs use it in their own environments.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np

from benchmarks.system import Options
from benchmarks.timing import Call
from benchmarks.workloads import LATENCY_BYTES, latency_counts, latency_seconds, size_name

__all__ = ["Connect", "latency_name", "measure_latency", "pulls_until", "record_latency"]

Connect = Callable[[int], Call]
"""Connects one client, which is told its number, and gives the pull that it makes."""

_WARM_UP: Final = 20
# The first pulls of all clients begin at one time, when every one has been told it.
_LEAD_S: Final = 0.2
_PATIENCE_S: Final = 120.0


def measure_latency(
    system: str, connect: Connect, options: Options, *, preload: Sequence[str]
) -> None:
    """Starts clients, has more and more of them pull, and records the percentiles.

    Args:
        system: its name in the results.
        connect: picklable.
        options: of this program.
        preload: modules that the clients need.
    """
    counts = latency_counts(quick=options.quick)
    seconds = latency_seconds(quick=options.quick)
    with _clients(connect, max(counts), preload) as pipes:
        for count in counts:
            start = time.monotonic() + _LEAD_S
            for pipe in pipes[:count]:
                pipe.send((start, seconds))
            times = [_answer(pipe, _PATIENCE_S + seconds) for pipe in pipes[:count]]
            record_latency(options, system, count, seconds, times)


def record_latency(
    options: Options, system: str, count: int, seconds: float, times: Sequence[Sequence[float]]
) -> None:
    """Records the percentiles of what all clients have measured, in milliseconds."""
    together = np.concatenate([np.asarray(each) for each in times])
    middle, high, highest = np.percentile(together, (50, 90, 99))
    options.records.add(
        system=system,
        section="latency",
        case=latency_name(count),
        clients=count,
        median_ms=float(middle),
        p90_ms=float(high),
        p99_ms=float(highest),
        repeats=len(together),
        pulls_per_second=len(together) / seconds,
    )


def latency_name(count: int) -> str:
    """The case of so many clients."""
    return f"pull {size_name(LATENCY_BYTES)}, {count} client{'s' * (count > 1)}"


def pulls_until(call: Call, start: float, seconds: float) -> list[float]:
    """Calls from one time of `time.monotonic()` on, for some seconds; the milliseconds of each."""
    time.sleep(max(start - time.monotonic(), 0))
    times = []
    now, end = time.perf_counter(), time.perf_counter() + seconds
    while now < end:
        call()
        before, now = now, time.perf_counter()
        times.append((now - before) * 1e3)
    return times


@contextmanager
def _clients(connect: Connect, count: int, preload: Sequence[str]) -> Iterator[list[Connection]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *preload])
    pipes: list[Connection] = []
    processes: list[Any] = []
    try:
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_client, args=(connect, number, theirs), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            _answer(pipe, _PATIENCE_S)
        yield pipes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _client(connect: Connect, number: int, pipe: Connection) -> None:
    """What a client does, until it is ended: pulls when it is told to."""
    call = connect(number)
    for _ in range(_WARM_UP):
        call()
    pipe.send([])
    while True:
        start, seconds = pipe.recv()
        pipe.send(pulls_until(call, start, seconds))


def _answer(pipe: Connection, patience_s: float) -> list[float]:
    if not pipe.poll(patience_s):
        raise RuntimeError("a client did not answer")
    found: list[float] = pipe.recv()
    return found
