"""`Parameter` without a server: its declaration, and which calls it makes."""

from __future__ import annotations

import inspect
import pickle
import warnings
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import paramd
from paramd import Parameter, cpu, gpu, init
from paramd.spec import InitializerSpec, ParameterSpec
from tests.support.fake_session import FakeSession, stored


@pytest.fixture
def fake() -> FakeSession:
    return FakeSession()


class OwnInit(init.Initializer):
    """Fills with the number of calls, so that a second computation shows."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def _init_weight(self, name: str, arr: Any) -> None:
        self.calls += 1
        arr[:] = self.calls


def test_order_of_arguments_is_that_of_mxnet() -> None:
    names = list(inspect.signature(Parameter).parameters)
    assert names == [
        "name",
        "grad_req",
        "shape",
        "dtype",
        "lr_mult",
        "wd_mult",
        "init",
        "allow_deferred_init",
        "differentiable",
        "stype",
        "grad_stype",
        "session",
    ]
    order = ["self", "init", "ctx", "default_init", "force_reinit", "device"]
    assert list(inspect.signature(Parameter.initialize).parameters) == order


def test_constructing_and_setting_need_no_session() -> None:
    with pytest.raises(paramd.errors.NoSessionError):
        paramd.current_session()
    parameter = Parameter("w", shape=5, lr_mult=2)
    parameter.wd_mult = 0.5
    parameter.grad_req = "add"
    parameter.cast("float16")
    assert (parameter.shape, parameter.lr_mult, parameter.wd_mult) == ((5,), 2.0, 0.5)
    assert (parameter.grad_req, parameter.dtype) == ("add", "float16")
    with pytest.raises(paramd.errors.NoSessionError):
        parameter.data()


def test_name_defaults_to_weight() -> None:
    assert Parameter().name == "weight"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"grad_req": "bogus"}, AssertionError),
        ({"grad_req": None}, AssertionError),
        ({"grad_req": "bogus", "differentiable": False}, AssertionError),
        ({"stype": "coo"}, AssertionError),
        ({"grad_stype": "coo"}, AssertionError),
        ({"dtype": "bogus"}, TypeError),
        ({"dtype": "int16"}, TypeError),
        ({"shape": "ab"}, TypeError),
        ({"shape": (2.0, 3)}, TypeError),
        ({"shape": (2, -5)}, ValueError),
        ({"lr_mult": "x"}, TypeError),
        ({"wd_mult": float("nan")}, ValueError),
        ({"name": ""}, ValueError),
        ({"name": "x" * 2000}, ValueError),
    ],
)
def test_arguments_that_no_parameter_has_are_refused(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Parameter(**{"name": "w", **arguments})


def test_dtype_keeps_the_spelling_in_which_it_was_given() -> None:
    assert Parameter("w").dtype is np.float32
    assert Parameter("w", dtype="float64").dtype == "float64"
    assert Parameter("w", dtype="bfloat16").dtype == "bfloat16"
    assert repr(Parameter("w", shape=(2,))) == (
        "Parameter w (shape=(2,), dtype=<class 'numpy.float32'>)"
    )
    assert repr(Parameter("w", dtype="int32")) == "Parameter w (shape=None, dtype=int32)"


def test_not_differentiable_forces_null() -> None:
    parameter = Parameter("w", differentiable=False)
    assert parameter.grad_req == "null"
    parameter.grad_req = "write"
    assert parameter.grad_req == "null"


def test_shape_setter_fills_unknown_dimensions_only() -> None:
    parameter = Parameter("w", shape=(0, 3))
    with pytest.raises(AssertionError, match=r"\(2, 4\).*\(0, 3\)"):
        parameter.shape = (2, 4)
    with pytest.raises(AssertionError):
        parameter.shape = (2, 3, 1)
    parameter.shape = (2, 3)
    assert parameter.shape == (2, 3)
    with pytest.raises(AssertionError):
        parameter.shape = (0, 3)
    with pytest.raises(TypeError):
        parameter.shape = None  # type: ignore[assignment]


def test_ctx_and_device_together_are_refused() -> None:
    parameter = Parameter("w", shape=(2,))
    for call in (
        lambda: parameter.initialize(ctx=cpu(0), device=cpu(0)),
        lambda: parameter.data(cpu(0), device=cpu(0)),
        lambda: parameter.grad(cpu(0), device=cpu(0)),
    ):
        with pytest.raises(TypeError, match="ctx and device"):
            call()


@pytest.mark.parametrize("ctx", ["cpu(0)", 5, [cpu(0), "cpu(1)"]])
def test_contexts_are_contexts(ctx: Any) -> None:
    with pytest.raises(TypeError):
        Parameter("w", shape=(2,)).initialize(ctx=ctx)


def test_first_call_declares_what_was_stated(fake: FakeSession) -> None:
    plain = Parameter("w", session=fake.session)
    plain.zero_grad()
    full = Parameter("v", "add", (2, 0), "float16", 2.0, init="ones", session=fake.session)
    full.zero_grad()
    full.zero_grad()
    (one, nothing), (two, stated) = fake.calls.declarations
    assert one == ParameterSpec("w")
    assert nothing == frozenset()
    assert two == ParameterSpec(
        "v", (2, 0), np.dtype(np.float16), grad_req="add", lr_mult=2.0, init=InitializerSpec("one")
    )
    assert stated == {"grad_req", "shape", "dtype", "lr_mult", "init"}
    assert [name for name, _ in fake.calls.log] == [
        "declare",
        "zero_grad",
        "declare",
        "zero_grad",
        "zero_grad",
    ]


def test_what_was_set_before_attaching_is_stated(fake: FakeSession) -> None:
    parameter = Parameter("w", session=fake.session)
    parameter.lr_mult = 1.0
    parameter.init = init.Normal(0.5)
    parameter.zero_grad()
    ((spec, stated),) = fake.calls.declarations
    assert spec.init == InitializerSpec("normal", {"sigma": 0.5})
    assert stated == {"lr_mult", "init"}


def test_attributes_are_the_servers_once_attached(fake: FakeSession) -> None:
    parameter = Parameter("w", lr_mult=2.0, session=fake.session)
    parameter.zero_grad()
    info = fake.calls.infos["w"]
    now = replace(info.current, lr_mult=9.0, shape=(3,), dtype=np.dtype(ml_dtypes.bfloat16))
    fake.calls.infos["w"] = replace(info, current=now)
    assert parameter.lr_mult == 9.0
    assert parameter.shape == (3,)
    assert parameter.dtype is ml_dtypes.bfloat16
    parameter.wd_mult = 4.0
    assert fake.calls.infos["w"].current.wd_mult == 4.0


def test_init_is_the_given_object_or_made_from_the_spec(fake: FakeSession) -> None:
    given = init.Xavier(magnitude=2)
    parameter = Parameter("w", init=given, session=fake.session)
    parameter.zero_grad()
    assert parameter.init is given
    other = Parameter("w", session=fake.session)
    other.zero_grad()
    assert other.init == given
    other.init = None
    assert parameter.init is None


def test_wrong_grad_req_makes_no_call(fake: FakeSession) -> None:
    parameter = Parameter("w", session=fake.session)
    parameter.zero_grad()
    before = len(fake.calls.log)
    with pytest.raises(AssertionError, match="bogus"):
        parameter.grad_req = "bogus"
    assert len(fake.calls.log) == before


def test_second_initialize_of_a_proxy_warns_and_a_lost_race_does_not(fake: FakeSession) -> None:
    first = Parameter("w", shape=(2,), session=fake.session)
    late = Parameter("w", shape=(2,), session=fake.session)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.initialize()
        late.initialize()
    for parameter in (first, late):
        with pytest.warns(UserWarning, match="'w' is already initialized.*force_reinit") as caught:
            parameter.initialize()
        assert caught[0].filename == __file__
        parameter.initialize(force_reinit=True)


def test_own_initializer_is_computed_once_and_sent(fake: FakeSession) -> None:
    own = OwnInit()
    parameter = Parameter("w", shape=(2, 2), init=own, session=fake.session)
    parameter.initialize(ctx=[cpu(0), cpu(1)])
    (write,) = fake.calls.writes
    assert isinstance(write.value, np.ndarray)
    assert write.value.dtype == np.float32
    np.testing.assert_array_equal(write.value, np.ones((2, 2)))
    assert own.calls == 1
    late = Parameter("w", shape=(2, 2), init=OwnInit(), session=fake.session)
    late.initialize()
    assert len(fake.calls.writes) == 1


def test_init_argument_goes_before_the_declared_one(fake: FakeSession) -> None:
    own = OwnInit()
    parameter = Parameter("w", shape=(2,), init=own, session=fake.session)
    parameter.initialize("zeros")
    assert fake.calls.writes == []
    assert own.calls == 0


def test_restarted_server_is_told_again(fake: FakeSession) -> None:
    parameter = Parameter("w", shape=(2,), session=fake.session)
    parameter.initialize()
    fake.calls.restart()
    assert parameter.shape == (2,)
    assert [name for name, _ in fake.calls.log][-3:] == ["status", "declare", "describe"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parameter.initialize()


def test_deleted_parameter_is_not_made_again(fake: FakeSession) -> None:
    parameter = Parameter("w", shape=(2,), session=fake.session)
    parameter.initialize()
    del fake.calls.infos["w"]
    with pytest.raises(KeyError, match="w"):
        parameter.initialize(force_reinit=True)
    assert "w" not in fake.calls.infos


def test_states_are_told_apart(fake: FakeSession) -> None:
    parameter = Parameter("w", shape=(0,), session=fake.session)
    with pytest.raises(RuntimeError, match="'w' has not been initialized"):
        parameter.data()
    with pytest.raises(RuntimeError, match="'w' has not been initialized"):
        parameter.list_ctx()
    spec = ParameterSpec("w", (0,))
    fake.calls.infos["w"] = stored(spec, state="deferred", contexts=(cpu(1),))
    with pytest.raises(paramd.DeferredInitializationError, match=r"'w'.*\(0,\)"):
        parameter.list_grad()
    assert parameter.list_ctx() == parameter.list_device() == [cpu(1)]


def test_contexts_are_looked_up_as_in_mxnet(fake: FakeSession) -> None:
    parameter = Parameter("w", shape=(2,), session=fake.session)
    parameter.initialize(ctx=[cpu(1)])
    assert parameter.data().context == cpu(1)
    assert parameter.data(paramd.cpu_pinned(1)).context == cpu(1)
    parameter.initialize(ctx=[cpu(1), cpu(2)], force_reinit=True)
    with cpu(2):
        assert parameter.data().context == cpu(2)
    with pytest.raises(RuntimeError, match=r"'w'.*gpu\(1\).*cpu\(1\), cpu\(2\)"):
        parameter.grad(gpu(1))
    with pytest.raises(RuntimeError, match=r"cpu\(0\)"):
        parameter.data()


def test_wrong_storage_type_names_the_call_to_use(fake: FakeSession) -> None:
    dense = Parameter("w", shape=(2,), session=fake.session)
    sparse = Parameter("v", shape=(2,), stype="row_sparse", session=fake.session)
    with pytest.raises(RuntimeError, match=r"'v'.*row_sparse_data\(\)"):
        sparse.data()
    with pytest.raises(RuntimeError, match=r"'w'.*use data\(\)"):
        dense.row_sparse_data([0])
    with pytest.raises(RuntimeError, match=r"'w'.*use data\(\)"):
        dense.list_row_sparse_data([0])


def test_pickling_carries_the_declaration_and_no_session() -> None:
    parameter = Parameter("w", shape=(2, 0), dtype="float16", init=init.Xavier(magnitude=2))
    parameter.foreign = 3  # type: ignore[attr-defined]
    copy = pickle.loads(pickle.dumps(parameter))
    assert (copy.name, copy.shape, copy.dtype) == ("w", (2, 0), "float16")
    assert copy.init == init.Xavier(magnitude=2)
    assert copy.foreign == 3
    assert copy._link.stated == parameter._link.stated
    assert copy._link.session is None


def test_equality_is_identity() -> None:
    one, other = Parameter("w"), Parameter("w")
    assert one != other
    assert len({one, other}) == 2


def test_assigning_a_name_makes_it_another_proxy(fake: FakeSession) -> None:
    parameter = Parameter("w", session=fake.session)
    parameter.zero_grad()
    parameter.name = "v"
    parameter.zero_grad()
    assert [spec.name for spec, _ in fake.calls.declarations] == ["w", "v"]


def test_var_is_cached() -> None:
    parameter = Parameter("w", shape=(2, 3), init="ones")
    symbol = parameter.var()
    assert symbol is parameter.var()
    assert symbol.name == "w"
    assert isinstance(symbol, paramd.tensor_types)
