"""Forming a cluster, coming back to it, following it and ending it: with plain objects."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from paramd.errors import ClusterMismatchError
from paramd.trainer_spec import StagedPart
from paramd_server.core.cluster.coordinator import Coordinator
from paramd_server.core.cluster.standing import (
    GO_ON,
    RESTART,
    WAIT,
    Cluster,
    Standing,
    Verdict,
)
from paramd_server.core.training.records import SnapshotRecord
from tests.support.waiting import wait_until


@dataclass
class Plant:
    """A coordinator, and what it asks of its server."""

    num_shards: int = 2
    standing: Standing = field(default_factory=lambda: Standing(100))
    cluster_id: str = "c"
    snapshots: frozenset[int] = frozenset()
    whole_steps: bool = True
    alive_s: float = 0.0
    restarts: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    num_formed: int = 0

    def __post_init__(self) -> None:
        def formed() -> None:
            self.num_formed += 1

        self.coordinator = Coordinator(
            Cluster(self.cluster_id, self.num_shards, 4),
            self.standing,
            snapshots=lambda: self.snapshots,
            whole_steps=lambda: self.whole_steps,
            restart=self.restarts.append,
            formed=formed,
            lost=self.lost.append,
            alive_s=self.alive_s,
        )

    def register(self, shard: int = 1, *, epoch: int = 1, **standing: Any) -> Verdict:
        cluster = Cluster(self.cluster_id, self.num_shards, 4)
        standing.setdefault("snapshots", self.snapshots)
        return self.coordinator.register(shard, cluster, Standing(epoch, **standing), 0.0)

    def formed(self, **standing: Any) -> Plant:
        """With shard 1 in it."""
        assert self.register(**standing).action == GO_ON
        return self

    def append(self, count: int = 1) -> int:
        for number in range(count):
            self.coordinator.append(SnapshotRecord(number, ""))
        return self.coordinator.log.head

    def follow(self, position: int, *, shard: int = 1, epoch: int = 1) -> Any:
        generation = self.coordinator.generation
        return self.coordinator.follow(shard, epoch, generation, position, 0.0)


def _part(shard: int = 1, epoch: int = 1) -> StagedPart:
    return StagedPart(shard, epoch, ("w",), "")


def _in_background(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    return thread, results


# Forming


def test_empty_servers_form_a_cluster_when_all_have_come() -> None:
    plant = Plant(3)
    assert plant.register(1).action == WAIT
    assert (plant.coordinator.generation, plant.num_formed) == (0, 0)
    verdict = plant.register(2)
    assert verdict == Verdict(GO_ON, plant.coordinator.generation, 0)
    assert verdict.generation > 0
    assert plant.num_formed == 1
    # The first one asks again.
    assert plant.register(1) == verdict


def test_who_waits_is_told_when_the_last_one_comes() -> None:
    plant = Plant(3)
    cluster = Cluster("c", 3, 4)
    thread, results = _in_background(
        lambda: plant.coordinator.register(1, cluster, Standing(1), 30.0)
    )
    wait_until(lambda: 1 in plant.coordinator.positions(), "shard 1 waits")
    verdict = plant.register(2, epoch=2)
    thread.join(20)
    assert results == [verdict]


@pytest.mark.parametrize(
    ("own", "other"),
    [
        (Standing(100, 9, 40), {"generation": 9, "position": 40}),
        (
            Standing(100, 0, 40, snapshot=3, snapshots=frozenset({3})),
            {"position": 40, "snapshot": 3, "snapshots": frozenset({3})},
        ),
    ],
)
def test_servers_that_stand_at_one_place_go_on_there(own: Standing, other: Any) -> None:
    plant = Plant(standing=own)
    verdict = plant.register(whole_steps=True, **other)
    assert (verdict.action, verdict.position) == (GO_ON, 40)
    assert plant.coordinator.log.head == 40
    assert plant.restarts == []
    if own.generation:
        assert verdict.generation == own.generation
    else:
        assert verdict.generation


def test_servers_at_different_snapshots_go_to_the_newest_that_all_have() -> None:
    both = Standing(100, 0, 50, snapshot=5, snapshots=frozenset({3, 4, 5}))
    plant = Plant(standing=both, snapshots=frozenset({3, 4, 5}))
    verdict = plant.register(position=40, snapshot=4, snapshots=frozenset({2, 3, 4}))
    assert plant.restarts == [4]
    assert verdict == Verdict(WAIT), "it stands there already"
    # The coordinator starts again, and nobody goes on meanwhile.
    assert plant.register(position=40, snapshot=4, snapshots=frozenset({4})).action == WAIT
    assert plant.restarts == [4]


def test_another_shard_goes_back_to_where_the_coordinator_stands() -> None:
    own = Standing(100, 0, 40, snapshot=4, snapshots=frozenset({4}))
    plant = Plant(standing=own, snapshots=frozenset({4}))
    verdict = plant.register(generation=9, position=60, snapshots=frozenset({4}), whole_steps=True)
    assert verdict == Verdict(RESTART, snapshot=4)
    assert plant.restarts == []
    # It comes back as another server, at once.
    again = plant.register(epoch=2, position=40, snapshot=4, snapshots=frozenset({4}))
    assert again.action == GO_ON


def test_without_any_snapshot_all_begin_with_nothing() -> None:
    plant = Plant()
    verdict = plant.register(generation=9, position=60, whole_steps=True)
    assert verdict == Verdict(RESTART, snapshot=0)
    assert plant.restarts == [], "the coordinator has nothing already"


def test_without_a_common_snapshot_nothing_starts(caplog: pytest.LogCaptureFixture) -> None:
    own = Standing(100, 0, 40, snapshot=4, snapshots=frozenset({4, 5}))
    plant = Plant(standing=own)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert plant.register(snapshots=frozenset({3})).action == WAIT
    (message,) = caplog.messages
    assert "shard 0: [4, 5]; shard 1: [3]" in message
    assert "--restore none" in message
    assert plant.restarts == []
    assert not plant.coordinator.generation


def test_asynchronous_shards_that_lived_keep_what_they_have() -> None:
    own = Standing(100, 0, 40, snapshot=4, snapshots=frozenset({4}))
    plant = Plant(standing=own, whole_steps=False)
    verdict = plant.register(generation=9, position=60, snapshots=frozenset({4}))
    assert (verdict.action, verdict.position) == (GO_ON, 60)
    assert verdict.generation not in (0, 9)
    assert plant.coordinator.log.head == 60
    assert plant.restarts == []


# Coming back


def test_a_shard_that_has_missed_nothing_goes_on() -> None:
    plant = Plant().formed()
    plant.append(5)
    plant.follow(2)
    generation = plant.coordinator.generation
    verdict = plant.register(epoch=2, generation=generation, position=3, whole_steps=True)
    assert verdict == Verdict(GO_ON, generation, 3)
    assert [position for position, _ in plant.follow(3, epoch=2).records] == [4, 5]
    assert plant.restarts == []


@pytest.mark.parametrize(
    "standing",
    [{}, {"snapshot": 4}, {"generation": 9, "position": 3}, {"position": 5}],
    ids=["empty", "from a snapshot", "of another generation", "of none"],
)
def test_a_shard_that_has_lost_steps_takes_all_back(standing: dict[str, Any]) -> None:
    plant = Plant(snapshots=frozenset({4})).formed()
    plant.append(5)
    verdict = plant.register(epoch=2, **standing)
    assert plant.restarts == [4]
    at_it = standing.get("snapshot") == 4
    assert verdict == (Verdict(WAIT) if at_it else Verdict(RESTART, snapshot=4))
    assert plant.lost == ["shard 1 has come back"]


def test_a_shard_that_is_too_far_behind_has_lost_steps() -> None:
    plant = Plant(snapshots=frozenset({4})).formed()
    plant.append(5)
    plant.follow(4)
    generation = plant.coordinator.generation
    verdict = plant.register(epoch=2, generation=generation, position=2, whole_steps=True)
    assert verdict == Verdict(RESTART, snapshot=4)
    assert plant.restarts == [4]


def test_a_gap_of_asynchronous_trainers_is_accepted() -> None:
    plant = Plant(whole_steps=False, snapshots=frozenset({4})).formed()
    plant.append(5)
    verdict = plant.register(epoch=2, snapshot=4, position=2)
    assert verdict == Verdict(GO_ON, plant.coordinator.generation, 5)
    assert plant.restarts == []
    assert plant.follow(5, epoch=2).records == []


def test_what_a_dead_shard_had_counts_although_it_came_back_without() -> None:
    plant = Plant(whole_steps=False)
    plant.formed(whole_steps=True)
    assert plant.register(epoch=2) == Verdict(WAIT), "it has nothing already"
    assert plant.restarts == [0]


# Wrong ones


@pytest.mark.parametrize(
    ("shard", "cluster", "word"),
    [
        (0, Cluster("c", 2, 4), "does not belong"),
        (2, Cluster("c", 2, 4), "does not belong"),
        (1, Cluster("c", 3, 4), "1/3 does not belong to a cluster of 2"),
        (1, Cluster("d", 2, 4), "'d', but this is 'c'"),
        (1, Cluster("c", 2, 5), "--split-elements"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_who_does_not_belong_is_refused(
    shard: int, cluster: Cluster, word: str, there: bool
) -> None:
    plant = Plant()
    if there:
        plant.formed()
    before = plant.coordinator.positions().keys()
    with pytest.raises(ClusterMismatchError, match=word):
        plant.coordinator.register(shard, cluster, Standing(3), 0.0)
    assert plant.coordinator.positions().keys() == before
    assert plant.lost == []


def test_a_refused_server_names_no_cluster() -> None:
    plant = Plant(cluster_id="")
    with pytest.raises(ClusterMismatchError, match="split"):
        plant.coordinator.register(1, Cluster("theirs", 2, 5), Standing(3), 0.0)
    plant.coordinator.register(1, Cluster("ours", 2, 4), Standing(3), 0.0)
    assert plant.coordinator.id == "ours"


def test_a_second_server_of_one_number_is_refused_while_the_first_lives() -> None:
    plant = Plant(alive_s=60.0).formed()
    generation = plant.coordinator.generation
    with pytest.raises(ClusterMismatchError, match="another server is shard 1"):
        plant.register(epoch=2)
    plant.follow(0)
    assert plant.restarts == []
    assert plant.lost == []
    # One that has stopped makes room at once.
    plant.coordinator.leave(1, 1)
    assert plant.register(epoch=2, generation=generation).action == GO_ON
    with pytest.raises(ClusterMismatchError, match="register"):
        plant.follow(0)


def test_a_silent_server_makes_room() -> None:
    plant = Plant(alive_s=0.05).formed()
    generation = plant.coordinator.generation

    def taken_in() -> bool:
        try:
            return plant.register(epoch=2, generation=generation).action == GO_ON
        except ClusterMismatchError:
            return False

    wait_until(taken_in, "the place is free")


# Following


@pytest.mark.parametrize(
    ("shard", "epoch", "generation", "position"),
    [(2, 1, None, 0), (1, 2, None, 0), (1, 1, 0, 0), (1, 1, 12345, 0), (1, 1, None, 6)],
    ids=["no such shard", "other epoch", "no generation", "other generation", "beyond the head"],
)
def test_who_follows_wrongly_has_to_register(
    shard: int, epoch: int, generation: int | None, position: int
) -> None:
    plant = Plant().formed()
    plant.append(5)
    now = plant.coordinator.generation
    wanted = now if generation is None else generation
    with pytest.raises(ClusterMismatchError, match="register"):
        plant.coordinator.follow(shard, epoch, wanted, position, 0.0)
    # Nothing of the log is lost by that: the shard itself goes on.
    assert plant.register(generation=now, whole_steps=True) == Verdict(GO_ON, now, 0)
    assert len(plant.follow(0).records) == 5


def test_records_come_in_order_and_are_forgotten_when_all_have_them() -> None:
    plant = Plant(3)
    plant.register(1)
    assert plant.register(2, epoch=2).action == GO_ON
    plant.append(300)
    first = plant.follow(0)
    assert [position for position, _ in first.records] == list(range(1, 257))
    assert (first.head, first.ended) == (300, False)
    plant.follow(256)
    assert plant.coordinator.log.reaches(0), "shard 2 has none of them"
    plant.follow(200, shard=2, epoch=2)
    assert not plant.coordinator.log.reaches(199)
    assert plant.coordinator.positions()[1][0] == 256


def test_a_server_without_others_keeps_no_log() -> None:
    plant = Plant(1)
    assert plant.coordinator.generation
    assert plant.append(1000) == 0
    assert plant.coordinator.log.after(0, 9) == []


# Commits


def test_parts_are_held_by_who_staged_them() -> None:
    plant = Plant()
    assert plant.coordinator.hold(())
    assert not plant.coordinator.hold((_part(),)), "before it has formed"
    plant.formed()
    assert plant.coordinator.hold((_part(),))
    assert not plant.coordinator.hold((_part(epoch=2),))
    assert not plant.coordinator.hold((_part(), _part(shard=2)))
    plant.coordinator.leave(1, 1)
    assert not plant.coordinator.hold((_part(),))
    assert plant.coordinator.hold(())
    assert plant.lost == ["shard 1 stops"]


def test_leaving_tells_where_to_stop() -> None:
    plant = Plant().formed()
    plant.append(3)
    assert plant.coordinator.leave(1, 1) == 3
    for wrong in ((1, 2), (2, 1)):
        with pytest.raises(ClusterMismatchError):
            plant.coordinator.leave(*wrong)


# The end


def test_the_end_waits_until_all_have_everything_and_know_it() -> None:
    plant = Plant(alive_s=60.0).formed()
    plant.append(3)
    plant.coordinator.refuse_commits()
    assert not plant.coordinator.hold((_part(),))
    assert plant.append() == 4, "what was held before is still told"
    thread, results = _in_background(lambda: plant.coordinator.close(30.0))
    wait_until(lambda: plant.append() == 4, "the log has ended")
    followed = plant.follow(2)
    assert ([position for position, _ in followed.records], followed.ended) == ([3, 4], False)
    assert results == []
    followed = plant.follow(4)
    assert (followed.records, followed.ended) == ([], True)
    thread.join(20)
    assert results == [True]


def test_the_end_comes_at_once_where_all_have_stopped() -> None:
    plant = Plant(3, alive_s=60.0)
    plant.register(1)
    plant.register(2, epoch=2)
    for shard in (1, 2):
        plant.coordinator.leave(shard, shard)
    assert plant.coordinator.close(60.0)


def test_the_end_does_not_wait_for_who_is_silent() -> None:
    plant = Plant(alive_s=0.01).formed()
    plant.append()
    assert plant.coordinator.close(60.0)
    waits = Plant(alive_s=60.0).formed()
    waits.append()
    assert not waits.coordinator.close(0.01), "it is there, and has not all"


# Snapshots


def test_a_snapshot_is_whole_when_all_say_so() -> None:
    plant = Plant(3)
    plant.register(1)
    plant.register(2, epoch=2)
    thread, results = _in_background(lambda: plant.coordinator.await_finished(7, 30.0))
    plant.coordinator.note_finished(1, 1, 6, "of before")
    plant.coordinator.note_finished(1, 1, 7, "")
    plant.coordinator.note_finished(2, 2, 7, "")
    thread.join(20)
    assert results == [""]


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (lambda plant: plant.coordinator.note_finished(1, 1, 7, "disk full"), "disk full"),
        (lambda plant: plant.coordinator.leave(1, 1), "has not said"),
        (lambda plant: plant.register(epoch=2), "shard 1 has gone"),
        (lambda plant: plant.coordinator.close(0.0), "has not said"),
    ],
    ids=["cannot", "stops", "died", "the coordinator stops"],
)
def test_why_a_snapshot_is_not_whole(fault: Callable[[Plant], Any], why: str) -> None:
    plant = Plant(whole_steps=False).formed()
    thread, results = _in_background(lambda: plant.coordinator.await_finished(7, 30.0))
    # It may not wait yet; then the fault is not seen as one that came meanwhile.
    plant.coordinator.check_registered(1, 1)
    wait_until(lambda: _waits(plant.coordinator), "it waits")
    fault(plant)
    thread.join(20)
    (said,) = results
    assert why in said


def _waits(coordinator: Coordinator) -> bool:
    return bool(coordinator._condition._waiters)  # type: ignore[attr-defined]


def test_a_snapshot_that_takes_too_long() -> None:
    plant = Plant().formed()
    assert "within 0.01 s" in plant.coordinator.await_finished(7, 0.01)
    with pytest.raises(ClusterMismatchError):
        plant.coordinator.note_finished(1, 2, 7, "")
    with pytest.raises(ClusterMismatchError):
        plant.coordinator.check_registered(2, 1)


def test_who_is_missing() -> None:
    plant = Plant(4)
    for shard in (1, 2, 3):
        plant.register(shard, epoch=shard)
    assert plant.coordinator.missing() == []
    plant.coordinator.leave(2, 2)
    assert plant.coordinator.missing() == [2]
