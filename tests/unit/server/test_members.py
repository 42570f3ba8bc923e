"""The workers of a cluster, under a clock that the test moves."""

from __future__ import annotations

import pytest

from paramd.errors import InvalidArgumentError, LeaseEndedError, WorkerNotJoinedError
from paramd_server.core.coordination import Barriers
from paramd_server.core.training.members import Member, Members
from tests.support.plain_trainers import Clock, identity_of


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def members(clock: Clock) -> Members:
    return Members(clock)


def join(members: Members, identity: str, worker: str = "", *, lease_s: float = 10.0) -> Member:
    return members.join(identity_of(identity), worker, lease_s=lease_s)


def ranks(members: Members) -> dict[str, int]:
    return {member.worker: member.rank for member in members.all()}


def test_ranks_are_the_lowest_numbers_that_are_free(members: Members) -> None:
    for name in "abcd":
        join(members, name, name)
    assert ranks(members) == {"a": 0, "b": 1, "c": 2, "d": 3}
    members.leave(identity_of("b"))
    members.leave(identity_of("a"))
    assert join(members, "e", "e").rank == 0
    assert join(members, "f", "f").rank == 1
    assert len(members.all()) == 4


def test_joining_again_keeps_the_rank_and_renews(members: Members, clock: Clock) -> None:
    join(members, "a", "a")
    join(members, "b", "b")
    clock.now += 9
    assert join(members, "a", "a").rank == 0
    clock.now += 2
    assert ranks(members) == {"a": 0}


def test_a_worker_without_a_name_goes_by_its_identity(members: Members) -> None:
    assert join(members, "a").worker == identity_of("a").hex()
    assert join(members, "b").rank == 1


def test_a_name_gets_its_rank_back(members: Members, clock: Clock) -> None:
    for name in "abc":
        join(members, name, name)
    clock.now += 11
    assert members.all() == []
    assert join(members, "c2", "c").rank == 2
    assert join(members, "b2", "b").rank == 1
    assert join(members, "a2", "a").rank == 0


def test_a_rank_that_another_has_taken_is_not_given_twice(members: Members) -> None:
    join(members, "a", "a")
    members.leave(identity_of("a"))
    join(members, "new", "new")
    assert join(members, "a2", "a").rank == 1
    assert ranks(members) == {"new": 0, "a": 1}


def test_a_name_that_joins_anew_takes_its_place_over_at_once(members: Members) -> None:
    gone: list[tuple[str, bool]] = []
    members.listen(lambda member, lost: gone.append((member.worker, lost)))
    join(members, "a", "a")
    join(members, "b", "b")
    assert join(members, "a2", "a").rank == 0
    assert gone == [("a", False)]
    with pytest.raises(LeaseEndedError, match="'a' has joined anew"):
        members.check(identity_of("a"))
    # What the former one still does renews nothing.
    members.renew(identity_of("a"))
    assert members.check(identity_of("a2")).worker == "a"


def test_a_lease_ends_when_nothing_is_heard(members: Members, clock: Clock) -> None:
    gone: list[tuple[str, bool]] = []
    members.listen(lambda member, lost: gone.append((member.worker, lost)))
    join(members, "a", "a", lease_s=5)
    join(members, "b", "b", lease_s=50)
    assert members.next_end() == 5
    clock.now += 4
    members.renew(identity_of("a"))
    assert members.next_end() == 5
    clock.now += 4
    assert members.check(identity_of("a")).rank == 0
    clock.now += 5
    assert ranks(members) == {"b": 1}
    assert gone == [("a", True)]
    with pytest.raises(LeaseEndedError, match=r"5 s: call join\(\)"):
        members.check(identity_of("a"))
    members.expire()
    assert gone == [("a", True)], "said once"


def test_a_lease_that_has_ended_cannot_be_renewed(members: Members, clock: Clock) -> None:
    """Also where nobody has looked since."""
    join(members, "a", "a")
    clock.now += 10
    members.renew(identity_of("a"))
    assert members.all() == []


def test_who_never_joined_is_told_so(members: Members) -> None:
    with pytest.raises(WorkerNotJoinedError, match=r"join\(\)"):
        members.check(identity_of("a"))
    members.renew(identity_of("a"))
    members.leave(identity_of("a"))
    assert members.all() == []
    assert members.next_end() == float("inf")


@pytest.mark.parametrize("lease_s", [0, -1, 3601, float("inf"), float("nan")])
def test_leases_that_cannot_be(members: Members, lease_s: float) -> None:
    with pytest.raises(InvalidArgumentError, match="lease"):
        join(members, "a", lease_s=lease_s)
    assert members.all() == []


def test_the_number_of_workers_is_bounded(members: Members) -> None:
    for number in range(4096):
        join(members, str(number))
    with pytest.raises(InvalidArgumentError, match="4096"):
        join(members, "one more")
    members.leave(identity_of("7"))
    assert join(members, "one more").rank == 7


def test_a_name_that_takes_itself_over_loses_nothing_where_it_is_full(members: Members) -> None:
    for number in range(4096):
        join(members, str(number), f"worker {number}")
    assert join(members, "again", "worker 5").rank == 5
    assert len(members.all()) == 4096


def test_members_survive_a_snapshot(members: Members, clock: Clock) -> None:
    join(members, "a", "a")
    join(members, "b", "b", lease_s=3)
    join(members, "c", "c")
    members.leave(identity_of("c"))
    clock.now += 2
    later = Clock()
    taken = Members(later)
    taken.restore(members.document())
    # A server that takes long to start hears nobody, and lets nobody go.
    later.now += 60
    taken.expire()
    assert ranks(taken) == {"a": 0, "b": 1}
    taken.begin_leases()
    assert taken.next_end() == 3
    assert taken.check(identity_of("b")).rank == 1
    assert taken.join(identity_of("c2"), "c", lease_s=5).rank == 2
    # Whose lease had ended before is told so afterwards, too.
    with pytest.raises((LeaseEndedError, WorkerNotJoinedError)):
        taken.check(identity_of("c"))


# Barriers of all who have joined


def arrive(barriers: Barriers, worker: str) -> bool:
    return barriers.arrive("b", (identity_of(worker), 1), 0, wait_s=0).open


def test_a_barrier_without_a_number_waits_for_all_workers(members: Members) -> None:
    barriers = Barriers(members.identities)
    for name in "abc":
        join(members, name, name)
    assert not arrive(barriers, "a")
    assert not arrive(barriers, "b")
    assert arrive(barriers, "c")
    assert arrive(barriers, "a")


def test_a_worker_that_dies_does_not_hold_a_barrier(members: Members, clock: Clock) -> None:
    barriers = Barriers(members.identities)
    for name, lease_s in (("a", 100), ("b", 100), ("c", 5)):
        join(members, name, name, lease_s=lease_s)
    assert not arrive(barriers, "a")
    assert not arrive(barriers, "b")
    clock.now += 6
    assert arrive(barriers, "a")


def test_a_worker_that_died_at_a_barrier_is_not_counted_for_one_that_lives(
    members: Members, clock: Clock
) -> None:
    barriers = Barriers(members.identities)
    for name, lease_s in (("a", 5), ("b", 100), ("c", 100)):
        join(members, name, name, lease_s=lease_s)
    assert not arrive(barriers, "a")
    clock.now += 6
    assert not arrive(barriers, "b"), "c lives, and has not come"
    assert arrive(barriers, "c")
