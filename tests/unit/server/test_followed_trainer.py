"""A trainer on a shard that is not the coordinator: pushes that wait for their fate."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from paramd import optimizer as optimizers
from paramd.errors import InvalidArgumentError, StaleGradientError, TrainerNotFoundError
from paramd.trainer_spec import StagedPart, StepOptions, StepResult, TrainerSpec
from paramd_server.core.operations import Operation
from paramd_server.core.training.followed import FollowedTrainer
from paramd_server.core.training.pushes import Push
from paramd_server.core.training.records import CommittedPush, StepRecord
from paramd_server.core.training.trainer import World
from paramd_server.core.training.trainers import Trainers
from paramd_server.core.training.updates import ParameterRate
from paramd_server.rpc.training_servicer import STEP_ANSWERS
from tests.support.plain_trainers import Array, Plant, full, identity_of
from tests.support.waiting import wait_until

SHARD = 1
FAR = 1e12


class FollowerPlant(Plant):
    """What shard 1 works with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.trainers = Trainers(
            World(
                self.registry,
                self.members,
                self.operations,
                STEP_ANSWERS,
                self.workers,
                shard=SHARD,
            )
        )
        self.create("w", (2, 3))
        self.create("b", (3,))

    def followed(self, **settings: Any) -> FollowedTrainer:
        settings = {"distributed": True, "staleness": 0, **settings}
        spec = TrainerSpec("t", ("w", "b"), optimizers.create("sgd", learning_rate=1.0), **settings)
        self.trainers.declare(spec)
        found = self.trainers.find("t")
        assert isinstance(found, FollowedTrainer)
        return found

    def offer(
        self,
        trainer: FollowedTrainer,
        operation: Operation,
        *,
        on_commit: Callable[[], None] | None = None,
        **gradients: Array,
    ) -> StepResult:
        """Stages a push of both parameters."""
        sent = gradients or {"w": full(1), "b": full(1, (3,))}
        taken, wrong = self.stage(trainer, sent)  # type: ignore[arg-type]
        options = StepOptions("t", 1.0, clock=0)
        return trainer.submit(Push(operation, options, taken, wrong, on_commit=on_commit))


def record(num_steps: int, *operations: Operation, skipped: bool = False) -> StepRecord:
    pushes = tuple(CommittedPush(each, num_steps, skipped, 1.0) for each in operations)
    rate = ParameterRate(1.0, num_steps)
    return StepRecord("t", num_steps, num_steps, pushes, {"w": rate, "b": rate})


@pytest.fixture
def plant() -> FollowerPlant:
    return FollowerPlant()


def test_a_push_changes_nothing_until_it_is_committed(plant: FollowerPlant) -> None:
    trainer, operation = plant.followed(), plant.operation("a")
    before = plant.values()
    result = plant.offer(trainer, operation)
    epoch = plant.registry.epoch
    assert result == StepResult("staged", 0, staged=StagedPart(SHARD, epoch, ("w", "b"), ""))
    assert plant.values() == before
    assert trainer.knows(operation)
    assert trainer.wait(operation, 0.0) == result
    trainer.carry_out(record(1, operation), 7)
    assert trainer.wait(operation, 0.0) == StepResult("committed", 1, position=7)
    np.testing.assert_array_equal(plant.value("w"), full(-1))
    assert trainer.info().num_steps == 1


def test_a_round_adds_up_all_of_its_pushes_and_no_other(plant: FollowerPlant) -> None:
    trainer = plant.followed()
    one, two, other = (plant.operation(name) for name in "abc")
    for operation, value in ((one, 1.0), (two, 2.0), (other, 4.0)):
        plant.offer(trainer, operation, w=full(value), b=full(value, (3,)))
    trainer.carry_out(record(1, one, two), 1)
    np.testing.assert_array_equal(plant.value("w"), full(-3))
    assert trainer.wait(other, 0.0).state == "staged"


def test_a_committed_push_is_not_staged_again(plant: FollowerPlant) -> None:
    trainer, operation = plant.followed(), plant.operation("a")
    plant.offer(trainer, operation)
    trainer.carry_out(record(1, operation), 7)
    assert plant.offer(trainer, operation) == StepResult("committed", 1, position=7)
    trainer.carry_out(record(2, plant.operation("b")), 8)
    np.testing.assert_array_equal(plant.value("w"), full(-1))


def test_a_push_that_was_lost_counts_as_applied(plant: FollowerPlant) -> None:
    """This shard has died since it was staged, and the trainer is asynchronous."""
    trainer, operation = plant.followed(staleness=None), plant.operation("a")
    trainer.carry_out(record(4, operation), 9)
    assert trainer.wait(operation, 0.0) == StepResult("committed", 4, position=9)
    np.testing.assert_array_equal(plant.value("w"), full(0))
    assert (trainer.info().num_steps, trainer.info().num_lost_steps) == (4, 3)


def test_steps_that_the_coordinator_has_lost_are_counted(plant: FollowerPlant) -> None:
    trainer = plant.followed(staleness=None)
    for number in range(1, 6):
        trainer.carry_out(record(number, plant.operation("a")), number)
    assert trainer.info().num_lost_steps == 0
    # It came back from a snapshot after two steps.
    trainer.carry_out(record(3, plant.operation("a")), 6)
    assert (trainer.info().num_steps, trainer.info().num_lost_steps) == (3, 3)
    trainer.carry_out(record(4, plant.operation("a")), 7)
    assert (trainer.info().num_steps, trainer.info().num_lost_steps) == (4, 3)


def test_a_skipped_push_is_left_out(plant: FollowerPlant) -> None:
    trainer, operation = plant.followed(non_finite="skip"), plant.operation("a")
    result = plant.offer(trainer, operation, w=full(np.nan), b=full(1, (3,)))
    assert result.staged is not None
    assert result.staged.non_finite == "w"
    trainer.carry_out(record(1, operation, skipped=True), 1)
    assert trainer.wait(operation, 0.0).skipped
    np.testing.assert_array_equal(plant.value("b"), full(0, (3,)))


def test_what_fails_before_it_is_committed_does_not_pile_up(plant: FollowerPlant) -> None:
    """A worker whose gradients are NaN again and again is told so each time."""
    trainer = plant.followed(non_finite="error")
    for _ in range(20):
        operation = plant.operation("a")
        result = plant.offer(trainer, operation, w=full(np.nan), b=full(1, (3,)))
        assert result.staged is not None
        assert result.staged.non_finite == "w"
    assert trainer.old(FAR) == [operation], "what has been answered is not kept"


def test_a_worker_cannot_stage_without_end(plant: FollowerPlant) -> None:
    trainer, identity = plant.followed(), identity_of("a")
    held = [Operation(identity, sequence, 1) for sequence in range(1, 10)]
    for operation in held[:8]:
        plant.offer(trainer, operation)
    with pytest.raises(InvalidArgumentError, match="8 pushes of this worker"):
        plant.offer(trainer, held[8])
    assert not trainer.knows(held[8])
    plant.offer(trainer, plant.operation("b"))
    # A commit ends what came before it.
    trainer.carry_out(record(1, held[7]), 1)
    assert [trainer.knows(each) for each in held[:8]] == [False] * 7 + [True]


def test_a_push_that_is_not_complete_is_not_staged(plant: FollowerPlant) -> None:
    trainer, operation = plant.followed(), plant.operation("a")
    with pytest.raises(StaleGradientError, match="'b'"):
        plant.offer(trainer, operation, w=full(1))
    assert not trainer.knows(operation)
    assert trainer.wait(operation, 0.0).state == "unknown"


def test_memory_comes_back_when_a_push_is_dropped(plant: FollowerPlant) -> None:
    trainer, operation = plant.followed(), plant.operation("a")
    before = plant.account.used_bytes
    plant.offer(trainer, operation)
    assert plant.account.used_bytes > before
    assert trainer.old(0.0) == []
    assert trainer.old(FAR) == [operation]
    trainer.drop(operation, FAR)
    assert plant.account.used_bytes == before
    assert trainer.wait(operation, 0.0).state == "unknown"
    trainer.drop(operation, FAR)


@pytest.mark.parametrize("sign", ["asks", "sends it again", "holds its stream"])
def test_a_worker_that_comes_back_while_its_push_is_dropped_keeps_it(
    plant: FollowerPlant, sign: str
) -> None:
    trainer, operation = plant.followed(), plant.operation("a")
    plant.offer(trainer, operation)
    (touched,) = [each.touched_at for each in trainer._staged.values()]
    asked_at = np.nextafter(touched, np.inf)
    assert trainer.old(asked_at) == [operation]
    wait_until(lambda: _moved(asked_at), "time passes")
    if sign == "asks":
        assert trainer.wait(operation, 0.0).state == "staged"
    elif sign == "sends it again":
        plant.offer(trainer, operation)
    else:
        trainer.expect(operation, None)
    trainer.drop(operation, asked_at)
    assert trainer.knows(operation)


def _moved(after: float) -> bool:
    import time

    return time.monotonic() > after


def test_who_waits_is_told_by_the_commit(plant: FollowerPlant) -> None:
    trainer, operation = plant.followed(), plant.operation("a")
    read: list[float] = []
    plant.offer(trainer, operation, on_commit=lambda: read.append(plant.value("w")[0, 0]))
    results: list[StepResult] = []
    thread = threading.Thread(target=lambda: results.append(trainer.wait(operation, 60.0)))
    thread.start()
    trainer.carry_out(record(1, operation), 5)
    thread.join(20)
    assert results == [StepResult("committed", 1, position=5)]
    assert read == [-1.0], "the values of just this step"


@pytest.mark.parametrize("fault", ["dropped", "deleted"])
def test_who_waits_is_told_that_it_will_not_come(plant: FollowerPlant, fault: str) -> None:
    trainer, operation = plant.followed(), plant.operation("a")
    plant.offer(trainer, operation)
    results: list[Any] = []

    def wait() -> None:
        try:
            results.append(trainer.wait(operation, 60.0).state)
        except TrainerNotFoundError as err:
            results.append(type(err))

    thread = threading.Thread(target=wait)
    thread.start()
    if fault == "dropped":
        # It is touched when it begins to wait.
        while thread.is_alive():
            trainer.drop(operation, FAR)
            thread.join(0.01)
    else:
        plant.trainers.delete("t")
    thread.join(20)
    assert results == ["unknown" if fault == "dropped" else TrainerNotFoundError]


def test_a_parameter_made_anew_is_passed_over(
    plant: FollowerPlant, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, operation = plant.followed(), plant.operation("a")
    plant.offer(trainer, operation)
    plant.registry.delete(["b"])
    plant.create("b", (5,))
    trainer.carry_out(record(1, operation), 1)
    np.testing.assert_array_equal(plant.value("w"), full(-1))
    np.testing.assert_array_equal(plant.value("b"), full(0, (5,)))
    assert "passes over 'b'" in caplog.text
    assert trainer.wait(operation, 0.0).state == "committed"


def test_a_step_that_fails_here_counts_all_the_same(
    plant: FollowerPlant, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, operation = plant.followed(staleness=None), plant.operation("a")
    plant.offer(trainer, operation)
    # No rates: the coordinator never says that.
    wrong = StepRecord("t", 1, 1, (CommittedPush(operation, 1, False, 1.0),), {})
    trainer.carry_out(wrong, 1)
    assert "step 1 failed here" in caplog.text
    assert trainer.wait(operation, 0.0).state == "committed"
    assert (trainer.info().num_steps, trainer.info().num_lost_steps) == (1, 1)
    later = plant.operation("a")
    plant.offer(trainer, later)
    trainer.carry_out(record(2, later), 2)
    np.testing.assert_array_equal(plant.value("w"), full(-1))


def test_progress_is_restored(plant: FollowerPlant) -> None:
    trainer = plant.followed()
    trainer.place([], [2])
    trainer.carry_out(record(3, plant.operation("a")), 3)
    fresh = FollowerPlant().followed()
    fresh.restore_progress(trainer.progress())
    assert fresh.progress() == trainer.progress()
    assert fresh.info().num_steps == 3
    assert fresh.info().num_lost_steps == 2


def test_it_leads_nobody(plant: FollowerPlant) -> None:
    plant.followed()
    with pytest.raises(InvalidArgumentError, match="coordinator of the cluster is shard 0"):
        plant.trainers.lead("t")


@pytest.mark.parametrize("how", ["declared", "restored"])
def test_values_say_which_step_they_are_of_from_the_beginning(
    plant: FollowerPlant, how: str
) -> None:
    """Else a reader takes the first step of one shard and none of another one for whole."""
    spec = TrainerSpec("t", ("w", "b"), optimizers.create("sgd"), distributed=True, staleness=0)
    if how == "declared":
        plant.trainers.declare(spec, (), (2,))
        expected = 0
    else:
        trainer = plant.trainers.make(spec)
        trainer.place((), (2,))
        trainer.tally.num_steps = expected = 5
        plant.trainers.put(trainer)
    with plant.registry.hold(["w", "b"]) as parameters:
        assert [each.step and each.step[1] for each in parameters] == [expected] * 2


def test_values_that_are_ahead_are_not_marked_again(plant: FollowerPlant) -> None:
    spec = TrainerSpec("t", ("w", "b"), optimizers.create("sgd"), distributed=True, staleness=0)
    plant.trainers.declare(spec, (), (2,))
    operation = plant.operation("a")
    trainer = plant.trainers.find("t")
    assert isinstance(trainer, FollowedTrainer)
    trainer.carry_out(record(1, operation), 1)
    plant.trainers.declare(spec, (), (2,))
    with plant.registry.hold(["w"]) as (parameter,):
        assert parameter.step is not None
        assert parameter.step[1] == 1
