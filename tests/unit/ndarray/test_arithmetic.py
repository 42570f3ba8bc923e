"""MXNet's rules for dtypes and integers, by numbers that its version 1.9.1 gave."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest

from paramd import nd

_INT: dict[str, Any] = {"dtype": "int32"}


@pytest.mark.parametrize(
    ("function", "left", "right", "expected"),
    [
        (operator.mul, nd.array([3, 7], **_INT), 2.5, [6, 14]),
        (operator.sub, 2.5, nd.array([3, 7], **_INT), [-1, -5]),
        (operator.truediv, nd.array([3, -7], **_INT), 2, [1, -3]),
        (operator.truediv, nd.array([-7, 7], **_INT), nd.array([2, -2], **_INT), [-3, -3]),
        (operator.truediv, nd.array([-8, 8], **_INT), nd.array([2, -2], **_INT), [-4, -4]),
        (operator.truediv, 7.5, nd.array([3, 2], **_INT), [2, 3]),
        (operator.mod, nd.array([-5, 5], **_INT), 3, [1, 2]),
        (operator.mod, nd.array([3, -2], **_INT), 0, [0, 0]),
        (operator.mod, nd.array([3.0, -7.5]), 0, [0, 0]),
        (operator.pow, nd.array([3, 7], **_INT), -1, [0, 0]),
        (operator.add, nd.array([1, 2], **_INT), 2147483647, [-2147483648, -2147483647]),
        (operator.sub, nd.array([5], dtype="uint8"), 6, [255]),
        (operator.mul, nd.array([2, 0], dtype="bool"), 2.5, [2, 0]),
        (operator.eq, nd.array([2, 7], **_INT), 2.5, [1, 0]),
        (operator.gt, nd.array([3, 7], dtype="uint8"), -1, [0, 0]),
    ],
)
def test_numbers_come_out_as_in_mxnet(
    function: Callable[[Any, Any], Any], left: Any, right: Any, expected: list[int]
) -> None:
    assert function(left, right).tolist() == expected


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "uint8", "int64"])
def test_a_number_leaves_the_dtype_as_it_is(dtype: str) -> None:
    array = nd.array([1, 2], dtype=dtype)
    for result in (
        array + 1,
        array * 2.5,
        3 - array,
        array > 1,
        -array,
        array.mean(),
        array.norm(),
    ):
        assert result.dtype == array.dtype


def test_bool_counts_as_int64() -> None:
    flags = nd.array([1, 0], dtype="bool")
    for result in (flags + 1, flags + flags, -flags, flags == flags):
        assert result.dtype == "int64"
    assert flags.sum().dtype == "bool"
