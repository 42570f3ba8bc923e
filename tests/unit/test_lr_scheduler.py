from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramd import lr_scheduler
from paramd.lr_scheduler import (
    CosineScheduler,
    FactorScheduler,
    LRScheduler,
    MultiFactorScheduler,
    PolyScheduler,
    Schedule,
    check_schedule,
    from_arguments,
)

_ALL = (
    FactorScheduler(10, 0.5, base_lr=0.3, warmup_steps=5, warmup_begin_lr=0.1),
    MultiFactorScheduler([3, 9], 0.5, base_lr=0.3),
    PolyScheduler(20, 0.3, final_lr=0.01, warmup_steps=5, warmup_mode="constant"),
    CosineScheduler(20, 0.3, 0.01, 5, 0.1),
)
_ids = [schedule.name for schedule in _ALL]


def test_factor_changes_after_each_step() -> None:
    schedule = FactorScheduler(3, 0.5, base_lr=8.0)
    assert [schedule(count) for count in range(11)] == [8, 8, 8, 8, 4, 4, 4, 2, 2, 2, 1]


def test_factor_stops_at_its_smallest_rate() -> None:
    schedule = FactorScheduler(1, 0.5, stop_factor_lr=0.3, base_lr=1.0)
    assert [schedule(count) for count in (1, 2, 3, 4, 2**62)] == [1.0, 0.5, 0.3, 0.3, 0.3]


def test_factor_takes_a_bounded_time_and_stays_close() -> None:
    schedule = FactorScheduler(1, 1 - 1e-9, stop_factor_lr=0.0, base_lr=1.0)
    # Many more factors than could be multiplied one by one within the test's time.
    assert schedule(10**9) == pytest.approx(math.exp(-1), rel=1e-6)
    assert schedule(2**62) == 0.0


def test_multi_factor_changes_after_its_steps() -> None:
    schedule = MultiFactorScheduler([2, 5], 0.5, base_lr=8.0)
    assert [schedule(count) for count in range(8)] == [8, 8, 8, 4, 4, 4, 2, 2]


def test_poly_falls_to_the_final_rate_and_stays() -> None:
    schedule = PolyScheduler(4, 1.0, 2, 0.0)
    assert [schedule(count) for count in (0, 2, 4, 5, 10**12)] == [1.0, 0.25, 0.0, 0.0, 0.0]


def test_cosine_falls_to_the_final_rate_and_stays() -> None:
    schedule = CosineScheduler(4, 1.0, 0.5)
    values = [schedule(count) for count in (0, 2, 4, 5, 10**12)]
    assert values == pytest.approx([1.0, 0.75, 0.5, 0.5, 0.5])


def test_warmup_is_linear_or_constant() -> None:
    linear = CosineScheduler(20, 0.5, 0.0, 4, 0.1)
    assert [linear(count) for count in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    constant = CosineScheduler(20, 0.5, 0.0, 4, 0.1, "constant")
    assert [constant(count) for count in range(5)] == [0.1, 0.1, 0.1, 0.1, 0.5]


@given(
    schedule=st.sampled_from(_ALL),
    counts=st.lists(st.integers(0, 2**40), min_size=1, max_size=20),
)
def test_a_rate_depends_on_the_count_alone(schedule: Schedule, counts: list[int]) -> None:
    forward = [schedule(count) for count in counts]
    backward = [schedule(count) for count in reversed(counts)]
    assert forward == backward[::-1]
    assert all(0 <= rate <= 0.3 for rate in forward)


@pytest.mark.parametrize("schedule", _ALL, ids=_ids)
def test_arguments_make_the_same_schedule(schedule: Schedule) -> None:
    made = from_arguments(schedule.name, dict(schedule.arguments()))
    assert made == schedule
    assert hash(made) == hash(schedule)
    assert {type(one) for one in schedule.arguments().values()} <= {int, float, str, list}


@pytest.mark.parametrize("schedule", _ALL, ids=_ids)
def test_a_schedule_is_frozen(schedule: Schedule) -> None:
    with pytest.raises(FrozenInstanceError):
        schedule.base_lr = 0.5


def test_steps_given_as_a_list_are_copied() -> None:
    step = [3, 9]
    schedule = MultiFactorScheduler(step, 0.5, 1.0)
    step[0] = 1
    assert schedule(2) == 1.0


def test_another_base_rate_leaves_the_warmup() -> None:
    schedule = FactorScheduler(100, 0.5, base_lr=0.4, warmup_steps=4).with_base_lr(0.9)
    assert [schedule(count) for count in (2, 4)] == [0.2, 0.9]


@pytest.mark.parametrize(
    ("expression", "error", "parts"),
    [
        ("FactorScheduler(0)", ValueError, ["FactorScheduler: step", ">= 1", "got 0"]),
        ("FactorScheduler(1.5)", TypeError, ["step", "int", "float 1.5"]),
        ("FactorScheduler(True)", TypeError, ["step", "bool"]),
        ("FactorScheduler(1, 1.1)", ValueError, ["factor", "<= 1", "1.1"]),
        ("FactorScheduler(1, -0.1)", ValueError, ["factor", ">= 0"]),
        ("FactorScheduler(1, 'half')", TypeError, ["factor", "str 'half'"]),
        ("FactorScheduler(1, base_lr=nan)", ValueError, ["base_lr", "finite", "nan"]),
        ("FactorScheduler(1, base_lr=inf)", ValueError, ["base_lr", "finite", "inf"]),
        ("FactorScheduler(1, base_lr=10**400)", ValueError, ["base_lr", "1e308"]),
        ("FactorScheduler(1, base_lr=0.1, warmup_begin_lr=0.2)", ValueError, ["warmup_begin_lr"]),
        ("FactorScheduler(1, warmup_steps=-1)", ValueError, ["warmup_steps", ">= 0", "-1"]),
        ("FactorScheduler(1, warmup_steps=1.0)", TypeError, ["warmup_steps", "float 1.0"]),
        ("FactorScheduler(1, warmup_mode='cubic')", ValueError, ["'linear' or 'constant'"]),
        ("FactorScheduler(1, warmup_mode=None)", TypeError, ["warmup_mode", "None"]),
        ("FactorScheduler(2**70)", ValueError, ["step", "beyond 2**53"]),
        ("MultiFactorScheduler(5)", TypeError, ["step", "list of ints", "int"]),
        ("MultiFactorScheduler([])", ValueError, ["step", "1 to 10000", "0"]),
        ("MultiFactorScheduler([3, 3])", ValueError, ["step", "increasing", "3 and then 3"]),
        ("MultiFactorScheduler([0, 3])", ValueError, ["step[0]", ">= 1"]),
        ("MultiFactorScheduler([1, 2.5])", TypeError, ["step[1]", "float 2.5"]),
        ("MultiFactorScheduler(list(range(1, 10002)))", ValueError, ["10001"]),
        ("PolyScheduler(0)", ValueError, ["max_update", ">= 1"]),
        ("PolyScheduler(10, pwr=-1)", ValueError, ["pwr", ">= 0"]),
        ("PolyScheduler(10, warmup_steps=10)", ValueError, ["max_update", "warmup_steps, 10"]),
        ("CosineScheduler(10, final_lr=-1)", ValueError, ["final_lr", ">= 0"]),
        ("CosineScheduler(10, warmup_steps=11)", ValueError, ["max_update", "got 10"]),
        ("LRScheduler(warmup_steps=-1)", ValueError, ["warmup_steps"]),
    ],
)
def test_bad_arguments_are_refused(
    expression: str, error: type[Exception], parts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        eval(expression, {**vars(lr_scheduler), "nan": math.nan, "inf": math.inf})
    assert type(caught.value) is error
    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("Factor", {}, ValueError, "unknown schedule 'Factor': expected one of factor"),
        ("cosine" * 99, {}, ValueError, "unknown schedule"),
        ("factor", {}, TypeError, "step"),
        ("factor", {"step": 1, "pwr": 2}, TypeError, "FactorScheduler does not take 'pwr'"),
        ("factor", {"step": [1]}, TypeError, "step: expected an int"),
        ("multi_factor", {"step": ["1"]}, TypeError, r"step\[0\]"),
        ("poly", {"max_update": 3, "pwr": [2]}, TypeError, "pwr"),
        ("cosine", {"max_update": 3, "base_lr": None}, TypeError, "base_lr"),
    ],
)
def test_hostile_arguments_are_refused(
    name: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        from_arguments(name, arguments)


def test_a_schedule_of_ones_own_computes_on_the_client_only() -> None:
    class Halving(LRScheduler):
        def __call__(self, num_update: int) -> float:
            if num_update < self.warmup_steps:
                return self.get_warmup_lr(num_update)
            self.base_lr /= 2
            return self.base_lr

    schedule = Halving(0.8, warmup_steps=2)
    assert [schedule(count) for count in (1, 2, 3)] == [0.4, 0.4, 0.2]
    with pytest.raises(TypeError, match=r"Halving object.*FactorScheduler.*set_learning_rate"):
        check_schedule(schedule)


def test_the_base_has_no_rate() -> None:
    with pytest.raises(NotImplementedError, match="LRScheduler must override __call__"):
        LRScheduler()(1)
    with pytest.raises(TypeError, match="LRScheduler object"):
        check_schedule(LRScheduler())


def test_a_subclass_of_ours_and_a_class_are_refused() -> None:
    class Mine(FactorScheduler):
        pass

    for given_value in (Mine(1), FactorScheduler, 0.1):
        with pytest.raises(TypeError, match=r"declared as data.*trainer\.step"):
            check_schedule(given_value)


def test_a_schedule_of_mxnet_is_refused_by_name() -> None:
    foreign = type("FactorScheduler", (), {"__module__": "mxnet.lr_scheduler"})()
    with pytest.raises(TypeError, match=r"MXNet's FactorScheduler: make one of .* same arguments"):
        check_schedule(foreign)
