"""Gradients of rows: merged, replaced, never changed in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramd.context import cpu
from paramd.errors import InvalidStreamError, MemoryLimitError, RowIdError
from paramd_server.arrays.backend import host_array
from paramd_server.arrays.devices import Devices
from paramd_server.arrays.memory import MemoryAccount
from paramd_server.core.row_sparse import RowSparseGradient, check_ids, union_of

NUM_ROWS = 12
SHAPE = (NUM_ROWS, 2)
row_sets = st.sets(st.integers(0, NUM_ROWS - 1)).map(lambda ids: np.array(sorted(ids), np.int64))


def dense(gradient: RowSparseGradient, devices: Devices) -> np.ndarray[Any, Any]:
    full = np.zeros(gradient.shape, gradient.rows.dtype)
    full[gradient.ids] = host_array(devices.backend(cpu()), gradient.rows)
    return full


@given(
    pushes=st.lists(
        st.tuples(row_sets, st.sampled_from(["add", "subtract", "assign"])), max_size=6
    ),
    dtype=st.sampled_from(["f4", "<i4", "f2"]),
)
def test_pushes_are_worked_in_like_dense_ones(
    pushes: list[tuple[np.ndarray[Any, np.dtype[np.int64]], str]], dtype: str
) -> None:
    devices = Devices(MemoryAccount(1 << 20))
    gradient = RowSparseGradient.empty(SHAPE, np.dtype(dtype), cpu(), devices)
    expected = np.zeros(SHAPE, dtype)
    held: set[int] = set()
    for turn, (ids, mode) in enumerate(pushes, 1):
        rows = (np.arange(len(ids) * 2).reshape(-1, 2) + turn).astype(dtype)
        before, old = gradient, dense(gradient, devices)
        if mode == "assign":
            gradient = gradient.replaced(ids, rows, devices)
            expected[:] = 0
            expected[ids] = rows
            held = set(ids.tolist())
        else:
            gradient = gradient.merged(ids, rows, devices, mode=mode)
            expected[ids] += rows if mode == "add" else -rows
            held |= set(ids.tolist())
        np.testing.assert_array_equal(dense(before, devices), old)
        np.testing.assert_array_equal(dense(gradient, devices), expected)
        assert gradient.ids.tolist() == sorted(held)
        assert gradient.rows.dtype == np.dtype(dtype)
        assert gradient.nbytes == len(held) * (8 + 2 * np.dtype(dtype).itemsize)


def test_rows_of_another_dtype_are_cast() -> None:
    devices = Devices(MemoryAccount(1 << 20))
    gradient = RowSparseGradient.empty(SHAPE, np.dtype("<i4"), cpu(), devices)
    gradient = gradient.merged(np.array([3]), np.array([[2.9, -2.9]]), devices, mode="add")
    assert dense(gradient, devices)[3].tolist() == [2, -2]
    assert gradient.cast(np.dtype("f8"), devices).rows.dtype == np.dtype("f8")


def test_memory_limit_leaves_the_gradient_as_it_was() -> None:
    account = MemoryAccount(170)
    devices = Devices(account)
    gradient = RowSparseGradient.empty(SHAPE, np.dtype("f4"), cpu(), devices)
    gradient = gradient.replaced(np.arange(10), np.ones((10, 2), "f4"), devices)
    used = account.used_bytes
    with pytest.raises(MemoryLimitError):
        gradient.merged(np.arange(12), np.ones((12, 2), "f4"), devices, mode="add")
    with pytest.raises(MemoryLimitError):
        gradient.cast(np.dtype("f8"), devices)
    assert account.used_bytes == used
    assert dense(gradient, devices).sum() == 20


@given(ids=st.lists(st.integers(-2, NUM_ROWS + 1), max_size=5), after=st.integers(-1, NUM_ROWS))
def test_ids_are_in_range_sorted_and_unique(ids: list[int], after: int) -> None:
    array = np.array(ids, np.int64)
    if any(not 0 <= each < NUM_ROWS for each in ids):
        with pytest.raises(RowIdError):
            check_ids("w", array, NUM_ROWS, after=after)
    elif ids != sorted(set(ids)) or (ids and ids[0] <= after):
        with pytest.raises(InvalidStreamError):
            check_ids("w", array, NUM_ROWS, after=after)
    else:
        check_ids("w", array, NUM_ROWS, after=after)


@pytest.mark.parametrize("ids", [[-(2**63), 2**63 - 1], [2**63 - 1], [0, NUM_ROWS]])
def test_extreme_ids(ids: list[int]) -> None:
    with pytest.raises(RowIdError):
        check_ids("w", np.array(ids, np.int64), NUM_ROWS)


@given(st.lists(row_sets, min_size=1, max_size=4))
def test_a_union_has_the_ids_of_all(sets: list[np.ndarray[Any, np.dtype[np.int64]]]) -> None:
    found = union_of(sets)
    assert found.tolist() == sorted({each for ids in sets for each in ids.tolist()})
    assert found.dtype == np.int64
