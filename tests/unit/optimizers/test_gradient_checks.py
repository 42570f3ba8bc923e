from __future__ import annotations

from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest

from paramd_server.arrays.update_kernels import add_into, is_finite

_DTYPES: Final = [np.dtype(each) for each in ("f2", ml_dtypes.bfloat16, "f4", "f8")]

every_dtype = pytest.mark.parametrize("dtype", _DTYPES, ids=str)


def _largest(dtype: np.dtype[Any]) -> Any:
    infinity = np.array(np.inf, dtype).view(f"u{dtype.itemsize}")
    return (infinity - infinity.dtype.type(1)).view(dtype)


@every_dtype
@pytest.mark.parametrize("shape", [(), (1,), (70_001,), (3, 5), (0,), (2, 0)])
def test_finite_numbers_are_finite(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    for value in (0, -1, _largest(dtype), -_largest(dtype)):
        assert is_finite(np.full(shape, value, dtype)) is True


@every_dtype
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
@pytest.mark.parametrize("place", [0, 31, 40_000, 70_000])
def test_one_number_is_found(place: int, value: float, dtype: np.dtype[Any]) -> None:
    array = np.ones(70_001, dtype)
    array[place] = value
    assert is_finite(array) is False


@every_dtype
def test_any_layout(dtype: np.dtype[Any]) -> None:
    array = np.ones((6, 8), dtype)
    array[1, 1] = np.nan
    assert is_finite(array[::2])
    assert not is_finite(array[:, 1])
    assert not is_finite(array.T)
    array.flags.writeable = False
    assert not is_finite(array)
    moved = np.zeros(array.nbytes + 1, np.uint8)[1:].view(dtype)
    assert is_finite(moved)


@pytest.mark.parametrize("dtype", _DTYPES[:2], ids=str)
def test_every_16_bit_sum_is_as_numpy_has_it(dtype: np.dtype[Any]) -> None:
    left = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    right = np.random.default_rng(0).permutation(left)
    target = left.copy()
    add_into(target, right)
    with np.errstate(all="ignore"):
        expected = left + right
    numbers = ~np.isnan(expected)
    assert (np.isnan(target) == ~numbers).all()
    assert target[numbers].tobytes() == expected[numbers].tobytes()


@pytest.mark.parametrize("dtype", [*_DTYPES, np.dtype("i4")], ids=str)
def test_adds_in_place_in_any_layout(dtype: np.dtype[Any]) -> None:
    value = np.arange(12).reshape(3, 4).astype(dtype)
    value.flags.writeable = False
    whole = np.ones((3, 4), dtype)
    add_into(whole, value)
    np.testing.assert_array_equal(whole, value + dtype.type(1))
    strided = np.ones((3, 8), dtype)[:, ::2]
    add_into(strided, value)
    np.testing.assert_array_equal(strided, value + dtype.type(1))
    add_into(whole.T, value.T)
    np.testing.assert_array_equal(whole, value + value + dtype.type(1))
    nothing = np.zeros((0, 3), dtype)
    add_into(nothing, nothing)


@pytest.mark.parametrize("dtype", _DTYPES[:3], ids=str)
def test_sums_overflow_silently(dtype: np.dtype[Any]) -> None:
    target = np.full(2, _largest(dtype), dtype)
    add_into(target, target.copy())
    assert np.isinf(target).all()
