"""Shard 0: which servers are the cluster's shards, and what all of them have to carry out.

A cluster forms when all shards have come and stand at the same place: with nothing, at the same
snapshot, or where they stopped in order. A shard that comes back from an earlier place breaks
steps that are to be whole on all shards, so then every server goes back to a snapshot that all
have: this one starts again from it, and the cluster forms anew. Where all trainers are
asynchronous, the others keep what they have, and the steps that are missing on the one that came
back are counted.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from paramd.errors import ClusterMismatchError
from paramd.trainer_spec import StagedPart
from paramd_server.core.cluster.log import CommitLog
from paramd_server.core.cluster.standing import (
    GO_ON,
    RESTART,
    WAIT,
    Cluster,
    Followed,
    Standing,
    Verdict,
)
from paramd_server.core.training.records import Record

__all__ = ["Coordinator"]

_log = logging.getLogger(__name__)

# Records of one answer: a few hundred kilobytes.
_MAX_ANSWER: Final = 256
_SAY_AGAIN_S: Final = 10.0
# A shard that follows asks every second or so.
_SILENT_S: Final = 10.0
# How long a reader may hold commits up, a quarter of the time at most.
_HOLD_S: Final = 0.25
_ALIVE_S: Final = 3.0


@dataclass
class _Shard:
    """One of the other servers.

    Attributes:
        standing: as it registered.
        position: up to where it has carried out the log, as far as it has told.
        away: whether it has said that it stops, or has been told to start again.
        knows_end: whether it has been told that the coordinator stops.
        finished: the snapshot that it has made whole last, and why it could not, or ''.
        heard_at: when it was heard of last.
    """

    standing: Standing
    position: int
    away: bool = False
    knows_end: bool = False
    finished: tuple[int, str] = (0, "")
    heard_at: float = field(default_factory=time.monotonic)


class Coordinator:
    """Forms the cluster, and keeps its log. It is the `Commits` of the trainers. Thread-safe.

    Args:
        cluster: what is agreed on; its id may be '': then the shards that were there before say it,
            or it is a new one.
        standing: where this server stands at its start.
        snapshots: gives the snapshots that this server could be started from now.
        whole_steps: whether this server has trainers whose steps are to be whole.
        restart: has this server start again from a snapshot; 0 for nothing.
        formed: called when the cluster has formed.
        lost: called, with the reason, when a shard goes or comes back: what it was about to do for
            a snapshot will not be done.
        alive_s: a shard that was heard of so shortly before lets no other server take its place.
    """

    def __init__(
        self,
        cluster: Cluster,
        standing: Standing,
        *,
        snapshots: Callable[[], frozenset[int]],
        whole_steps: Callable[[], bool],
        restart: Callable[[int], None],
        formed: Callable[[], None],
        lost: Callable[[str], None],
        alive_s: float = _ALIVE_S,
    ) -> None:
        self._alive_s = alive_s
        self.id = cluster.id
        self.log = CommitLog(standing.position)
        self._cluster = cluster
        self._own = standing
        self._snapshots = snapshots
        self._whole_steps = whole_steps
        self._restart = restart
        self._formed = formed
        self._lost = lost
        self._condition = threading.Condition(threading.RLock())
        # All that follow are guarded by _condition, which is taken before the log's lock.
        self._shards: dict[int, _Shard] = {}
        self._generation = 0
        self._restarting = False
        self._refusing = False
        self._closed = False
        # Nothing is committed before (monotonic seconds).
        self._held_until = float("-inf")
        self._said_at = 0.0
        if cluster.num_shards == 1:
            with self._condition:
                self._begin(standing.generation or _new_generation(), standing.position)

    @property
    def generation(self) -> int:
        """Of the cluster as it has formed; 0 before."""
        return self._generation

    # What shards call

    def register(self, shard: int, cluster: Cluster, standing: Standing, wait_s: float) -> Verdict:
        """Takes a shard in, or tells it where to begin.

        Args:
            shard: its number.
            cluster: what it believes.
            standing: where it stands.
            wait_s: how long it waits at most for the others.

        Raises:
            ClusterMismatchError: where it does not belong here, or another server is that shard.
        """
        with self._condition:
            self._check(shard, cluster)
            self._check_place(shard, standing)
        if self._generation:
            self._lost(f"shard {shard} has come back")
        with self._condition:
            self._check_place(shard, standing)
            known = self._shards.get(shard)
            if known is not None:
                known.heard_at = time.monotonic()
            if self._generation and known is not None and standing == known.standing:
                return Verdict(GO_ON, self._generation, known.position)
            if known is None or known.standing.epoch != standing.epoch:
                _log.info("shard %d has come, %s", shard, _describe(standing))
            if self._generation:
                return self._come_back(shard, standing)
            self._shards[shard] = _Shard(standing, standing.position)
            verdict = self._form(shard)
            deadline = time.monotonic() + wait_s
            while verdict.action == WAIT:
                left = deadline - time.monotonic()
                if left <= 0 or self._shards[shard].standing is not standing:
                    break
                self._condition.wait(left)
                if self._generation:
                    return Verdict(GO_ON, self._generation, self._shards[shard].position)
            if verdict.action == RESTART:
                # As another server, which takes this one's place at once.
                self._shards[shard].away = True
            return verdict

    def follow(
        self, shard: int, epoch: int, generation: int, position: int, wait_s: float
    ) -> Followed:
        """The records after a position; waits a moment where there is none.

        Raises:
            ClusterMismatchError: where the shard has to register.
        """
        with self._condition:
            known = self._registered(shard, epoch)
            if not generation or generation != self._generation or not self.log.reaches(position):
                del self._shards[shard]
                raise ClusterMismatchError(f"shard {shard} has to register again")
            known.position, known.heard_at = position, time.monotonic()
            ended = self._closed
            if len(self._shards) == self._cluster.num_shards - 1:
                self.log.forget(min(each.position for each in self._shards.values()))
            self._condition.notify_all()
        self.log.wait(position, 0.0 if ended else wait_s)
        with self._condition:
            records, head = self.log.after(position, _MAX_ANSWER), self.log.head
            known.knows_end = self._closed and not records
            self._condition.notify_all()
            return Followed(records, head, known.knows_end)

    def leave(self, shard: int, epoch: int) -> int:
        """Lets a shard go that stops. Gives the position up to which it has to carry out the log.

        Raises:
            ClusterMismatchError: where it is not there.
        """
        with self._condition:
            self._registered(shard, epoch).away = True
            _log.info("shard %d stops", shard)
            head = self.log.head
            self._condition.notify_all()
        self._lost(f"shard {shard} stops")
        return head

    def check_registered(self, shard: int, epoch: int) -> None:
        """Raises ClusterMismatchError where a server is not that shard."""
        with self._condition:
            self._registered(shard, epoch)

    # Snapshots

    def note_finished(self, shard: int, epoch: int, number: int, error: str) -> None:
        """Notes that a shard has made a snapshot whole, or why it could not.

        Raises:
            ClusterMismatchError: where a server is not that shard.
        """
        with self._condition:
            self._registered(shard, epoch).finished = (number, error)
            self._condition.notify_all()

    def await_finished(self, number: int, wait_s: float) -> str:
        """Waits until every other shard has made a snapshot whole. Gives why one has not, or ''."""
        deadline = time.monotonic() + wait_s
        with self._condition:
            epochs = {each: known.standing.epoch for each, known in self._shards.items()}
            for shard in range(1, self._cluster.num_shards):
                while True:
                    known = self._shards.get(shard)
                    if known is None or known.standing.epoch != epochs.get(shard):
                        return f"shard {shard} has gone before it said that it has it, too"
                    if known.finished[0] == number:
                        if known.finished[1]:
                            return f"shard {shard}: {known.finished[1]}"
                        break
                    now = time.monotonic()
                    if self._closed or known.away or now - known.heard_at > _SILENT_S:
                        return f"shard {shard} has not said that it has it, too"
                    if now >= deadline:
                        return f"shard {shard} has not made it whole within {wait_s:g} s"
                    self._condition.wait(min(deadline - now, 1.0))
        return ""

    # Commits

    def hold(self, parts: tuple[StagedPart, ...]) -> bool:
        """Whether every shard still has what it said that it has."""
        with self._condition:
            if not parts:
                return True
            # For a reader, for a moment.
            while (left := self._held_until - time.monotonic()) > 0 and not self._refusing:
                self._condition.wait(left)
            if self._refusing or not self._generation:
                return False
            return all(self._has(part) for part in parts)

    def hold_steps(self) -> float:
        """Lets nothing be committed that concerns several shards for a moment.

        Returns:
            For how many seconds from now on; 0 where it was granted to somebody just before.
        """
        now = time.monotonic()
        with self._condition:
            if now >= self._held_until + 3 * _HOLD_S:
                self._held_until = now + _HOLD_S
            return max(self._held_until - now, 0.0)

    def release_steps(self) -> None:
        """Ends what `hold_steps` began."""
        with self._condition:
            self._held_until = min(self._held_until, time.monotonic())
            self._condition.notify_all()

    def append(self, record: Record) -> int:
        """Adds to the log, unless that has ended; gives the place. Without other shards it is 0."""
        if self._cluster.num_shards == 1:
            # Nobody would ever let the log forget it.
            return 0
        with self._condition:
            return self.log.head if self._closed else self.log.append(record)

    @property
    def ends(self) -> bool:
        """Whether nothing is committed any more that concerns other shards."""
        return self._refusing

    def refuse_commits(self) -> None:
        """Holds no parts any more. What has been held before is still appended."""
        with self._condition:
            self._refusing = True

    def close(self, wait_s: float) -> bool:
        """Ends the log, and waits until the shards that are there have all of it, and know that.

        Returns:
            Whether they do.
        """
        deadline = time.monotonic() + wait_s
        with self._condition:
            self._refusing = self._closed = True
            self._condition.notify_all()
            self.log.wake()
            while True:
                now = time.monotonic()
                left = [
                    each
                    for each in self._shards.values()
                    if not (each.away and each.position >= self.log.head)
                    and not each.knows_end
                    and now - each.heard_at < self._alive_s
                ]
                if not left or now >= deadline:
                    return not left
                self._condition.wait(min(deadline - now, self._alive_s))

    def missing(self) -> list[int]:
        """The other shards that are not there now: stopping, silent, or not registered."""
        now = time.monotonic()
        with self._condition:
            return [
                number
                for number in range(1, self._cluster.num_shards)
                if (each := self._shards.get(number)) is None
                or each.away
                or now - each.heard_at > _SILENT_S
            ]

    def positions(self) -> dict[int, tuple[int, float]]:
        """Of each other shard: up to where it has carried out the log, and seconds of silence."""
        now = time.monotonic()
        with self._condition:
            return {
                number: (each.position, now - each.heard_at)
                for number, each in sorted(self._shards.items())
            }

    def _has(self, part: StagedPart) -> bool:
        shard = self._shards.get(part.shard)
        return shard is not None and not shard.away and shard.standing.epoch == part.epoch

    # Forming

    def _check(self, shard: int, cluster: Cluster) -> None:
        mine = self._cluster
        if not 0 < shard < mine.num_shards or cluster.num_shards != mine.num_shards:
            raise ClusterMismatchError(
                f"shard {shard}/{cluster.num_shards} does not belong to a cluster of "
                f"{mine.num_shards} shards"
            )
        if cluster.id and self.id and cluster.id != self.id:
            raise ClusterMismatchError(
                f"shard {shard} belongs to the cluster {cluster.id!r}, but this is {self.id!r}"
            )
        if cluster.split_elements != mine.split_elements:
            raise ClusterMismatchError(
                f"shard {shard} splits parameters of more than {cluster.split_elements} elements, "
                f"but the coordinator those of more than {mine.split_elements} (--split-elements)"
            )
        if not self.id:
            # This server has lost all that it had; the others know which cluster they are.
            self.id = cluster.id

    def _check_place(self, shard: int, standing: Standing) -> None:
        known = self._shards.get(shard)
        if known is None or known.away or known.standing.epoch == standing.epoch:
            return
        if time.monotonic() - known.heard_at < self._alive_s:
            raise ClusterMismatchError(
                f"another server is shard {shard}: its place is free when it has stopped, or has "
                f"been silent for {self._alive_s:g} s"
            )

    def _registered(self, shard: int, epoch: int) -> _Shard:
        known = self._shards.get(shard)
        if known is None or known.standing.epoch != epoch:
            raise ClusterMismatchError(f"shard {shard} has to register")
        return known

    def _form(self, asking: int) -> Verdict:
        """Forms the cluster if all are here and stand at one place; else tells what to do."""
        if self._restarting or len(self._shards) < self._cluster.num_shards - 1:
            return Verdict(WAIT)
        standings = [self._own, *(each.standing for each in self._shards.values())]
        first = standings[0]
        if all(
            (each.generation, each.position) == (first.generation, first.position)
            and (each.generation or each.snapshot == first.snapshot)
            for each in standings
        ):
            self._begin(first.generation or _new_generation(), first.position)
            return Verdict(GO_ON, self._generation, first.position)
        if any(each.generation for each in standings) and not any(
            each.whole_steps for each in standings
        ):
            # The shards that lived go on, and those that died lack what they had not saved.
            position = max(each.position for each in standings)
            self._begin(_new_generation(), position)
            return Verdict(GO_ON, self._generation, position)
        return self._go_back(standings, self._shards[asking].standing)

    def _go_back(self, standings: Sequence[Standing], asking: Standing) -> Verdict:
        """Has every server that stands elsewhere start again from a snapshot that all have."""
        common = frozenset.intersection(*(each.snapshots for each in standings))
        if not common and any(each.snapshots for each in standings):
            self._complain()
            return Verdict(WAIT)
        target = max(common, default=0)
        if self._own.generation or self._own.snapshot != target or self._generation:
            _log.warning("going back to %s", _name(target))
            self._restarting = True
            self._restart(target)
        if asking.generation or asking.snapshot != target:
            return Verdict(RESTART, snapshot=target)
        return Verdict(WAIT)

    def _come_back(self, shard: int, standing: Standing) -> Verdict:
        """Takes in a shard of a cluster that has formed: one that has been away, or has died."""
        if self._restarting:
            return Verdict(WAIT)
        known = self._shards.get(shard)
        same = standing.generation == self._generation and self.log.reaches(standing.position)
        if same:
            self._take_in(shard, standing, standing.position)
            return Verdict(GO_ON, self._generation, standing.position)
        whole = self._whole_steps() or standing.whole_steps
        if whole or (known is not None and known.standing.whole_steps):
            _log.warning("shard %d has lost steps that the others have", shard)
            own = Standing(0, self._generation, snapshots=self._snapshots())
            if known is not None:
                # Whatever comes next is another server.
                known.away = True
            return self._go_back([own, standing], standing)
        head = self.log.head
        _log.warning(
            "shard %d came back %s: it lacks what came since, up to %d",
            shard,
            _describe(standing),
            head,
        )
        self._take_in(shard, standing, head)
        return Verdict(GO_ON, self._generation, head)

    def _take_in(self, shard: int, standing: Standing, position: int) -> None:
        self._shards[shard] = _Shard(standing, position)
        self._condition.notify_all()

    def _begin(self, generation: int, position: int) -> None:
        self.id = self.id or secrets.token_hex(8)
        self._generation = generation
        self.log.begin(position)
        for each in self._shards.values():
            each.position = position
        if self._cluster.num_shards > 1:
            _log.info("the cluster %s has formed, at position %d", self.id, position)
        self._formed()
        self._condition.notify_all()

    def _complain(self) -> None:
        now = time.monotonic()
        if now - self._said_at < _SAY_AGAIN_S:
            return
        self._said_at = now
        there = {n: each.standing.snapshots for n, each in sorted(self._shards.items())}
        lists = "; ".join(
            f"shard {number}: {sorted(snapshots) or 'none'}"
            for number, snapshots in {0: self._own.snapshots | self._snapshots(), **there}.items()
        )
        _log.error(
            "the shards have no snapshot in common, so the cluster cannot start (%s). Bring the "
            "missing files back, or start every shard with --restore none to begin with nothing",
            lists,
        )


def _new_generation() -> int:
    return secrets.randbits(63) | 1


def _name(snapshot: int) -> str:
    return f"snapshot {snapshot}" if snapshot else "the start, with nothing"


def _describe(standing: Standing) -> str:
    if standing.generation:
        return f"at position {standing.position}"
    return "with nothing" if not standing.snapshot else f"from snapshot {standing.snapshot}"
