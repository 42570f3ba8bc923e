"""row_sparse parameters and gradients on a real server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paramd import (
    DeferredInitializationError,
    Parameter,
    ParameterDict,
    RowSparseNDArray,
    Session,
    init,
    nd,
)
from tests.support.contexts import device, named
from tests.support.proxies import Counting, Ramp, ramp

INITIALIZERS: tuple[init.Initializer | str, ...] = ("ones", Ramp())


@pytest.mark.parametrize(
    "ids",
    [
        [7, 2, 7],
        (2, 7),
        np.array([[7, 2], [2, 2]], np.uint8),
        np.array([7, 2], np.float32),
        nd.array([7, 2]),
        nd.array([2, 7], dtype="int32"),
    ],
)
def test_rows_come_once_and_sorted(table: Parameter, ids: Any) -> None:
    with device(1):
        rows = table.row_sparse_data(ids)
    assert isinstance(rows, RowSparseNDArray)
    assert rows.shape == (10, 2)
    assert rows.indices.asnumpy().tolist() == [2, 7]
    assert rows.data.asnumpy().tolist() == [[4, 5], [14, 15]]
    expected = np.zeros((10, 2))
    expected[[2, 7]] = ramp(10, 2)[[2, 7]]
    np.testing.assert_array_equal(rows.asnumpy(), expected)


def test_no_ids_give_no_rows(table: Parameter) -> None:
    rows = table.row_sparse_data([])
    assert rows.shape == (10, 2)
    assert rows.data.shape == (0, 2)


@pytest.mark.parametrize("ids", [[10], [0, -1], [0.5], [2**40], [float("nan")]])
def test_wrong_ids_fetch_nothing(table: Parameter, ids: Any, counting: Counting) -> None:
    with pytest.raises(IndexError, match=r"'t'"):
        table.row_sparse_data(ids)
    assert "pull_rows" not in counting.names


@pytest.mark.parametrize(
    "ids",
    [[2, 7], [7, 2, 7], [], [[9, 0], [0, 3]], range(10), nd.array([4]), np.array([1, 1], "u1")],
)
def test_rows_are_received_into_an_array(table: Parameter, ids: Any) -> None:
    places = (ids.asnumpy() if isinstance(ids, nd.NDArray) else np.array(ids)).reshape(-1)
    expected = ramp(10, 2)[places.astype(int)]
    out = np.full((len(places), 2), -1, np.float32)
    with device(1):
        assert table.row_sparse_data(ids, out=out) is out
        np.testing.assert_array_equal(out, expected)
        strided = np.full((len(places), 4), -1, np.float32)
        table.row_sparse_data(ids, out=strided[:, ::2])
    np.testing.assert_array_equal(strided[:, ::2], expected)
    assert (strided[:, 1::2] == -1).all()


def test_sorted_rows_are_received_in_place(table: Parameter, counting: Counting) -> None:
    out = np.zeros((2, 2), np.float32)
    table.row_sparse_data([1, 3], out=out)
    counting.names.clear()
    table.row_sparse_data([2, 7], out=out)
    assert counting.names == ["pull_rows"]
    assert out.tolist() == [[4, 5], [14, 15]]
    shared = nd.zeros((2, 2))
    table.row_sparse_data(nd.array([2, 7]), out=shared)
    np.testing.assert_array_equal(shared.asnumpy(), out)


@pytest.mark.parametrize("ids", [[2, 7], [7, 2]])
@pytest.mark.parametrize(
    ("out", "error"),
    [
        (np.zeros((2, 3), np.float32), AssertionError),
        (np.zeros((3, 2), np.float32), AssertionError),
        (np.zeros(4, np.float32), AssertionError),
        (np.zeros((2, 2)), AssertionError),
        ([[0.0, 0.0], [0.0, 0.0]], ValueError),
        (np.broadcast_to(np.float32(0), (2, 2)), ValueError),
    ],
)
def test_an_array_that_does_not_fit_gets_no_rows(
    table: Parameter, ids: list[int], out: Any, error: type[Exception]
) -> None:
    table.row_sparse_data([0])
    with pytest.raises(error, match=r"'t'"):
        table.row_sparse_data(ids, out=out)
    assert not np.any(out)


@pytest.mark.parametrize("ids", [[10], [0, -1], [0.5], [2**40], [3, 10, 2]])
def test_wrong_ids_leave_the_array_alone(
    table: Parameter, ids: list[float], counting: Counting
) -> None:
    out = np.zeros((len(ids), 2), np.float32)
    with pytest.raises(IndexError, match=r"'t'"):
        table.row_sparse_data(ids, out=out)
    assert "pull_rows" not in counting.names
    assert not out.any()


def test_rows_of_a_larger_table_of_the_same_name_are_received(
    session: Session, table: Parameter
) -> None:
    table.row_sparse_data([0])
    session.delete("t")
    Parameter("t", shape=(20, 2), stype="row_sparse").initialize("ones")
    out = np.zeros((2, 2), np.float32)
    table.row_sparse_data([0, 19], out=out)
    assert (out == 1).all()


def test_rows_are_read_from_the_context_of_the_ids(table: Parameter) -> None:
    table.reset_ctx([device(1), device(2)])
    assert table.row_sparse_data(nd.array([1], ctx=device(2))).context == device(2)
    with device(1):
        assert table.row_sparse_data([1]).context == device(1)
    for ids in (nd.array([1], ctx=device(0)), [1]):
        with pytest.raises(RuntimeError, match=rf"'t'.*{named(0)}.*{named(1)}, {named(2)}"):
            table.row_sparse_data(ids)
    assert [each.context for each in table.list_row_sparse_data([1])] == [device(1), device(2)]


def test_a_second_pull_of_rows_is_one_round_trip(table: Parameter, counting: Counting) -> None:
    table.row_sparse_data(nd.array([1]))
    counting.names.clear()
    table.row_sparse_data(nd.array([2, 3]))
    assert counting.names == ["pull_rows"]


def test_rows_of_a_new_table_of_the_same_name(session: Session, table: Parameter) -> None:
    table.row_sparse_data([0])
    session.delete("t")
    Parameter("t", shape=(20, 2), stype="row_sparse").initialize("ones")
    assert table.row_sparse_data([19]).data.asnumpy().tolist() == [[1, 1]]


def test_fetched_rows_stay_what_they_were(table: Parameter) -> None:
    rows = table.row_sparse_data(nd.array([1]))
    table.set_data(np.zeros((10, 2)))
    assert rows.data.asnumpy().tolist() == [[2, 3]]


def test_row_sparse_values_can_be_set(table: Parameter) -> None:
    table.set_data(nd.sparse.row_sparse_array(([[7, 8]], [3]), shape=(10, 2)))
    assert table.row_sparse_data(nd.array([2, 3])).data.asnumpy().tolist() == [[0, 0], [7, 8]]
    with pytest.raises(AssertionError, match=r"'t'"):
        table.set_data(np.zeros((10, 3)))


def test_deferred_table_finishes_with_its_first_rows(session: Session) -> None:
    for number, initializer in enumerate(INITIALIZERS):
        table = Parameter(
            f"t{number}",
            shape=(0, 2),
            stype="row_sparse",
            allow_deferred_init=True,
            init=initializer,
        )
        table.initialize()
        with pytest.raises(DeferredInitializationError):
            table.row_sparse_data([0])
        table.shape = (4, 2)
        expected = np.ones((4, 2)) if number == 0 else ramp(4, 2)
        np.testing.assert_array_equal(table.row_sparse_data([3]).data.asnumpy(), expected[3:])


def test_row_sparse_gradient_holds_pushed_rows_only(table: Parameter) -> None:
    params = ParameterDict()
    params.update({"t": table})
    gradient = table.grad(device(1))
    assert gradient.stype == "row_sparse"
    assert isinstance(gradient, RowSparseNDArray)
    params.push({"t": ([3, 1, 3], np.ones((3, 2)))}, ctx=device(1))
    assert gradient.indices.asnumpy().tolist() == [1, 3]
    assert gradient.data.asnumpy().tolist() == [[1, 1], [2, 2]]
    table.grad_req = "add"
    params.push({"t": ([3, 9], np.ones((2, 2)))}, ctx=device(1))
    params.push({"t": nd.sparse.row_sparse_array(([[1, 1]], [9]), shape=(10, 2))}, ctx=device(1))
    assert gradient.indices.asnumpy().tolist() == [3, 9]
    assert gradient.data.asnumpy().tolist() == [[1, 1], [2, 2]]
    gradient += nd.sparse.row_sparse_array(([[5, 5]], [0]), shape=(10, 2))
    assert gradient.indices.asnumpy().tolist() == [0, 3, 9]
    gradient[:] = nd.sparse.row_sparse_array(([[4, 4]], [2]), shape=(10, 2))
    assert gradient.retain([2, 3]).data.asnumpy().tolist() == [[4, 4], [0, 0]]
    table.zero_grad()
    assert gradient.indices.asnumpy().tolist() == []
    assert gradient.asnumpy().tolist() == np.zeros((10, 2)).tolist()


def test_rows_are_pushed_into_dense_gradients(session: Session) -> None:
    params = ParameterDict()
    weight = params.get("w", shape=(4, 2))
    params.initialize()
    params.push({"w": ([1, 1], np.ones((2, 2)))})
    assert weight.grad().asnumpy().tolist() == [[0, 0], [2, 2], [0, 0], [0, 0]]
    weight.grad_req = "add"
    for _ in range(2):
        params.push({"w": ([1, 0], np.ones((2, 2)))})
    assert weight.grad().asnumpy().tolist() == [[2, 2], [2, 2], [0, 0], [0, 0]]


def test_rows_are_set_on_every_copy_and_the_others_stay(table: Parameter) -> None:
    before = ramp(10, 2)
    table.set_row_sparse_data(np.array([7, 2]), [[70, 71], [20, 21]])
    before[[7, 2]] = [[70, 71], [20, 21]]
    for rows in table.list_row_sparse_data(range(10)):
        np.testing.assert_array_equal(rows.asnumpy(), before)


def test_rows_of_a_dense_parameter_can_be_set(session: Session) -> None:
    dense = Parameter("dense", shape=(4, 2), init="ones", dtype="float16", session=session)
    dense.initialize()
    dense.set_row_sparse_data([1], np.full((1, 2), 3.0))
    assert dense.data().asnumpy().tolist() == [[1, 1], [3, 3], [1, 1], [1, 1]]
    dense.set_row_sparse_data([], np.zeros((0, 2)))
    assert dense.data().asnumpy().sum() == 12


@pytest.mark.parametrize(
    ("ids", "rows", "error"),
    [
        ([10], np.zeros((1, 2)), IndexError),
        ([1, 1], np.zeros((2, 2)), ValueError),
        ([1], np.zeros((1, 3)), AssertionError),
        ([1, 2], np.zeros((1, 2)), AssertionError),
    ],
)
def test_wrong_rows_set_nothing(
    table: Parameter, ids: list[int], rows: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="'t'"):
        table.set_row_sparse_data(ids, rows)
    np.testing.assert_array_equal(table.row_sparse_data(range(10)).asnumpy(), ramp(10, 2))


def test_rows_of_a_parameter_without_value_cannot_be_set(session: Session) -> None:
    table = Parameter("empty", shape=(4, 2), stype="row_sparse", session=session)
    with pytest.raises(RuntimeError, match="'empty'"):
        table.set_row_sparse_data([1], np.zeros((1, 2)))
