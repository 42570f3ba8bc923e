"""Values, gradients and attributes of parameters and constants on a real server."""

from __future__ import annotations

import numpy as np
import pytest

import paramd
from paramd import (
    Constant,
    Parameter,
    Session,
    gpu,
    nd,
)
from tests.support.contexts import device


def test_set_data_checks_the_shape_casts_and_leaves_gradients(session: Session) -> None:
    weight = Parameter("w", shape=(2, 2), dtype="int32")
    weight.initialize("zeros")
    weight.grad()[:] = 5
    weight.set_data(np.array([[1.7, -1.7], [2, 3]]))
    assert weight.data().asnumpy().tolist() == [[1, -1], [2, 3]]
    assert weight.grad().asnumpy().tolist() == [[5, 5], [5, 5]]
    for wrong in ([1, 2], [[1, 2, 3], [4, 5, 6]], np.zeros((0, 2))):
        with pytest.raises(AssertionError, match=r"'w'.*\(2, 2\)"):
            weight.set_data(wrong)
    weight.set_data(nd.sparse.row_sparse_array(([[8, 9]], [1]), shape=(2, 2)))
    assert weight.data().asnumpy().tolist() == [[0, 0], [8, 9]]
    other = Parameter("v", shape=(2, 2))
    other.initialize("ones")
    weight.set_data(other.data())
    assert weight.data().asnumpy().tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    "dtype", ["float16", "float64", "bfloat16", "int8", "uint8", "int64", "bool"]
)
def test_cast_keeps_values_and_gradients(session: Session, dtype: str) -> None:
    weight = Parameter("w", shape=(3,))
    weight.initialize()
    weight.set_data([0, 1, 1])
    weight.grad()[:] = 1
    if dtype == "float64":
        weight.dtype = dtype
    else:
        weight.cast(dtype)
    assert weight.dtype == dtype
    assert weight.data().asnumpy().astype(np.float32).tolist() == [0, 1, 1]
    assert weight.grad().asnumpy().astype(np.float32).tolist() == [1, 1, 1]
    assert weight.grad().dtype.name == dtype


def test_failed_cast_changes_nothing(session: Session) -> None:
    weight = Parameter("w", shape=(3,))
    weight.initialize()
    for wrong in ("bogus", "int16", object()):
        with pytest.raises(TypeError):
            weight.cast(wrong)
    assert weight.dtype is np.float32


def test_grad_req_frees_and_zeroes_the_buffers(session: Session) -> None:
    weight = Parameter("w", shape=(2,))
    weight.initialize()
    weight.grad()[:] = 3
    weight.grad_req = "write"
    assert weight.grad().asnumpy().tolist() == [3, 3]
    weight.grad_req = "add"
    assert weight.grad().asnumpy().tolist() == [0, 0]
    weight.grad_req = "null"
    with pytest.raises(RuntimeError, match=r"'w'.*grad_req='null'"):
        weight.grad()
    with pytest.raises(RuntimeError, match=r"'w'.*grad_req='null'"):
        weight.list_grad()
    weight.grad_req = "write"
    assert weight.grad().asnumpy().tolist() == [0, 0]


def test_reset_ctx_takes_the_mean_and_zeroes_gradients(session: Session) -> None:
    weight = Parameter("w", shape=(2,))
    weight.initialize(ctx=[device(0), device(1)])
    weight.data(device(0))[:] = 1
    weight.data(device(1))[:] = 4
    weight.grad(device(0))[:] = 9
    weight.reset_device([device(2), device(0)])
    assert weight.list_device() == [device(2), device(0)]
    assert [each.asnumpy().tolist() for each in weight.list_data()] == [[2.5, 2.5]] * 2
    assert weight.grad(device(0)).asnumpy().tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"gpu\(99\)"):
        weight.reset_ctx(gpu(99))
    assert weight.list_ctx() == [device(2), device(0)]
    with device(3):
        weight.reset_ctx(None)
    assert weight.list_ctx() == [device(3)]


def test_attributes_are_shared_by_all_proxies(session: Session) -> None:
    one, other = Parameter("w", shape=(2,)), Parameter("w")
    one.initialize()
    other.zero_grad()
    one.lr_mult = 4
    one.wd_mult = 0.25
    assert (other.lr_mult, other.wd_mult, other.shape) == (4.0, 0.25, (2,))
    with pytest.raises(AssertionError, match=r"'w'.*lr_mult"):
        Parameter("w", lr_mult=3.0).zero_grad()
    with pytest.raises(AssertionError, match=r"'w'.*shape"):
        Parameter("w", shape=(3,)).zero_grad()


def test_restated_declaration_attaches_after_attributes_changed(session: Session) -> None:
    first = Parameter("w", shape=(2,), lr_mult=2.0)
    first.initialize()
    first.lr_mult = 5.0
    late = Parameter("w", shape=(2,), lr_mult=2.0)
    late.zero_grad()
    assert late.lr_mult == 5.0


def test_deleted_parameter_raises_until_it_is_built_again(session: Session) -> None:
    weight = Parameter("w", shape=(2,))
    weight.initialize()
    handle = weight.data()
    session.delete("w")
    for use in (handle.asnumpy, weight.data, weight.list_ctx):
        with pytest.raises(KeyError, match=r"w"):
            use()
    again = Parameter("w", shape=(3,))
    again.initialize("ones")
    assert again.data().asnumpy().tolist() == [1, 1, 1]


def test_current_session_is_the_innermost(session: Session) -> None:
    outer = Parameter("w", shape=(2,), session=session)
    outer.initialize("ones")
    with paramd.connect("local") as inner:
        here = Parameter("w", shape=(5,))
        here.initialize("zeros")
        assert inner.exists("w")
        assert here.data().shape == (5,)
        assert outer.data().shape == (2,)
    with pytest.raises(paramd.errors.SessionClosedError):
        Parameter("w", session=inner).zero_grad()


def test_constant_keeps_its_value(session: Session) -> None:
    constant = Constant("c", [[1, 2], [3, 4]])
    constant.initialize(default_init="ones", ctx=[device(0), device(1)])
    assert constant.data(device(1)).asnumpy().tolist() == [[1, 2], [3, 4]]
    with pytest.raises(RuntimeError, match=r"'c'.*grad_req='null'"):
        constant.grad(device(1))
    constant.set_data([[5, 6], [7, 8]])
    assert constant.data(device(0)).asnumpy().tolist() == [[5, 6], [7, 8]]
    assert constant.value.asnumpy().tolist() == [[1, 2], [3, 4]]
    constant.initialize("zeros", force_reinit=True)
    assert constant.data().asnumpy().tolist() == [[0, 0], [0, 0]]
    constant.initialize(force_reinit=True)
    assert constant.data().asnumpy().tolist() == [[1, 2], [3, 4]]


def test_constant_and_parameter_of_one_name_are_told_apart(session: Session) -> None:
    Constant("c", [1]).initialize()
    with pytest.raises(AssertionError, match=r"'c'"):
        Parameter("c").zero_grad()


def test_number_as_value_has_no_shape(session: Session) -> None:
    with pytest.raises(ValueError, match=r"'c'.*\(\)"):
        Constant("c", 3).initialize()
