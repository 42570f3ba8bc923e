"""paramd by each of its transports, the raw gRPC floor and memory itself, in turn in one process.

What is compared most is paramd beside the floor, so their calls alternate. All of paramd's systems
use one server, and parameters of their own on it. Run as a program it measures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.clients import Connect, measure_latency
from benchmarks.embedding import measure_embedding
from benchmarks.floor import floor_server
from benchmarks.own_systems import FloorRoute, FloorSystem, MemorySystem, ParamdSystem, Route
from benchmarks.serving import paramd_server, started
from benchmarks.system import Options, System, measure, parse_options
from benchmarks.workloads import MOVING_SECTIONS, table_rows, workloads
from paramd.errors import ParamdError

__all__ = ["OWN_SYSTEMS"]

OWN_SYSTEMS: Final = (
    "memcpy",
    "floor-tcp",
    "floor-unix",
    "paramd-tcp",
    "paramd-unix",
    "paramd-shm",
)


class _Measurement:
    """What this program does, while the servers run."""

    def __init__(
        self, options: Options, floor: Sequence[str], servers: Sequence[str], num_rows: int
    ) -> None:
        self._options = options
        self._num_rows = num_rows
        tcp, unix = servers
        routes = {
            "paramd-tcp": Route(tcp, "tcp"),
            "paramd-unix": Route(unix, "tcp"),
            "paramd-shm": Route(unix, "shm"),
        }
        floors = dict(zip(("floor-tcp", "floor-unix"), map(FloorRoute, floor), strict=True))
        wanted = OWN_SYSTEMS if options.systems is None else options.systems
        self._memory = "memcpy" in wanted
        self._floors = {name: route for name, route in floors.items() if name in wanted}
        self._routes = {name: route for name, route in routes.items() if name in wanted}
        for name in list(self._routes):
            self._try(name)

    def _try(self, name: str) -> None:
        try:
            self._routes[name].session().close()
        except (ValueError, ParamdError) as err:
            if name != "paramd-shm":
                raise
            # Shared memory is not everywhere.
            self._options.records.add(system=name, unavailable=str(err))
            del self._routes[name]

    def run(self) -> None:
        sections = [each for each in self._options.sections if each in MOVING_SECTIONS]
        if sections:
            self._measure(sections)
        if "latency" in self._options.sections:
            routes: dict[str, Connect] = {**self._floors, **self._routes}
            for name, route in routes.items():
                preload = ("benchmarks.own_systems",)
                measure_latency(name, route, self._options, preload=preload)
        if "embedding" in self._options.sections:
            for name, route in self._routes.items():
                measure_embedding(name, route.target, route.transport, self._options)

    def _measure(self, sections: Sequence[str]) -> None:
        with ExitStack() as stack:
            systems: list[System] = [MemorySystem(self._num_rows)] if self._memory else []
            for name, floor_route in self._floors.items():
                floor = FloorSystem(name, floor_route.target)
                stack.callback(floor.close)
                systems.append(floor)
            for name, route in self._routes.items():
                session = stack.enter_context(route.session())
                systems.append(ParamdSystem(name, session, self._num_rows))
            measure(systems, self._options, sections)


def main() -> None:
    """Measures what the command line says."""
    options = parse_options(__doc__)
    num_rows = table_rows(quick=options.quick)
    largest = max(
        (each.size_bytes for each in workloads(options.sections, quick=options.quick)), default=0
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # Room for the ids of pushed rows.
        command = floor_server(folder / "floor.json", 2 * largest, num_rows)
        floor = stack.enter_context(started(command, folder / "floor.json"))
        unix = f"unix:{folder}/server.sock"
        command = paramd_server(folder / "server.json", "--listen", unix)
        servers = stack.enter_context(started(command, folder / "server.json"))
        _Measurement(options, floor, servers, num_rows).run()


if __name__ == "__main__":
    main()
