"""`ParameterDict` on a real server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paramd import (
    Constant,
    ParameterDict,
    Session,
    nd,
)
from tests.support.contexts import device, named
from tests.support.proxies import Counting


def test_pull_gives_all_values_in_one_call(params: ParameterDict, counting: Counting) -> None:
    values = params.pull()
    assert counting.names == ["get_values"]
    assert list(values) == ["net_a", "net_b", "net_n"]
    assert [value.dtype.name for value in values.values()] == ["float32", "float16", "int64"]
    assert all((value == 1).all() for value in values.values())


def test_pull_fills_the_callers_arrays(params: ParameterDict) -> None:
    out: dict[str, np.ndarray[Any, Any]] = {
        "net_a": np.zeros((3, 2), np.float32).T,
        "net_n": np.zeros(2, np.int64),
    }
    values = params.pull(out)
    assert values["net_a"] is out["net_a"]
    assert list(values) == ["net_a", "net_n"]
    assert (out["net_a"] == 1).all()
    assert (out["net_n"] == 1).all()


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.zeros((3, 2), np.float32), AssertionError),
        (np.zeros((2, 3), np.float64), AssertionError),
        (np.broadcast_to(np.float32(0), (2, 3)), ValueError),
        ([[0, 0, 0], [0, 0, 0]], ValueError),
    ],
)
def test_pull_refuses_arrays_that_do_not_fit(
    params: ParameterDict, array: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"net_a"):
        params.pull({"net_a": array})


def test_pull_of_a_table_names_the_call_to_use(params: ParameterDict) -> None:
    params.get("t", shape=(4, 2), stype="row_sparse").initialize()
    with pytest.raises(RuntimeError, match=r"net_t.*row_sparse_data"):
        params.pull()


def test_pull_reads_the_current_context(params: ParameterDict) -> None:
    params.reset_ctx([device(0), device(1)])
    for each in params.values():
        each.data(device(1))[:] = 5
    with device(1):
        assert all((value == 5).all() for value in params.pull().values())
    assert all((value == 1).all() for value in params.pull(ctx=device(0)).values())
    with pytest.raises(RuntimeError, match=rf"{named(3)}.*{named(0)}, {named(1)}"):
        params.pull(device=device(3))


def test_push_follows_grad_req(params: ParameterDict) -> None:
    grads = {"net_a": np.full((2, 3), 2.0), "net_b": [1, 2, 3]}
    params["net_b"].grad_req = "add"
    for _ in range(3):
        params.push(grads)
    assert params["net_a"].grad().asnumpy().tolist() == [[2, 2, 2], [2, 2, 2]]
    assert params["net_b"].grad().asnumpy().tolist() == [3, 6, 9]
    assert params["net_n"].grad().asnumpy().tolist() == [0, 0]
    params.zero_grad()
    assert params["net_b"].grad().asnumpy().tolist() == [0, 0, 0]


def test_push_is_all_or_nothing(params: ParameterDict) -> None:
    with pytest.raises(AssertionError, match=r"net_b"):
        params.push({"net_a": np.ones((2, 3)), "net_b": np.ones(4)})
    assert params["net_a"].grad().asnumpy().max() == 0
    params["net_b"].grad_req = "null"
    with pytest.raises(RuntimeError, match=r"'net_b'.*null"):
        params.push({"net_a": np.ones((2, 3)), "net_b": np.ones(3)})
    assert params["net_a"].grad().asnumpy().max() == 0


def test_set_data_is_all_or_nothing(params: ParameterDict) -> None:
    with pytest.raises(AssertionError, match=r"net_b"):
        params.set_data({"net_a": np.zeros((2, 3)), "net_b": np.zeros(4)})
    assert params["net_a"].data().asnumpy().min() == 1
    params.set_data({"net_a": np.zeros((2, 3)), "net_b": nd.zeros(3)})
    assert params["net_a"].data().asnumpy().max() == 0
    assert params["net_b"].data().dtype == np.float16


def test_setattr_reset_ctx_and_list_ctx_reach_all(params: ParameterDict) -> None:
    params.setattr("grad_req", "add")
    params.setattr("dtype", "float64")
    params.setattr("lr_mult", 2)
    params.reset_ctx([device(1), device(0)])
    assert sorted(map(str, params.list_ctx())) == sorted([str(device(0)), str(device(1))])
    for each in params.values():
        assert (each.grad_req, each.dtype, each.lr_mult) == ("add", "float64", 2.0)
    params.get("new", shape=(2,))
    with pytest.raises(RuntimeError, match=r"net_new"):
        params.list_ctx()
    with pytest.raises(ValueError, match=r"net_new"):
        params.reset_ctx(device(2))
    assert params["net_a"].list_ctx() == [device(1), device(0)]


def test_initialize_is_all_or_nothing(session: Session) -> None:
    params = ParameterDict()
    first = params.get("a", shape=(2,))
    params.get("b", shape=(0,))
    with pytest.raises(ValueError, match=r"'b'"):
        params.initialize()
    with pytest.raises(RuntimeError):
        first.data()


def test_session_shows_what_the_server_holds(
    session: Session, params: ParameterDict, num_shards: int
) -> None:
    params.get_constant("c", [1, 2]).initialize()
    found = session.parameters("net_")
    if num_shards == 1:
        assert list(found) == ["net_a", "net_b", "net_n", "net_c"]
    else:
        # No shard knows the order in which those of others were created.
        assert list(found) == ["net_a", "net_b", "net_c", "net_n"]
        found._params = {name: found._params[name] for name in params}
    assert repr(found) == repr(params).replace(
        "dtype=float16", "dtype=<class 'numpy.float16'>"
    ).replace("dtype=int64", "dtype=<class 'numpy.int64'>")
    constant = found["net_c"]
    assert isinstance(constant, Constant)
    assert constant.value.asnumpy().tolist() == [1, 2]
    assert (found.pull()["net_a"] == 1).all()
