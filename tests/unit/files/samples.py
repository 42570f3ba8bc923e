"""Values, and files made of them, that the tests of files share."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from paramd.files import RowSparseRows

DTYPES = [
    np.dtype(dtype)
    for dtype in (
        np.float32,
        np.float64,
        np.float16,
        np.uint8,
        np.int32,
        np.int8,
        np.int64,
        np.bool_,
        ml_dtypes.bfloat16,
    )
]
FIXTURES = pathlib.Path(__file__).parents[2] / "fixtures" / "mxnet"

Value = npt.NDArray[Any] | RowSparseRows


def array(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> npt.NDArray[Any]:
    """Values of any dtype, the same for the same arguments."""
    values = np.random.default_rng(seed).integers(0, 2 if dtype == np.bool_ else 100, shape)
    return np.asarray(values).astype(dtype)


def rows(ids: list[int], shape: tuple[int, ...], dtype: Any = np.float32) -> RowSparseRows:
    """Row-sparse values with the given ids."""
    return RowSparseRows(
        np.array(ids, np.int64), array((len(ids), *shape[1:]), dtype, seed=1), shape
    )


def model() -> dict[str, Value]:
    """A bit of everything, small enough to be cut at every byte."""
    return {
        "weight": array((2, 3)),
        "flags": array((5,), np.bool_),
        "half": array((3,), ml_dtypes.bfloat16),
        "table": rows([1, 4], (6, 2)),
        "scalar": array((), np.float64),
    }


def assert_same(actual: Value, expected: Value) -> None:
    """Equal in type, shape, dtype and every value."""
    assert type(actual) is type(expected)
    assert actual.shape == expected.shape
    if isinstance(expected, RowSparseRows):
        assert isinstance(actual, RowSparseRows)
        np.testing.assert_array_equal(actual.ids, expected.ids)
        actual, expected = actual.rows, expected.rows
    assert isinstance(actual, np.ndarray)
    assert actual.dtype == expected.dtype.newbyteorder("<")
    np.testing.assert_array_equal(actual, expected)


def assert_same_all(actual: Mapping[str, Value], expected: Mapping[str, Value]) -> None:
    """The same names in the same order with the same values."""
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert_same(actual[name], value)
