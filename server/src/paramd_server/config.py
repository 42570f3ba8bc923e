"""What a server is started with, checked."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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
        snapshot_dir: where files on the server's side are, and what it saves of itself when it
            stops; None for nowhere.
        restore: the snapshot that it starts from: 'latest', 'none', or a number.
        memory_limit: bytes of values, gradients and writes in flight.
        port_file: written once serving, with the addresses.
        parent_pid: the server ends when this process has ended; None for never.
        grace_s: how long calls may go on after SIGTERM.
        stall_s: how long nothing may move in a stream before it is cut.
        num_threads: calls of values and gradients that run at a time.
    """

    listen: tuple[str, ...] = ("127.0.0.1:50051",)
    insecure: bool = False
    snapshot_dir: Path | None = None
    restore: str = "latest"
    memory_limit: int = 0
    port_file: Path | None = None
    parent_pid: int | None = None
    grace_s: float = 30.0
    stall_s: float = 60.0
    num_threads: int = 256

    def __post_init__(self) -> None:
        """Checks what belongs together.

        Raises:
            ValueError: naming the setting.
        """
        for address in self.listen:
            if not re.fullmatch(r"unix:.+|.+:\d{1,5}", address):
                raise ValueError(f"--listen takes HOST:PORT or unix:PATH, but got {address!r}")
            if not self.insecure and not is_loopback(address):
                raise ValueError(
                    f"--listen {address} is reachable beyond this machine and has no TLS: say "
                    "--insecure to serve it all the same"
                )
        if not re.fullmatch(r"latest|none|\d{1,18}", self.restore, re.ASCII):
            raise ValueError(
                "--restore takes 'latest', 'none' or the number of a snapshot, but got "
                f"{self.restore[:40]!r}"
            )
        if self.memory_limit <= 0:
            object.__setattr__(self, "memory_limit", default_memory_limit())


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
