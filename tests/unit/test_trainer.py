"""The client's side of a trainer, against a server that the test plays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

import paramd
from paramd import Parameter, Trainer
from paramd.context import cpu
from paramd.errors import LeaseEndedError, ShapeMismatchError
from paramd.trainer_spec import StepOptions, StepResult, TrainerInfo, TrainerSpec
from tests.support.fake_session import FakeSession

ONES = np.ones((2, 3), "f4")


class FakeTraining:
    """Answers a trainer's calls, and remembers them."""

    def __init__(self) -> None:
        self.declared: list[TrainerSpec] = []
        self.steps: list[tuple[StepOptions, list[Any], list[str]]] = []
        self.updates: list[StepOptions] = []
        self.joins = 0
        self.clock = 0
        self.failure: Exception | None = None

    def declare(self, spec: TrainerSpec) -> TrainerInfo:
        self.declared.append(spec)
        return TrainerInfo(spec, 0.1, 0, 0)

    def join(self, name: str) -> Any:
        self.joins += 1
        return StepResult("committed", self.clock)

    def step(
        self,
        options: StepOptions,
        writes: Sequence[Any],
        pull: Sequence[Any],
        current: Any,
        *,
        out: Any = None,
    ) -> tuple[StepResult, list[Any]]:
        self.steps.append((options, list(writes), [each.name for each in pull]))
        if self.failure is not None:
            raise self.failure
        self.clock = options.clock + 1
        return StepResult("committed", self.clock), []

    def update(self, options: StepOptions) -> bool:
        self.updates.append(options)
        return False


class World:
    """A fake session with parameters that are initialized."""

    def __init__(self) -> None:
        self.fake = cast(Any, FakeSession())
        self.training = FakeTraining()
        self.fake.calls.training = self.training
        self.fake.joined = False
        self.fake.join = self._join
        self.fake.expected_workers = lambda count: count or 0

    def _join(self) -> int:
        self.fake.joined = True
        return 0

    def parameter(self, name: str, **attributes: Any) -> Parameter:
        made = Parameter(name, session=self.fake, **{"shape": (2, 3), **attributes})
        made.initialize()
        return made

    def trainer(self, *parameters: Parameter, **settings: Any) -> Trainer:
        given = parameters or (self.parameter("w"),)
        options = {"optimizer": "sgd", "session": self.fake, **settings}
        return Trainer(list(given), **options)


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(
    ("kvstore", "staleness", "expected"),
    [
        (None, None, (False, None)),
        ("local", None, (False, None)),
        ("device", None, (False, None)),
        ("nccl", None, (False, None)),
        ("dist_sync", None, (True, 0)),
        ("dist_sync", 0, (True, 0)),
        ("dist_device_sync", None, (True, 0)),
        ("dist_async", None, (True, None)),
        ("dist_async", 3, (True, 3)),
    ],
)
def test_one_knob_of_synchrony(
    world: World, kvstore: str | None, staleness: int | None, expected: tuple[bool, int | None]
) -> None:
    world.trainer(kvstore=kvstore, staleness=staleness)
    (spec,) = world.training.declared
    assert (spec.distributed, spec.staleness) == expected


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"kvstore": "dist"}, ValueError),
        ({"kvstore": 5}, TypeError),
        ({"kvstore": "local", "staleness": 1}, ValueError),
        ({"kvstore": "dist_sync", "staleness": 1}, ValueError),
        ({"kvstore": "dist_async", "staleness": 0}, ValueError),
        ({"kvstore": "dist_async", "staleness": -1}, ValueError),
        ({"kvstore": "dist_async", "staleness": True}, TypeError),
        ({"kvstore": "dist_async", "staleness": 1.0}, TypeError),
        ({"non_finite": "ignore"}, ValueError),
        ({"on_worker_loss": "stop"}, ValueError),
        ({"kvstore": "dist_sync", "update_on_kvstore": False}, ValueError),
        ({"compression_params": {"type": "1bit"}}, ValueError),
        ({"compression_params": {"type": "2bit", "threshold": float("nan")}}, ValueError),
        ({"optimizer": "nothing"}, ValueError),
        ({"optimizer_params": {"momentum": 7}}, ValueError),
        ({"optimizer_params": {"beta9": 1}}, TypeError),
        ({"optimizer_params": {"param_idx2name": {}}}, TypeError),
        (
            {"optimizer": paramd.optimizer.create("sgd"), "optimizer_params": {"wd": 1}},
            AssertionError,
        ),
    ],
)
def test_settings_that_cannot_be(
    world: World, settings: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        world.trainer(**settings)
    assert world.training.declared == []


@pytest.mark.parametrize("params", [[], (), {}, None, "w", 5, [1], [None]])
def test_parameters_that_are_none(world: World, params: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Trainer(params, "sgd", session=world.fake)


def test_a_parameter_is_given_once(world: World) -> None:
    parameter = world.parameter("w")
    with pytest.raises(ValueError, match="'w'"):
        world.trainer(parameter, parameter)


def test_many_parameters_are_no_trouble(world: World) -> None:
    parameters = [world.parameter(f"p{number:05}") for number in range(3000)]
    trainer = world.trainer(*parameters)
    assert len(world.training.declared[0].parameters) == 3000
    assert trainer.name.startswith("trainer-")


def test_parameters_of_a_mapping_are_ordered_by_key(world: World) -> None:
    given = {"z": world.parameter("a"), "y": world.parameter("b")}
    Trainer(given, "sgd", session=world.fake)
    assert world.training.declared[0].parameters == ("b", "a")


def test_a_name_is_the_same_on_every_worker(world: World) -> None:
    first, second = world.parameter("a"), world.parameter("b")
    names = {world.trainer(first, second).name for _ in range(2)}
    assert len(names) == 1
    assert world.trainer(first).name not in names
    assert world.trainer(first, name="mine").name == "mine"


def test_parameters_that_are_not_initialized(world: World) -> None:
    bare = Parameter("bare", shape=(2,), session=world.fake)
    with pytest.raises(RuntimeError, match="bare"):
        world.trainer(bare)


def test_the_clock_goes_with_each_push(world: World) -> None:
    trainer = world.trainer(kvstore="dist_sync")
    assert trainer.clock is None
    world.training.clock = 5
    trainer.step(4, grads={"w": ONES})
    trainer.step(4, grads={"w": ONES}, learning_rate=0.5, ignore_stale_grad=True)
    assert [options.clock for options, _, _ in world.training.steps] == [5, 6]
    assert world.training.joins == 1
    options = world.training.steps[1][0]
    assert (options.batch_size, options.learning_rate) == (4.0, 0.5)
    assert options.ignore_stale_grad
    assert trainer.clock == 7


def test_after_a_failure_the_clock_is_asked_for(world: World) -> None:
    """Whether the push was applied is not known: the server says."""
    trainer = world.trainer(kvstore="dist_sync")
    world.training.failure = RuntimeError("cut off")
    with pytest.raises(RuntimeError, match="cut off"):
        trainer.step(1, grads={"w": ONES})
    world.training.failure = None
    world.training.clock = 9
    trainer.step(1, grads={"w": ONES})
    assert world.training.steps[-1][0].clock == 9
    assert world.training.joins == 2


def test_a_worker_whose_lease_ended_says_itself_when_it_comes_back(world: World) -> None:
    trainer = world.trainer(kvstore="dist_sync")
    trainer.step(1, grads={"w": ONES})
    world.training.failure = LeaseEndedError("gone")
    for _ in range(2):
        with pytest.raises(LeaseEndedError):
            trainer.step(1, grads={"w": ONES})
    assert world.training.joins == 1
    world.training.failure = None
    world.training.clock = 4
    assert trainer.join() == 4
    trainer.step(1, grads={"w": ONES})
    assert world.training.steps[-1][0].clock == 4


def test_a_local_trainer_has_no_clock(world: World) -> None:
    trainer = world.trainer()
    trainer.step(1, grads={"w": ONES})
    trainer.step(1, grads={"w": ONES})
    assert [options.clock for options, _, _ in world.training.steps] == [0, 0]
    assert world.training.joins == 0
    assert not world.fake.joined


def test_steps_by_the_buffers(world: World) -> None:
    trainer = world.trainer()
    trainer.step(4, ignore_stale_grad=True, learning_rate=0.5, zero_grad=True)
    assert world.training.updates == [
        StepOptions(
            trainer.name,
            4.0,
            learning_rate=0.5,
            ignore_stale_grad=True,
            zero_grad=True,
        )
    ]


@pytest.mark.parametrize(
    "step",
    [
        lambda trainer: trainer.step(1),
        lambda trainer: trainer.step(1, zero_grad=True),
        lambda trainer: trainer.step(1, grads={"w": ONES}, zero_grad=True),
    ],
)
def test_a_distributed_trainer_takes_no_buffers(
    world: World, step: Callable[[Trainer], object]
) -> None:
    trainer = world.trainer(kvstore="dist_sync")
    with pytest.raises(ValueError, match=r"grads=|zero_grad"):
        step(trainer)
    assert world.training.steps == []
    assert world.training.updates == []


def test_what_is_refused_here_is_not_sent(world: World) -> None:
    trainer = world.trainer(kvstore="dist_sync")
    for grads, batch_size in (
        ({"other": ONES}, 1),
        ({"w": "text"}, 1),
        ({"w": ([5], ONES[:1])}, 1),
        ({"w": ONES}, 0),
        ({"w": ONES}, "many"),
    ):
        with pytest.raises((ValueError, TypeError, IndexError)):
            trainer.step(batch_size, grads=grads)  # type: ignore[arg-type]
    with pytest.raises((ShapeMismatchError, AssertionError)):
        trainer.step(1, grads={"w": ([0, 1, 1], ONES)})
    assert world.training.steps == []


def test_contexts_are_the_same(world: World) -> None:
    here, there = world.parameter("a"), world.parameter("b")
    infos = world.fake.calls.infos
    infos["b"] = replace(infos["b"], contexts=(cpu(1),))
    with pytest.raises(AssertionError, match="same set of contexts"):
        world.trainer(here, there)


def test_where_updates_happen_is_what_mxnet_allows(world: World) -> None:
    table = world.parameter("t", stype="row_sparse", grad_stype="row_sparse")
    with pytest.raises(TypeError, match="kvstore"):
        world.trainer(table, kvstore=None)
    with pytest.raises(ValueError, match="sparse weights"):
        world.trainer(table, update_on_kvstore=False)
    embedding = world.parameter("e", grad_stype="row_sparse")
    with pytest.raises(ValueError, match="sparse gradients"):
        world.trainer(embedding, kvstore="dist_sync", update_on_kvstore=False)
