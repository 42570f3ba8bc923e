"""What shards and their coordinator tell each other: where they stand, and what is to be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from paramd_server.core.training.records import Record

__all__ = ["GO_ON", "RESTART", "WAIT", "Cluster", "Followed", "Standing", "Verdict"]

WAIT: Final = "wait"
GO_ON: Final = "go_on"
RESTART: Final = "restart"


@dataclass(frozen=True)
class Cluster:
    """What all servers of a cluster agree on.

    Attributes:
        id: its name; of one that has none yet ''.
        num_shards: how many servers it has.
        split_elements: dense parameters of more elements are split.
    """

    id: str
    num_shards: int
    split_elements: int


@dataclass(frozen=True)
class Standing:
    """Where the state of one server stands.

    Attributes:
        epoch: of the server.
        generation: of the cluster that it belongs to; 0 where it is empty or fresh from a snapshot.
        position: up to where it has carried out the log.
        snapshot: from which it was started; 0 for none.
        snapshots: from which it could be started.
        whole_steps: whether it has trainers whose steps are to be whole on all shards.
    """

    epoch: int
    generation: int = 0
    position: int = 0
    snapshot: int = 0
    snapshots: frozenset[int] = frozenset()
    whole_steps: bool = False


@dataclass(frozen=True)
class Verdict:
    """What a shard is told.

    Attributes:
        action: WAIT, GO_ON from `position`, or RESTART from `snapshot`, of which 0 is nothing.
        generation: of the cluster.
        position: up to where the shard is taken to have carried out the log.
        snapshot: to start from.
    """

    action: str
    generation: int = 0
    position: int = 0
    snapshot: int = 0


@dataclass(frozen=True)
class Followed:
    """What a shard gets that follows the log.

    Attributes:
        records: with their positions, in order.
        head: the position of the last record that there is.
        ended: whether that is the last one that there will be, since the coordinator stops.
    """

    records: Sequence[tuple[int, Record]]
    head: int
    ended: bool = False
