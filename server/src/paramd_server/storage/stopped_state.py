"""The state in which one shard of a cluster stopped, so that it can go on where it was.

    <snapshot-dir>/snapshots/stopped-1-of-2/part-1-of-2.json, part-1-of-2.000.safetensors
                                            STOPPED           where it stood; written last

A snapshot of a cluster has a part of every shard, of one moment. A shard that stops by itself
saves its own part alone, and where it stood in the cluster's log. It is good for one start: as soon
as the cluster goes on, it is removed.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from paramd.errors import FileFormatError
from paramd_server.core.snapshot import SavedSection, SnapshotError, SnapshotOrigin
from paramd_server.storage.snapshot_files import (
    FOLDER,
    checked,
    parsed,
    part_name,
    sync,
    write_atomically,
)
from paramd_server.storage.snapshot_part import PartReader, write_part

__all__ = ["StoppedState"]

_log = logging.getLogger(__name__)

_FORMAT: Final = 1
_MARKER: Final = "STOPPED"


class StoppedState:
    """Where one shard keeps the state in which it stopped.

    Args:
        root: the server's directory.
        shard: of the server.
        num_shards: of its cluster.
    """

    def __init__(self, root: Path, shard: int, num_shards: int) -> None:
        self._folder = root / FOLDER
        self._part = part_name(shard, num_shards)
        self._num_shards = num_shards
        self._path = self._folder / f"stopped-{shard}-of-{num_shards}"

    def origin(self) -> SnapshotOrigin | None:
        """Where the shard stood when it stopped; None where it did not save itself.

        Raises:
            SnapshotError: where what is there is damaged.
        """
        document = self._document()
        if document is None:
            return None
        try:
            return SnapshotOrigin(
                str(document["cluster_id"]), int(document["generation"]), int(document["position"])
            )
        except (KeyError, TypeError, ValueError) as err:
            raise SnapshotError(f"{self._path / _MARKER}: {type(err).__name__}: {err}") from err

    def of_others(self) -> list[Path]:
        """The states of clusters with another number of shards that are in the same directory."""
        return [
            each
            for each in sorted(self._folder.glob("stopped-*-of-*"))
            if (each / _MARKER).exists() and not each.name.endswith(f"-of-{self._num_shards}")
        ]

    def save(self, sections: Mapping[str, SavedSection], origin: SnapshotOrigin) -> None:
        """Saves the state of a shard on which nothing happens any more.

        Raises:
            SnapshotError: where it cannot be written.
        """
        try:
            self.remove()
            self._path.mkdir(parents=True)
            entry = write_part(self._path, self._part, sections)
            sync(self._path)
            document = {
                "format": _FORMAT,
                "cluster_id": origin.cluster_id,
                "generation": origin.generation,
                "position": origin.position,
                "part": entry,
            }
            content = json.dumps(document, indent=1).encode() + b"\n"
            write_atomically(self._path / _MARKER, content, writer=self._part)
            sync(self._folder)
        except (OSError, FileFormatError, ValueError) as err:
            raise SnapshotError(
                f"the state of this shard cannot be saved to {self._path}: {err}"
            ) from err

    @contextmanager
    def taking_up(self) -> Iterator[PartReader]:
        """Opens what was saved, to be taken up while the block runs.

        Raises:
            SnapshotError: where it is damaged.
        """
        try:
            document = self._document()
            if document is None:
                raise SnapshotError(f"{self._path} is not there")
            part = document["part"]
            listed = self._path / f"{self._part}.json"
            entry = {"size_bytes": part["files"][listed.name], "crc32": part["crc32"]}
            with PartReader(self._path, self._part, checked(listed, entry)) as reader:
                yield reader
        except (SnapshotError, FileFormatError, OSError, KeyError, TypeError) as err:
            raise SnapshotError(
                f"{self._path} cannot be taken up: {err}. --restore NUMBER takes up a snapshot of "
                "all shards"
            ) from err

    def remove(self) -> None:
        """Removes it. Idempotent."""
        _remove(self._path)

    def remove_others(self) -> None:
        """Removes those of clusters with another number of shards: this one has gone on without."""
        for path in self.of_others():
            _remove(path)

    def _document(self) -> dict[str, Any] | None:
        path = self._path / _MARKER
        try:
            document = parsed(path, path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as err:
            raise SnapshotError(f"{path}: {err}") from err
        if document.get("format") != _FORMAT:
            raise SnapshotError(f"{path}: format {document.get('format')!r} is not known")
        return document


def _remove(path: Path) -> None:
    if not path.exists():
        return
    try:
        # Without its marker what a crash leaves of it is not taken up.
        (path / _MARKER).unlink(missing_ok=True)
        sync(path)
        shutil.rmtree(path)
    except FileNotFoundError:
        # Another shard that shares the directory has removed it at the same time.
        return
    except OSError as err:
        _log.warning("%s cannot be removed: %s", path, err)
