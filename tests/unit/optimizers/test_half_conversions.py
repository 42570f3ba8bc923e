"""float16 inside kernels, by either way of converting it, against NumPy."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from paramd_server.arrays.compiled_elements import half_conversions, processor_has_halves

_WAYS = [
    False,
    pytest.param(
        True,
        marks=pytest.mark.skipif(
            not processor_has_halves(), reason="this processor does not convert float16"
        ),
    ),
]
_EVERY = np.arange(1 << 16, dtype=np.uint16)

each_way = pytest.mark.parametrize("by_processor", _WAYS)


@each_way
def test_every_float16_is_read_as_numpy_reads_it(*, by_processor: bool) -> None:
    load: Any = numba.njit(half_conversions(by_processor=by_processor)[0])

    @numba.njit
    def convert(bits: Any, numbers: Any) -> None:
        for i in range(bits.size):
            numbers[i] = load(bits, i)

    numbers = np.zeros(_EVERY.size, np.float32)
    convert(_EVERY, numbers)
    expected = _EVERY.view(np.float16).astype(np.float32)
    _check(numbers, expected)


@each_way
def test_float32_is_rounded_to_float16_as_numpy_rounds_it(*, by_processor: bool) -> None:
    store: Any = numba.njit(half_conversions(by_processor=by_processor)[1])

    @numba.njit
    def convert(numbers: Any, bits: Any) -> None:
        for i in range(numbers.size):
            store(bits, i, numbers[i])

    exact = np.sort(_EVERY.view(np.float16)[np.isfinite(_EVERY.view(np.float16))]).astype("f4")
    halfway = (exact[1:] + exact[:-1]) / 2
    random = np.random.default_rng(5).integers(0, 1 << 32, 1_000_000, dtype=np.uint32)
    seeds = [exact, halfway, random.view(np.float32), np.array([np.inf, np.nan, 65_520.0], "f4")]
    known = np.concatenate(seeds)
    with np.errstate(all="ignore"):
        above = np.nextafter(known, np.float32("inf"))
    numbers = np.concatenate([known, above, -known])
    bits = np.zeros(numbers.size, np.uint16)
    convert(numbers, bits)
    with np.errstate(all="ignore"):
        expected = numbers.astype(np.float16)
    _check(bits.view(np.float16), expected)


def _check(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    numbers = ~np.isnan(expected)
    assert (np.isnan(found) == ~numbers).all()
    assert found[numbers].tobytes() == expected[numbers].tobytes()
