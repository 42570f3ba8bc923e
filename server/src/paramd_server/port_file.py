"""The file in which a process that serves says where."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["read_port_file", "write_port_file"]


def write_port_file(path: Path, addresses: Sequence[str]) -> None:
    """Writes it by an atomic rename: who sees the file sees all of it.

    Raises:
        OSError: where it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"addresses": list(addresses)}) + "\n")
    temporary.replace(path)


def read_port_file(path: Path) -> tuple[str, ...] | None:
    """The addresses in it; None where it is not there (yet)."""
    try:
        return tuple(json.loads(path.read_bytes())["addresses"])
    except FileNotFoundError:
        return None
