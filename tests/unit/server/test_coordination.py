"""Claims and barriers, under a clock that the test moves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from paramd.errors import BarrierMismatchError, ClaimLostError, InvalidArgumentError
from paramd_server.core import coordination
from paramd_server.core.coordination import Arrival, Barriers, Claims

ALICE, BOB, CAROL = ((letter * 16, 1) for letter in (b"a", b"b", b"c"))


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(coordination, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def claim(claims: Claims, ticket: tuple[bytes, int], *, lease_s: float = 10) -> str:
    return claims.claim("work", ticket, lease_s=lease_s, wait_s=0)


def test_work_is_done_once(clock: Clock) -> None:
    claims = Claims()
    assert claim(claims, ALICE) == "claimed"
    assert claim(claims, ALICE) == "claimed", "asking again is safe"
    assert claim(claims, BOB) == "busy"
    claims.complete("work", ALICE)
    claims.complete("work", ALICE)
    assert claim(claims, BOB) == "done"
    assert claim(claims, ALICE) == "done"
    with pytest.raises(ClaimLostError):
        claims.complete("work", BOB)


def test_a_lease_lapses_and_the_next_caller_gets_the_work(clock: Clock) -> None:
    claims = Claims()
    claim(claims, ALICE)
    clock.now += 9
    assert claim(claims, BOB) == "busy"
    clock.now += 2
    assert claim(claims, BOB) == "claimed"
    with pytest.raises(ClaimLostError):
        claims.renew("work", ALICE, lease_s=10)
    with pytest.raises(ClaimLostError):
        claims.complete("work", ALICE)
    claims.abandon("work", ALICE)
    assert claim(claims, CAROL) == "busy", "what one does not hold one cannot give up"


def test_renewing_extends_a_lease(clock: Clock) -> None:
    claims = Claims()
    claim(claims, ALICE)
    for _ in range(5):
        clock.now += 8
        claims.renew("work", ALICE, lease_s=10)
    assert claim(claims, BOB) == "busy"
    clock.now += 10.5
    assert claim(claims, BOB) == "claimed"


def test_a_lapsed_claim_that_nobody_took_can_still_be_completed(clock: Clock) -> None:
    claims = Claims()
    claim(claims, ALICE)
    clock.now += 100
    claims.complete("work", ALICE)
    assert claim(claims, BOB) == "done"


def test_abandoned_work_is_open_again(clock: Clock) -> None:
    claims = Claims()
    claim(claims, ALICE)
    claims.abandon("work", ALICE)
    assert claim(claims, BOB) == "claimed"
    claims.complete("work", BOB)
    claims.abandon("work", BOB)
    assert claim(claims, ALICE) == "done", "what is done cannot be given up"


@pytest.mark.parametrize("lease_s", [0, -1, 3601, float("inf"), float("nan")])
def test_leases_that_cannot_be(clock: Clock, lease_s: float) -> None:
    claims = Claims()
    with pytest.raises(InvalidArgumentError):
        claim(claims, ALICE, lease_s=lease_s)
    claim(claims, ALICE)
    with pytest.raises(InvalidArgumentError):
        claims.renew("work", ALICE, lease_s=lease_s)
    assert claim(claims, BOB) == "busy"


def test_unknown_work_is_not_held() -> None:
    with pytest.raises(ClaimLostError):
        Claims().complete("none", ALICE)
    Claims().abandon("none", ALICE)


def started(target: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_a_waiting_claim_learns_at_once_that_the_work_is_done() -> None:
    claims = Claims()
    claim(claims, ALICE)
    answers: list[str] = []
    waiting = started(lambda: answers.append(claims.claim("work", BOB, lease_s=10, wait_s=60)))
    waiting.join(0.05)
    claims.complete("work", ALICE)
    waiting.join(1.5)
    assert answers == ["done"], "it waited longer than it had to"


def arrive(barriers: Barriers, ticket: tuple[bytes, int], num_workers: int = 2) -> Arrival:
    return barriers.arrive("meet", ticket, num_workers, wait_s=0)


def test_a_barrier_opens_when_all_are_there(clock: Clock) -> None:
    barriers = Barriers()
    assert arrive(barriers, ALICE) == Arrival(False, 1, 0)
    assert arrive(barriers, ALICE) == Arrival(False, 1, 0), "asking again is no arrival"
    assert arrive(barriers, BOB) == Arrival(True, 2, 1)
    assert arrive(barriers, ALICE) == Arrival(True, 2, 0)
    assert arrive(barriers, BOB) == Arrival(True, 2, 1)


def test_a_barrier_can_be_used_again(clock: Clock) -> None:
    barriers = Barriers()
    arrive(barriers, ALICE)
    arrive(barriers, BOB)
    again = ((ALICE[0], 2), (BOB[0], 2))
    assert arrive(barriers, again[1]) == Arrival(False, 1, 0)
    assert arrive(barriers, ALICE).open, "a late question about the round before"
    assert arrive(barriers, again[0]) == Arrival(True, 2, 1)


def test_a_barrier_of_one_is_open() -> None:
    assert arrive(Barriers(), ALICE, 1) == Arrival(True, 1, 0)


def test_workers_must_agree_on_their_number(clock: Clock) -> None:
    barriers = Barriers()
    arrive(barriers, ALICE, 3)
    with pytest.raises(BarrierMismatchError):
        arrive(barriers, BOB, 2)
    assert arrive(barriers, BOB, 3).num_arrived == 2
    with pytest.raises(BarrierMismatchError):
        arrive(barriers, CAROL, 0)


def test_one_can_leave_a_barrier_until_it_opens(clock: Clock) -> None:
    barriers = Barriers()
    arrive(barriers, ALICE)
    assert barriers.leave("meet", ALICE) is False
    assert arrive(barriers, BOB) == Arrival(False, 1, 0)
    assert arrive(barriers, CAROL).open
    assert barriers.leave("meet", BOB) is True, "too late"
    assert barriers.leave("none", ALICE) is False


def test_who_does_not_ask_any_more_is_dropped(clock: Clock) -> None:
    barriers = Barriers(forget_after_s=15)
    arrive(barriers, ALICE)
    clock.now += 16
    assert arrive(barriers, BOB) == Arrival(False, 1, 0)
    clock.now += 10
    assert arrive(barriers, BOB) == Arrival(False, 1, 0)
    clock.now += 10
    assert arrive(barriers, ALICE) == Arrival(True, 2, 1)


def test_a_number_from_the_dead_does_not_bind_the_living(clock: Clock) -> None:
    barriers = Barriers(forget_after_s=15)
    arrive(barriers, ALICE, 5)
    clock.now += 16
    assert arrive(barriers, BOB, 2) == Arrival(False, 1, 0)


def test_many_threads_meet_and_get_different_places() -> None:
    barriers = Barriers()
    arrivals: list[Arrival] = []

    def meet(index: int) -> None:
        arrivals.append(barriers.arrive("meet", (bytes([index]) * 16, 1), 16, wait_s=60))

    threads = [started(lambda index=index: meet(index)) for index in range(16)]  # type: ignore[misc]
    for thread in threads:
        thread.join(10)
    assert sorted(arrival.index for arrival in arrivals) == list(range(16))
    assert all(arrival.open for arrival in arrivals)
