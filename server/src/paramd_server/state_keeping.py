"""What a server keeps of itself on disk: taken up at its start, saved meanwhile and at its end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from paramd_server.arrays.devices import Devices
from paramd_server.config import ServerConfig
from paramd_server.core.capture import CapturedState, Standstill, capture
from paramd_server.core.held_buffers import Scratch
from paramd_server.core.part_saving import PartSaver
from paramd_server.core.snapshot import (
    Section,
    SnapshotError,
    SnapshotName,
    SnapshotOrigin,
    restore_sections,
)
from paramd_server.core.snapshotting import OneServer, SnapshotOrders, Snapshots
from paramd_server.storage.snapshots import SnapshotStore
from paramd_server.storage.stopped_state import StoppedState

__all__ = ["StateKeeper"]

_log = logging.getLogger(__name__)


class StateKeeper:
    """Keeps the state of one server; without a snapshot directory it keeps nothing.

    Args:
        config: of the server.
        sections: what its state consists of.
        standstill: holds it still.
        devices: where its buffers are.
        orders: how snapshots of all shards come about; None for a server without others.

    Attributes:
        origin: whose state was taken up, and of which moment.
        store: where it is kept; None for nowhere.
        saver: writes the part of this server; None likewise.
        snapshots: takes orders.
    """

    def __init__(
        self,
        config: ServerConfig,
        sections: Sequence[Section],
        standstill: Standstill,
        devices: Devices,
        *,
        orders: SnapshotOrders | None = None,
    ) -> None:
        self._restore = config.restore
        self._cluster_id = config.cluster_id
        self._alone = config.num_shards == 1
        self._sections = tuple(sections)

        def capture_all(
            *, scratch: Callable[[], Scratch], mark: Callable[[], Any] | None
        ) -> CapturedState:
            return capture(
                self._sections, standstill=standstill, devices=devices, scratch=scratch, mark=mark
            )

        self.origin = SnapshotOrigin()
        self.store: SnapshotStore | None = None
        self.saver: PartSaver | None = None
        self._stopped: StoppedState | None = None
        if config.snapshot_dir is not None:
            self.store = SnapshotStore(
                config.snapshot_dir,
                shard=config.shard,
                num_shards=config.num_shards,
                split_elements=config.split_elements,
            )
            self.saver = PartSaver(capture_all, self.store)
            self._stopped = StoppedState(config.snapshot_dir, config.shard, config.num_shards)
            if orders is None:
                orders = OneServer(self.saver)
        self.snapshots = Snapshots(
            self.store,
            orders or _NoOrders(),
            num_shards=config.num_shards,
            every_s=config.snapshot_every_s,
        )

    @property
    def taken_up(self) -> SnapshotName | None:
        """The snapshot from which the server was started; None for none."""
        return None if self.store is None else self.store.taken_up

    def restorable(self) -> frozenset[int]:
        """The numbers of the snapshots from which this server could be started."""
        return frozenset() if self.store is None else frozenset(self.store.committed())

    def take_up(self) -> None:
        """Locks the directory, and takes up what the configuration names.

        A shard of a cluster takes up the state in which it stopped, where it wants the latest.

        Raises:
            SnapshotError: where it is damaged, or does not fit.
        """
        if self.store is None:
            return
        self.store.lock()
        if self._restore == "latest" and self._stopped is not None and self._take_up_stopped():
            return
        name = self.store.choose(self._restore)
        if name is not None:
            _log.info("taking up snapshot %s", name)
            with self.store.taking_up(name) as snapshot:
                restore_sections(self._sections, snapshot)
            self._take_origin(self.store.manifest_of(name).origin)
            _log.info("took up snapshot %s", name)

    def _take_up_stopped(self) -> bool:
        """Takes up the state in which this shard stopped, if there is one."""
        assert self._stopped is not None
        origin = self._stopped.origin()
        if origin is None:
            others = self._stopped.of_others()
            if others:
                raise SnapshotError(
                    f"{others[0]} is the state in which a shard of another number of shards "
                    "stopped, and newer than any snapshot: start that many shards and save a "
                    "snapshot first, or say --restore NUMBER to begin with an older one"
                )
            return False
        _log.info("taking up the state in which this shard stopped, at %d", origin.position)
        with self._stopped.taking_up() as state:
            restore_sections(self._sections, state)
        self._take_origin(origin)
        return True

    def _take_origin(self, origin: SnapshotOrigin) -> None:
        if self._cluster_id and origin.cluster_id and origin.cluster_id != self._cluster_id:
            raise SnapshotError(
                f"what is saved here is of the cluster {origin.cluster_id!r}, but this server "
                f"belongs to {self._cluster_id!r} (--cluster-id)"
            )
        self.origin = origin

    def forget_stopped(self) -> None:
        """Removes the states in which shards stopped: from now on they are others."""
        if self._stopped is not None:
            self._stopped.remove()
            self._stopped.remove_others()

    def leave(self) -> None:
        """Leaves the directory without saving anything."""
        if self.store is not None:
            self.store.unlock()

    def stop_snapshots(self) -> None:
        """Takes no more orders, and gives up the snapshot under way."""
        self.snapshots.close()
        if self.saver is not None:
            self.saver.close()

    def save_last(self, origin: SnapshotOrigin) -> None:
        """Saves the state of a server on which nothing happens any more.

        That of a server alone is a snapshot; a shard of several keeps where it was.

        Args:
            origin: where the server stands.

        Raises:
            SnapshotError: where it cannot be written.
        """
        if self.store is None or self.saver is None:
            return
        try:
            if self._alone or self._stopped is None:
                self._save_alone(self.store, self.saver)
            elif origin.generation:
                with self.saver.state_now() as sections:
                    self._stopped.save(sections, origin)
                _log.info("saved the state of this shard, at %d", origin.position)
        finally:
            self.store.unlock()

    def _save_alone(self, store: SnapshotStore, saver: PartSaver) -> None:
        name = SnapshotName(store.next_number())
        entry = saver.save_now(name, blank_too=store.taken_up is not None)
        if entry is None:
            return
        manifest = store.manifest(name, [entry], SnapshotOrigin())
        try:
            saver.finish(name, manifest, store.kept(name))
        except SnapshotError:
            store.discard(name)
            raise
        _log.info("saved snapshot %s", name)


class _NoOrders:
    """For a server that keeps nothing."""

    def begin(self, name: SnapshotName, snapshots: Snapshots) -> SnapshotOrigin:
        raise SnapshotError("the server was started without --snapshot-dir")

    def finish(self, name: SnapshotName, manifest: bytes, kept: Sequence[int]) -> None:
        raise SnapshotError("the server was started without --snapshot-dir")

    def discard(self, name: SnapshotName) -> None:
        """There is nothing."""
