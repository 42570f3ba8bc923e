"""The snapshots of a server: a directory each, of which a marker says that it is whole.

    <snapshot-dir>/snapshots/00000007/part-0-of-2.json             documents, list of the arrays
                                      part-0-of-2.000.safetensors  arrays
                                      part-1-of-2.json             of the other shard, where the
                                      ...                          directory is that of both
                                      manifest.json                every file with size and checksum
                                      COMMITTED                    size and checksum of the manifest
    <snapshot-dir>/before-finetuning/...                           one that a user has named

The marker is written last, when all else is on the disk. A directory without one is what a crash
has left: it is never taken up, and a later save removes it. A named snapshot comes about under its
number, and is given its name when it is whole.

The shards of a cluster may have a directory each, or share one: each writes its own part, and then
manifest and marker, with the same content as the others.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from paramd.errors import FileFormatError, PathNotAllowedError
from paramd.placement import DEFAULT_SPLIT_ELEMENTS
from paramd_server import __version__
from paramd_server.core.held_buffers import Scratch
from paramd_server.core.snapshot import (
    SavedSection,
    SnapshotError,
    SnapshotInfo,
    SnapshotName,
    SnapshotOrigin,
)
from paramd_server.storage.directory import SnapshotDirectory
from paramd_server.storage.snapshot_files import (
    FOLDER,
    ScratchFile,
    checked,
    checksum,
    part_name,
    sync,
    write_atomically,
)
from paramd_server.storage.snapshot_manifest import MANIFEST, MARKER, Manifest, read_manifest
from paramd_server.storage.snapshot_part import PartReader, write_part
from paramd_server.storage.snapshot_parts import PartsReader

__all__ = ["SnapshotStore"]

_log = logging.getLogger(__name__)

_DIGITS: Final = 8
_POLL_S: Final = 0.05


class SnapshotStore:
    """The snapshots in one directory, as one server sees them.

    Args:
        root: the server's directory. `snapshots` below it is made when it is locked.
        shard: of the server.
        num_shards: of its cluster.
        split_elements: of its cluster, for snapshots of another number of shards.
        keep: how many numbered ones are kept; the one that was taken up is kept beside them.
        wait_s: how long to wait for another server that uses the directory to end.
    """

    def __init__(
        self,
        root: Path,
        *,
        shard: int = 0,
        num_shards: int = 1,
        split_elements: int = DEFAULT_SPLIT_ELEMENTS,
        keep: int = 2,
        wait_s: float = 10.0,
    ) -> None:
        self._root = root
        self._folder = root / FOLDER
        self._shard = shard
        self._split_elements = split_elements
        self._part = part_name(shard, num_shards)
        self._num_shards = num_shards
        self._keep = keep
        self._wait_s = wait_s
        self._lock = -1
        self._last_number = 0
        self._taken_up: SnapshotName | None = None

    @property
    def taken_up(self) -> SnapshotName | None:
        """The snapshot that this server was started from; None for none."""
        return self._taken_up

    def lock(self) -> None:
        """Keeps other servers out until `unlock`: each would save over what the others saved.

        Raises:
            SnapshotError: where one is in, or the directory cannot be written to.
        """
        path = self._folder / f"lock-{self._part.removeprefix('part-')}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as err:
            raise SnapshotError(f"{path}: cannot be opened: {err.strerror}") from err
        give_up_at = time.monotonic() + self._wait_s
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as err:
                if time.monotonic() >= give_up_at:
                    self.unlock()
                    raise SnapshotError(
                        f"{self._folder} is in use by another server: wait until it has ended, "
                        "or give each server a --snapshot-dir of its own"
                    ) from err
            time.sleep(_POLL_S)
        self._finish_names()

    def unlock(self) -> None:
        """Lets other servers in. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def committed(self) -> list[int]:
        """The numbers of the snapshots that are whole, from the oldest."""
        return [name.number for name in self._whole()]

    def all(self) -> list[SnapshotInfo]:
        """The snapshots that are whole, from the oldest, but for those with a damaged manifest."""
        infos = []
        for name, path in self._whole().items():
            try:
                infos.append(read_manifest(path).info(name))
            except (SnapshotError, OSError) as err:
                _log.warning("snapshot %s is left out: %s", name, err)
        return infos

    def manifest_of(self, name: SnapshotName) -> Manifest:
        """What is known of a snapshot. Raises SnapshotError where it is damaged, or gone."""
        try:
            return read_manifest(self._path(name))
        except OSError as err:
            raise SnapshotError(f"snapshot {name}: {err}") from err

    def find(self, number: int) -> SnapshotName:
        """The snapshot of a number. Raises SnapshotError where there is none."""
        whole = self._whole()
        for name in whole:
            if name.number == number:
                return name
        there = ", ".join(str(name) for name in whole) or "none"
        raise SnapshotError(f"{self._folder} has no snapshot {number}; there are: {there}")

    def choose(self, wanted: str) -> SnapshotName | None:
        """The snapshot to take up.

        Args:
            wanted: 'latest', 'none', a number, or the directory of one that has a name.

        Returns:
            Which; None where there is none, or none is wanted.

        Raises:
            SnapshotError: where there is none of that number or name.
        """
        if wanted == "none":
            return None
        whole = self._whole()
        if wanted == "latest":
            newest = max(whole, key=lambda name: name.number, default=None)
            for number in self._numbers():
                if newest is None or number > newest.number:
                    _log.warning("%s was never finished: it is passed over", self._numbered(number))
            return newest
        if re.fullmatch(r"\d{1,18}", wanted, re.ASCII):
            return self.find(int(wanted))
        try:
            path = SnapshotDirectory(self._root).resolve(wanted)
        except PathNotAllowedError as err:
            raise SnapshotError(f"--restore {wanted}: {err}") from err
        for name, place in whole.items():
            if place.resolve() == path:
                return name
        try:
            read_manifest(path)
        except OSError as err:
            raise SnapshotError(
                f"--restore {wanted}: {path} holds no snapshot that is whole: {err}"
            ) from err
        raise SnapshotError(f"--restore {wanted}: a snapshot with a number is named by that")

    @contextmanager
    def taking_up(self, name: SnapshotName) -> Iterator[PartReader | PartsReader]:
        """Opens a snapshot, to be taken up while the block runs.

        Raises:
            SnapshotError: where it is damaged or does not fit: with the file and the place, and
                which other one there is.
        """
        try:
            with self._open(name) as reader:
                yield reader
                reader.finish()
        except (SnapshotError, FileFormatError, OSError, KeyError, TypeError, ValueError) as err:
            raise SnapshotError(
                f"snapshot {name} cannot be taken up: {err}. {self._advice(name)}"
            ) from err
        self._taken_up = name

    # Saving

    def next_number(self) -> int:
        """A number above all that there have been."""
        numbers = [*self._numbers(), *self.committed(), self._last_number]
        self._last_number = max(numbers, default=0) + 1
        return self._last_number

    def check_directory(self, directory: str) -> None:
        """Checks the name that a user gives to a snapshot to be.

        Raises:
            PathNotAllowedError: where it is no name below the server's directory.
            SnapshotError: where something is there already.
        """
        path = SnapshotDirectory(self._root).resolve(directory)
        try:
            if path.exists():
                raise SnapshotError(f"{path} exists already: choose another name")
            for parent in path.parents:
                if not parent.is_relative_to(self._root.resolve()):
                    break
                if (parent / MARKER).exists() or (parent.exists() and not parent.is_dir()):
                    raise SnapshotError(f"{path}: no snapshot can be in {parent}")
        except OSError as err:
            raise SnapshotError(f"{path}: no such name can be given: {err.strerror}") from err

    def scratch(self) -> Scratch:
        """A file for what writers set aside meanwhile. Raises OSError."""
        return ScratchFile(self._folder)

    def write_part(
        self, name: SnapshotName, sections: Mapping[str, SavedSection]
    ) -> dict[str, Any]:
        """Writes this shard's part. What crashes have left of earlier ones is removed before.

        Returns:
            Its entry in the manifest: JSON values.

        Raises:
            SnapshotError: where it cannot be written; the others are as they were.
        """
        path = self._numbered(name.number)
        try:
            if name.directory:
                self.check_directory(name.directory)
            if (path / MARKER).exists():
                raise SnapshotError(f"{path} is a snapshot already")
            whole = {each.number for each in self._whole() if not each.directory}
            self._remove([old for old in self._numbers() if old < name.number and old not in whole])
            path.mkdir(parents=True, exist_ok=True)
            entry = write_part(path, self._part, sections)
            sync(path)
            sync(self._folder)
        except (OSError, FileFormatError, ValueError, SnapshotError, PathNotAllowedError) as err:
            self.discard(name)
            raise SnapshotError(f"snapshot {name} cannot be saved to {path}: {err}") from err
        return entry

    def manifest(
        self,
        name: SnapshotName,
        parts: Sequence[Mapping[str, Any]],
        origin: SnapshotOrigin,
    ) -> bytes:
        """The manifest of a snapshot whose parts are all written, to be committed on every shard.

        Args:
            name: which.
            parts: what `write_part` gave on each shard, in the order of the shards.
            origin: of the state.
        """
        made = Manifest(
            name=name,
            created=datetime.now(UTC),
            server_version=__version__,
            num_shards=self._num_shards,
            parts=tuple(parts),
            origin=origin,
        )
        return made.encode()

    def commit(self, name: SnapshotName, manifest: bytes) -> None:
        """Writes manifest and marker: from now on the snapshot is whole.

        Several shards may do so in one directory at the same time.

        Raises:
            SnapshotError: where it cannot be written, or the directory is taken.
        """
        path = self._numbered(name.number)
        marker = json.dumps({"size_bytes": len(manifest), "crc32": checksum(manifest)}).encode()
        try:
            write_atomically(path / MANIFEST, manifest, writer=self._part)
            write_atomically(path / MARKER, marker, writer=self._part)
            sync(self._folder)
            if name.directory:
                self._give_name(name)
        except OSError as err:
            if name.directory and self._has_name(name, manifest):
                return
            self._remove([name.number])
            raise SnapshotError(f"snapshot {name} cannot be committed: {err}") from err

    def discard(self, name: SnapshotName) -> None:
        """Removes what this shard has written of a snapshot that is not to be. Idempotent."""
        path = self._numbered(name.number)
        if not path.is_dir() or (path / MARKER).exists():
            return
        try:
            for each in list(path.iterdir()):
                if each.name.startswith(f"{self._part}.") or f".{self._part}." in each.name:
                    each.unlink(missing_ok=True)
            if not any(path.iterdir()):
                path.rmdir()
        except OSError as err:
            _log.warning("%s cannot be removed: %s", path, err)

    def kept(self, upcoming: SnapshotName | None = None) -> list[int]:
        """The numbers of the numbered snapshots that are to stay.

        Args:
            upcoming: counted as if it were whole already.
        """
        numbered = [name.number for name in self._whole() if not name.directory]
        if upcoming is not None and not upcoming.directory:
            numbered = sorted({*numbered, upcoming.number})
        stay = set(numbered[-self._keep :])
        if self._taken_up is not None and not self._taken_up.directory:
            stay |= {self._taken_up.number} & set(numbered)
        return sorted(stay)

    def prune(self, kept: Collection[int]) -> None:
        """Removes the numbered snapshots whose numbers are not among those that stay."""
        numbered = [name.number for name in self._whole() if not name.directory]
        self._remove([number for number in numbered if number not in kept])

    # Names

    def _give_name(self, name: SnapshotName) -> None:
        target = SnapshotDirectory(self._root).resolve(name.directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        # It fails where the target is a directory with something in it, or a file.
        self._numbered(name.number).rename(target)
        sync(target.parent)
        sync(self._folder)

    def _has_name(self, name: SnapshotName, manifest: bytes) -> bool:
        """Whether another shard has given it its name meanwhile."""
        target = SnapshotDirectory(self._root).resolve(name.directory)
        try:
            read_manifest(target)
            same = (target / MANIFEST).read_bytes() == manifest
            for each in list(target.glob(f".*.{self._part}.tmp")) if same else ():
                each.unlink(missing_ok=True)
        except (SnapshotError, OSError):
            return False
        return same

    def _finish_names(self) -> None:
        """Gives names to those that a crash kept from getting them."""
        for number in self._numbers():
            path = self._numbered(number)
            if not (path / MARKER).exists():
                continue
            try:
                name = read_manifest(path).name
                if name.directory:
                    self._give_name(name)
            except (SnapshotError, OSError, PathNotAllowedError) as err:
                _log.warning("%s keeps its number: %s", path, err)

    # What is there

    def _open(self, name: SnapshotName) -> PartReader | PartsReader:
        path = self._path(name)
        manifest = read_manifest(path)
        if manifest.num_shards == self._num_shards:
            return _open_part(path, manifest, self._part)
        with ExitStack() as stack:
            parts = []
            for shard in range(manifest.num_shards):
                part = _open_part(path, manifest, part_name(shard, manifest.num_shards))
                parts.append(stack.enter_context(part))
            _log.info(
                "snapshot %s is of %d shards: this one of %d takes what is for it from all of them",
                name,
                manifest.num_shards,
                self._num_shards,
            )
            reader = PartsReader(
                parts,
                shard=self._shard,
                num_shards=self._num_shards,
                split_elements=self._split_elements,
            )
            stack.pop_all()
            return reader

    def _advice(self, name: SnapshotName) -> str:
        for other in reversed(self._whole()):
            if other.number < name.number:
                try:
                    with self._open(other) as reader:
                        reader.check()
                except (SnapshotError, FileFormatError, OSError) as err:
                    _log.warning("snapshot %s is damaged too: %s", other, err)
                    continue
                return (
                    f"Snapshot {other}, which is older, is whole: --restore {other.number} takes "
                    "it up; --restore none starts with nothing"
                )
        return "There is no older one that is whole; --restore none starts with nothing"

    def _whole(self) -> dict[SnapshotName, Path]:
        """The directories of the snapshots that are whole, by number."""
        found = {
            SnapshotName(number): self._numbered(number)
            for number in self._numbers()
            if (self._numbered(number) / MARKER).exists()
        }
        for path in self._named():
            directory = path.relative_to(self._root).as_posix()
            try:
                found[SnapshotName(read_manifest(path).name.number, directory)] = path
            except (SnapshotError, OSError) as err:
                _log.warning("%s is passed over: %s", path, err)
        return dict(sorted(found.items(), key=lambda item: item[0].number))

    def _named(self) -> list[Path]:
        paths = []
        for place, folders, files in os.walk(self._root):
            path = Path(place)
            if path == self._root:
                folders[:] = [each for each in folders if each != FOLDER]
            elif MARKER in files and MANIFEST in files:
                folders.clear()
                paths.append(path)
        return paths

    def _numbers(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        pattern = re.compile(rf"\d{{{_DIGITS},}}")
        return sorted(
            int(each.name)
            for each in self._folder.iterdir()
            if pattern.fullmatch(each.name) and each.is_dir()
        )

    def _numbered(self, number: int) -> Path:
        return self._folder / f"{number:0{_DIGITS}d}"

    def _path(self, name: SnapshotName) -> Path:
        return self._root / name.directory if name.directory else self._numbered(name.number)

    def _remove(self, numbers: list[int]) -> None:
        for number in numbers:
            path = self._numbered(number)
            try:
                # Without its marker what a crash leaves of it is not taken for whole.
                (path / MARKER).unlink(missing_ok=True)
                sync(path)
                shutil.rmtree(path)
            except FileNotFoundError:
                # Another shard is at it.
                shutil.rmtree(path, ignore_errors=True)
            except OSError as err:
                _log.warning("%s cannot be removed: %s", path, err)


def _open_part(path: Path, manifest: Manifest, name: str) -> PartReader:
    part = manifest.part(path, name)
    sizes = dict(part["files"])
    for file, size in sizes.items():
        found = (path / file).stat().st_size
        if found != size:
            raise SnapshotError(f"{path / file}: has {found} bytes, but is to have {size}")
    listed = path / f"{name}.json"
    entry = {"size_bytes": sizes.get(listed.name), "crc32": part["crc32"]}
    return PartReader(path, name, checked(listed, entry))
