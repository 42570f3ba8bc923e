"""Rounds, clocks and workers of a trainer, as plain objects."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paramd.context import cpu
from paramd.errors import (
    ClockMismatchError,
    DTypeMismatchError,
    InvalidArgumentError,
    LeaseEndedError,
    NoGradientError,
    NonFiniteGradientError,
    ParamdError,
    ScheduledLearningRateError,
    ShapeMismatchError,
    StaleGradientError,
    TrainerMismatchError,
    TrainerNotFoundError,
    WorkerLostError,
    WorkerNotJoinedError,
)
from paramd.lr_scheduler import FactorScheduler
from paramd.trainer_spec import StepResult
from paramd_server.core.attributes import cast, set_grad_req
from paramd_server.core.operations import Operation
from paramd_server.core.training.members import Member, Members
from tests.support.plain_trainers import LEASE_S, Plant, full, identity_of

COMMITTED = "committed"


@pytest.fixture
def plant() -> Plant:
    plant = Plant()
    plant.create("w", (2, 3))
    plant.create("v", (4,))
    return plant


def state_of(plant: Plant, operation: Operation) -> StepResult:
    return plant.trainers.find("t").wait(operation, 0.0)


# Rounds


def test_a_round_commits_when_the_push_of_every_worker_is_in(plant: Plant) -> None:
    trainer = plant.sync("w")
    for worker in "abc":
        assert plant.join(trainer, worker) == 0
    assert plant.push(trainer, "b", w=full(2)) == StepResult("staged", 0)
    assert plant.push(trainer, "a", w=full(1)) == StepResult("staged", 0)
    assert not plant.value("w").any()
    assert [each.staged for each in trainer.info().workers] == [True, True, False]
    assert plant.push(trainer, "c", w=full(4)) == StepResult(COMMITTED, 1)
    np.testing.assert_array_equal(plant.value("w"), full(-7))
    assert [each.clock for each in trainer.info().workers] == [1, 1, 1]
    assert trainer.info().num_steps == 1


def test_who_waits_is_told_that_the_round_was_committed(plant: Plant) -> None:
    trainer = plant.sync("w")
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    operation = plant.operation("a")
    plant.push(trainer, "a", operation=operation, w=full(1))
    assert state_of(plant, operation) == StepResult("staged", 0)
    plant.push(trainer, "b", w=full(1))
    assert state_of(plant, operation) == StepResult(COMMITTED, 1)
    assert state_of(plant, plant.operation("a")).state == "unknown"


def test_a_question_is_about_the_number_of_an_operation_and_not_its_acknowledgements(
    plant: Plant,
) -> None:
    """What a session has acknowledged changes while a push of it waits."""
    trainer = plant.sync("w")
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    operation = Operation(identity_of("a"), 5, 3)
    plant.push(trainer, "a", operation=operation, w=full(1))
    assert state_of(plant, replace(operation, acknowledged_below=5)).state == "staged"


def test_a_second_push_of_a_round_takes_the_place_of_the_first(plant: Plant) -> None:
    trainer = plant.sync("w")
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    first, second = (Operation(identity_of("a"), number, 1) for number in (1, 2))
    plant.push(trainer, "a", operation=first, w=full(100))
    plant.push(trainer, "a", operation=second, w=full(1))
    assert state_of(plant, first).state == "unknown"
    assert state_of(plant, second).state == "staged"
    plant.push(trainer, "b", w=full(2))
    np.testing.assert_array_equal(plant.value("w"), full(-3))


def test_a_push_that_is_sent_again_is_applied_once(plant: Plant) -> None:
    trainer = plant.sync("w")
    plant.join(trainer, "a")
    operation = plant.operation("a")
    for _ in range(3):
        result = plant.push(trainer, "a", operation=operation, w=full(1))
        assert result == StepResult(COMMITTED, 1)
    np.testing.assert_array_equal(plant.value("w"), full(-1))


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_the_first_push_of_the_round_gives_the_batch_size(plant: Plant, order: str) -> None:
    """Each gradient counts by its own batch size, whatever the order of arrival."""
    trainer = plant.sync("w")
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    sizes = {"a": 2.0, "b": 8.0}
    for worker in order:
        plant.push(trainer, worker, batch_size=sizes[worker], w=full(8))
    np.testing.assert_array_equal(plant.value("w"), full(-5))


@pytest.mark.parametrize("rates", [(0.5, None), (None, 0.5), (0.5, 0.25)])
def test_one_round_has_one_learning_rate(
    plant: Plant, rates: tuple[float | None, float | None]
) -> None:
    trainer = plant.sync("w")
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    plant.push(trainer, "a", learning_rate=rates[0], w=full(1))
    with pytest.raises(InvalidArgumentError, match=r"learning rate .* worker a"):
        plant.push(trainer, "b", learning_rate=rates[1], w=full(1))
    plant.push(trainer, "b", learning_rate=rates[0], w=full(1))
    np.testing.assert_array_equal(plant.value("w"), full(-2 * (rates[0] or 1.0)))


def test_the_first_round_waits_for_the_number_of_workers(plant: Plant) -> None:
    trainer = plant.sync("w", num_workers=2)
    plant.join(trainer, "a")
    assert plant.push(trainer, "a", w=full(1)).state == "staged"
    plant.join(trainer, "b")
    assert plant.push(trainer, "b", w=full(1)) == StepResult(COMMITTED, 1)
    # Later rounds are those of whoever is there.
    trainer.leave(identity_of("b"))
    assert plant.push(trainer, "a", 1, w=full(1)) == StepResult(COMMITTED, 2)


def test_a_round_waits_for_who_joins_before_it_is_complete(plant: Plant) -> None:
    trainer = plant.sync("w")
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    plant.push(trainer, "a", w=full(1))
    assert plant.join(trainer, "c") == 0
    assert plant.push(trainer, "b", w=full(1)).state == "staged"
    assert plant.push(trainer, "c", w=full(1)).state == COMMITTED


# What a round is made of may change between a push and its round


def test_a_parameter_that_is_made_anew_with_another_shape_half_applies_nothing(
    plant: Plant,
) -> None:
    """The push that fits no more leaves the round, and its worker is told when it sends again."""
    trainer = plant.sync("w", "v")
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    operation = plant.operation("a")
    plant.push(trainer, "a", operation=operation, w=full(1), v=full(1, (4,)))
    plant.registry.delete(["v"])
    plant.create("v", (5,))
    before = plant.values()
    assert plant.push(trainer, "b", w=full(1), v=full(1, (5,))) == StepResult("staged", 0)
    assert plant.values() == before
    assert trainer.info().num_steps == 0
    assert state_of(plant, operation).state == "unknown"
    with pytest.raises(ShapeMismatchError, match=r"v.*\(5,\).*\(4,\)"):
        plant.push(trainer, "a", operation=operation, w=full(1), v=full(1, (4,)))
    assert plant.push(trainer, "a", w=full(1), v=full(1, (5,))).state == COMMITTED
    np.testing.assert_array_equal(plant.value("v"), full(-2, (5,)))


def test_a_table_that_is_made_anew_with_fewer_rows_half_applies_nothing(plant: Plant) -> None:
    plant.create("t", (10, 2), grad_stype="row_sparse")
    trainer = plant.sync("w", "t")
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    plant.push(trainer, "a", w=full(1), t=([9], full(1, (1, 2))))
    plant.registry.delete(["t"])
    plant.create("t", (5, 2), grad_stype="row_sparse")
    before = plant.values()
    assert plant.push(trainer, "b", w=full(1), t=([1], full(1, (1, 2)))).state == "staged"
    assert plant.values() == before
    with pytest.raises(ParamdError):
        plant.push(trainer, "a", w=full(1), t=([9], full(1, (1, 2))))
    assert plant.values() == before


def test_a_parameter_that_lost_its_gradient_or_its_floats_stops_the_round(plant: Plant) -> None:
    trainer = plant.sync("w", "v")
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    plant.push(trainer, "a", w=full(1), v=full(1, (4,)))
    set_grad_req(plant.registry, ["v"], "null")
    before = plant.values()
    with pytest.raises(NoGradientError):
        plant.push(trainer, "b", w=full(1))
    assert plant.values() == before
    set_grad_req(plant.registry, ["v"], "write")
    cast(plant.registry, ["v"], np.dtype("i4"))
    before = plant.values()
    with pytest.raises(DTypeMismatchError):
        plant.push(trainer, "b", ignore_stale_grad=True, w=full(1))
    assert plant.values() == before


def test_a_cast_between_a_push_and_its_round_is_followed(plant: Plant) -> None:
    trainer = plant.sync("w", optimizer_params={"learning_rate": 1.0, "momentum": 0.5})
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    plant.push(trainer, "a", w=full(1))
    cast(plant.registry, ["w"], np.dtype("f8"))
    plant.push(trainer, "b", w=full(2, dtype="f8"))
    np.testing.assert_array_equal(plant.value("w"), full(-3, dtype="f8"))


# Workers


def test_a_worker_whose_lease_ends_is_not_waited_for(plant: Plant) -> None:
    trainer = plant.sync("w")
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    operation = plant.operation("a")
    plant.push(trainer, "a", operation=operation, w=full(1))
    plant.clock.now += LEASE_S - 1
    plant.members.renew(identity_of("a"))
    assert state_of(plant, operation).state == "staged"
    plant.clock.now += 1
    assert state_of(plant, operation) == StepResult(COMMITTED, 1)
    with pytest.raises(LeaseEndedError, match="10 s"):
        plant.members.check(identity_of("b"))
    with pytest.raises(WorkerNotJoinedError, match="join"):
        plant.push(trainer, "b", w=full(1))


def test_a_worker_that_is_lost_can_stop_the_others_until_it_is_back(plant: Plant) -> None:
    trainer = plant.sync("w", worker_loss="error")
    for worker in "abc":
        plant.join(trainer, worker, lease_s=10 if worker == "b" else 100)
    waiting = {worker: plant.operation(worker) for worker in "ac"}
    for worker, operation in waiting.items():
        plant.push(trainer, worker, operation=operation, w=full(1))
    plant.clock.now += 20
    for operation in waiting.values():
        with pytest.raises(WorkerLostError, match=r"b \(rank 1\)"):
            state_of(plant, operation)
    with pytest.raises(WorkerLostError):
        plant.push(trainer, "a", w=full(1))
    assert not plant.value("w").any()
    assert plant.join(trainer, "b", incarnation=2) == 0
    plant.push(trainer, "a", w=full(1))
    plant.push(trainer, "b2", w=full(1))
    assert plant.push(trainer, "c", w=full(1)) == StepResult(COMMITTED, 1)
    np.testing.assert_array_equal(plant.value("w"), full(-3))


def test_a_worker_that_leaves_is_no_loss(plant: Plant) -> None:
    trainer = plant.sync("w", worker_loss="error")
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    plant.members.leave(identity_of("b"))
    assert plant.push(trainer, "a", w=full(1)) == StepResult(COMMITTED, 1)


def test_a_worker_that_starts_again_is_waited_for_in_the_round_that_it_was_told(
    plant: Plant,
) -> None:
    """Its former self had pushed: who comes back computes that gradient again."""
    trainer = plant.sync("w")
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    plant.push(trainer, "a", w=full(1))
    clock = plant.join(trainer, "a", incarnation=2)
    plant.push(trainer, "b", w=full(2))
    result = plant.push(trainer, "a2", clock, w=full(1))
    assert result.state == COMMITTED
    np.testing.assert_array_equal(plant.value("w"), full(-3))


def test_a_worker_that_comes_back_after_its_lease_is_waited_for_in_the_round_that_it_was_told(
    plant: Plant,
) -> None:
    trainer = plant.sync("w")
    plant.join(trainer, "a")
    plant.join(trainer, "b", lease_s=1000)
    plant.push(trainer, "a", w=full(1))
    plant.clock.now += 2 * LEASE_S
    plant.members.expire()
    clock = plant.join(trainer, "a")
    plant.push(trainer, "b", w=full(2))
    assert plant.push(trainer, "a", clock, w=full(1)).state == COMMITTED
    np.testing.assert_array_equal(plant.value("w"), full(-3))


def test_the_push_of_a_former_incarnation_is_refused(plant: Plant) -> None:
    trainer = plant.sync("w")
    plant.join(trainer, "a")
    operation = plant.operation("a")
    plant.join(trainer, "b")
    plant.push(trainer, "a", operation=operation, w=full(1))
    plant.join(trainer, "a", incarnation=2)
    with pytest.raises(LeaseEndedError, match="anew"):
        plant.members.check(identity_of("a"))
    with pytest.raises(ParamdError):
        plant.push(trainer, "a", w=full(1))
    assert [each.rank for each in trainer.info().workers] == [0, 1]


def test_who_is_replaced_while_joining_a_trainer_is_not_waited_for(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the check of a worker and its place in the trainer another one takes its name."""
    trainer = plant.sync("w")
    plant.members.join(identity_of("a"), "a", lease_s=LEASE_S)
    check = Members.check

    def replaced(members: Members, identity: bytes) -> Member:
        member = check(members, identity)
        monkeypatch.undo()
        members.join(identity_of("a2"), "a", lease_s=LEASE_S)
        return member

    monkeypatch.setattr(Members, "check", replaced)
    with suppress(LeaseEndedError):
        trainer.join(identity_of("a"))
    trainer.join(identity_of("a2"))
    assert len(trainer.info().workers) == 1


def test_who_has_left_before_its_round_is_told_so(plant: Plant) -> None:
    trainer = plant.sync("w")
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    operation = plant.operation("a")
    plant.push(trainer, "a", operation=operation, w=full(1))
    trainer.leave(identity_of("a"))
    with pytest.raises(LeaseEndedError, match="join"):
        state_of(plant, operation)
    # What it had pushed counts all the same.
    plant.push(trainer, "b", w=full(2))
    np.testing.assert_array_equal(plant.value("w"), full(-3))


@pytest.mark.parametrize("staleness", [0, 2, None])
def test_a_late_worker_gets_the_current_clock(plant: Plant, staleness: int | None) -> None:
    trainer = plant.trainer("w", distributed=True, staleness=staleness)
    plant.join(trainer, "a")
    for clock in range(3):
        plant.push(trainer, "a", clock, w=full(1))
    assert plant.join(trainer, "b") == 3
    plant.push(trainer, "b", 3, w=full(1))
    plant.push(trainer, "a", 3, w=full(1))
    np.testing.assert_array_equal(plant.value("w"), full(-5))


@pytest.mark.parametrize("staleness", [0, 2, None])
def test_a_worker_that_is_alone_comes_back_where_it_was(
    plant: Plant, staleness: int | None
) -> None:
    trainer = plant.trainer("w", distributed=True, staleness=staleness)
    plant.join(trainer, "a")
    for clock in range(3):
        plant.push(trainer, "a", clock, w=full(1))
    plant.clock.now += 2 * LEASE_S
    plant.members.expire()
    assert trainer.info().workers == ()
    assert plant.join(trainer, "a", incarnation=2) == 3


@pytest.mark.parametrize("staleness", [0, 2, None])
@pytest.mark.parametrize(("said", "how"), [(0, "backwards"), (2, "ahead"), (2**64 - 1, "ahead")])
def test_a_clock_goes_neither_backwards_nor_ahead(
    plant: Plant, staleness: int | None, said: int, how: str
) -> None:
    trainer = plant.trainer("w", distributed=True, staleness=staleness)
    plant.join(trainer, "a")
    plant.push(trainer, "a", 0, w=full(1))
    with pytest.raises(ClockMismatchError, match=f"worker a has committed 1 .*{how}"):
        plant.push(trainer, "a", said, w=full(1))
    np.testing.assert_array_equal(plant.value("w"), full(-1))
    assert plant.push(trainer, "a", 1, w=full(1)) == StepResult(COMMITTED, 2)


def test_who_never_joined_the_trainer_cannot_push(plant: Plant) -> None:
    trainer = plant.sync("w")
    plant.members.join(identity_of("a"), "a", lease_s=LEASE_S)
    with pytest.raises(WorkerNotJoinedError, match="join"):
        plant.push(trainer, "a", w=full(1))
    with pytest.raises(WorkerNotJoinedError):
        trainer.join(identity_of("stranger"))


def test_nobody_joins_a_local_trainer(plant: Plant) -> None:
    trainer = plant.trainer("w")
    plant.members.join(identity_of("a"), "a", lease_s=LEASE_S)
    with pytest.raises(InvalidArgumentError, match="local"):
        trainer.join(identity_of("a"))


# Bounded staleness


@pytest.mark.parametrize("staleness", [1, 3])
def test_a_worker_more_than_so_many_clocks_ahead_waits(plant: Plant, staleness: int) -> None:
    trainer = plant.trainer("w", distributed=True, staleness=staleness)
    plant.join(trainer, "fast")
    plant.join(trainer, "slow")
    for clock in range(staleness):
        assert plant.push(trainer, "fast", clock, w=full(1)).state == COMMITTED
    operation = plant.operation("fast")
    result = plant.push(trainer, "fast", staleness, operation=operation, w=full(1))
    assert result == StepResult("ahead", staleness + 1)
    assert state_of(plant, operation).state == "ahead"
    assert plant.push(trainer, "slow", 0, w=full(1)).state == COMMITTED
    assert state_of(plant, operation) == StepResult(COMMITTED, staleness + 1)
    np.testing.assert_array_equal(plant.value("w"), full(-(staleness + 2)))


@pytest.mark.parametrize("leave", ["leave", "lease"])
def test_who_waits_for_a_slow_worker_goes_on_when_it_goes(plant: Plant, leave: str) -> None:
    trainer = plant.trainer("w", distributed=True, staleness=1)
    plant.join(trainer, "fast", lease_s=1000)
    plant.join(trainer, "slow")
    plant.push(trainer, "fast", 0, w=full(1))
    operation = plant.operation("fast")
    assert plant.push(trainer, "fast", 1, operation=operation, w=full(1)).state == "ahead"
    if leave == "leave":
        trainer.leave(identity_of("slow"))
    else:
        plant.clock.now += 2 * LEASE_S
    assert state_of(plant, operation).state == COMMITTED


def test_an_asynchronous_worker_never_waits(plant: Plant) -> None:
    trainer = plant.trainer("w", distributed=True, staleness=None)
    plant.join(trainer, "fast")
    plant.join(trainer, "slow")
    for clock in range(20):
        assert plant.push(trainer, "fast", clock, w=full(1)) == StepResult(COMMITTED, clock + 1)
    assert plant.push(trainer, "slow", 0, w=full(1)) == StepResult(COMMITTED, 1)


def test_what_was_committed_is_not_reported_as_a_failure(plant: Plant) -> None:
    """Who gets an error sends its step again: so an error means that nothing has changed."""
    trainer = plant.trainer("w", distributed=True, staleness=1, worker_loss="error")
    plant.join(trainer, "fast", lease_s=1000)
    plant.join(trainer, "slow")
    plant.push(trainer, "fast", 0, w=full(1))
    operation = plant.operation("fast")
    assert plant.push(trainer, "fast", 1, operation=operation, w=full(1)).state == "ahead"
    plant.clock.now += 2 * LEASE_S
    try:
        state = state_of(plant, operation).state
    except WorkerLostError:
        np.testing.assert_array_equal(plant.value("w"), full(-1))
    else:
        assert state in (COMMITTED, "ahead")
        np.testing.assert_array_equal(plant.value("w"), full(-2))
    # The next step is refused, and changes nothing.
    with pytest.raises(WorkerLostError):
        plant.push(trainer, "fast", 2, w=full(1))
    np.testing.assert_array_equal(plant.value("w"), full(-2))


# Gradients


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_is_applied_skipped_or_refused(
    plant: Plant, bad: float
) -> None:
    gradient = full(1)
    gradient[1, 2] = bad
    apply = plant.sync("w")
    plant.join(apply, "a")
    assert plant.push(apply, "a", w=gradient) == StepResult(COMMITTED, 1)
    assert not np.isfinite(plant.value("w")[1, 2])
    assert (apply.info().num_non_finite, apply.info().num_skipped) == (1, 0)
    plant.trainers.delete("t")
    skip = plant.sync("w", non_finite="skip")
    plant.join(skip, "a")
    before = plant.value("w").tobytes()
    assert plant.push(skip, "a", w=gradient) == StepResult(COMMITTED, 1, skipped=True)
    assert plant.value("w").tobytes() == before
    assert (skip.info().num_non_finite, skip.info().num_skipped) == (1, 1)
    plant.trainers.delete("t")
    error = plant.sync("w", non_finite="error")
    plant.join(error, "a")
    with pytest.raises(NonFiniteGradientError, match="w"):
        plant.push(error, "a", w=gradient)
    assert plant.value("w").tobytes() == before
    assert error.info().num_steps == 0


def test_a_refused_push_that_is_not_finite_is_counted(plant: Plant) -> None:
    """The policy says so: "Each is counted"."""
    trainer = plant.sync("w", non_finite="error")
    plant.join(trainer, "a")
    with pytest.raises(NonFiniteGradientError):
        plant.push(trainer, "a", w=full(np.nan))
    assert trainer.info().num_non_finite == 1


@pytest.mark.parametrize("policy", ["skip", "error"])
def test_a_gradient_is_finite_in_the_dtype_in_which_it_is_applied(
    plant: Plant, policy: str
) -> None:
    """1e300 is a number in float64, and infinite in float32."""
    trainer = plant.sync("w", non_finite=policy)
    plant.join(trainer, "a")
    if policy == "error":
        with pytest.raises(NonFiniteGradientError):
            plant.push(trainer, "a", w=full(1e300, dtype="f8"))
    else:
        plant.push(trainer, "a", w=full(1e300, dtype="f8"))
        assert trainer.info().num_skipped == 1
    assert not plant.value("w").any()


def test_a_round_goes_on_without_a_push_that_is_skipped(plant: Plant) -> None:
    trainer = plant.sync("w", non_finite="skip")
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    operation = plant.operation("a")
    plant.push(trainer, "a", operation=operation, batch_size=4.0, w=full(np.nan))
    result = plant.push(trainer, "b", batch_size=2.0, w=full(4))
    assert result == StepResult(COMMITTED, 1, skipped=False)
    assert state_of(plant, operation) == StepResult(COMMITTED, 1, skipped=True)
    np.testing.assert_array_equal(plant.value("w"), full(-2))


def test_every_parameter_has_a_gradient_or_is_passed_over_on_purpose(plant: Plant) -> None:
    trainer = plant.sync("w", "v")
    plant.join(trainer, "a")
    with pytest.raises(StaleGradientError, match="'v'"):
        plant.push(trainer, "a", w=full(1))
    assert not plant.value("w").any()
    plant.push(trainer, "a", ignore_stale_grad=True, w=full(1))
    np.testing.assert_array_equal(plant.value("w"), full(-1))
    assert not plant.value("v").any()


def test_a_scheduler_sets_the_rate(plant: Plant) -> None:
    made = {"lr_scheduler": FactorScheduler(step=1, factor=0.5, base_lr=1.0)}
    trainer = plant.sync("w", optimizer_params=made)
    with pytest.raises(ScheduledLearningRateError):
        trainer.set_learning_rate(0.1)
    plant.join(trainer, "a")
    for clock in range(3):
        plant.push(trainer, "a", clock, w=full(1))
    # MXNet's rates of the updates 1, 2, 3.
    schedule = FactorScheduler(step=1, factor=0.5, base_lr=1.0)
    expected = -sum(schedule(number) for number in (1, 2, 3))
    np.testing.assert_array_equal(plant.value("w"), full(expected))


# Declarations


def test_a_trainer_is_declared_once_and_found_again(plant: Plant) -> None:
    trainer = plant.sync("w", "v")
    assert plant.sync("w", "v") is trainer
    assert plant.sync("v", "w") is trainer, "the order means nothing"
    with pytest.raises(TrainerNotFoundError, match="'other'"):
        plant.trainers.find("other")


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("parameters", {"parameters": ("w",)}),
        ("optimizer", {"optimizer": "adam"}),
        ("optimizer", {"optimizer_params": {"learning_rate": 0.5}}),
        ("optimizer", {"optimizer_params": {"learning_rate": 1.0, "wd": 0.1}}),
        ("distributed", {"distributed": False, "staleness": None}),
        ("staleness", {"staleness": None}),
        ("staleness", {"staleness": 1}),
        ("num_workers", {"num_workers": 2}),
        ("non_finite", {"non_finite": "skip"}),
        ("worker_loss", {"worker_loss": "error"}),
        ("two_bit_threshold", {"two_bit_threshold": 0.5}),
    ],
)
def test_a_second_trainer_has_the_same_settings(
    plant: Plant, field: str, changes: dict[str, object]
) -> None:
    plant.sync("w", "v")
    settings: dict[str, Any] = {"distributed": True, "staleness": 0, **changes}
    parameters = settings.pop("parameters", ("w", "v"))
    assert isinstance(parameters, tuple)
    with pytest.raises(TrainerMismatchError, match=field):
        plant.trainer(*parameters, **settings)


def test_two_trainers_share_no_parameter(plant: Plant) -> None:
    plant.sync("w")
    with pytest.raises(TrainerMismatchError, match=r"'w' belongs to trainer 't'"):
        plant.sync("v", "w", name="other")
    plant.sync("v", name="other")
    plant.trainers.delete("t")
    with pytest.raises(TrainerMismatchError):
        plant.sync("w", "v", name="third")


def test_deleting_a_trainer_ends_waiting_and_keeps_the_values(plant: Plant) -> None:
    trainer = plant.sync("w")
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    operation = plant.operation("a")
    plant.push(trainer, "a", operation=operation, w=full(1))
    plant.trainers.delete("t")
    with pytest.raises(TrainerNotFoundError, match="deleted"):
        trainer.wait(operation, 0.0)
    with pytest.raises(TrainerNotFoundError):
        plant.push(trainer, "b", w=full(1))
    assert not plant.value("w").any()


# Memory


def test_memory_of_a_push_is_given_back(plant: Plant) -> None:
    trainer = plant.sync("w", "v")
    plant.join(trainer, "a")
    plant.join(trainer, "b")
    before = plant.account.used_bytes
    for clock in range(5):
        plant.push(trainer, "a", clock, w=full(1), v=full(1, (4,)))
        plant.push(trainer, "a", clock, w=full(1, dtype="f8"), v=full(1, (4,)))
        plant.push(trainer, "b", clock, w=full(1), v=full(1, (4,)))
    plant.push(trainer, "a", 5, w=full(1), v=full(1, (4,)))
    plant.trainers.delete("t")
    del trainer
    assert plant.account.used_bytes == before


def test_states_belong_to_parameters_that_have_been_stepped(plant: Plant) -> None:
    trainer = plant.trainer("w", "v", optimizer="adam", optimizer_params={})
    before = plant.account.used_bytes
    assert trainer.info().state_bytes == 0
    plant.push(trainer, "a", ignore_stale_grad=True, w=full(1))
    assert trainer.info().state_bytes == 2 * 24
    assert plant.account.used_bytes == before + 48
    for _ in range(3):
        plant.push(trainer, "a", w=full(1), v=full(1, (4,)))
    assert trainer.info().state_bytes == 2 * (24 + 16)
    assert plant.account.used_bytes == before + 80
    plant.trainers.delete("t")
    del trainer
    assert plant.account.used_bytes == before


def test_a_deleted_parameter_keeps_no_memory_in_its_trainer(plant: Plant) -> None:
    start = plant.account.used_bytes
    plant.create("big", (1000,))
    trainer = plant.trainer("w", "big", optimizer="adam", optimizer_params={})
    before = plant.account.used_bytes
    plant.push(trainer, "a", ignore_stale_grad=True, big=full(1, (1000,)))
    assert plant.account.used_bytes > before
    plant.registry.delete(["big"])
    assert plant.account.used_bytes == start


def test_a_step_that_does_not_fit_changes_nothing() -> None:
    plant = Plant(100_000)
    plant.create("w", (2500,), grad_req="add")
    plant.create("v", (2500,), grad_req="add")
    used = plant.account.used_bytes
    trainer = plant.trainer("w", "v", optimizer="adam", optimizer_params={})
    both: dict[str, Any] = {"w": full(1, (2500,)), "v": full(1, (2500,))}
    while plant.account.used_bytes + 20_000 + 20_000 < plant.account.limit_bytes:
        plant.create(f"ballast{plant.account.used_bytes}", (1000,), grad_req="null")
    held, before = plant.account.used_bytes, plant.values()
    with pytest.raises(MemoryError, match=r"Parameter '[vw]'"):
        plant.push(trainer, "a", **both)
    assert plant.account.used_bytes == held
    assert plant.values() == before
    assert trainer.info().num_steps == 0
    assert trainer.info().state_bytes == 0
    plant.push(trainer, "a", ignore_stale_grad=True, w=both["w"])
    assert trainer.info().num_steps == 1
    assert used < held


def test_every_copy_is_written(plant: Plant) -> None:
    plant.create("two", (3,), contexts=(cpu(0), cpu(1)))
    trainer = plant.sync("two")
    plant.join(trainer, "a")
    plant.push(trainer, "a", two=full(1, (3,)))
    for context in (cpu(0), cpu(1)):
        np.testing.assert_array_equal(plant.value("two", context), full(-1, (3,)))
