"""The snapshots of a server: a numbered directory each, of which a marker says that it is whole.

    <snapshot-dir>/snapshots/00000007/part-0-of-1.json             documents, list of the arrays
                                      part-0-of-1.000.safetensors  arrays
                                      manifest.json                every file with size and checksum
                                      COMMITTED                    size and checksum of the manifest

The marker is written last, when all else is on the disk. A directory without one is what a crash
has left: it is never taken up, and the next save removes it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from paramd.errors import FileFormatError
from paramd_server import __version__
from paramd_server.core.snapshot import SavedSection, SnapshotError
from paramd_server.storage.snapshot_part import PartReader, write_part

__all__ = ["FOLDER", "SnapshotStore"]

_log = logging.getLogger(__name__)

FOLDER: Final = "snapshots"
"""The folder below the server's directory that holds the snapshots and nothing else."""

_FORMAT: Final = 1
_MARKER: Final = "COMMITTED"
_MANIFEST: Final = "manifest.json"
_PART: Final = "part-0-of-1"
_DIGITS: Final = 8
_POLL_S: Final = 0.05


class SnapshotStore:
    """The snapshots in one directory.

    Args:
        root: the server's directory. `snapshots` below it is made when it is locked.
        keep: how many are kept; the one that was taken up is kept beside them.
        wait_s: how long to wait for another server that uses the directory to end.
    """

    def __init__(self, root: Path, *, keep: int = 2, wait_s: float = 10.0) -> None:
        self._folder = root / FOLDER
        self._keep = keep
        self._wait_s = wait_s
        self._lock = -1
        self._taken_up: int | None = None

    @property
    def taken_up(self) -> int | None:
        """The snapshot that this server was started from; None for none."""
        return self._taken_up

    def lock(self) -> None:
        """Keeps other servers out until `unlock`: each would save over what the others saved.

        Raises:
            SnapshotError: where one is in, or the directory cannot be written to.
        """
        path = self._folder / f"lock-{_PART.removeprefix('part-')}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as err:
            raise SnapshotError(f"{path}: cannot be opened: {err.strerror}") from err
        give_up_at = time.monotonic() + self._wait_s
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as err:
                if time.monotonic() >= give_up_at:
                    self.unlock()
                    raise SnapshotError(
                        f"{self._folder} is in use by another server: wait until it has ended, "
                        "or give each server a --snapshot-dir of its own"
                    ) from err
            time.sleep(_POLL_S)

    def unlock(self) -> None:
        """Lets other servers in. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def committed(self) -> list[int]:
        """The numbers of the snapshots that are whole, from the oldest."""
        return [number for number in self._all() if (self._path(number) / _MARKER).exists()]

    def choose(self, wanted: str) -> int | None:
        """The snapshot to take up.

        Args:
            wanted: 'latest', 'none' or a number.

        Returns:
            Its number; None where there is none, or none is wanted.

        Raises:
            SnapshotError: where there is none of that number.
        """
        if wanted == "none":
            return None
        committed = self.committed()
        if wanted == "latest":
            newest = committed[-1] if committed else None
            for number in self._all():
                if newest is None or number > newest:
                    _log.warning("%s was never finished: it is passed over", self._path(number))
            return newest
        if int(wanted) not in committed:
            there = ", ".join(map(str, committed)) or "none"
            raise SnapshotError(f"{self._folder} has no snapshot {int(wanted)}; there are: {there}")
        return int(wanted)

    @contextmanager
    def taking_up(self, number: int) -> Iterator[PartReader]:
        """Opens a snapshot, to be taken up while the block runs.

        Raises:
            SnapshotError: where it is damaged or does not fit: with the file and the place, and
                which other one there is.
        """
        try:
            with self._open(number) as reader:
                yield reader
        except (SnapshotError, FileFormatError, OSError) as err:
            raise SnapshotError(
                f"snapshot {number} cannot be taken up: {err}. {self._advice(number)}"
            ) from err
        self._taken_up = number

    def save(self, sections: Mapping[str, SavedSection]) -> int:
        """Writes a snapshot, commits it, and removes those that are too many.

        Args:
            sections: by name.

        Returns:
            Its number.

        Raises:
            SnapshotError: where it cannot be written; the others are as they were.
        """
        numbers = self._all()
        number = max(numbers, default=0) + 1
        path = self._path(number)
        self._remove(sorted(set(numbers) - set(self.committed())))
        try:
            path.mkdir(parents=True)
            self._write(path, number, sections)
        except (OSError, FileFormatError, ValueError) as err:
            self._remove([number])
            raise SnapshotError(f"snapshot {number} cannot be saved to {path}: {err}") from err
        self._remove([old for old in self.committed()[: -self._keep] if old != self._taken_up])
        return number

    def _write(self, path: Path, number: int, sections: Mapping[str, SavedSection]) -> None:
        files = write_part(path, _PART, sections)
        (part_json, *_) = files
        _sync(path / part_json)
        manifest = {
            "format": _FORMAT,
            "number": number,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "server_version": __version__,
            "num_shards": 1,
            "parts": [
                {
                    "name": _PART,
                    # Those of the arrays are summed array by array, in the part's list.
                    "crc32": _checksum((path / part_json).read_bytes()),
                    "files": {file: (path / file).stat().st_size for file in files},
                }
            ],
        }
        content = json.dumps(manifest, indent=1).encode() + b"\n"
        _write_synced(path / _MANIFEST, content)
        _sync(path)
        _sync(self._folder)
        marker = {"size_bytes": len(content), "crc32": _checksum(content)}
        _write_synced(path / f"{_MARKER}.tmp", json.dumps(marker).encode())
        (path / f"{_MARKER}.tmp").replace(path / _MARKER)
        _sync(path)

    def _open(self, number: int) -> PartReader:
        path = self._path(number)
        marker = _parsed(path / _MARKER, (path / _MARKER).read_bytes())
        content = _checked(path / _MANIFEST, marker)
        manifest = _parsed(path / _MANIFEST, content)
        try:
            if manifest["format"] != _FORMAT or manifest["num_shards"] != 1:
                raise SnapshotError(
                    f"{path / _MANIFEST}: format {manifest['format']!r} of "
                    f"{manifest['num_shards']!r} shards, but this server reads format {_FORMAT} "
                    "of 1 shard"
                )
            (part,) = manifest["parts"]
            sizes, crc32 = dict(part["files"]), part["crc32"]
        except (KeyError, TypeError, ValueError) as err:
            raise SnapshotError(f"{path / _MANIFEST}: {type(err).__name__}: {err}") from err
        for file, size in sizes.items():
            found = (path / file).stat().st_size
            if found != size:
                raise SnapshotError(f"{path / file}: has {found} bytes, but is to have {size}")
        listed = path / f"{_PART}.json"
        entry = {"size_bytes": sizes.get(listed.name), "crc32": crc32}
        return PartReader(path, _PART, _checked(listed, entry))

    def _advice(self, number: int) -> str:
        for other in reversed(self.committed()):
            if other < number:
                try:
                    with self._open(other) as reader:
                        reader.check()
                except (SnapshotError, FileFormatError, OSError) as err:
                    _log.warning("snapshot %d is damaged too: %s", other, err)
                    continue
                return (
                    f"Snapshot {other}, which is older, is whole: --restore {other} takes it up; "
                    "--restore none starts with nothing"
                )
        return "There is no older one that is whole; --restore none starts with nothing"

    def _all(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        pattern = re.compile(rf"\d{{{_DIGITS},}}")
        return sorted(
            int(each.name)
            for each in self._folder.iterdir()
            if pattern.fullmatch(each.name) and each.is_dir()
        )

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:0{_DIGITS}d}"

    def _remove(self, numbers: list[int]) -> None:
        for number in numbers:
            path = self._path(number)
            if not path.exists():
                continue
            try:
                # Without its marker what a crash leaves of it is not taken for whole.
                (path / _MARKER).unlink(missing_ok=True)
                _sync(path)
                shutil.rmtree(path)
            except OSError as err:
                _log.warning("%s cannot be removed: %s", path, err)


def _checksum(content: bytes) -> int:
    return zlib.crc32(content)


def _checked(path: Path, entry: Mapping[str, Any]) -> bytes:
    """The content of a file, compared with the size and the checksum that it is to have."""
    content = path.read_bytes()
    if len(content) != entry.get("size_bytes"):
        raise SnapshotError(
            f"{path}: has {len(content)} bytes, but is to have {entry.get('size_bytes')}"
        )
    if _checksum(content) != entry.get("crc32"):
        raise SnapshotError(
            f"{path}: is damaged: its CRC-32 is to be {entry.get('crc32')}, but it is "
            f"{_checksum(content)}"
        )
    return content


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as err:
        raise SnapshotError(f"{path}: malformed JSON: {err}") from err
    if not isinstance(value, dict):
        raise SnapshotError(f"{path}: expected a JSON object")
    return value


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
