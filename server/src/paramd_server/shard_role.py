"""This server's place among the shards: the coordinator, or one that follows it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from paramd.trainer_spec import StagedPart
from paramd.transport.channel import RenewableChannel
from paramd_server.config import ServerConfig
from paramd_server.core.cluster.coordinator import Coordinator
from paramd_server.core.cluster.follower import Follower
from paramd_server.core.cluster.standing import Cluster, Standing
from paramd_server.core.operations import OperationWindow
from paramd_server.core.training.buffers import BufferSteps
from paramd_server.core.training.records import (
    SnapshotRecord,
    SnapshotResult,
    StepRecord,
    UpdateRecord,
)
from paramd_server.core.training.trainers import Trainers
from paramd_server.rpc.following import CoordinatorLink

__all__ = ["RoleHooks", "ShardRole"]

# How long the coordinator waits at its end for the others to catch up.
_CLOSE_S: Final = 5.0


@dataclass(frozen=True)
class RoleHooks:
    """What a role asks of its server.

    Attributes:
        snapshots: gives the numbers of the snapshots that the server could be started from.
        snapshot: told of snapshots, at their place in the log.
        restart: has the server start again from a snapshot; 0 for nothing.
        lost: told, with the reason, when another shard goes or comes back.
        formed: called when the cluster has formed.
    """

    snapshots: Callable[[], frozenset[int]]
    snapshot: Callable[[SnapshotRecord | SnapshotResult], None]
    restart: Callable[[int], None]
    lost: Callable[[str], None]
    formed: Callable[[], None]


class ShardRole:
    """Coordinator or follower. It is the `Commits` of the server's trainers.

    Args:
        config: of the server.
        hooks: what it asks of the server.
        open_channel: opens the channel to the coordinator.

    Attributes:
        serving: set when the cluster has formed: before, calls of clients are put off.
    """

    def __init__(
        self,
        config: ServerConfig,
        hooks: RoleHooks,
        open_channel: Callable[[str], RenewableChannel],
    ) -> None:
        self.serving = threading.Event()
        self._config = config
        self._hooks = hooks
        self._open_channel = open_channel
        self._coordinator: Coordinator | None = None
        self._link: CoordinatorLink | None = None
        self._follower: Follower | None = None
        self._trainers: Trainers | None = None
        self._formed = (config.cluster_id, 0)

    @property
    def coordinator(self) -> Coordinator | None:
        """The coordinator, where this server is it and `begin` has been called."""
        return self._coordinator

    @property
    def cluster_id(self) -> str:
        """The cluster's name; '' while it is not known."""
        return self._formed[0] if self._coordinator is None else self._coordinator.id

    @property
    def generation(self) -> int:
        """The cluster's generation; 0 before it has formed."""
        return self._formed[1] if self._coordinator is None else self._coordinator.generation

    @property
    def position(self) -> int:
        """Up to where the log has been carried out here."""
        if self._coordinator is not None:
            return self._coordinator.log.head
        return 0 if self._follower is None else self._follower.position

    def begin(
        self,
        cluster_id: str,
        standing: Standing,
        trainers: Trainers,
        operations: OperationWindow,
    ) -> None:
        """Takes the place up. Called when the state of before has been taken up.

        Args:
            cluster_id: as the state of before says; '' where it does not.
            standing: where the server stands.
            trainers: of the server.
            operations: of the server.
        """
        self._trainers = trainers
        cluster = Cluster(
            self._config.cluster_id or cluster_id,
            self._config.num_shards,
            self._config.split_elements,
        )
        if not self._config.shard:
            self._coordinator = Coordinator(
                cluster,
                standing,
                snapshots=self._hooks.snapshots,
                whole_steps=lambda: trainers.whole_steps,
                restart=self._hooks.restart,
                formed=self._serve,
                lost=self._hooks.lost,
            )
            return

        def standing_at(position: int) -> Standing:
            return Standing(
                standing.epoch,
                self._formed[1] or standing.generation,
                position,
                standing.snapshot,
                self._hooks.snapshots(),
                trainers.whole_steps,
            )

        self._follower = Follower(
            trainers,
            operations,
            BufferSteps(trainers.registry),
            self._hooks.snapshot,
            standing.position,
        )
        self._link = CoordinatorLink(
            self._open_channel(self._config.coordinator),
            self._config.shard,
            cluster,
            standing_at,
            self._follower,
            formed=self._note_formed,
            restart=self._hooks.restart,
        )

    def start(self) -> None:
        """Begins to follow. Called when the server takes calls."""
        if self._link is not None:
            self._link.start()

    def check(self) -> None:
        """Looks whether the other shards are there. Called now and then."""
        if self._coordinator is not None and self._coordinator.generation:
            missing = self._coordinator.missing()
            if missing:
                self._hooks.lost(f"shard {missing[0]} is not there")

    def leave(self) -> None:
        """Leaves the other shards in order, so that this one can come back where it was."""
        if self._coordinator is not None and self._trainers is not None:
            self._coordinator.refuse_commits()
            for trainer in self._trainers.all():
                with trainer.condition:
                    # What was held before is appended by now, so that the log can end.
                    pass
            self._coordinator.close(_CLOSE_S)
        if self._link is not None:
            self._link.leave()

    def report(self, number: int, directory: str, part: bytes, error: str) -> None:
        """Tells the coordinator of this shard's part of a snapshot."""
        if self._link is not None:
            self._link.report(number, directory, part, error)

    def hold(self, parts: tuple[StagedPart, ...]) -> bool:
        """See Commits."""
        return not parts if self._coordinator is None else self._coordinator.hold(parts)

    def append(self, record: StepRecord | UpdateRecord) -> int:
        """See Commits."""
        return 0 if self._coordinator is None else self._coordinator.append(record)

    def hold_steps(self) -> float:
        """See Commits."""
        return 0.0 if self._coordinator is None else self._coordinator.hold_steps()

    def release_steps(self) -> None:
        """See Commits."""
        if self._coordinator is not None:
            self._coordinator.release_steps()

    def _note_formed(self, cluster_id: str, generation: int) -> None:
        self._formed = (cluster_id, generation)
        self._serve()

    def _serve(self) -> None:
        self._hooks.formed()
        self.serving.set()
