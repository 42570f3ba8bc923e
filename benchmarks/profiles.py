"""Where the time of three calls goes: a small pull, a pull of 64 MB, and 100,000 rows.

Each call over gRPC is taken apart. A loopback carries it within one process, without a wire: that
is the work of client and server. The server's part is timed by itself, on the requests that the
client has made. What is left of the whole call is the wire, and that threads and processes have to
be woken: the floor, raw gRPC with the same bytes, has little else. A read in shared memory is taken
apart into its copy and the rest.

Run as `python -m benchmarks.profiles`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

import paramd
from benchmarks.floor import Floor, floor_server
from benchmarks.serving import paramd_server, started
from benchmarks.timing import Call, Spread, in_turn
from benchmarks.workloads import ROW
from paramd.transport.call_streams import Carrier, StreamedMethod
from paramd.wire.calls import END, Payload, encode_message
from paramd.wire.envelope import encode_data
from paramd_server.app import Server
from paramd_server.config import ServerConfig
from paramd_server.rpc.call_streams import CallDispatcher, CallLoop

__all__ = ["Part", "profile"]

_SMALL: Final = 1024
_LARGE: Final = 16 << 20
_PATHS: Final = {
    "GetData": "/paramd.v1.ParameterService/GetData",
    "PullRowSparse": "/paramd.v1.ParameterService/PullRowSparse",
}

Array = np.ndarray[Any, Any]
Pull = Callable[[paramd.Session], Call]


@dataclass(frozen=True)
class Part:
    """A part of a call, or a whole one to compare it with.

    Attributes:
        name: what it is.
        time_ms: its median, or a difference of medians.
    """

    name: str
    time_ms: float


class _Loopback:
    """A stream of calls and the server's end of it, in one thread. See Carrier and Streams."""

    inline_bytes = 1 << 20

    def __init__(self, dispatcher: CallDispatcher) -> None:
        self._dispatcher = dispatcher
        self._responses: Iterator[bytes] = iter(())
        # Those of the last call.
        self.requests: list[bytes] = []

    def take(self) -> Carrier:
        return self

    def give_back(self, _carrier: Carrier) -> None:
        """There is no other."""

    def send(self, request: bytes) -> None:
        self.requests = [request]
        self._responses = self.answers()

    def send_rest(self, messages: Iterator[Payload]) -> None:
        for each in messages:
            is_payload = isinstance(each, memoryview)
            self.requests.append(encode_data(each) if is_payload else encode_message(bytes(each)))
        self.requests.append(END)

    def receive(self) -> bytes:
        return next(self._responses)

    def cancel(self) -> None:
        raise AssertionError("nobody cancels these calls")

    def answers(self) -> Iterator[bytes]:
        """What the server answers to the last call."""
        loop = CallLoop(self._dispatcher, _Nobody())
        responses = loop.responses(iter(self.requests))
        # That it is ready.
        next(responses)
        return responses

    def method(self, name: str) -> StreamedMethod:
        """The multi-callable of an RPC."""
        return StreamedMethod(_PATHS[name], None, self)


class _Nobody:
    """Who makes a call that comes from nowhere. See StreamContext."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def cancel(self) -> None:
        raise AssertionError("nothing stalls here")


class _Within:
    """A server in this process, and a session whose calls go to it without a wire."""

    def __init__(self, stack: ExitStack) -> None:
        server = Server(ServerConfig(listen=("127.0.0.1:0",)))
        server.start()
        stack.callback(server.stop, 0)
        self.session = stack.enter_context(paramd.connect(server.addresses[0], transport="tcp"))
        self.loopback = _Loopback(server._dispatcher)

    def close_the_loop(self) -> None:
        """Has the calls to come go over the loopback."""
        connection: Any = self.session.calls._connection  # type: ignore[attr-defined]
        connection._method = self.loopback.method

    def serve(self) -> None:
        """The server's work for the last call."""
        for _ in self.loopback.answers():
            pass


def _dense(size: int, session: paramd.Session) -> Call:
    params = paramd.ParameterDict(f"d{size}_", session=session)
    params.get("v", shape=(size,), init="ones")
    params.initialize()
    return partial(params.pull, out={f"d{size}_v": np.zeros(size, np.float32)})


def _rows(ids: Array, table_rows: int, session: paramd.Session) -> Call:
    table = paramd.Parameter(
        "table", shape=(table_rows, ROW), init="ones", stype="row_sparse", session=session
    )
    table.initialize()
    out = np.zeros((len(ids), ROW), np.float32)
    return lambda: session.calls.pull_rows("table", ids, None, paramd.cpu(), out=out)


def profile(*, table_rows: int, num_rows: int, large: int, repeats: int) -> dict[str, list[Part]]:
    """Takes the three calls apart.

    Args:
        table_rows: rows of the table.
        num_rows: rows that are pulled of it.
        large: elements of the large tensor.
        repeats: of each timing.

    Returns:
        For each call its parts, and what it is compared with.
    """
    ids = np.sort(np.random.default_rng(1).choice(table_rows, num_rows, replace=False))
    source = np.ones((table_rows, ROW), np.float32)
    out, rows_out = np.zeros(large, np.float32), np.zeros((num_rows, ROW), np.float32)
    value = np.ones(large, np.float32)
    cases: dict[str, tuple[Pull, Callable[[Floor], Call], Call]] = {
        "pull 4 KB": (
            partial(_dense, _SMALL),
            lambda floor: partial(floor.pull, np.zeros(4 * _SMALL, np.uint8)),
            partial(np.copyto, out[:_SMALL], value[:_SMALL]),
        ),
        f"pull {4 * large >> 20} MB": (
            partial(_dense, large),
            lambda floor: partial(floor.pull, out.view(np.uint8)),
            partial(np.copyto, out, value),
        ),
        f"pull {num_rows:,} rows": (
            partial(_rows, ids, table_rows),
            lambda floor: partial(floor.rows, ids, rows_out),
            partial(np.take, source, ids, axis=0, out=rows_out, mode="clip"),
        ),
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command = floor_server(folder / "floor.json", 8 * large, table_rows)
        floor_tcp, _ = stack.enter_context(started(command, folder / "floor.json"))
        command = paramd_server(folder / "server.json")
        (tcp,) = stack.enter_context(started(command, folder / "server.json"))
        floor = Floor(floor_tcp)
        stack.callback(floor.close)
        wire = stack.enter_context(paramd.connect(tcp, transport="tcp"))
        shared = stack.enter_context(paramd.connect(tcp, transport="shm"))
        within = _Within(stack)
        prepared = {
            name: {
                "call": pull(wire),
                "floor": compared(floor),
                "within": pull(within.session),
                "in place": pull(shared),
                "memory": memory,
            }
            for name, (pull, compared, memory) in cases.items()
        }
        within.close_the_loop()
        return {
            name: _parts(_timed(calls, within, repeats if "4 KB" not in name else 20 * repeats))
            for name, calls in prepared.items()
        }


def _timed(calls: Mapping[str, Call], within: _Within, repeats: int) -> dict[str, Spread]:
    # The server's part comes after the call in each round, and so repeats that one.
    return in_turn({**calls, "server": within.serve}, repeats=repeats, burst=4)


def _parts(times: Mapping[str, Spread]) -> list[Part]:
    ms = {name: spread.median_ms for name, spread in times.items()}
    return [
        Part("over gRPC", ms["call"]),
        Part("- client", ms["within"] - ms["server"]),
        Part("- server", ms["server"]),
        Part("- wire and waking", ms["call"] - ms["within"]),
        Part("floor of gRPC", ms["floor"]),
        Part("in shared memory", ms["in place"]),
        Part("- copy", ms["memory"]),
        Part("- the rest", ms["in place"] - ms["memory"]),
    ]


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="A small form, to see that it runs.")
def main(*, quick: bool) -> None:
    """Prints a table."""
    if quick:
        found = profile(table_rows=10_000, num_rows=1_000, large=1 << 18, repeats=3)
    else:
        found = profile(table_rows=1_000_000, num_rows=100_000, large=_LARGE, repeats=20)
    names = [part.name for part in next(iter(found.values()))]
    print("| ms | " + " | ".join(found) + " |")
    print("| --- |" + " ---: |" * len(found))
    for index, name in enumerate(names):
        cells = [f"{parts[index].time_ms:.3f}" for parts in found.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
