"""Snapshots of all shards: ordered by the coordinator through the cluster's log."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any, Final

from paramd_server.core.part_saving import PartSaver
from paramd_server.core.snapshot import SnapshotError, SnapshotName, SnapshotOrigin
from paramd_server.core.snapshotting import Snapshots
from paramd_server.core.training.records import SnapshotRecord, SnapshotResult
from paramd_server.shard_role import ShardRole

__all__ = ["ClusterOrders", "FollowedSnapshots"]

_log = logging.getLogger(__name__)

# How long shards may take to make a snapshot whole whose parts are all written.
_FINISH_S: Final = 60.0


class ClusterOrders:
    """How the coordinator has snapshots come about. See SnapshotOrders.

    Args:
        role: of the coordinator.
    """

    def __init__(self, role: ShardRole) -> None:
        self._role = role
        # Set by whoever makes both.
        self.saver: PartSaver | None = None

    def begin(self, name: SnapshotName, snapshots: Snapshots) -> SnapshotOrigin:
        """See SnapshotOrders."""

        def report(entry: Mapping[str, Any] | None, error: str) -> None:
            snapshots.report(name.number, 0, entry, error)

        coordinator = self._role.coordinator
        if self.saver is None or coordinator is None or not coordinator.generation:
            raise SnapshotError("the shards of the cluster are not all there yet")
        if coordinator.ends:
            raise SnapshotError("the coordinator stops")
        away = coordinator.missing()
        if away:
            raise SnapshotError(f"shard {away[0]} of the cluster is not there")
        record = SnapshotRecord(name.number, name.directory)
        position = self.saver.begin(name, report, mark=lambda: coordinator.append(record))
        return SnapshotOrigin(coordinator.id, coordinator.generation, position)

    def finish(self, name: SnapshotName, manifest: bytes, kept: Sequence[int]) -> None:
        """See SnapshotOrders."""
        assert self.saver is not None
        self.saver.finish(name, manifest, kept)
        self._tell(SnapshotResult(name.number, name.directory, manifest, tuple(kept)))
        coordinator = self._role.coordinator
        # Whoever is told that it is saved may rely on every shard having it.
        lacking = "" if coordinator is None else coordinator.await_finished(name.number, _FINISH_S)
        if lacking:
            raise SnapshotError(lacking)

    def discard(self, name: SnapshotName) -> None:
        """See SnapshotOrders."""
        if self.saver is not None:
            self.saver.discard(name)
        self._tell(SnapshotResult(name.number, name.directory, b"", ()))

    def _tell(self, result: SnapshotResult) -> None:
        coordinator = self._role.coordinator
        if coordinator is not None:
            coordinator.append(result)


class FollowedSnapshots:
    """What a shard that is not the coordinator does for snapshots.

    Args:
        role: of the shard.
    """

    def __init__(self, role: ShardRole) -> None:
        self._role = role
        self.saver: PartSaver | None = None
        # Files take their time, and the log goes on meanwhile.
        self._files = futures.ThreadPoolExecutor(1, thread_name_prefix="snapshot-results")

    def carry_out(self, record: SnapshotRecord | SnapshotResult) -> None:
        """Captures the state at this place of the log, or makes a snapshot whole or removes it."""
        if isinstance(record, SnapshotResult):
            self._files.submit(self._end, record)
            return
        name = SnapshotName(record.number, record.directory)

        def report(entry: Mapping[str, Any] | None, error: str) -> None:
            part = b"" if entry is None else json.dumps(entry).encode()
            self._role.report(name.number, name.directory, part, error)

        try:
            if self.saver is None:
                raise SnapshotError("this shard was started without --snapshot-dir")
            self.saver.begin(name, report)
        except SnapshotError as err:
            error = str(err)
            _log.warning("snapshot %s: %s", name, error)
            threading.Thread(target=report, args=(None, error), daemon=True).start()

    def _end(self, record: SnapshotResult) -> None:
        name = SnapshotName(record.number, record.directory)
        if self.saver is None:
            return
        error = ""
        try:
            if record.manifest:
                self.saver.finish(name, record.manifest, record.kept)
                _log.info("saved snapshot %s", name)
            else:
                self.saver.discard(name)
                return
        except SnapshotError as err:
            error = str(err)
            _log.error("snapshot %s: %s", name, err)
        except Exception as err:
            error = f"{type(err).__name__}: {err}"
            _log.exception("snapshot %s failed in a way that it should not", name)
        self._role.report(name.number, name.directory, b"", error)

    def close(self) -> None:
        """Waits for what is being written."""
        self._files.shutdown(wait=True)
