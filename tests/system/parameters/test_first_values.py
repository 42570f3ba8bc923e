"""`initialize` on a real server, deferred or not."""

from __future__ import annotations

import logging
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paramd
from paramd import (
    DeferredInitializationError,
    Parameter,
    ParameterDict,
    Session,
    gpu,
    init,
)
from paramd.files import save_arrays
from tests.support.contexts import device
from tests.support.proxies import Ramp, ramp


def test_initialize_gives_every_context_the_same_value(session: Session) -> None:
    weight = Parameter("w", shape=(64, 10))
    weight.initialize(init.Xavier(), ctx=[device(0), device(2)])
    assert weight.list_ctx() == [device(0), device(2)]
    one, two = (each.asnumpy() for each in weight.list_data())
    np.testing.assert_array_equal(one, two)
    assert one.std() > 0.05
    np.testing.assert_array_equal(weight.grad(device(2)).asnumpy(), np.zeros((64, 10)))


def test_seed_gives_the_same_values_again(session: Session) -> None:
    values = []
    for _ in range(2):
        paramd.random.seed(3)
        weight = Parameter("w", shape=(10,))
        weight.initialize(force_reinit=True)
        values.append(weight.data().asnumpy())
    weight.initialize(force_reinit=True)
    np.testing.assert_array_equal(values[0], values[1])
    assert not np.array_equal(values[0], weight.data().asnumpy())


def test_precedence_of_initializers(session: Session) -> None:
    declared = Parameter("a", shape=(2,), init="ones")
    declared.initialize(default_init="zeros")
    assert declared.data().asnumpy().tolist() == [1, 1]
    declared.initialize(init.Constant(3), force_reinit=True)
    assert declared.data().asnumpy().tolist() == [3, 3]
    bare = Parameter("b", shape=(2,))
    bare.initialize(default_init="ones")
    assert bare.data().asnumpy().tolist() == [1, 1]
    default = Parameter("c_bias", shape=(1000,))
    default.initialize()
    assert 0.06 < np.abs(default.data().asnumpy()).max() <= 0.07


def test_late_proxy_uses_the_declared_initializer(session: Session) -> None:
    Parameter("w", shape=(2,), init="ones").zero_grad()
    late = Parameter("w")
    late.initialize()
    assert late.data().asnumpy().tolist() == [1, 1]
    assert late.init == init.One()


@pytest.mark.parametrize(
    ("arguments", "call", "error", "facts"),
    [
        ({"shape": None}, {}, ValueError, "'w'.*None"),
        ({"shape": (0, 3)}, {}, ValueError, r"'w'.*\(0, 3\)"),
        ({"shape": ()}, {}, ValueError, r"'w'.*\(\)"),
        ({"shape": (3,)}, {"init": "xavier"}, ValueError, "w"),
        ({"shape": (3,)}, {"init": "bogus"}, AssertionError, "bogus"),
        ({"shape": (3,)}, {"init": 5}, AssertionError, "5"),
        ({"shape": (3,)}, {"ctx": gpu(99)}, ValueError, r"gpu\(99\)"),
        ({"shape": (3,), "dtype": "int32"}, {"init": "uniform"}, ValueError, "int32"),
    ],
)
def test_what_cannot_be_initialized_stays_as_it_was(
    session: Session,
    arguments: dict[str, Any],
    call: dict[str, Any],
    error: type[Exception],
    facts: str,
) -> None:
    weight = Parameter("w", **arguments)
    with pytest.raises(error, match=facts):
        weight.initialize(**call)
    with pytest.raises(RuntimeError, match=r"'w' has not been initialized"):
        weight.data()


def test_failed_reinit_keeps_the_value(session: Session) -> None:
    weight = Parameter("w", shape=(2,))
    weight.initialize("ones")
    for wrong in ({"init": "xavier"}, {"ctx": gpu(99)}, {"init": "bogus"}):
        with pytest.raises((ValueError, AssertionError)):
            weight.initialize(force_reinit=True, **wrong)
    assert weight.data().asnumpy().tolist() == [1, 1]
    assert weight.list_ctx() == [device(0)]


def test_second_initialize_warns_and_changes_nothing(session: Session) -> None:
    weight = Parameter("w", shape=(2,))
    weight.initialize("ones")
    with pytest.warns(UserWarning, match=r"'w' is already initialized"):
        weight.initialize("zeros", ctx=device(1))
    assert weight.data().asnumpy().tolist() == [1, 1]
    assert weight.list_ctx() == [device(0)]


def test_of_many_threads_one_value_wins(session: Session) -> None:
    proxies = [Parameter("w", shape=(1000,)) for _ in range(8)]
    gate = threading.Barrier(len(proxies))
    seen: list[np.ndarray[Any, Any]] = []

    def work(parameter: Parameter, value: int) -> None:
        gate.wait()
        parameter.initialize(init.Constant(value))
        seen.append(parameter.data().asnumpy())

    threads = [
        threading.Thread(target=work, args=(parameter, value))
        for value, parameter in enumerate(proxies)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(seen) == len(proxies)
    assert len({value for each in seen for value in np.unique(each)}) == 1


def test_own_initializers_are_computed_here(session: Session) -> None:
    weight = Parameter("w", shape=(2, 3), init=Ramp(), dtype="float64")
    weight.initialize(ctx=[device(0), device(1)])
    for each in weight.list_data():
        np.testing.assert_array_equal(each.asnumpy(), ramp(2, 3))
        assert each.dtype == np.float64
    weight.initialize(Ramp(2.0), ctx=[device(1)], force_reinit=True)
    np.testing.assert_array_equal(weight.data().asnumpy(), 2 * ramp(2, 3))
    assert weight.list_ctx() == [device(1)]


def test_mixed_and_load_choose_by_name(session: Session, tmp_path: Path) -> None:
    save_arrays(tmp_path / "x.params", {"arg:b": np.array([7, 8], np.float32)})
    chosen = init.Mixed([".*a", ".*"], [init.One(), init.Load(str(tmp_path / "x.params"))])
    params = ParameterDict()
    params.get("a", shape=(2,))
    params.get("b", shape=(2,))
    params.initialize(chosen)
    assert params["a"].data().asnumpy().tolist() == [1, 1]
    assert params["b"].data().asnumpy().tolist() == [7, 8]


def test_verbose_logs_each_value(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    params = ParameterDict()
    params.get("a", shape=(2,))
    params.get("b", shape=(2,), init=Ramp())
    default = init.Constant(3.0)
    with caplog.at_level(logging.INFO):
        params.initialize(default, verbose=True)
    assert [record.message.split(" as ")[0] for record in caplog.records] == [
        "Initialized a",
        "Initialized b",
    ]
    assert caplog.records[0].message.endswith("3.0")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        params.initialize(default, force_reinit=True)
    assert not caplog.records


@pytest.mark.parametrize("initializer", ["ones", Ramp()])
def test_shape_lets_a_deferred_parameter_finish(session: Session, initializer: Any) -> None:
    weight = Parameter("w", shape=(0, 2), allow_deferred_init=True, init=initializer)
    weight.initialize(ctx=[device(1), device(2)])
    assert weight.list_ctx() == [device(1), device(2)]
    for call in (weight.list_data, weight.list_grad):
        with pytest.raises(DeferredInitializationError, match=r"'w'"):
            call()
    weight.zero_grad()
    weight.shape = (3, 2)
    expected = np.ones((3, 2)) if initializer == "ones" else ramp(3, 2)
    np.testing.assert_array_equal(weight.grad(device(1)).asnumpy(), np.zeros((3, 2)))
    np.testing.assert_array_equal(weight.data(device(2)).asnumpy(), expected)


def test_bulk_calls_supply_what_waits_for_a_client(session: Session) -> None:
    params = ParameterDict()
    for name in ("a", "b"):
        params.get(name, shape=(0,), allow_deferred_init=True, init=Ramp())
    params.initialize()
    with pytest.raises(DeferredInitializationError):
        params.pull()
    params["a"].shape = (3,)
    params["b"].shape = (2,)
    assert {name: value.tolist() for name, value in params.pull().items()} == {
        "a": [0, 1, 2],
        "b": [0, 1],
    }


def test_only_the_holder_of_an_initializer_can_finish(session: Session) -> None:
    holder = Parameter("w", shape=(0,), allow_deferred_init=True, init=Ramp())
    holder.initialize()
    other = Parameter("w", allow_deferred_init=True)
    other.shape = (2,)
    with pytest.raises(DeferredInitializationError, match=r"client"):
        other.data()
    holder.data()
    other.shape = (2,)
    assert other.data().asnumpy().tolist() == [0, 1]


def test_set_data_gives_a_deferred_parameter_shape_and_value(session: Session) -> None:
    weight = Parameter("w", dtype="float64", allow_deferred_init=True)
    with pytest.raises(AssertionError, match=r"'w' has not been initialized"):
        weight.set_data(ramp(2, 3))
    weight.initialize(ctx=[device(0), device(1)])
    weight.set_data([[1, 2], [3, 4]])
    assert weight.shape == (2, 2)
    for each in weight.list_data():
        assert each.asnumpy().tolist() == [[1, 2], [3, 4]]
        assert each.dtype == np.float64


def test_initialize_again_moves_a_deferred_parameter(session: Session) -> None:
    weight = Parameter("w", allow_deferred_init=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weight.initialize("ones")
        weight.initialize("zeros", ctx=[device(1), device(3)])
    weight.reset_ctx([device(2)])
    assert weight.list_ctx() == [device(2)]
    weight.cast("int32")
    weight.shape = 3
    assert weight.data().asnumpy().tolist() == [0, 0, 0]
    assert weight.data().dtype == np.int32


def test_reset_ctx_without_a_value_is_refused(session: Session) -> None:
    with pytest.raises(ValueError, match=r"'w'.*has not been initialized"):
        Parameter("w", shape=(2,)).reset_ctx(device(1))


class Failing(init.Initializer):
    """Cannot fill anything."""

    def _init_weight(self, name: str, arr: Any) -> None:
        raise ArithmeticError(name)


def test_own_initializer_that_fails_changes_nothing(session: Session) -> None:
    params = ParameterDict()
    first, second = params.get("a", shape=(2,)), params.get("b", shape=(2,), init=Failing())
    with pytest.raises(ArithmeticError, match=r"b"):
        params.initialize("ones")
    for each in (first, second):
        with pytest.raises(RuntimeError, match=r"has not been initialized"):
            each.list_ctx()
    second.initialize("ones")
    with pytest.raises(ArithmeticError, match=r"b"):
        second.initialize(Failing(), force_reinit=True)
    assert second.data().asnumpy().tolist() == [1, 1]
