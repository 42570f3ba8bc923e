"""The client's classes: names, signatures, specs, and what they do to local arrays."""

from __future__ import annotations

import inspect
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramd import initializer as init
from paramd import random
from paramd.errors import (
    BroadcastError,
    InitializerError,
    ParameterMissingError,
    ShapeMismatchError,
)
from paramd.files import RowSparseRows, save_arrays
from paramd.initial_values import fill
from paramd.initializer import InitDesc, InvalidInitializerError, compute, create, to_spec
from paramd.initializer import registry as registry_module
from paramd.spec import InitializerSpec

F32 = np.dtype(np.float32)
OURS = [
    init.Zero(),
    init.One(),
    init.Constant(2.5),
    init.Uniform(0.5),
    init.Normal(0.5),
    init.Orthogonal(2.0, "normal"),
    init.Xavier("gaussian", "in", 2.34),
    init.MSRAPrelu("out", 0.5),
    init.Bilinear(),
    init.LSTMBias(3.0),
]


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_registry", dict(registry_module._registry))


def _filled(
    initializer: Any, desc: str, shape: tuple[int, ...] = (8, 4, 3, 3), dtype: str = "f4"
) -> np.ndarray[Any, Any]:
    arr = np.full(shape, 9, dtype)
    initializer(desc, arr)
    return arr


# Registry and construction


@pytest.mark.parametrize(
    ("name", "klass"),
    [
        ("zeros", init.Zero),
        ("zero", init.Zero),
        ("ones", init.One),
        ("One", init.One),
        ("XAVIER", init.Xavier),
        ("msraprelu", init.MSRAPrelu),
        ("lstmbias", init.LSTMBias),
    ],
)
def test_names_in_any_case_and_aliases(name: str, klass: type[init.Initializer]) -> None:
    assert type(create(name)) is klass


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("uniform", 3), {}),
        (("uniform",), {"scale": 3}),
        (({"initializer": "uniform", "scale": 3},), {}),
        (('["uniform", {"scale": 3}]',), {}),
        (('{"initializer": "uniform", "scale": 3}',), {}),
        ((), {"initializer": "uniform", "scale": 3}),
        ((InitializerSpec("uniform", {"scale": 3.0}),), {}),
        ((init.Uniform(3),), {}),
    ],
)
def test_create_takes_every_spelling(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert create(*args, **kwargs) == init.Uniform(3)


@pytest.mark.parametrize(
    "args",
    [
        ("nope",),
        ("",),
        (None,),
        (5,),
        (np.ones(2),),
        (init.Zero(), 3),
        (InitializerSpec("uniform"), 3),
        ("[broken",),
        ('["uniform"]',),
        ('["uniform", {}]', 3),
    ],
)
def test_what_is_no_initializer_is_an_assertion_error(args: tuple[Any, ...]) -> None:
    with pytest.raises(AssertionError) as caught:
        create(*args)
    assert isinstance(caught.value, InvalidInitializerError | InitializerError)


def test_create_without_a_needed_argument_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="value"):
        create("constant")


@pytest.mark.parametrize("initializer", OURS, ids=lambda one: type(one).__name__)
def test_dumps_repr_and_spec_say_all(initializer: init.Initializer) -> None:
    assert create(initializer.dumps()) == initializer
    assert eval(repr(initializer), vars(init)) == initializer
    assert init.from_spec(to_spec(initializer, "w")) == initializer


def test_dumps_is_what_mxnet_writes() -> None:
    expected = '["xavier", {"rnd_type": "uniform", "factor_type": "avg", "magnitude": 3}]'
    assert init.Xavier().dumps() == expected
    assert init.Constant(np.array([1, 2])).dumps() == '["constant", {"value": [1, 2]}]'


def test_equality_is_of_class_and_arguments() -> None:
    assert init.Uniform(1) == init.Uniform(1.0)
    assert init.Uniform(1) != init.Uniform(2)
    assert init.Uniform(0.01) != init.Normal(0.01)
    assert init.Zero() != "zero"
    assert init.Constant([1, 2]) == init.Constant(np.array([1, 2]))
    assert init.Constant([1, 2]) != init.Constant([1, 2, 3])


def test_register_and_alias_make_names() -> None:
    @init.register
    @init.alias("threes", "Dreier")
    class Three(init.Initializer):
        def _init_weight(self, name: str, arr: init.Fillable) -> None:
            arr[:] = 3

    for name in ("three", "THREES", "dreier"):
        assert type(create(name)) is Three
    with pytest.warns(UserWarning, match=r"'dreier'.*Three"):
        init.alias("dreier")(type("Four", (init.Initializer,), {}))


def test_only_initializers_can_be_registered() -> None:
    with pytest.raises(AssertionError, match="int"):
        init.register(int)  # type: ignore[type-var]


# Specs


@pytest.mark.parametrize(
    ("initializer", "name", "arguments"),
    [
        (init.Zero(), "zero", {}),
        ("ones", "one", {}),
        (init.Constant(3), "constant", {"value": 3.0}),
        (init.Constant(np.float32(0.5)), "constant", {"value": 0.5}),
        (init.Constant("1.5"), "constant", {"value": 1.5}),
        (init.Uniform(), "uniform", {"scale": 0.07}),
        (init.MSRAPrelu(), "msraprelu", {"factor_type": "avg", "slope": 0.25}),
        (
            init.Xavier(magnitude=2),
            "xavier",
            {"rnd_type": "uniform", "factor_type": "avg", "magnitude": 2.0},
        ),
        (init.Mixed([".*bias", ".*"], [init.Zero(), "ones"]), "one", {}),
        (init.Load({}, init.Normal(2)), "normal", {"sigma": 2.0}),
    ],
)
def test_ours_become_specs(initializer: Any, name: str, arguments: dict[str, Any]) -> None:
    assert to_spec(initializer, "net_w") == InitializerSpec(name, arguments)


def test_specs_follow_assigned_attributes() -> None:
    xavier = init.Xavier()
    xavier.magnitude = 5.0
    assert to_spec(xavier, "w").arguments["magnitude"] == 5.0
    prelu = init.MSRAPrelu()
    prelu.magnitude = 5.0
    assert to_spec(prelu, "w").name == "xavier"


class _Scaled(init.Xavier):
    """Changes only the arguments, so it is still one that the server can compute."""

    def __init__(self) -> None:
        super().__init__(magnitude=7)


class _Doubled(init.Uniform):
    """Computes by code of its own, on top of ours."""

    def _init_weight(self, name: str, arr: Any) -> None:
        super()._init_weight(name, arr)
        arr[:] = arr * 2


def test_subclasses_that_compute_themselves_stay_with_the_client() -> None:
    assert to_spec(_Scaled(), "w").arguments["magnitude"] == 7.0
    for initializer in (_Doubled(), init.Constant([1, 2]), init.Load({"w": np.ones(2)})):
        assert to_spec(initializer, "w") == InitializerSpec(client_side=True)


@pytest.mark.parametrize("scale", [None, "x", [1.0], 1j])
def test_arguments_that_are_no_numbers_are_refused(scale: Any) -> None:
    with pytest.raises(InitializerError, match=r"'uniform'.*scale"):
        to_spec(init.Uniform(scale), "w")


@pytest.mark.parametrize(
    "spec",
    [
        InitializerSpec(client_side=True),
        InitializerSpec("nope"),
        InitializerSpec("uniform", {"x": 1.0}),
    ],
)
def test_specs_that_describe_none_of_ours_are_refused(spec: InitializerSpec) -> None:
    with pytest.raises(InitializerError, match=r"a client's own|'nope'|'uniform'"):
        init.from_spec(spec)


def test_mixed_takes_the_first_match_from_the_start_of_the_name() -> None:
    mixed = init.Mixed(["net_.*bias", "bias", ".*"], [init.Zero(), init.One(), init.Uniform()])
    assert to_spec(mixed, "net_bias").name == "zero"
    assert to_spec(mixed, "bias").name == "one"
    assert to_spec(mixed, "a_bias").name == "uniform"


def test_mixed_without_a_match_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"'w' did not match"):
        to_spec(init.Mixed(["bias"], [init.Zero()]), "w")


def test_mixed_needs_as_many_initializers_as_patterns() -> None:
    with pytest.raises(AssertionError, match="2 patterns"):
        init.Mixed(["a", "b"], [init.Zero()])


# Values that the client computes


def test_ours_compute_what_the_server_computes() -> None:
    for initializer in OURS:
        values = compute(initializer, "w", (8, 4, 3, 3), F32, 5, 1)
        spec = to_spec(initializer, "w")
        expected = fill(spec, "w", (8, 4, 3, 3), F32, seed=5, draw=1)
        np.testing.assert_array_equal(values, expected)


def test_a_subclass_builds_on_the_values_of_the_key() -> None:
    values = compute(_Doubled(0.5), "w", (20, 30), F32, 5, 1)
    np.testing.assert_array_equal(values, 2 * compute(init.Uniform(0.5), "w", (20, 30), F32, 5, 1))


def test_a_subclass_that_draws_twice_gets_other_values_each_time() -> None:
    class Both(init.Initializer):
        def _init_weight(self, name: str, arr: Any) -> None:
            init.Uniform(1)._init_weight(name, arr[0])
            init.Uniform(1)._init_weight(name, arr[1])

    values = compute(Both(), "w", (2, 50), F32, 5, 1)
    assert (values[0] != values[1]).any()
    np.testing.assert_array_equal(values, compute(Both(), "w", (2, 50), F32, 5, 1))


def test_a_users_class_sees_what_mxnet_shows_it() -> None:
    seen: list[Any] = []

    class Probe(init.Initializer):
        def _init_weight(self, name: str, arr: Any) -> None:
            seen.extend([name, arr.shape, np.dtype(arr.dtype)])
            arr[:] = 3
            arr[1:] = np.ones((1, 2))

    probe = Probe()
    values = compute(probe, "net_bias", (2, 2), np.dtype(np.float16), 0, 0)
    assert seen == ["net_bias", (2, 2), np.float16]
    assert isinstance(seen[0], InitDesc)
    assert seen[0].attrs["__init__"] is probe
    assert values.dtype == np.float16
    assert values.tolist() == [[3, 3], [1, 1]]


def test_errors_of_a_users_class_come_through() -> None:
    class Broken(init.Initializer):
        def _init_weight(self, name: str, arr: init.Fillable) -> None:
            raise LookupError(name)

    with pytest.raises(LookupError, match="w"):
        compute(Broken(), "w", (2,), F32, 0, 0)
    with pytest.raises(NotImplementedError, match="_init_weight"):
        compute(init.Initializer(), "w", (2,), F32, 0, 0)


@pytest.mark.parametrize("value", [[1, 2, 3], np.array([1.0, 2.0, 3.0]), np.array([[1, 2, 3]])])
def test_constant_arrays_broadcast(value: Any) -> None:
    values = compute(init.Constant(value), "w", (2, 3), F32, 0, 0)
    assert values.tolist() == [[1, 2, 3], [1, 2, 3]]
    with pytest.raises(BroadcastError, match=r"'w'.*\(2, 4\)"):
        compute(init.Constant(value), "w", (2, 4), F32, 0, 0)


def test_load_gives_values_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sparse = RowSparseRows(np.array([1]), np.ones((1, 2), np.float32), (3, 2))
    save_arrays(tmp_path / "x.params", {"arg:a": np.arange(3.0), "aux:b": sparse})
    load = init.Load(str(tmp_path / "x.params"), default_init="ones", verbose=True)
    caplog.set_level(logging.INFO)
    assert compute(load, "a", (3,), F32, 0, 0).tolist() == [0, 1, 2]
    assert compute(load, "b", (3, 2), F32, 0, 0).tolist() == [[0, 0], [1, 1], [0, 0]]
    assert compute(load, "c", (2,), F32, 0, 0).tolist() == [1, 1]
    assert _filled(load, InitDesc("c_gamma"), (2,)).tolist() == [1, 1]
    assert "Initialized a by loading" in caplog.text
    assert "Initialized c_gamma by default" in caplog.text


def test_load_raises_assertion_errors_as_mxnet() -> None:
    load = init.Load({"a": np.ones(3)})
    with pytest.raises(ShapeMismatchError, match=r"'a'.*\(4,\).*\(3,\)"):
        compute(load, "a", (4,), F32, 0, 0)
    with pytest.raises(ParameterMissingError, match="'b'"):
        to_spec(load, "b")
    with pytest.raises(AssertionError, match="list"):
        init.Load([1])  # type: ignore[arg-type]


# Calls on local arrays


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a_weight", 5),
        ("a_bias", 0),
        ("a_gamma", 1),
        ("a_beta", 0),
        ("a_min", 0),
        ("a_max", 1),
        ("a_bias_quantize", 0),
    ],
)
def test_the_end_of_the_name_chooses_the_rule(name: str, expected: float) -> None:
    assert (_filled(init.Constant(5), InitDesc(name)) == expected).all()


def test_a_declared_initializer_precedes_the_rules() -> None:
    for declared in (init.Constant(4), '["constant", {"value": 4}]'):
        desc = InitDesc("a_bias", {"__init__": declared})
        assert (_filled(init.Zero(), desc) == 4).all()
        assert desc.global_init == init.Zero()


def test_names_without_a_rule_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="'foo'"):
        init.Zero()(InitDesc("foo"), np.zeros(3))


_BILINEAR = fill(InitializerSpec("bilinear"), "", (1, 1, 4, 4), F32, seed=0, draw=0)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("upsampling0", (1, 1, 4, 4), _BILINEAR),
        ("stn_loc_weight", (6,), np.zeros(6)),
        ("stn_loc_bias", (6,), [1, 0, 0, 0, 1, 0]),
        ("a_weight", (2,), [5, 5]),
        ("a_moving_mean", (2,), [0, 0]),
        ("a_moving_var", (2,), [1, 1]),
        ("a_moving_avg", (2,), [0, 0]),
        ("a_max", (2,), [1, 1]),
    ],
)
def test_plain_names_are_deprecated_and_work(
    name: str, shape: tuple[int, ...], expected: Any
) -> None:
    with pytest.warns(DeprecationWarning, match="InitDesc"):
        arr = _filled(init.Constant(5), name, shape)
    np.testing.assert_array_equal(arr, expected)


def test_quantized_weights_are_whole_numbers_of_int8() -> None:
    arr = _filled(init.Zero(), InitDesc("a_weight_quantize"), (50, 50))
    assert np.array_equal(arr, arr.astype(np.int8))
    assert len(np.unique(arr)) > 200


def test_a_call_draws_from_the_seed_of_the_process() -> None:
    random.seed(5)
    arr = _filled(init.Uniform(1), InitDesc("a_weight"), (4, 5))
    np.testing.assert_array_equal(arr, compute(init.Uniform(1), "a_weight", (4, 5), F32, 5, 0))
    assert random.next_key("a_weight") == (5, 1)


def test_verbosity_logs_what_was_initialized(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    verbose = init.Constant(3).set_verbosity(True)
    _filled(verbose, InitDesc("a_weight"), (4,))
    _filled(verbose.set_verbosity(True, lambda arr: f"sum {arr.sum()}"), InitDesc("a_max"), (4,))
    _filled(verbose.set_verbosity(False), InitDesc("quiet_weight"), (4,))
    assert [record.getMessage() for record in caplog.records] == [
        "Initialized a_weight as weight: 3.0",
        "Initialized a_max as max: sum 4.0",
    ]


def test_signatures_are_mxnets() -> None:
    # Recorded from MXNet 1.9.1; test_against_mxnet compares with the installed one.
    recorded = json.loads((Path(__file__).parent / "mxnet_signatures.json").read_text())
    with warnings.catch_warnings(action="error"):
        ours = {name: _signature(getattr(init, name)) for name in recorded}
    assert ours == recorded


def _signature(target: Any) -> list[list[Any]]:
    empty = inspect.Parameter.empty
    return [
        [one.name, one.kind.name, "" if one.default is empty else repr(one.default)]
        for one in inspect.signature(target).parameters.values()
    ]
