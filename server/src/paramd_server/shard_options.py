"""With what each of several shards on one host is started."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

__all__ = [
    "address_to_reach",
    "environment_without",
    "newest_snapshot",
    "options_given",
    "shard_addresses",
]

# sockaddr_un.sun_path is 108 bytes with the zero at its end (man 7 unix).
_LONGEST_PATH: Final = 107
_LAST_PORT: Final = 65535
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "*": "127.0.0.1"}


def shard_addresses(listen: Sequence[str], num_shards: int) -> tuple[tuple[str, ...], ...]:
    """Where each shard listens.

    Args:
        listen: HOST:PORT, for the ports from PORT on, or 0 for free ones; or unix:PATH, for PATH.0
            and so on.
        num_shards: how many there are.

    Returns:
        For each shard its addresses, in the order of `listen`.

    Raises:
        ValueError: where they do not fit: a port above 65535, a path that is too long, or one
            address for two.
    """
    shards = tuple(
        tuple(_address(address, shard, num_shards) for address in listen)
        for shard in range(num_shards)
    )
    taken: set[str] = set()
    for address in (address for addresses in shards for address in addresses):
        if address in taken and not address.endswith(":0"):
            raise ValueError(
                f"--listen {' --listen '.join(listen)} gives {address} to two of {num_shards} "
                "shards: a shard takes the port, those after it the ports that follow"
            )
        taken.add(address)
    return shards


def _address(address: str, shard: int, num_shards: int) -> str:
    if address.startswith("unix:"):
        last = f"{address.removeprefix('unix:')}.{num_shards - 1}"
        if len(os.fsencode(last)) > _LONGEST_PATH:
            raise ValueError(
                f"--listen {address} is too long: {last} has {len(os.fsencode(last))} bytes, and "
                f"the path of a Unix socket has {_LONGEST_PATH} at most"
            )
        return f"{address}.{shard}"
    host, _, port = address.rpartition(":")
    if int(port) == 0:
        return f"{host}:0"
    if int(port) + num_shards - 1 > _LAST_PORT:
        raise ValueError(
            f"--listen {address} needs the ports {port} to {int(port) + num_shards - 1} for "
            f"{num_shards} shards, and {_LAST_PORT} is the last"
        )
    return f"{host}:{int(port) + shard}"


def address_to_reach(address: str) -> str:
    """How a process of this host reaches an address: one of every interface by loopback."""
    host, separator, port = address.rpartition(":")
    return _WILDCARDS.get(host, host) + separator + port


def options_given(context: click.Context, *, without: Collection[str]) -> tuple[str, ...]:
    """The options of a command line, to give them to another process.

    Those of the environment are not among them: the other process inherits it.

    Args:
        context: of the command that runs.
        without: names of parameters that are left out.
    """
    arguments: list[str] = []
    for parameter in context.command.params:
        name = parameter.name
        if name in without or not isinstance(parameter, click.Option):
            continue
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if parameter.is_flag:
            arguments += parameter.opts[:1] if value else parameter.secondary_opts[:1]
            continue
        for each in value if parameter.multiple else (value,):
            arguments += (parameter.opts[0], str(each))
    return tuple(arguments)


def environment_without(context: click.Context, names: Collection[str]) -> Mapping[str, str]:
    """This process's environment without what sets the parameters of those names."""
    removed = {f"{context.auto_envvar_prefix}_{name.upper()}" for name in names}
    return {name: value for name, value in os.environ.items() if name not in removed}


def newest_snapshot(directory: Path | None) -> int:
    """The number of the newest snapshot below a directory that is whole; 0 for none."""
    if directory is None:
        return 0
    markers = directory.glob("snapshots/*/COMMITTED")
    return max(
        (int(m.parent.name) for m in markers if re.fullmatch(r"\d+", m.parent.name)), default=0
    )
