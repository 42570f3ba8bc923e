"""Kernels that write, cast, gather and scatter, on the host, against NumPy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from paramd.context import cpu
from paramd.spec import Region, region_slices
from paramd.wire.dtypes import BFLOAT16, DTYPES
from paramd_server.arrays.memory import MemoryAccount, SpareBuffers
from paramd_server.arrays.numpy_backend import NumpyBackend
from tests.support.host_kernels import Array, address, launch, needs_compiler, same

pytestmark = needs_compiler

SEED = 20
ALL = list(DTYPES.values())
FLOATS = [dtype for dtype in ALL if dtype.kind in "fV"]
by_name = pytest.mark.parametrize("dtype", ALL, ids=str)
MODES = ("assign", "add", "subtract", "multiply", "divide")
Dtype = np.dtype[Any]


def written(target: Array, value: Array, mode: str, region: Region | None = None) -> Array:
    """What the backend of main memory makes of it."""
    backend = NumpyBackend(MemoryAccount(1 << 30), SpareBuffers())
    buffer = backend.empty(target.shape, target.dtype, cpu())
    backend.write(buffer, target, mode="assign")
    backend.write(buffer, value, region=region, mode=mode)
    return backend.array(buffer)


def combine(target: Array, value: Array, mode: str, region: Region | None = None) -> Array:
    """What the kernel makes of it, in two launches."""
    result = target.copy()
    view = result if region is None else result[region_slices(region)]
    value = np.broadcast_to(value, view.shape)
    steps = [stride // array.itemsize for array in (view, value) for stride in array.strides]
    geometry = np.array([*view.shape, *steps], np.int64)
    base = (view.ctypes.data - result.ctypes.data) // result.itemsize
    types = {"TARGET": target.dtype, "VALUE": value.dtype}
    middle = view.size // 3
    for begin, end in ((0, middle), (middle, view.size)):
        # The value as if element (0, 0, ...) had been left out, which a piece may do.
        launch(
            *("combine", types, address(result), address(value, 5), address(geometry)),
            *(np.int32(view.ndim), np.int64(base), np.int64(5)),
            *(np.int64(begin), np.int64(end - begin)),
            mode=mode,
            order=begin,
        )
    return result


@functools.cache
@np.errstate(all="ignore")
def every_number(dtype: Dtype) -> Array:
    """All numbers of a type of up to 16 bits; of others many, among them those that round hard."""
    rng = np.random.default_rng(SEED)
    if dtype == np.bool_:
        return np.array([False, True])
    if dtype.itemsize <= 2:
        return np.arange(1 << 8 * dtype.itemsize).astype(f"u{dtype.itemsize}").view(dtype)
    if dtype.kind == "i":
        bits = np.frombuffer(rng.bytes(40_000 * dtype.itemsize), dtype)
        edges = [0, 1, -1, 127, 128, 255, 256, np.iinfo(dtype).min, np.iinfo(dtype).max]
        shifted = bits >> rng.integers(0, 8 * dtype.itemsize, bits.size).astype(dtype)
        return np.concatenate([bits, shifted, np.array(edges, dtype)])
    bits = np.frombuffer(rng.bytes(100_000 * dtype.itemsize), dtype)
    plain = rng.standard_normal(50_000) * 10.0 ** rng.integers(-12, 12, 50_000)
    return np.concatenate([bits, plain.astype(dtype), *ties(dtype)])


def ties(dtype: Dtype) -> list[Array]:
    """Numbers halfway between two 16-bit floats, and their neighbours."""
    found = []
    for short in (np.dtype(np.float16), BFLOAT16):
        numbers = every_number(short)
        numbers = np.sort(numbers[np.isfinite(numbers)].astype(np.float64))
        halfway = ((numbers[1:] + numbers[:-1]) / 2).astype(dtype)
        up, down = dtype.type(np.inf), dtype.type(-np.inf)
        found += [halfway, np.nextafter(halfway, up), np.nextafter(halfway, down)]
    return found


@np.errstate(all="ignore")
def castable(values: Array, target: Dtype) -> Array:
    """Those for which C says what their cast to a type is."""
    if target.kind not in "iu" or values.dtype.kind not in "fV":
        return values
    wide = np.trunc(values.astype(np.float64))
    low, high = float(np.iinfo(target).min), float(np.iinfo(target).max)
    # 2 ** 63 - 1 rounds up.
    return values[(wide >= low) & (wide <= high) & (wide < 2.0**63)]


@by_name
def test_casts_are_numpys(dtype: Dtype) -> None:
    for source in ALL:
        values = castable(every_number(source), dtype)
        target = np.zeros(values.shape, dtype)
        result = combine(target, values, "assign")
        assert same(result, written(target, values, "assign")), (source, dtype, SEED)


@pytest.mark.parametrize("dtype", [d for d in ALL if d.kind in "iu"], ids=str)
def test_what_an_integer_cannot_hold_becomes_some_integer(dtype: Dtype) -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1e300, -1e300, 2.0**63, -(2.0**31) - 1])
    result = combine(np.full(values.shape, 7, dtype), values, "assign")
    # As on an x86: the least number of the wider type that the cast goes through.
    wide = np.int64 if dtype == np.int64 else np.int32
    least = np.full(values.shape, np.iinfo(wide).min)
    if dtype == np.int64:
        least[-1] = -(2**31) - 1
    np.testing.assert_array_equal(result, least.astype(dtype))


@by_name
@pytest.mark.parametrize("mode", MODES[1:])
def test_arithmetic_is_numpys(dtype: Dtype, mode: str) -> None:
    rng = np.random.default_rng(SEED)
    every = every_number(dtype)
    old, value = rng.choice(every, 60_000), rng.choice(every, 60_000)
    if mode == "divide" and dtype.kind in "iu":
        # What an integer cannot hold may differ.
        value[value == 0] = 3
        old[(old < 0) & (value == -1)] = 5
    assert same(combine(old, value, mode), written(old, value, mode)), SEED


@pytest.mark.parametrize("dtype", [np.dtype("u1"), np.dtype("i1")], ids=str)
def test_all_quotients_of_short_integers_are_numpys(dtype: Dtype) -> None:
    old, value = (each.ravel() for each in np.meshgrid(every_number(dtype), every_number(dtype)))
    kept = value != 0
    old, value = old[kept].copy(), value[kept].copy()
    assert same(combine(old, value, "divide"), written(old, value, "divide"))


def test_a_value_is_cast_before_it_is_combined() -> None:
    old, value = np.ones(8, np.int32), np.full(8, 0.6)
    assert same(combine(old, value, "add"), old)
    big = np.full(8, 2049.0)
    half = np.full(8, 0.5, np.float16)
    assert same(combine(half, big, "add"), written(half, big, "add"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shape", "region", "value_shape"),
    [
        ((6, 5, 4), ((4, 3, -2), (0, 5, 1), (3, 2, -3)), (3, 5, 2)),
        ((6, 5, 4), ((1, 4, 1), (2, 2, 2), (0, 4, 1)), (2, 1)),
        ((7, 300), ((6, 7, -1), (299, 300, -1)), (300,)),
        ((2, 3, 2, 2, 3), None, (3, 1, 2, 1)),
        ((50,), ((49, 25, -2),), (1,)),
        ((50,), ((3, 20, 2),), (20,)),
        ((), None, ()),
        ((4, 0, 3), None, (3,)),
        ((5, 4), ((2, 0, 1), (0, 4, 1)), (4,)),
    ],
)
def test_regions_and_broadcasting_are_numpys(
    shape: tuple[int, ...], region: Region | None, value_shape: tuple[int, ...], mode: str
) -> None:
    rng = np.random.default_rng(SEED)
    target = rng.standard_normal(shape).astype(np.float32)
    value = rng.standard_normal(value_shape)
    assert same(combine(target, value, mode, region), written(target, value, mode, region)), SEED


def test_a_region_is_gathered_from_a_value_with_strides() -> None:
    source = np.random.default_rng(SEED).standard_normal((9, 8, 7)).astype(BFLOAT16)
    for view in (source[::-2, 3:, ::3], source.transpose(2, 0, 1), source[4, ::-1]):
        gathered = combine(np.zeros(view.shape, BFLOAT16), view, "assign")
        assert same(gathered, np.ascontiguousarray(view))


def test_a_float_is_copied_with_the_bits_of_its_nan() -> None:
    bits = np.arange(0x7C00, 0x8000, dtype=np.uint16)
    result = combine(np.zeros(bits.shape, np.float16), bits.view(np.float16), "assign")
    np.testing.assert_array_equal(result.view(np.uint16), bits)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("row_words", [1, 5])
def test_rows_are_taken(size: int, row_words: int) -> None:
    rng = np.random.default_rng(SEED)
    word = np.dtype(f"V{size}")
    table = np.frombuffer(rng.bytes(700 * row_words * size), word).reshape(700, row_words)
    ids = rng.integers(0, 700, 400)
    out = np.zeros((400, row_words), word)
    middle = 123 * row_words + row_words // 2
    for begin, end in ((0, middle), (middle, out.size)):
        first = begin // row_words
        launch(
            *("take_rows", {"WORD": word}, address(out, begin), address(table)),
            *(address(ids, first), np.int64(first), np.int64(row_words)),
            *(np.int64(begin), np.int64(end - begin)),
            order=begin,
        )
    assert out.tobytes() == table[ids].tobytes(), SEED


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("dtype", "given"),
    [("f4", "f4"), ("f2", "f4"), (BFLOAT16, BFLOAT16), ("f8", "i4"), ("i8", "f8"), ("?", "u1")],
)
def test_rows_are_put(dtype: Any, given: Any, mode: str) -> None:
    rng = np.random.default_rng(SEED)
    table = (rng.standard_normal((300, 7)) * 9).astype(dtype)
    rows = (rng.integers(1, 9, (120, 7)) / 2).astype(given)
    ids = rng.permutation(300)[:120]
    expected = table.copy()
    expected[ids] = written(table[ids], rows, mode)
    for begin, end in ((0, 250), (250, rows.size)):
        first = begin // 7
        launch(
            *("put_rows", {"TARGET": table.dtype, "VALUE": rows.dtype}, address(table)),
            *(address(rows, begin), address(ids, first), np.int64(first), np.int64(7)),
            *(np.int64(begin), np.int64(end - begin)),
            mode=mode,
            order=begin,
        )
    assert same(table, expected), SEED


def test_rows_of_nothing_are_nothing() -> None:
    table, ids = np.ones(3, np.float32), np.arange(3)
    zeros = (np.int64(0),) * 4
    f4 = table.dtype
    launch("take_rows", {"WORD": f4}, address(table), address(None), address(ids), *zeros)
    types = {"TARGET": f4, "VALUE": f4}
    launch("put_rows", types, address(table), address(None), address(ids), *zeros, mode="add")
    np.testing.assert_array_equal(table, np.ones(3))


def is_finite(values: Array, begin: int, count: int) -> bool:
    found = np.zeros(3, np.int32)
    launch(
        *("all_finite", {"VALUE": values.dtype}, address(values)),
        *(np.int64(begin), np.int64(count), address(found, 1)),
    )
    assert found[0] == found[2] == 0
    assert found[1] in (0, 1)
    return bool(found[1] == 0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_nan_and_infinity_is_found(dtype: Dtype) -> None:
    every = every_number(dtype)
    with np.errstate(invalid="ignore"):
        finite = every[np.isfinite(every)]
    assert is_finite(finite, 0, finite.size)
    assert is_finite(finite, 0, 0)
    for bad in (np.nan, np.inf, -np.inf):
        for place in (0, 1, 700, 999):
            values = np.ones(1000, dtype)
            values[place] = bad
            assert not is_finite(values, 0, 1000), (bad, place)
            assert not is_finite(values, place, 1), (bad, place)
            assert is_finite(values, place + 1, 999 - place), (bad, place)
            assert is_finite(values, 0, place), (bad, place)


def test_what_is_found_is_never_taken_back() -> None:
    values, found = np.ones(10, np.float32), np.ones(1, np.int32)
    types = {"VALUE": values.dtype}
    launch("all_finite", types, address(values), np.int64(0), np.int64(10), address(found))
    assert found[0] == 1
