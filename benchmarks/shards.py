"""Pulls and steps of one client on 1, 2 and 4 shards of one machine, in one run.

The clusters run beside each other and take turns, so that a drift of the machine meets all. Run it
alone: `python -m benchmarks.shards`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from tqdm import tqdm

import paramd
from benchmarks.serving import paramd_server, started
from benchmarks.timing import Call, Spread, in_turn

__all__ = ["AIM", "ShardLine", "aim_verdict", "report_shards", "shard_lines"]

AIM: Final = 1.6
"""How many times as fast as one shard two are to be, for large pulls."""

_CORES_FOR_THE_AIM: Final = 4
_NUM_SHARDS: Final = (1, 2, 4)
_QUICK_NUM_SHARDS: Final = (1, 2)
_WIDTH: Final = 64
# Makes the call that is timed, on the parameters of one cluster.
_Prepare = Callable[[paramd.Session], Call]


@dataclass(frozen=True)
class ShardLine:
    """One line of the table.

    Attributes:
        work: what was done.
        num_shards: of the cluster.
        time: on it.
        one: on a cluster of one shard, in turn with it.
        aimed_at: whether two shards are to be faster by AIM.
    """

    work: str
    num_shards: int
    time: Spread
    one: Spread
    aimed_at: bool

    @property
    def case(self) -> str:
        """What was measured."""
        return f"{self.work}, {self.num_shards} shard{'s' * (self.num_shards > 1)}"

    @property
    def ratio(self) -> float:
        """How many times as fast as one shard it is."""
        return self.one.median_ms / self.time.median_ms


def shard_lines(*, quick: bool) -> Iterator[ShardLine]:
    """Starts the clusters, and gives the lines as they come."""
    dense, table, rows, step = (8, 10_000, 1_000, 8) if quick else (256, 2_000_000, 100_000, 64)
    cases: list[tuple[str, _Prepare, bool]] = [
        (f"pull {dense} MB", partial(_dense_pull, dense), True),
        (f"pull {rows:,} rows", partial(_row_pull, table, rows), True),
        (f"step of {step} MB", partial(_step, f"large_{step}", (step << 18,)), False),
        ("step of 4 x 25 KB", partial(_step, "small", (6400,) * 4), False),
    ]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sessions = {
            number: stack.enter_context(_cluster(number, folder))
            for number in (_QUICK_NUM_SHARDS if quick else _NUM_SHARDS)
        }
        for work, prepare, aimed_at in tqdm(cases, desc="shards", leave=False, disable=None):
            calls = {str(number): prepare(session) for number, session in sessions.items()}
            spreads = in_turn(calls, repeats=3 if quick else 15)
            for number, session in sessions.items():
                yield ShardLine(work, number, spreads[str(number)], spreads["1"], aimed_at)
                _empty(session)


@contextmanager
def _cluster(num_shards: int, folder: Path) -> Iterator[paramd.Session]:
    port_file = folder / f"{num_shards}.json"
    command = paramd_server(port_file, "--shards", str(num_shards))
    with (
        started(command, port_file) as addresses,
        # What is compared is the work of servers, which reads in their memory leave out.
        paramd.connect(",".join(addresses), transport="tcp") as session,
    ):
        yield session


def _empty(session: paramd.Session) -> None:
    for trainer in session.trainers():
        session.delete_trainer(trainer.spec.name)
    session.delete(list(session.parameters()))


def _dense_pull(megabytes: int, session: paramd.Session) -> Call:
    params = paramd.ParameterDict(session=session)
    params.get("dense", shape=(megabytes << 12, _WIDTH), init="zeros", grad_req="null")
    params.initialize()
    out = {"dense": np.ones((megabytes << 12, _WIDTH), np.float32)}
    return partial(params.pull, out=out)


def _row_pull(table_rows: int, count: int, session: paramd.Session) -> Call:
    table = paramd.Parameter(
        "table",
        shape=(table_rows, _WIDTH),
        init="zeros",
        stype="row_sparse",
        grad_req="null",
        session=session,
    )
    table.initialize()
    chosen = np.random.default_rng(0).choice(table_rows, count, replace=False)
    return partial(table.row_sparse_data, np.sort(chosen).astype(np.int64))


def _step(name: str, sizes: Sequence[int], session: paramd.Session) -> Call:
    """A synchronous step of one worker, whose values come back with it."""
    params = paramd.ParameterDict(f"{name}_", session=session)
    for index, size in enumerate(sizes):
        params.get(str(index), shape=(size,), init="zeros")
    params.initialize()
    momentum = {"learning_rate": 1e-3, "momentum": 0.9}
    trainer = paramd.Trainer(
        params, "sgd", momentum, "dist_sync", num_workers=1, name=name, session=session
    )
    values = params.pull()
    grads = {each: np.full_like(value, 1e-3) for each, value in values.items()}
    return partial(trainer.step, 1, grads=grads, pull=True, out=values)


def aim_verdict(lines: Sequence[ShardLine], *, quick: bool) -> str:
    """Whether two shards are AIM times as fast as one where they are to be, in a line."""
    cores = len(os.sched_getaffinity(0))
    claim = f"two shards at least {AIM} times as fast as one for large pulls"
    if cores < _CORES_FOR_THE_AIM:
        return f"{claim}: not measurable here ({cores} cores; it takes {_CORES_FOR_THE_AIM})"
    if quick:
        return f"{claim}: not measured with --quick ({cores} cores)"
    found = [line for line in lines if line.aimed_at and line.num_shards == 2]
    told = ", ".join(f"{line.work} {line.ratio:.2f}" for line in found)
    reached = all(line.ratio >= AIM for line in found)
    return f"{claim}: {'reached' if reached else 'MISSED'} ({told}; {cores} cores)"


def report_shards(lines: Sequence[ShardLine]) -> str:
    """The table, in Markdown."""
    rows = ["| shards | ms | times as fast as one |", "| --- | ---: | ---: |"]
    rows += [
        f"| {line.case} | {line.time.median_ms:.3f} "
        f"({line.time.low_ms:.3f}-{line.time.high_ms:.3f}) | {line.ratio:.2f} |"
        for line in lines
    ]
    return "\n".join(rows)


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions")
    quick = parser.parse_args().quick
    lines = list(shard_lines(quick=quick))
    print(report_shards(lines), end="\n\n")
    print(aim_verdict(lines, quick=quick))


if __name__ == "__main__":
    main()
