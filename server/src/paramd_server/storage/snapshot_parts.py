"""All parts of a snapshot of another number of shards, read as one shard's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from paramd_server.core.resharding import Resharded
from paramd_server.core.snapshot import ArraysReader
from paramd_server.storage.snapshot_part import PartReader

__all__ = ["PartsReader"]


class PartsReader:
    """Parts that are open for reading: see ArraysSource. It closes them, whatever happens.

    Args:
        parts: of all shards that wrote them, in their order.
        shard: that reads.
        num_shards: how many there are now.
        split_elements: dense parameters of more elements are split over them.

    Raises:
        SnapshotError, KeyError, TypeError, ValueError: where the parts do not fit one another.
    """

    def __init__(
        self, parts: Sequence[PartReader], *, shard: int, num_shards: int, split_elements: int
    ) -> None:
        with ExitStack() as stack:
            for part in parts:
                stack.callback(part.close)
            self._parts = parts
            self._source = Resharded(
                parts, shard=shard, num_shards=num_shards, split_elements=split_elements
            )
            self._stack = stack.pop_all()

    @property
    def documents(self) -> Mapping[str, Mapping[str, Any]]:
        """The documents of the sections by name."""
        return self._source.documents

    def __enter__(self) -> PartsReader:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def arrays(self, section: str) -> ArraysReader:
        """The arrays of a section."""
        return self._source.arrays(section)

    def unread(self) -> Sequence[str]:
        """See Resharded."""
        return self._source.unread()

    def check(self) -> None:
        """Reads everything and keeps nothing. Raises as `PartReader.check`."""
        for part in self._parts:
            part.check()

    def finish(self) -> None:
        """Nothing: what was gathered was compared with its checksums on the way."""
