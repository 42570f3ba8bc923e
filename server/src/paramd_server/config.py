"""What a server is started with, checked."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from paramd.placement import DEFAULT_SPLIT_ELEMENTS
from paramd.transport.credentials import is_loopback

__all__ = ["ServerConfig", "default_memory_limit", "is_loopback", "parse_size"]

# Sizes travel as int64.
_TOO_LARGE: Final = 1 << 63
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
# The part of the machine's memory that values may take when nothing else is said.
_DEFAULT_SHARE: Final = 0.9


@dataclass(frozen=True)
class ServerConfig:
    """A server's settings.

    Attributes:
        listen: addresses, each HOST:PORT or unix:PATH.
        insecure: whether addresses beyond loopback may be served without TLS.
        tls_cert: PEM file with the server's certificate: TCP addresses have TLS.
        tls_key: PEM file with its key.
        shared_memory: whether processes of the server's user on its host may read values in its
            memory.
        client_ca: PEM file with the authority of the certificates that clients have to show; None
            where they need none.
        token_file: the tokens that calls need, by digest; None where they need none.
        peer_ca: PEM file with the authority of the coordinator's certificate; None: `client_ca`.
        peer_cert: PEM file with what this shard shows to the coordinator; None: `tls_cert`.
        peer_key: PEM file with its key; None: `tls_key`.
        peer_token_file: holds the token, with the right admin, for the coordinator.
        snapshot_dir: where files on the server's side are, and what it saves of itself when it
            stops; None for nowhere.
        restore: the snapshot that it starts from: 'latest', 'none', a number, or the name of one
            that has a name.
        memory_limit: bytes of values, gradients and writes in flight.
        gpu_memory_limit: bytes of values, gradients and optimizer states on each GPU; 0 for nine
            tenths of what it has.
        port_file: written once serving, with the addresses.
        parent_pid: the server ends when this process has ended; None for never.
        grace_s: how long calls may go on after SIGTERM.
        stall_s: how long nothing may move in a stream before it is cut.
        num_threads: calls of values and gradients that run at a time.
        shard: which of the cluster's shards this is, from 0; shard 0 is the coordinator.
        num_shards: how many there are.
        coordinator: address of shard 0, for the other ones. Shard 0 itself may be told it, too, so
            that all shards can have the same arguments.
        cluster_id: names the cluster; '' to take what the snapshot or the coordinator says, or a
            new one.
        split_elements: dense parameters of more elements are split over the shards.
        snapshot_every_s: seconds from one snapshot to the next; 0 for none but the last. Shard 0
            orders those of all.
    """

    listen: tuple[str, ...] = ("127.0.0.1:50051",)
    insecure: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    shared_memory: bool = True
    client_ca: Path | None = None
    token_file: Path | None = None
    peer_ca: Path | None = None
    peer_cert: Path | None = None
    peer_key: Path | None = None
    peer_token_file: Path | None = None
    snapshot_dir: Path | None = None
    restore: str = "latest"
    memory_limit: int = 0
    gpu_memory_limit: int = 0
    port_file: Path | None = None
    parent_pid: int | None = None
    grace_s: float = 30.0
    stall_s: float = 60.0
    num_threads: int = 256
    shard: int = 0
    num_shards: int = 1
    coordinator: str = ""
    cluster_id: str = ""
    split_elements: int = DEFAULT_SPLIT_ELEMENTS
    snapshot_every_s: float = 0.0

    def __post_init__(self) -> None:
        """Checks what belongs together.

        Raises:
            ValueError: naming the setting.
        """
        for address in self.listen:
            if not re.fullmatch(r"unix:.+|.+:\d{1,5}", address):
                raise ValueError(f"--listen takes HOST:PORT or unix:PATH, but got {address!r}")
            if self.tls_cert is None and not self.insecure and not is_loopback(address):
                raise ValueError(
                    f"--listen {address} is reachable beyond this machine and has no TLS: give "
                    "--tls-cert and --tls-key, or say --insecure to serve it all the same"
                )
        if not self.restore or "\0" in self.restore or re.fullmatch(r"-.*|\d{19,}", self.restore):
            raise ValueError(
                "--restore takes 'latest', 'none', or the number or name of a snapshot, but got "
                f"{self.restore[:40]!r}"
            )
        self._check_security()
        self._check_cluster()
        if self.memory_limit <= 0:
            object.__setattr__(self, "memory_limit", default_memory_limit())

    def _check_security(self) -> None:
        for prefix, cert, key in (
            ("--tls", self.tls_cert, self.tls_key),
            ("--peer", self.peer_cert, self.peer_key),
        ):
            if (cert is None) != (key is None):
                raise ValueError(f"{prefix}-cert and {prefix}-key are given together or not at all")
        if self.client_ca is not None and self.tls_cert is None:
            raise ValueError("--client-ca needs --tls-cert and --tls-key")

    def _check_cluster(self) -> None:
        if not 0 <= self.shard < self.num_shards:
            raise ValueError(
                f"--shard takes I/N with I from 0 to N-1, but got {self.shard}/{self.num_shards}"
            )
        if self.shard and not self.coordinator:
            raise ValueError(
                f"--shard {self.shard}/{self.num_shards} needs --coordinator, the address of "
                "shard 0"
            )
        if self.split_elements < 1:
            raise ValueError(f"--split-elements is 1 or more, but got {self.split_elements}")
        if not 0 <= self.snapshot_every_s < float("inf"):
            raise ValueError(
                f"--snapshot-every is a number of seconds, but got {self.snapshot_every_s!r}"
            )
        if self.snapshot_every_s and self.snapshot_dir is None:
            raise ValueError("--snapshot-every needs --snapshot-dir")


def parse_size(text: str) -> int:
    """Reads '512', '64K', '1.5G', '2GiB'.

    Raises:
        ValueError: where it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if match is None:
        raise ValueError(f"a size is a number with K, M, G or T, such as 1.5G, but got {text!r}")
    size = float(match[1]) * _UNITS[match[2]]
    if not 1 <= size < _TOO_LARGE:
        raise ValueError(f"a size is at least 1 byte and below 2**63, but got {text[:40]!r}")
    return int(size)


def default_memory_limit() -> int:
    """Nine tenths of the memory that this process may use: the machine's, or its container's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            # Another version of cgroups, or none.
            continue
        if text.isdigit():
            total = min(total, int(text))
    return int(total * _DEFAULT_SHARE)
