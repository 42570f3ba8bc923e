from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramd import optimizer as opt
from paramd.lr_scheduler import CosineScheduler, FactorScheduler, LRScheduler, PolyScheduler

_CLASSES = {
    "sgd": opt.SGD,
    "nag": opt.NAG,
    "signum": opt.Signum,
    "adam": opt.Adam,
    "adamw": opt.AdamW,
    "adagrad": opt.AdaGrad,
    "rmsprop": opt.RMSProp,
    "adadelta": opt.AdaDelta,
    "ftrl": opt.Ftrl,
    "lamb": opt.LAMB,
    "dcasgd": opt.DCASGD,
}


@pytest.mark.parametrize("name", _CLASSES)
def test_create_finds_a_name_in_any_case(name: str) -> None:
    for given_name in (name, name.upper(), _CLASSES[name].__name__):
        made = opt.create(given_name, wd=0.5)
        assert type(made) is _CLASSES[name]
        assert made == _CLASSES[name](wd=0.5)
    assert tuple(_CLASSES) == opt.NAMES


@pytest.mark.parametrize("name", _CLASSES)
def test_create_gives_an_instance_back(name: str) -> None:
    made = _CLASSES[name]()
    assert opt.create(made) is made
    with pytest.raises(TypeError, match=r"is complete, but got wd for it"):
        opt.create(made, wd=0.1)


@pytest.mark.parametrize("name", _CLASSES)
def test_arguments_make_the_same_optimizer(name: str) -> None:
    made = opt.create(name, learning_rate=0.3, clip_gradient=2, begin_num_update=7, wd=1)
    arguments = dict(made.arguments())
    assert {type(value) for value in arguments.values()} <= {int, float, bool}
    assert opt.from_arguments(name, arguments) == made


@pytest.mark.parametrize("name", _CLASSES)
@pytest.mark.parametrize("rate", [None, 0.05])
def test_arguments_and_schedule_make_the_same_optimizer(name: str, rate: float | None) -> None:
    schedule = FactorScheduler(3, 0.5, base_lr=0.05, warmup_steps=2)
    made = opt.create(name, learning_rate=rate, lr_scheduler=schedule)
    again = opt.from_arguments(name, made.arguments(), made.lr_scheduler)
    assert again == made
    assert "lr_scheduler" not in made.arguments()
    assert [again.rate(count) for count in range(9)] == [schedule(count) for count in range(9)]


@pytest.mark.parametrize("name", _CLASSES)
def test_none_is_left_out_of_arguments(name: str) -> None:
    arguments = opt.create(name).arguments()
    assert "clip_gradient" not in arguments
    assert None not in arguments.values()


def test_numbers_are_stored_as_plain_ones() -> None:
    made = opt.SGD(
        learning_rate=np.float32(0.5),  # type: ignore[arg-type]
        begin_num_update=np.int64(3),  # type: ignore[arg-type]
        multi_precision=np.True_,  # type: ignore[arg-type]
        momentum=1,
    )
    values = (made.learning_rate, made.begin_num_update, made.multi_precision, made.momentum)
    assert [type(value) for value in values] == [float, int, bool, float]
    assert values == (0.5, 3, True, 1.0)


def test_an_optimizer_is_frozen() -> None:
    made = opt.SGD()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.learning_rate = 0.5  # type: ignore[misc]
    assert not hasattr(made, "set_learning_rate")


def test_rate_is_the_learning_rate_without_a_schedule() -> None:
    assert opt.SGD().rate(3) == 0.01
    assert opt.Adam().rate(3) == 0.001
    assert opt.Adam(learning_rate=None).rate(0) == 0.01
    assert opt.Ftrl(learning_rate=0.4).rate(0) == 0.4


def test_learning_rate_replaces_the_base_rate_of_a_schedule() -> None:
    schedule = FactorScheduler(3, 0.5, base_lr=0.05)
    with pytest.warns(UserWarning, match=r"SGD: learning_rate 0.2 replaces base_lr 0.05"):
        made = opt.SGD(learning_rate=0.2, lr_scheduler=schedule)
    assert (made.learning_rate, made.rate(1), made.rate(4)) == (0.2, 0.2, 0.1)
    assert schedule.base_lr == 0.05


@pytest.mark.parametrize("klass", [opt.SGD, opt.LAMB, opt.Signum])
def test_the_warning_points_at_the_caller(klass: type[opt.Optimizer]) -> None:
    with pytest.warns(UserWarning, match="replaces") as caught:
        klass(learning_rate=0.2, lr_scheduler=FactorScheduler(3))
    assert caught[0].filename == __file__


@pytest.mark.parametrize("schedule", [PolyScheduler(9, 0.05), CosineScheduler(9, 0.05)], ids=repr)
def test_learning_rate_does_not_replace_that_of_poly_and_cosine(schedule: Any) -> None:
    with pytest.warns(UserWarning, match="learning_rate 0.2 has no effect"):
        made = opt.SGD(learning_rate=0.2, lr_scheduler=schedule)
    assert made.lr_scheduler is schedule
    assert made.learning_rate == 0.05


def test_ftrl_leaves_its_schedule_alone() -> None:
    made = opt.Ftrl(learning_rate=0.9, lr_scheduler=FactorScheduler(3, base_lr=0.05))
    assert made.rate(1) == made.learning_rate == 0.05


@pytest.mark.parametrize(
    ("name", "arguments", "error", "parts"),
    [
        ("sgd", {"learning_rate": -0.1}, ValueError, ["SGD: learning_rate", ">= 0", "-0.1"]),
        ("sgd", {"learning_rate": math.nan}, ValueError, ["learning_rate", "finite", "nan"]),
        ("sgd", {"learning_rate": "0.1"}, TypeError, ["learning_rate", "number", "str '0.1'"]),
        ("sgd", {"learning_rate": True}, TypeError, ["learning_rate", "bool True"]),
        ("sgd", {"learning_rate": 1j}, TypeError, ["learning_rate", "complex"]),
        ("sgd", {"learning_rate": 10**400}, ValueError, ["learning_rate", "1e308"]),
        ("sgd", {"wd": math.inf}, ValueError, ["wd", "inf"]),
        ("sgd", {"wd": None}, TypeError, ["wd", "None"]),
        ("sgd", {"rescale_grad": math.nan}, ValueError, ["rescale_grad", "nan"]),
        ("sgd", {"clip_gradient": 0}, ValueError, ["clip_gradient", "> 0", "or None"]),
        ("sgd", {"begin_num_update": -1}, ValueError, ["begin_num_update", ">= 0"]),
        ("sgd", {"begin_num_update": 1.0}, TypeError, ["begin_num_update", "float 1.0"]),
        ("sgd", {"begin_num_update": 2**70}, ValueError, ["begin_num_update", "beyond 2**53"]),
        ("sgd", {"multi_precision": 1}, TypeError, ["multi_precision", "int 1"]),
        ("sgd", {"momentum": 1.5}, ValueError, ["momentum", "<= 1"]),
        ("sgd", {"lazy_update": "yes"}, TypeError, ["lazy_update", "str 'yes'"]),
        ("nag", {"momentum": -0.1}, ValueError, ["NAG: momentum"]),
        ("signum", {"wd_lh": -1}, ValueError, ["wd_lh"]),
        ("signum", {"wd_lh": 0.1, "momentum": 0}, ValueError, ["wd_lh", "momentum"]),
        ("adam", {"beta1": 1}, ValueError, ["beta1", "< 1"]),
        ("adam", {"beta2": -0.5}, ValueError, ["beta2", ">= 0"]),
        ("adamw", {"epsilon": -1}, ValueError, ["AdamW: epsilon"]),
        ("adagrad", {"eps": -1}, ValueError, ["eps"]),
        ("rmsprop", {"gamma1": 2}, ValueError, ["gamma1"]),
        ("rmsprop", {"clip_weights": 0}, ValueError, ["clip_weights", "> 0"]),
        ("rmsprop", {"centered": 0}, TypeError, ["centered"]),
        ("adadelta", {"rho": 1.1}, ValueError, ["rho"]),
        ("ftrl", {"learning_rate": 0}, ValueError, ["learning_rate", "> 0"]),
        ("ftrl", {"lamda1": -1}, ValueError, ["lamda1"]),
        ("lamb", {"upper_bound": 0}, ValueError, ["upper_bound"]),
        ("lamb", {"lower_bound": 2, "upper_bound": 1}, ValueError, ["lower_bound", "upper_bound"]),
        ("dcasgd", {"lamda": -1}, ValueError, ["lamda"]),
        ("sgd", {"beta1": 0.9}, TypeError, ["SGD does not take 'beta1'", "momentum, lazy_update"]),
        ("sgd", {"sym": None}, TypeError, ["SGD does not take sym", "lr_mult"]),
        ("sgd", {"param_idx2name": {}}, TypeError, ["param_idx2name"]),
        ("sgd", {"param_dict": {}}, TypeError, ["param_dict", "wd_mult"]),
        ("sgd", {"lr_scheduler": 0.1}, TypeError, ["lr_scheduler", "float object"]),
    ],
)
def test_bad_arguments_are_refused(
    name: str, arguments: dict[str, Any], error: type[Exception], parts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        opt.create(name, **arguments)
    assert type(caught.value) is error
    assert [part for part in parts if part not in str(caught.value)] == []


def test_an_unknown_name_is_refused_with_ours() -> None:
    with pytest.raises(ValueError, match=r"unknown optimizer 'sdg': expected one of sgd, nag, .*"):
        opt.create("sdg")


@pytest.mark.parametrize(
    "name",
    ["SGLD", "ftml", "lars", "lbsgd", "Adamax", "nadam", "ccSGD", "groupadagrad", "test"],
)
def test_what_mxnet_has_and_we_have_not_is_refused_with_ours(name: str) -> None:
    with pytest.raises(ValueError, match=rf"no optimizer '{name.lower()}', which MXNet has.*lamb"):
        opt.create(name)


def test_an_optimizer_of_ones_own_is_refused_with_advice() -> None:
    class Mine:
        pass

    class Faster(opt.SGD):
        pass

    advice = r"arithmetic runs on the server: choose one of sgd.*set_data"
    for given_value in (Mine(), Faster(), Mine, None, 3):
        with pytest.raises(TypeError, match=advice):
            opt.create(given_value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=advice):
        opt.register(Mine)


def test_a_class_of_ours_is_refused() -> None:
    with pytest.raises(TypeError, match=r"make one of it, SGD\(\.\.\.\)"):
        opt.create(opt.SGD)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Optimizer is the base"):
        opt.Optimizer()


def test_an_optimizer_of_mxnet_is_refused_by_name() -> None:
    foreign = type("SGD", (), {"__module__": "mxnet.optimizer.optimizer"})
    with pytest.raises(TypeError, match=r"MXNet's SGD: name one of sgd"):
        opt.create(foreign())


def test_a_schedule_of_ones_own_is_refused_with_advice() -> None:
    class Mine(LRScheduler):
        pass

    with pytest.raises(TypeError, match=r"lr_scheduler: got Mine object.*learning_rate=rate"):
        opt.SGD(lr_scheduler=Mine())  # type: ignore[arg-type]


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
)
_FIELDS = sorted({one.name for klass in _CLASSES.values() for one in dataclasses.fields(klass)})


@given(
    name=st.sampled_from([*_CLASSES, "SGD", "sgld", ""]),
    arguments=st.dictionaries(st.sampled_from([*_FIELDS, "x"]), _VALUES, max_size=4),
)
def test_hostile_arguments_are_refused_or_sound(name: str, arguments: dict[str, Any]) -> None:
    try:
        made = opt.from_arguments(name, arguments)
    except (TypeError, ValueError):
        return
    values = made.arguments()
    assert all(math.isfinite(value) for value in values.values())
    assert opt.from_arguments(name, values) == made
    assert 0 <= made.rate(1) < math.inf
