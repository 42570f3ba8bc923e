"""`Constant` without a server."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest

from paramd import Constant, Parameter, ParameterDict, nd
from tests.support.fake_session import FakeSession


@pytest.mark.parametrize(
    "value", [[[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], np.float64), np.array([[1, 2], [3, 4]])]
)
def test_value_becomes_float32(value: Any) -> None:
    constant = Constant("c", value)
    assert constant.value.dtype == np.float32
    assert (constant.shape, constant.dtype) == ((2, 2), np.float32)
    np.testing.assert_array_equal(constant.value.asnumpy(), [[1, 2], [3, 4]])


def test_an_ndarray_stays_what_it_is() -> None:
    value = nd.array([1, 2], dtype="int64")
    constant = Constant("c", value)
    assert constant.value is value
    assert constant.dtype == np.int64


def test_value_that_is_no_array_is_refused() -> None:
    with pytest.raises(TypeError):
        Constant("c", "abc")


def test_grad_req_is_null_and_another_warns() -> None:
    constant = Constant("c", [1.0])
    with pytest.warns(UserWarning, match='"c".*"null".*"write" is ignored') as caught:
        constant.grad_req = "write"
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constant.grad_req = "null"
    assert constant.grad_req == "null"


def test_repr() -> None:
    assert repr(Constant("c", [[1, 2], [3, 4]])) == (
        "Constant c (shape=(2, 2), dtype=<class 'numpy.float32'>)"
    )


def test_value_is_sent_as_it_is_at_initialize() -> None:
    fake = FakeSession()
    value = nd.array([1.0, 2.0])
    constant = Constant("c", value, session=fake.session)
    value[:] = 5
    constant.initialize()
    ((spec, _),) = fake.calls.declarations
    assert spec.constant
    assert spec.grad_req == "null"
    (write,) = fake.calls.writes
    np.testing.assert_array_equal(np.asarray(write.value), np.array([5, 5], np.float32))


def test_get_constant_compares_the_value() -> None:
    params = ParameterDict("net_")
    constant = params.get_constant("c", [0.1, 2])
    assert isinstance(constant, Constant)
    assert params.get_constant("c") is constant
    assert params.get_constant("c", [0.1, 2]) is constant
    assert params.get_constant("c", np.array([0.1, 2], np.float32)) is constant
    assert params.get_constant("c", nd.array([0.1, 2])) is constant
    assert params.get("c") is constant
    for other in ([0.1, 3], [0.1], [[0.1, 2]]):
        with pytest.raises(AssertionError, match="net_c"):
            params.get_constant("c", other)


def test_get_constant_without_value_needs_one_that_is_there() -> None:
    params = ParameterDict("net_")
    with pytest.raises(KeyError, match="net_c"):
        params.get_constant("c")
    weight = params.get("w", shape=(2,))
    assert params.get_constant("w") is weight
    with pytest.raises(AssertionError, match="net_w"):
        params.get_constant("w", [1, 2])


def test_pickling_keeps_the_value() -> None:
    copy = pickle.loads(pickle.dumps(Constant("c", [1, 2])))
    assert isinstance(copy, Parameter)
    assert isinstance(copy, Constant)
    np.testing.assert_array_equal(copy.value.asnumpy(), [1, 2])
