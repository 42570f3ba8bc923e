"""The one directory in which clients may name files on the server's side."""

from __future__ import annotations

from pathlib import Path

from paramd.errors import PathNotAllowedError
from paramd_server.storage.snapshot_files import FOLDER

__all__ = ["SnapshotDirectory"]


class SnapshotDirectory:
    """Resolves the names that clients give.

    Args:
        root: the directory; None where the server has none.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = None if root is None else root.resolve()

    def resolve(self, name: str) -> Path:
        """The path of a file below the directory.

        Links are followed before the check, so that none leads out.

        Raises:
            PathNotAllowedError: where the name leaves the directory, where there is none, or
                where it is among the server's own snapshots.
        """
        if self._root is None:
            raise PathNotAllowedError(
                f"{name!r} cannot be used: the server was started without --snapshot-dir"
            )
        if not name or "\0" in name:
            raise PathNotAllowedError(f"{name!r} is no file name")
        try:
            path = (self._root / name).resolve()
        except (OSError, RuntimeError) as err:
            raise PathNotAllowedError(f"{name!r} cannot be resolved") from err
        if path == self._root or not path.is_relative_to(self._root):
            raise PathNotAllowedError(f"{name!r} is not below the server's snapshot directory")
        if path.is_relative_to(self._root / FOLDER):
            raise PathNotAllowedError(f"{name!r}: {FOLDER!r} holds what the server saves of itself")
        return path
