from __future__ import annotations

import math
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from paramd.compression import (
    TwoBit,
    expand,
    packed_size,
    parse_compression_params,
    residual_dtype,
)

_DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def _by_element(
    gradient: list[float], residual: list[float], step: float
) -> tuple[list[float], list[float]]:
    """The rule, written down once more for numbers that sum without rounding."""
    sent, left = [], []
    for one, kept in zip(gradient, residual, strict=True):
        total = one + kept
        emitted = step if total >= step else -step if total <= -step else 0.0
        sent.append(emitted)
        left.append(total - emitted)
    return sent, left


@pytest.mark.parametrize("dtype", _DTYPES)
@given(
    pushes=st.integers(1, 9).flatmap(
        lambda size: st.lists(
            st.lists(st.integers(-20, 20), min_size=size, max_size=size), min_size=1, max_size=5
        )
    )
)
def test_pushes_follow_the_rule(dtype: Any, pushes: list[list[int]]) -> None:
    compression = TwoBit(0.5)
    residual = None
    expected_left = [0.0] * len(pushes[0])
    for push in pushes:
        gradient = [one / 8 for one in push]
        expected, expected_left = _by_element(gradient, expected_left, 0.5)
        packed, residual = compression.compress(np.array(gradient, dtype), residual)
        sent = expand(packed, (len(push),), dtype, 0.5)
        assert sent.dtype == dtype
        assert sent.astype(float).tolist() == expected
        assert residual.tolist() == expected_left
        assert residual.dtype == residual_dtype(dtype)


def test_layout_is_as_documented() -> None:
    gradient = np.array([1, -1, 0, 1, 0, -1], np.float32)
    packed, _ = TwoBit(1.0).compress(gradient)
    assert packed.tolist() == [0b11_10_00_11, 0b00_10_00_00]


def test_a_threshold_that_is_met_is_sent() -> None:
    below = np.nextafter(np.float32(0.5), np.float32(0))
    packed, residual = TwoBit(0.5).compress(np.array([0.5, -0.5, below, -below], np.float32))
    assert expand(packed, (4,), np.float32, 0.5).tolist() == [0.5, -0.5, 0, 0]
    assert residual.tolist() == [0, 0, below, -below]


# Around the blocks that are worked on one at a time.
@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 32767, 32768, 32769, 131072, 131075, 200_001])
def test_every_size_is_whole(size: int) -> None:
    gradient = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    before = gradient.copy()
    start = np.full(size, 0.25, np.float32)
    packed, residual = TwoBit(0.5).compress(gradient, start)
    assert packed.shape == (packed_size(size),) == (math.ceil(size / 4),)
    total = gradient + np.float32(0.25)
    sent = np.float32(0.5) * (total >= 0.5) - np.float32(0.5) * (total <= -0.5)
    np.testing.assert_array_equal(expand(packed, (size,), np.float32, 0.5), sent)
    np.testing.assert_array_equal(residual, total - sent)
    np.testing.assert_array_equal(gradient, before)
    assert (start == 0.25).all()


@given(
    gradient=arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=0, max_dims=3, max_side=5),
        elements=st.floats(-4, 4, width=32),
    )
)
def test_shapes_are_kept(gradient: npt.NDArray[Any]) -> None:
    transposed = gradient.T
    packed, residual = TwoBit(0.25).compress(transposed)
    sent = expand(packed, transposed.shape, np.float32, 0.25)
    assert sent.shape == residual.shape == transposed.shape
    # Below 4.25 the difference of two float32 is rounded by less than this.
    np.testing.assert_allclose(sent + residual, transposed, rtol=0, atol=1e-6)


def test_nothing_is_lost_over_many_pushes() -> None:
    generator = np.random.default_rng(5)
    compression = TwoBit(0.1)
    total, sent = np.zeros(1000), np.zeros(1000)
    residual = None
    for _ in range(300):
        gradient = generator.uniform(-0.05, 0.05, 1000).astype(np.float16)
        packed, residual = compression.compress(gradient, residual)
        total += gradient
        sent += expand(packed, (1000,), np.float16, 0.1)
    assert residual is not None
    # float16 holds 0.1 as another number: it is the same that is sent and subtracted.
    np.testing.assert_allclose(sent + residual, total, rtol=0, atol=300 * 2.0**-24)
    assert np.abs(residual).max() < 0.1


def test_what_is_not_finite_stays_without_a_warning() -> None:
    gradient = np.array([math.nan, math.inf, -math.inf, 3e38], np.float32)
    packed, residual = TwoBit(0.5).compress(gradient)
    assert expand(packed, (4,), np.float32, 0.5).tolist() == [0, 0.5, -0.5, 0.5]
    packed, residual = TwoBit(0.5).compress(gradient[::-1], residual)
    assert expand(packed, (4,), np.float32, 0.5).tolist() == [0, 0, 0, 0]
    assert np.isnan(residual).all()


def test_temporaries_are_small() -> None:
    gradient = np.ones(1 << 22, np.float32)
    residual = np.zeros(1 << 22, np.float32)
    tracemalloc.start()
    try:
        packed = TwoBit(0.5).compress(gradient, residual)[0]
        compressing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        expand(packed, gradient.shape, np.float32, 0.5)
        expanding = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    results = gradient.nbytes + packed.nbytes
    assert compressing < results + (1 << 20)
    assert expanding < results + (1 << 20)


@pytest.mark.parametrize(
    ("threshold", "error"),
    [
        *((value, ValueError) for value in (0, -1, math.nan, math.inf)),
        *((value, TypeError) for value in ("0.5", None, True)),
    ],
)
def test_a_bad_threshold_is_refused(threshold: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="TwoBit: threshold: expected a finite number > 0"):
        TwoBit(threshold)
    with pytest.raises(error, match="threshold"):
        expand(np.zeros(1, np.uint8), (1,), np.float32, threshold)


@pytest.mark.parametrize("threshold", [1e-9, 1e9])
def test_a_threshold_beyond_the_dtype_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="beyond the range of float16"):
        TwoBit(threshold).compress(np.ones(3, np.float16))
    with pytest.raises(ValueError, match="beyond the range of float16"):
        expand(np.zeros(1, np.uint8), (3,), np.float16, threshold)


def test_a_dtype_without_fractions_is_refused() -> None:
    for dtype in (np.int32, np.bool_, np.uint8, np.complex64):
        with pytest.raises(TypeError, match="float16, bfloat16, float32 and float64, but got"):
            TwoBit().compress(np.ones(3, dtype))
        with pytest.raises(TypeError, match="float16, bfloat16, float32 and float64, but got"):
            expand(np.zeros(1, np.uint8), (3,), dtype, 0.5)


def test_a_residual_that_does_not_fit_is_refused() -> None:
    gradient = np.ones((2, 3), np.float16)
    with pytest.raises(ValueError, match=r"expected shape \(2, 3\), but got \(6,\)"):
        TwoBit().compress(gradient, np.zeros(6, np.float32))
    with pytest.raises(TypeError, match="expected dtype float32, but got float16"):
        TwoBit().compress(gradient, np.zeros((2, 3), np.float16))


@pytest.mark.parametrize(
    ("packed", "shape", "message"),
    [
        ([0], (5,), "expected 2 bytes"),
        ([0, 0, 0], (5,), "expected 2 bytes"),
        ([], (1,), "expected 1 bytes"),
        ([0, 0b00_11_00_00], (5,), "zeros after 5 elements"),
        ([0, 0b00_00_00_10], (5,), "zeros after 5 elements"),
        ([0b01_00_00_00], (4,), "got a 0b01"),
        ([0b11_10_00_01], (4,), "got a 0b01"),
        ([0], (-1,), "dimensions >= 0"),
        ([0], (-2, -2), "dimensions >= 0"),
    ],
)
def test_hostile_bytes_are_refused(packed: list[int], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand(np.array(packed, np.uint8), shape, np.float32, 0.5)


def test_bytes_of_another_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 bytes"):
        expand(np.zeros(1, np.int64), (4,), np.float32, 0.5)


def test_params_are_read() -> None:
    assert parse_compression_params({"type": "2bit", "threshold": 2}) == TwoBit(2.0)
    assert parse_compression_params({"type": "2bit"}) == TwoBit(0.5)
    assert parse_compression_params(None) is None
    assert parse_compression_params({}) is None


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"type": "1bit"}, ValueError, "type: expected '2bit', but got '1bit'"),
        ({"type": None}, ValueError, "type: expected '2bit', but got 'None'"),
        ({"threshold": 0.5}, TypeError, "expected a 'type'"),
        ({"type": "2bit", "thresh": 1}, TypeError, "does not take 'thresh'; it takes type, thr"),
        ({"type": "2bit", "threshold": 0}, ValueError, "threshold: .* > 0, but got 0"),
        ({"type": "2bit", "threshold": "x"}, TypeError, "threshold"),
        ("2bit", TypeError, "but got str"),
        (["2bit"], TypeError, "but got list"),
    ],
)
def test_bad_params_are_refused(params: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_compression_params(params)
