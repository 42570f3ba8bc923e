"""Row-sparse local arrays."""

from __future__ import annotations

import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramd import nd
from paramd.context import cpu
from paramd.errors import BroadcastError, RowIdError
from paramd.ndarray import NDArray, RowSparseNDArray, add_up, distinct, row_ids


def _array(dtype: Any = None) -> RowSparseNDArray:
    return nd.sparse.row_sparse_array(([[1, 2], [3, 4]], [0, 2]), (4, 2), cpu(1), dtype)


_DENSE = np.array([[1, 2], [0, 0], [3, 4], [0, 0]], np.float32)


def test_it_shows_the_logical_shape_and_holds_the_rows() -> None:
    array = _array()
    assert (array.shape, array.size, array.ndim, array.stype) == ((4, 2), 8, 2, "row_sparse")
    assert array.context == array.indices.context == array.data.context == cpu(1)
    assert array.indices.dtype == np.int64
    assert array.indices.tolist() == [0, 2]
    assert array.data.tolist() == [[1, 2], [3, 4]]
    np.testing.assert_array_equal(array.asnumpy(), _DENSE)
    np.testing.assert_array_equal(array.tostype("default").asnumpy(), _DENSE)
    assert repr(array) == "\n<RowSparseNDArray 4x2 @cpu(1)>"


def test_unsorted_ids_are_sorted_with_their_rows() -> None:
    array = nd.sparse.row_sparse_array(([[1, 2], [3, 4]], np.array([2.0, 0.0])), shape=(4, 2))
    assert array.indices.tolist() == [0, 2]
    assert array.data.tolist() == [[3, 4], [1, 2]]


@pytest.mark.parametrize(
    ("ids", "shape", "error", "message"),
    [
        ([0, 4], (4, 2), RowIdError, "row id 4 is out of range: there are 4 rows"),
        ([-1, 0], (4, 2), RowIdError, "row id -1"),
        ([0, 0.5], (4, 2), RowIdError, "whole numbers, but got 0.5"),
        ([0], (4, 2), ValueError, "2 rows do not go with 1 ids"),
        ([0, 2], (4, 3), ValueError, r"\(2, 3\)"),
        ([0, float("nan")], (4, 2), RowIdError, "whole numbers"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    ids: list[Any], shape: tuple[int, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        nd.sparse.row_sparse_array(([[1, 2], [3, 4]], ids), shape=shape)


def test_a_shape_that_contradicts_the_source_is_refused() -> None:
    with pytest.raises(ValueError, match="was asked for"):
        nd.sparse.row_sparse_array(_DENSE, shape=(5, 2))


def test_retain_keeps_the_rows_asked_for() -> None:
    kept = _array().retain(nd.array([2, 1, 2]))
    assert isinstance(kept, RowSparseNDArray)
    assert kept.indices.tolist() == [1, 2]
    assert kept.data.tolist() == [[0, 0], [3, 4]]
    assert kept.shape == (4, 2)
    assert nd.sparse.retain(_array(), []).indices.shape == (0,)
    with pytest.raises(RowIdError):
        _array().retain([4])


def test_what_is_taken_out_is_a_copy() -> None:
    array = _array()
    array.data[:] = 7
    array.indices[:] = 1
    array.copy()[:] = 7
    np.testing.assert_array_equal(array.asnumpy(), _DENSE)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), unique_by=lambda pair: pair[0]),
    st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), unique_by=lambda pair: pair[0]),
)
def test_sums_and_products_are_those_of_the_dense_arrays(
    left: list[tuple[int, int]], right: list[tuple[int, int]]
) -> None:
    def made(pairs: list[tuple[int, int]]) -> RowSparseNDArray:
        rows = np.array([[value, 1] for _, value in pairs], np.float32).reshape(-1, 2)
        return nd.sparse.row_sparse_array((rows, [key for key, _ in pairs]), shape=(6, 2))

    one, two = made(left), made(right)
    for actual, expected in (
        (one + two, one.asnumpy() + two.asnumpy()),
        (one - two, one.asnumpy() - two.asnumpy()),
        (one * two, one.asnumpy() * two.asnumpy()),
    ):
        assert actual.stype == "row_sparse"
        np.testing.assert_array_equal(actual.asnumpy(), expected)
        assert np.all(np.diff(actual.rows.ids) > 0)  # type: ignore[attr-defined]


def test_dividing_by_zero_fills_the_rows_that_are_not_stored_too() -> None:
    divided = _array() / 0
    assert divided.stype == "default"
    assert np.isnan(divided.asnumpy()[1]).all()


@pytest.mark.parametrize("key", [0, slice(0, 1), [0], (slice(None), 0), np.array([0])])
def test_it_is_indexed_as_a_whole_only(key: Any) -> None:
    array = _array()
    with pytest.raises(TypeError, match="indexed by"):
        array[key]
    with pytest.raises(TypeError, match="indexed by"):
        array[key] = 1
    assert array[:] is array


def test_assignment_replaces_the_rows() -> None:
    array = _array("int32")
    array[:] = nd.array([[0, 0], [1.5, 0], [0, 0], [0, 0]])
    assert (array.indices.tolist(), array.data.tolist()) == ([1], [[1, 0]])
    array[:] = 0
    assert array.indices.tolist() == [0, 1, 2, 3]
    assert array.dtype == np.int32
    with pytest.raises(BroadcastError):
        array[:] = nd.ones((3, 3))
    with pytest.raises(BroadcastError):
        array[:] = nd.sparse.zeros("row_sparse", (3, 2))


def test_updates_in_place_change_the_array_itself() -> None:
    array = same = _array()
    array += _array()
    array *= 2
    assert array is same
    assert same.data.tolist() == [[4, 8], [12, 16]]


def test_copyto_goes_both_ways() -> None:
    dense = nd.zeros((4, 2))
    _array().copyto(dense)
    np.testing.assert_array_equal(dense.asnumpy(), _DENSE)
    sparse = nd.sparse.zeros("row_sparse", (4, 2))
    assert dense.copyto(sparse) is sparse
    assert isinstance(sparse, RowSparseNDArray)
    assert sparse.indices.tolist() == [0, 2]
    moved = sparse.copyto(cpu(2))
    assert (moved.stype, moved.context) == ("row_sparse", cpu(2))
    with pytest.raises(BroadcastError):
        _array().copyto(nd.zeros((4,)))


def test_a_dense_array_takes_a_row_sparse_value() -> None:
    dense: NDArray = nd.ones((4, 2))
    dense[:] = _array()
    np.testing.assert_array_equal(dense.asnumpy(), _DENSE)


def test_pickle_keeps_rows_and_context() -> None:
    other = pickle.loads(pickle.dumps(_array("bfloat16")))
    assert other.indices.tolist() == [0, 2]
    assert other.dtype == _array("bfloat16").dtype
    assert other.context == cpu(1)


def test_a_dense_array_without_axes_has_no_rows() -> None:
    with pytest.raises(ValueError, match="one axis or more"):
        nd.array(5).tostype("row_sparse")


def test_empty_and_wide_arrays_convert() -> None:
    assert nd.array(np.zeros((0, 3))).tostype("row_sparse").shape == (0, 3)
    assert nd.array(np.zeros((3, 0))).tostype("row_sparse").asnumpy().shape == (3, 0)


@pytest.mark.parametrize("ids", [[[2, 0], [2, 1]], np.array([[2, 0], [2, 1]], np.uint8)])
def test_row_ids_flatten_and_keep_order(ids: Any) -> None:
    assert row_ids(ids, 3).tolist() == [2, 0, 2, 1]
    assert row_ids(nd.array(ids), 3).dtype == np.int64


def test_rows_of_one_id_add_up() -> None:
    array = nd.sparse.row_sparse_array(([[1, 2], [3, 4], [10, 20]], [2, 0, 2]), shape=(4, 2))
    assert array.indices.asnumpy().tolist() == [0, 2]
    assert array.data.asnumpy().tolist() == [[3, 4], [11, 22]]


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "<i4", "<i8", "u1", ml_dtypes.bfloat16])
@pytest.mark.parametrize("row", [(), (1,), (2,), (3, 2), (5,), (0,)])
@pytest.mark.parametrize("num_ids", [1, 3, 60])
def test_sums_of_rows_are_those_of_numpy(num_ids: int, row: tuple[int, ...], dtype: Any) -> None:
    random = np.random.default_rng(11)
    ids = random.integers(0, num_ids, 200)
    # Whole numbers, so that the order of additions does not matter.
    rows = random.integers(0, 8, (200, *row)).astype(dtype)
    kept_ids, kept_rows = ids.copy(), rows.copy()
    found, sums = add_up(ids, rows)
    expected = np.zeros((num_ids, *row), np.int64)
    np.add.at(expected, ids, rows.astype(np.int64))
    assert found.tolist() == np.unique(ids).tolist()
    assert sums.dtype == rows.dtype
    assert sums.shape == (len(found), *row)
    np.testing.assert_array_equal(sums, expected[found].astype(dtype))
    np.testing.assert_array_equal(ids, kept_ids)
    np.testing.assert_array_equal(rows, kept_rows)


def test_a_few_rows_of_one_id_add_up_in_their_order() -> None:
    ids = np.array([5, 3, 5, 5, 3])
    rows = np.array([[1e8], [1], [1], [-1e8], [2]], np.float32)
    # (1e8 + 1) - 1e8 is 0 in float32; in any other order it is 1.
    assert add_up(ids, rows)[1].tolist() == [[3], [0]]


@pytest.mark.parametrize("high", [2**62, 2**63 - 1, 2**40])
def test_ids_may_be_of_any_size(high: int) -> None:
    ids = np.array([high, 0, high - 1, high])
    found, sums = add_up(ids, np.array([[1.0], [2.0], [3.0], [4.0]]))
    assert found.tolist() == [0, high - 1, high]
    assert sums.tolist() == [[2], [3], [5]]


def test_rows_that_are_sorted_are_not_copied() -> None:
    ids, rows = np.array([1, 4]), np.ones((2, 3))
    assert add_up(ids, rows) == (ids, rows)


@pytest.mark.parametrize("ids", [[2**63], [2**64 - 1], [0, 2**63 + 2]])
def test_ids_that_int64_does_not_hold_are_refused(ids: list[int]) -> None:
    with pytest.raises(RowIdError):
        row_ids(np.array(ids, np.uint64), 2**63 - 1)


@given(st.lists(st.integers(0, 30) | st.integers(0, 2**63 - 1)))
def test_distinct_ids_are_those_of_numpy(values: list[int]) -> None:
    ids = np.array(values, np.int64)
    found = distinct(ids)
    assert found.tolist() == np.unique(ids).tolist()
    assert ids.tolist() == values
    assert distinct(found) is found
