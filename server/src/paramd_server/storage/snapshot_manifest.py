"""The manifest of a snapshot: what belongs to it, the same on every shard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from paramd_server.core.snapshot import SnapshotError, SnapshotInfo, SnapshotName, SnapshotOrigin
from paramd_server.storage.snapshot_files import checked, parsed

__all__ = ["MANIFEST", "MARKER", "Manifest", "read_manifest"]

MANIFEST: Final = "manifest.json"
MARKER: Final = "COMMITTED"

_FORMAT: Final = 2
# Format 1: of one shard, and without what came with clusters.
_FORMATS: Final = (1, 2)


@dataclass(frozen=True)
class Manifest:
    """What a snapshot consists of.

    Attributes:
        name: its number and name.
        created: when.
        server_version: of the server that wrote it.
        num_shards: how many parts it has.
        parts: of each shard its files with their sizes, and the checksum of the first.
        origin: of the state.
    """

    name: SnapshotName
    created: datetime
    server_version: str
    num_shards: int
    parts: tuple[Mapping[str, Any], ...]
    origin: SnapshotOrigin = field(default_factory=SnapshotOrigin)

    @property
    def size_bytes(self) -> int:
        """Bytes of the files of all parts."""
        return sum(sum(part["files"].values()) for part in self.parts)

    def info(self, name: SnapshotName) -> SnapshotInfo:
        """The snapshot, under the name that it has now."""
        return SnapshotInfo(name, self.size_bytes, self.created.timestamp(), self.num_shards)

    def part(self, path: Path, name: str) -> Mapping[str, Any]:
        """The entry of a part, of the snapshot in a directory. Raises SnapshotError."""
        for part in self.parts:
            if part["name"] == name:
                return part
        raise SnapshotError(f"{path / MANIFEST}: there is no {name}")

    def encode(self) -> bytes:
        """The content of the file."""
        document = {
            "format": _FORMAT,
            "number": self.name.number,
            "directory": self.name.directory,
            "created": self.created.isoformat(timespec="seconds"),
            "server_version": self.server_version,
            "cluster_id": self.origin.cluster_id,
            "generation": self.origin.generation,
            "position": self.origin.position,
            "num_shards": self.num_shards,
            "parts": [dict(part) for part in self.parts],
        }
        return json.dumps(document, indent=1).encode() + b"\n"


def read_manifest(path: Path) -> Manifest:
    """The manifest of the snapshot in a directory.

    Raises:
        SnapshotError: where it is damaged, or of a later format.
        OSError: where it cannot be read, or the snapshot is not whole.
    """
    marker = parsed(path / MARKER, (path / MARKER).read_bytes())
    place = path / MANIFEST
    document = parsed(place, checked(place, marker))
    try:
        if document["format"] not in _FORMATS:
            raise SnapshotError(
                f"{place}: format {document['format']!r}, but this server reads the formats "
                f"{' and '.join(map(str, _FORMATS))}"
            )
        manifest = Manifest(
            name=SnapshotName(int(document["number"]), str(document.get("directory", ""))),
            created=datetime.fromisoformat(document["created"]),
            server_version=str(document["server_version"]),
            num_shards=int(document["num_shards"]),
            parts=tuple(_checked_part(part) for part in document["parts"]),
            origin=SnapshotOrigin(
                str(document.get("cluster_id", "")),
                int(document.get("generation", 0)),
                int(document.get("position", 0)),
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise SnapshotError(f"{place}: {type(err).__name__}: {err}") from err
    if len(manifest.parts) != manifest.num_shards:
        raise SnapshotError(
            f"{place}: {manifest.num_shards} shards, but {len(manifest.parts)} parts"
        )
    return manifest


def _checked_part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    files = {str(file): int(size) for file, size in part["files"].items()}
    return {"name": str(part["name"]), "crc32": int(part["crc32"]), "files": files}
