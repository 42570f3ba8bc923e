"""Who is waited for in a trainer."""

from __future__ import annotations

import pytest

from paramd.errors import WorkerLostError
from paramd.optimizer import SGD
from paramd.trainer_spec import TrainerSpec
from paramd_server.core.training.members import Member
from paramd_server.core.training.participants import Participants


def spec(*, staleness: int, num_workers: int = 0, worker_loss: str = "continue") -> TrainerSpec:
    return TrainerSpec(
        "t",
        ("w",),
        SGD(),
        distributed=True,
        staleness=staleness,
        num_workers=num_workers,
        worker_loss=worker_loss,
    )


def member(name: str, rank: int) -> Member:
    return Member(name.encode().ljust(16, b"-"), name, rank, 10.0)


def test_workers_that_are_still_to_come_count_like_the_slowest() -> None:
    participants = Participants(spec(staleness=1, num_workers=2))
    first, _ = participants.join(member("a", 0), 0)
    first.clock = 5
    assert participants.awaited() == 0
    second, is_new = participants.join(member("b", 1), 5)
    assert (second.clock, is_new) == (5, True)
    assert participants.awaited() == 5


def test_without_a_number_of_workers_nobody_is_to_come() -> None:
    participants = Participants(spec(staleness=1))
    participants.join(member("a", 0), 3)
    assert participants.awaited() == 3


@pytest.mark.parametrize("name", ["b", "c"])
def test_a_lost_worker_is_replaced_by_itself_or_whoever_has_its_rank(name: str) -> None:
    participants = Participants(spec(staleness=0, worker_loss="error"))
    participants.join(member("a", 0), 0)
    participants.join(member("b", 1), 0)
    assert participants.leave(member("b", 1).identity, lost=True)
    with pytest.raises(WorkerLostError, match=r"b \(rank 1\)"):
        participants.check_nobody_lost()
    participants.join(member("d", 2), 0)
    assert participants.anybody_lost
    participants.join(member(name, 1), 0)
    participants.check_nobody_lost()


def test_who_leaves_by_itself_is_not_lost() -> None:
    participants = Participants(spec(staleness=0, worker_loss="error"))
    participants.join(member("a", 0), 0)
    participants.leave(member("a", 0).identity, lost=False)
    assert not participants.anybody_lost
    assert participants.leave(b"?" * 16, lost=True) is False
