"""With what the shards of a Ray cluster are started."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["ShardPlan", "ShardStatus", "check_name", "check_options", "shard_actor_name"]

# What `start` says itself, and what one server for all shards would mean.
_OWN_OPTIONS: Final = frozenset(
    ("--shard", "--shards", "--coordinator", "--cluster-id", "--listen", "--rebind", "--insecure",
     "--port-file", "--parent-pid", "--snapshot-dir", "--snapshot-every", "--memory-limit",
     "--restore")
)  # fmt: skip
_LAST_PORT: Final = 65535


@dataclass(frozen=True)
class ShardPlan:
    """What one shard is started with, whenever and wherever that is.

    Attributes:
        name: of the cluster.
        namespace: Ray's, in which its actors are.
        shard: which one this is, from 0.
        num_shards: how many there are.
        port: to listen on; 0 for a free one, which is kept.
        loopback_of: the machine on whose loopback it listens; '' to listen on its node's address.
        insecure: whether that may be without TLS.
        snapshot_dir: None for none.
        snapshot_every_s: seconds from one snapshot to the next; 0 for none.
        memory_limit: bytes; None for the server's own.
        options: further ones of `paramd-server`.
        stop_s: how long it may take to end; then it is killed.
    """

    name: str
    namespace: str
    shard: int
    num_shards: int
    port: int = 0
    loopback_of: str = ""
    insecure: bool = False
    snapshot_dir: Path | None = None
    snapshot_every_s: float = 0.0
    memory_limit: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    stop_s: float = 660.0

    def __post_init__(self) -> None:
        """Checks what belongs together.

        Raises:
            ValueError: naming the argument.
        """
        if not 0 <= self.port <= _LAST_PORT - (self.num_shards - 1):
            raise ValueError(
                f"port: expected 0, or one with {self.num_shards - 1} more after it, but got "
                f"{self.port!r}"
            )
        if not 0 <= self.snapshot_every_s < float("inf"):
            raise ValueError(
                f"snapshot_every is a number of seconds, but got {self.snapshot_every_s!r}"
            )
        if self.snapshot_every_s and self.snapshot_dir is None:
            raise ValueError("snapshot_every needs snapshot_dir")

    def host(self, node: str) -> str:
        """The host on which a shard listens that is on a node.

        Args:
            node: the node's address.

        Raises:
            ValueError: where it would listen on the loopback of a machine that is not the others'.
        """
        if self.loopback_of:
            if node != self.loopback_of:
                raise ValueError(
                    f"shard {self.shard} was started for the loopback of {self.loopback_of}, and "
                    f"now is on {node}: start the cluster with TLS, or with insecure=True"
                )
            return "127.0.0.1"
        return f"[{node}]" if ":" in node else node

    def arguments(self, address: str, coordinator: str) -> list[str]:
        """The options of the command line.

        Args:
            address: to listen on.
            coordinator: of shard 0; '' for shard 0 itself.
        """
        arguments = ["--shard", f"{self.shard}/{self.num_shards}", "--cluster-id", self.name]
        arguments += ["--listen", address]
        if self.insecure:
            arguments.append("--insecure")
        if self.memory_limit is not None:
            arguments += ["--memory-limit", str(self.memory_limit)]
        if self.snapshot_dir is not None:
            arguments += ["--snapshot-dir", str(self.snapshot_dir), "--restore", "latest"]
        if coordinator:
            arguments += ["--coordinator", coordinator]
        elif self.snapshot_every_s:
            arguments += ["--snapshot-every", str(self.snapshot_every_s)]
        for option, value in self.options.items():
            arguments += [option, value]
        return arguments


@dataclass(frozen=True)
class ShardStatus:
    """What an actor says of its shard.

    Attributes:
        shard: which one it is, from 0.
        address: where it serves; '' while it does not.
        node_id: Ray's, in hexadecimal digits.
        node: the node's address.
        actor_pid: the actor's process.
        server_pid: the server's; 0 while there is none.
        num_starts: how many servers this actor has started, itself being started anew or not.
        restarted: whether Ray has started the actor again.
        failure: why it does not serve, and will not by itself; ''.
    """

    shard: int
    address: str
    node_id: str
    node: str
    actor_pid: int
    server_pid: int
    num_starts: int
    restarted: bool
    failure: str


def shard_actor_name(name: str, shard: int) -> str:
    """How the actor of a shard is called."""
    return f"{name}-shard-{shard}"


def check_name(what: str, name: str) -> str:
    """Gives the name back.

    Raises:
        ValueError: where it does not fit for files and actors.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ValueError(
            f"{what} is 1 to 64 letters, digits, '.', '_' and '-', but got {name[:80]!r}"
        )
    return name


def check_options(options: Mapping[str, str] | None) -> dict[str, str]:
    """Gives further options of the server back, as text.

    Raises:
        ValueError: for one that is not such an option, or that has an argument of its own.
    """
    checked = {}
    for option, value in (options or {}).items():
        if not re.fullmatch(r"--[a-z][a-z-]*", option):
            raise ValueError(f"options: expected a name such as '--tls-cert', but got {option!r}")
        if option in _OWN_OPTIONS:
            raise ValueError(f"options: {option} is what start() says itself, or an argument of it")
        checked[option] = str(value)
    return checked
