"""The command `paramd-server`."""

from __future__ import annotations

import logging
import os
import re
import resource
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Final, NoReturn

import click
from click.core import ParameterSource

from paramd.placement import DEFAULT_SPLIT_ELEMENTS
from paramd_server import __version__
from paramd_server.app import Server
from paramd_server.arrays.devices import Devices
from paramd_server.arrays.memory import MemoryAccount
from paramd_server.config import ServerConfig, parse_size
from paramd_server.core.snapshot import SnapshotError
from paramd_server.shard_options import environment_without, options_given
from paramd_server.supervisor import ShardsConfig, Supervisor

__all__ = ["main"]

_log = logging.getLogger("paramd_server")

# What each of the shards of `--shards` is given in its own way, and what is not for all of them.
_OF_THE_SHARD = (
    *("shards", "shard", "listen", "coordinator", "port_file", "parent_pid"),
    *("memory_limit", "gpu_memory_limit", "restore", "snapshot_every"),
)
_NOT_FOR_ALL = ("shards", "coordinator", "snapshot_every")
_MAX_DESCRIPTORS: Final = 65_536
# Beyond their grace, to save their states.
_SAVE_S = 600.0


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


_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(context_settings={"auto_envvar_prefix": "PARAMD", "show_default": True})
@click.option(
    "--listen",
    multiple=True,
    default=("127.0.0.1:50051",),
    metavar="ADDRESS",
    help="HOST:PORT (port 0: any free one) or unix:PATH. Repeatable.",
)
@click.option("--rebind", multiple=True, hidden=True, help="In the place of --listen.")
@click.option("--insecure", is_flag=True, help="Allow addresses beyond loopback that have no TLS.")
@click.option(
    "--tls-cert",
    type=_FILE,
    help="PEM file with the server's certificate: all TCP addresses have TLS.",
)
@click.option("--tls-key", type=_FILE, help="PEM file with its private key.")
@click.option(
    "--client-ca",
    type=_FILE,
    help="Ask clients for certificates, of the authorities in this PEM file.",
)
@click.option(
    "--token-file",
    type=_FILE,
    help="Ask every call for a token. Each line is NAME read|train|admin sha256:DIGEST.",
)
@click.option(
    "--peer-ca",
    type=_FILE,
    help="PEM file with the authorities of the coordinator's certificate.  [default: --client-ca]",
)
@click.option(
    "--peer-cert",
    type=_FILE,
    help="PEM file with the certificate to show to the coordinator.  [default: --tls-cert]",
)
@click.option("--peer-key", type=_FILE, help="PEM file with its private key.")
@click.option(
    "--peer-token-file",
    type=_FILE,
    help="Holds a token with the right admin, to show to the coordinator.",
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
    metavar="latest|none|NUMBER|DIRECTORY",
    help="The snapshot in --snapshot-dir to start from.",
)
@click.option(
    "--memory-limit",
    type=_Size(),
    metavar="SIZE",
    help="For values, gradients and writes in flight, such as 8G.  [default: 90% of the memory]",
)
@click.option(
    "--gpu-memory-limit",
    type=_Size(),
    metavar="SIZE",
    help="For values, gradients and optimizer states on each GPU.  [default: 90% of its memory]",
)
@click.option(
    "--shared-memory/--no-shared-memory",
    default=True,
    show_default=True,
    help="Let processes of this user on this host read values in the server's memory.",
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
    "--shards",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Run all N shards of a cluster, a process each, and start again those that die. They "
    "listen on --listen's port, on the next one, and so on, and share the memory limits.",
)
@click.option(
    "--coordinator",
    default="",
    metavar="ADDRESS",
    help="Of shard 0, for the other shards.  [with --shards: its first address]",
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
    rebind: tuple[str, ...],
    insecure: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    client_ca: Path | None,
    token_file: Path | None,
    peer_ca: Path | None,
    peer_cert: Path | None,
    peer_key: Path | None,
    peer_token_file: Path | None,
    snapshot_dir: Path | None,
    restore: str,
    memory_limit: int | None,
    gpu_memory_limit: int | None,
    shared_memory: bool,
    port_file: Path | None,
    parent_pid: int | None,
    grace: float,
    stall_timeout: float,
    threads: int,
    shard: tuple[int, int],
    shards: int | None,
    coordinator: str,
    cluster_id: str,
    split_elements: int,
    snapshot_every: float,
    log_level: str,
) -> None:
    """Serve the parameters of a model. Every option is also read from PARAMD_... variables."""
    context = click.get_current_context()
    # The shards of one host write to the same place.
    name = "%(name)s" if shard[1] == 1 else f"shard {shard[0]}/{shard[1]} %(name)s"
    logging.basicConfig(
        level=log_level.upper(), format=f"%(asctime)s %(levelname)s {name}: %(message)s"
    )
    _raise_descriptor_limit()
    try:
        config = ServerConfig(
            listen=rebind or listen,
            insecure=insecure,
            tls_cert=tls_cert,
            tls_key=tls_key,
            client_ca=client_ca,
            token_file=token_file,
            peer_ca=peer_ca,
            peer_cert=peer_cert,
            peer_key=peer_key,
            peer_token_file=peer_token_file,
            snapshot_dir=snapshot_dir,
            restore=restore,
            memory_limit=memory_limit or 0,
            gpu_memory_limit=gpu_memory_limit or 0,
            port_file=port_file,
            parent_pid=parent_pid,
            grace_s=grace,
            stall_s=stall_timeout,
            shared_memory=shared_memory,
            num_threads=threads,
            shard=shard[0],
            num_shards=shards or shard[1],
            coordinator="" if shards else coordinator,
            cluster_id=cluster_id,
            split_elements=split_elements,
            snapshot_every_s=snapshot_every,
        )
        if snapshot_dir is not None:
            snapshot_dir.mkdir(parents=True, exist_ok=True)
        if shards is None:
            server = Server(config, restart=lambda: os.kill(os.getpid(), signal.SIGUSR1))
            ended = _listen_for_the_end(parent_pid)
            server.start()
        else:
            supervisor = _supervisor(context, config, coordinator)
            ended = _listen_for_the_end(parent_pid)
    except (ValueError, OSError, SnapshotError) as err:
        raise click.ClickException(str(err)) from err
    if shards is not None:
        sys.exit(supervisor.run(ended))
    os.read(ended, 1)
    try:
        server.stop()
    except SnapshotError as err:
        _log.error("the state is lost: %s", err)
        sys.exit(1)
    if server.restart_from is not None and not _is_asked_to_end(ended):
        _start_again(server.restart_from, server.addresses, server.cluster_id)
    sys.exit(0)


def _is_asked_to_end(ended: int) -> bool:
    """Whether a signal to end has come meanwhile, too."""
    os.set_blocking(ended, False)
    try:
        return bool({signal.SIGTERM, signal.SIGINT, 0} & set(os.read(ended, 64)))
    except BlockingIOError:
        return False


def _raise_descriptor_limit() -> None:
    """Takes as many descriptors as the process may: each large value that is shared has two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _start_again(snapshot: int, addresses: tuple[str, ...], cluster_id: str) -> NoReturn:
    """Makes this process a new server, on the same addresses, that begins with a snapshot."""
    _log.info("starting again from %s", f"snapshot {snapshot}" if snapshot else "nothing")
    command = [sys.executable, "-m", "paramd_server", *sys.argv[1:]]
    command += ["--restore", str(snapshot) if snapshot else "none"]
    if cluster_id:
        command += ["--cluster-id", cluster_id]
    for address in addresses:
        command += ["--rebind", address]
    os.execv(sys.executable, command)


def _supervisor(context: click.Context, config: ServerConfig, coordinator: str) -> Supervisor:
    """What runs the shards of `--shards`."""
    if context.get_parameter_source("shard") is not ParameterSource.DEFAULT:
        raise ValueError(
            "--shards runs all shards of a cluster and --shard is one: give one of them"
        )
    devices = Devices(MemoryAccount(config.memory_limit))
    return Supervisor(
        ShardsConfig(
            num_shards=config.num_shards,
            listen=config.listen,
            memory_limit=config.memory_limit,
            gpu_memory_limit=config.gpu_memory_limit or devices.least_device_limit,
            options=options_given(context, without=_OF_THE_SHARD),
            environment=environment_without(context, _NOT_FOR_ALL),
            coordinator=coordinator,
            snapshot_dir=config.snapshot_dir,
            restore=config.restore,
            snapshot_every_s=config.snapshot_every_s,
            port_file=config.port_file,
            stop_s=config.grace_s + _SAVE_S,
        )
    )


def _listen_for_the_end(parent_pid: int | None) -> int:
    """A descriptor that can be read when a signal comes, or the parent has ended.

    A pipe and no Event: a signal that comes while the main thread is about to wait for an Event is
    not seen before something else wakes that thread.
    """
    ended, ending = os.pipe()
    os.set_blocking(ending, False)
    signal.set_wakeup_fd(ending, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    if parent_pid is not None:
        threading.Thread(
            target=_await_end_of, args=(parent_pid, ending), name="parent", daemon=True
        ).start()
    return ended


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
