"""Names, writing and checking of the small files of a snapshot; and its scratch file."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from paramd_server.core.snapshot import SnapshotError

__all__ = [
    "FOLDER",
    "ScratchFile",
    "checked",
    "checksum",
    "parsed",
    "part_name",
    "sync",
    "write_atomically",
]

FOLDER: Final = "snapshots"
"""The folder below the server's directory that holds the numbered snapshots and nothing else."""


def part_name(shard: int, num_shards: int) -> str:
    """The name of what one shard keeps of a snapshot, such as 'part-0-of-2'."""
    return f"part-{shard}-of-{num_shards}"


def checksum(content: bytes) -> int:
    """The CRC-32."""
    return zlib.crc32(content)


def checked(path: Path, entry: Mapping[str, Any]) -> bytes:
    """The content of a file, compared with the size and the checksum that it is to have.

    Raises:
        SnapshotError: where it is another one.
        OSError: where it cannot be read.
    """
    content = path.read_bytes()
    if len(content) != entry.get("size_bytes"):
        raise SnapshotError(
            f"{path}: has {len(content)} bytes, but is to have {entry.get('size_bytes')}"
        )
    if checksum(content) != entry.get("crc32"):
        raise SnapshotError(
            f"{path}: is damaged: its CRC-32 is to be {entry.get('crc32')}, but it is "
            f"{checksum(content)}"
        )
    return content


def parsed(path: Path, content: bytes) -> dict[str, Any]:
    """The JSON object in a file. Raises SnapshotError where it is none."""
    try:
        value = json.loads(content)
    except ValueError as err:
        raise SnapshotError(f"{path}: malformed JSON: {err}") from err
    if not isinstance(value, dict):
        raise SnapshotError(f"{path}: expected a JSON object")
    return value


def write_atomically(path: Path, content: bytes, *, writer: str) -> None:
    """Writes a file, synced to disk, in one step. Several writers may do so at the same time.

    Args:
        path: the file.
        content: of it.
        writer: no other one has this name.

    Raises:
        OSError: from the system; no other file is left behind then, as far as can be.
    """
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Syncs a file or the names in a directory to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ScratchFile:
    """A file without a name: see `paramd_server.core.held_buffers.Scratch`. Thread-safe.

    Args:
        directory: on whose disk it is.

    Raises:
        OSError: where it cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115
        self._lock = threading.Lock()
        self._size = 0  # guarded by _lock

    def append(self, data: np.ndarray[Any, Any]) -> int:
        """See Scratch."""
        view = data.reshape(-1).view(np.uint8).data
        with self._lock:
            begin = self._size
            written = 0
            while written < len(view):
                written += os.pwrite(self._file.fileno(), view[written:], begin + written)
            self._size += len(view)
        return begin

    def read(self, offset: int, target: np.ndarray[Any, Any]) -> None:
        """See Scratch."""
        view = target.reshape(-1).view(np.uint8).data
        while view:
            count = os.preadv(self._file.fileno(), [view], offset)
            if count == 0:
                raise OSError(f"the scratch file ends at byte {offset}")
            offset, view = offset + count, view[count:]

    def close(self) -> None:
        """See Scratch."""
        self._file.close()
