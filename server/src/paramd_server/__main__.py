"""The command `paramd-server`."""

from __future__ import annotations

import logging
import os
import re
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import click

from paramd.placement import DEFAULT_SPLIT_ELEMENTS
from paramd_server import __version__
from paramd_server.app import Server
from paramd_server.config import ServerConfig, parse_size
from paramd_server.core.snapshot import SnapshotError

__all__ = ["main"]

_log = logging.getLogger("paramd_server")


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_size(value)
        except ValueError as err:
            self.fail(str(err), param, ctx)


class _Shard(click.ParamType[tuple[int, int]]):
    name = "shard"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", str(value), re.ASCII)
        if match is None:
            self.fail(f"expected I/N, such as 0/2, but got {value!r}", param, ctx)
        return int(match[1]), int(match[2])


@click.command(context_settings={"auto_envvar_prefix": "PARAMD", "show_default": True})
@click.option(
    "--listen",
    multiple=True,
    default=("127.0.0.1:50051",),
    metavar="ADDRESS",
    help="HOST:PORT (port 0: any free one) or unix:PATH. Repeatable.",
)
@click.option(
    "--insecure", is_flag=True, help="Allow addresses beyond loopback, which have no TLS."
)
@click.option(
    "--snapshot-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the server saves its state when it stops, to take it up at the next start, and "
    "where files that clients name on its side are kept.",
)
@click.option(
    "--restore",
    default="latest",
    metavar="latest|none|NUMBER",
    help="The snapshot in --snapshot-dir to start from.",
)
@click.option(
    "--memory-limit",
    type=_Size(),
    metavar="SIZE",
    help="For values, gradients and writes in flight, such as 8G.  [default: 90% of the memory]",
)
@click.option(
    "--port-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help='Written once serving: {"addresses": [...]}.',
)
@click.option(
    "--parent-pid", type=int, metavar="PID", help="End when this process, the parent, has ended."
)
@click.option(
    "--grace", type=click.FloatRange(min=0), default=30.0, help="Seconds to drain after SIGTERM."
)
@click.option(
    "--stall-timeout",
    type=click.FloatRange(min=0.1),
    default=60.0,
    help="Seconds without movement after which a stream is cut off.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=4),
    default=256,
    help="Calls of values and gradients that run at a time.",
)
@click.option(
    "--shard",
    type=_Shard(),
    default="0/1",
    metavar="I/N",
    help="Which of how many shards of a cluster this is, from 0.",
)
@click.option(
    "--coordinator",
    default="",
    metavar="ADDRESS",
    help="Of shard 0, for the other shards.",
)
@click.option(
    "--cluster-id",
    default="",
    metavar="NAME",
    help="Refuse servers and snapshots of other clusters.  [default: that of the snapshot or the "
    "coordinator, or a new one]",
)
@click.option(
    "--split-elements",
    type=click.IntRange(min=1),
    default=DEFAULT_SPLIT_ELEMENTS,
    help="Split dense parameters of more elements over the shards. The same on every shard.",
)
@click.option(
    "--snapshot-every",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Save a snapshot that often while serving (shard 0 says so to all); 0: only at the end.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
)
@click.version_option(__version__)
def main(
    *,
    listen: tuple[str, ...],
    insecure: bool,
    snapshot_dir: Path | None,
    restore: str,
    memory_limit: int | None,
    port_file: Path | None,
    parent_pid: int | None,
    grace: float,
    stall_timeout: float,
    threads: int,
    shard: tuple[int, int],
    coordinator: str,
    cluster_id: str,
    split_elements: int,
    snapshot_every: float,
    log_level: str,
) -> None:
    """Serve the parameters of a model. Every option is also read from PARAMD_... variables."""
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        config = ServerConfig(
            listen=listen,
            insecure=insecure,
            snapshot_dir=snapshot_dir,
            restore=restore,
            memory_limit=memory_limit or 0,
            port_file=port_file,
            parent_pid=parent_pid,
            grace_s=grace,
            stall_s=stall_timeout,
            num_threads=threads,
            shard=shard[0],
            num_shards=shard[1],
            coordinator=coordinator,
            cluster_id=cluster_id,
            split_elements=split_elements,
            snapshot_every_s=snapshot_every,
        )
        if snapshot_dir is not None:
            snapshot_dir.mkdir(parents=True, exist_ok=True)
        server = Server(config)
        # A pipe and no Event: a signal that comes while the main thread is about to wait for an
        # Event is not seen before something else wakes that thread.
        ended, ending = os.pipe()
        os.set_blocking(ending, False)
        signal.set_wakeup_fd(ending, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        server.start()
    except (ValueError, OSError, SnapshotError) as err:
        raise click.ClickException(str(err)) from err
    if parent_pid is not None:
        threading.Thread(
            target=_await_end_of, args=(parent_pid, ending), name="parent", daemon=True
        ).start()
    os.read(ended, 1)
    try:
        server.stop()
    except SnapshotError as err:
        _log.error("the state is lost: %s", err)
        sys.exit(1)
    sys.exit(0)


def _await_end_of(pid: int, ending: int) -> None:
    """Writes to a pipe when the process that started this one has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        os.write(ending, b"\0")
        return
    # The number may have been given to another process before the descriptor was open.
    if os.getppid() == pid:
        select.select([descriptor], [], [])
    os.write(ending, b"\0")


if __name__ == "__main__":
    main()
