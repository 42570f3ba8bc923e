"""The mean over copies: exact for integers, and without overflow on the way."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramd_server.core.mean import FlatSource, mean_blocks, mean_of_arrays

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FINFO: Any = ml_dtypes.finfo


def half_even(value: Fraction) -> int:
    return round(value)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i4", "<i8"])
@given(data=st.data())
def test_integers_round_half_to_even(dtype: str, data: st.DataObject) -> None:
    limits = np.iinfo(dtype)
    number = st.integers(int(limits.min), int(limits.max)) | st.sampled_from(
        [int(limits.min), int(limits.max), 0, 1, 2, 3]
    )
    columns = data.draw(st.lists(st.lists(number, min_size=3, max_size=3), min_size=1, max_size=7))
    mean = mean_of_arrays([np.array(column, dtype) for column in columns])
    expected = [half_even(Fraction(sum(row), len(columns))) for row in zip(*columns, strict=True)]
    assert mean.dtype == np.dtype(dtype)
    assert mean.tolist() == expected


@pytest.mark.parametrize("dtype", [np.dtype("f2"), BFLOAT16], ids=str)
def test_small_floats_do_not_overflow_on_the_way(dtype: np.dtype[Any]) -> None:
    largest = float(FINFO(dtype).max)
    copies = [np.full(5, largest, dtype)] * 4
    np.testing.assert_array_equal(mean_of_arrays(copies), copies[0])


@pytest.mark.parametrize(
    "dtype", [np.dtype("f2"), BFLOAT16, np.dtype("f4"), np.dtype("f8")], ids=str
)
def test_floats_are_rounded_once(dtype: np.dtype[Any]) -> None:
    values = np.random.default_rng(5).standard_normal((3, 1000)).astype(dtype)
    exact = values.astype("f8").sum(axis=0) / 3
    # One rounding of a sum and a quotient in the wide dtype, then one to the dtype.
    tolerance = {2: float(FINFO(dtype).eps), 4: 4e-7, 8: 1e-15}[dtype.itemsize]
    mean = mean_of_arrays(list(values)).astype("f8")
    np.testing.assert_allclose(mean, exact, rtol=tolerance, atol=tolerance * 1e-1)


def test_truth_values_go_by_majority_and_ties_are_false() -> None:
    votes = [np.array([True, True, False, False]), np.array([True, False, True, False])]
    assert mean_of_arrays(votes).tolist() == [True, False, False, False]
    assert mean_of_arrays([*votes, np.array([True, True, False, True])]).tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_blocks_join_to_the_whole() -> None:
    arrays = [np.random.default_rng(seed).standard_normal((70_001, 2)) for seed in (1, 2)]
    flat = [array.reshape(-1) for array in arrays]
    sources: list[FlatSource] = [lambda begin, end, each=each: each[begin:end] for each in flat]  # type: ignore[misc]
    joined = np.concatenate(list(mean_blocks(sources, flat[0].size)))
    np.testing.assert_array_equal(joined.reshape(70_001, 2), mean_of_arrays(arrays))
    assert list(mean_blocks(sources, 0)) == []


def test_mean_of_infinities_is_silent() -> None:
    mean = mean_of_arrays([np.array([np.inf, np.inf]), np.array([np.inf, -np.inf])])
    assert mean[0] == np.inf
    assert np.isnan(mean[1])
