"""What a shard has of a parameter has the values of those rows of the whole."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramd.initial_values import BLOCK, fill, resolve, values_of_part
from paramd.spec import InitializerSpec, Part, Shape
from paramd.wire.dtypes import DTYPES

# Each variant of each initializer that differs by shape, position or dtype.
SPECS = {
    "zero": InitializerSpec("zero"),
    "one": InitializerSpec("one"),
    "constant": InitializerSpec("constant", {"value": -2.5}),
    "uniform": InitializerSpec("uniform", {"scale": 3.0}),
    "normal": InitializerSpec("normal", {"sigma": 2.0}),
    "xavier": InitializerSpec("xavier"),
    "xavier in": InitializerSpec("xavier", {"factor_type": "in", "rnd_type": "gaussian"}),
    "xavier out": InitializerSpec("xavier", {"factor_type": "out"}),
    "msraprelu": InitializerSpec("msraprelu"),
    "bilinear": InitializerSpec("bilinear"),
    "lstmbias": InitializerSpec("lstmbias", {"forget_bias": 2.0}),
    "orthogonal": InitializerSpec("orthogonal"),
    "orthogonal normal": InitializerSpec("orthogonal", {"rand_type": "normal"}),
}
WITHOUT_INTEGERS = ("uniform", "normal", "xavier", "msraprelu", "orthogonal")
TAILS = [(1, 1, 1), (1, 1, 7), (2, 3, 4), (1, 16, 16), (2, 150, 100), (3, 200, 120)]

Array = np.ndarray[Any, np.dtype[Any]]


@st.composite
def shapes(draw: st.DrawFn, name: str) -> Shape:
    """Four dimensions, of about one block or of several."""
    tail = draw(st.sampled_from(TAILS))
    row = math.prod(tail)
    blocks = draw(st.integers(1, 1 if name.startswith("orthogonal") else 3))
    rows = max(5, blocks * BLOCK // row + draw(st.integers(-2, 2)))
    return (rows, *tail)


@st.composite
def dtypes(draw: st.DrawFn, name: str) -> np.dtype[Any]:
    chosen = list(DTYPES.values())
    if name.split()[0] in WITHOUT_INTEGERS:
        chosen = [dtype for dtype in chosen if dtype.kind not in "iub"]
    return draw(st.sampled_from(chosen))


def parts_of(shape: Shape, num_parts: int, *, strided: bool) -> list[Part]:
    rows = shape[0]
    if strided:
        return [
            Part(shape, first, len(range(first, rows, num_parts)), num_parts)
            for first in range(num_parts)
        ]
    edges = [rows * each // num_parts for each in range(num_parts + 1)]
    return [Part(shape, begin, end - begin, 1) for begin, end in itertools.pairwise(edges)]


def rows_of(whole: Array, part: Part) -> Array:
    return whole[part.begin :: part.step][: part.count]


def assert_same_bits(values: Array, expected: Array) -> None:
    assert values.shape == expected.shape
    assert values.tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_part_has_the_bits_of_its_rows(name: str, data: st.DataObject) -> None:
    spec = SPECS[name]
    shape, dtype = data.draw(shapes(name)), data.draw(dtypes(name))
    num_parts = data.draw(st.sampled_from([1, 2, 3, 5]))
    whole = fill(spec, "w", shape, dtype, seed=7, draw=1)
    for part in parts_of(shape, num_parts, strided=data.draw(st.booleans())):
        values = resolve(spec, "w", shape, dtype, seed=7, draw=1)
        out = np.empty(part.local_shape, dtype)
        values_of_part(values, part).read(0, out.reshape(-1))
        assert_same_bits(out, rows_of(whole, part))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_range_of_any_part_is_read_in_any_order(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["normal", "bilinear", "lstmbias"]))
    shape, dtype = data.draw(shapes(name)), np.dtype(data.draw(st.sampled_from(["f2", "f4", "f8"])))
    step = data.draw(st.sampled_from([1, 2, 3, 7, shape[0]]))
    begin = data.draw(st.integers(0, shape[0] - 1))
    count = data.draw(st.integers(1, len(range(begin, shape[0], step))))
    part = Part(shape, begin, count, step)
    whole = fill(SPECS[name], "w", shape, dtype, seed=7, draw=1)
    expected = np.ascontiguousarray(rows_of(whole, part)).reshape(-1)
    values = values_of_part(resolve(SPECS[name], "w", shape, dtype, seed=7, draw=1), part)
    for first in data.draw(st.lists(st.integers(0, expected.size), min_size=1, max_size=4)):
        out = np.empty(data.draw(st.integers(0, expected.size - first)), dtype)
        values.read(first, out)
        assert_same_bits(out, expected[first : first + out.size])


def test_fans_are_those_of_the_whole() -> None:
    shape = (3000, 4)
    part = Part(shape, 1000, 10, 1)
    spec = InitializerSpec("xavier", {"factor_type": "out", "magnitude": 3.0})
    out = np.empty(part.local_shape, np.float32)
    values = resolve(spec, "w", shape, out.dtype, seed=7, draw=0)
    values_of_part(values, part).read(0, out.reshape(-1))
    # The bound is sqrt(3 / 3000) = 0.0316; with the part's own 10 rows it would be 0.55.
    assert 0.02 < np.abs(out).max() <= math.sqrt(3 / 3000)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("row", [3, 64, 70_000])
@pytest.mark.parametrize("name", ["constant", "uniform", "normal", "lstmbias"])
def test_a_part_of_a_huge_parameter_takes_the_memory_of_blocks(
    name: str, row: int, dtype: str
) -> None:
    # The whole would take terabytes, and the rows are at its end.
    shape = (2**45, row)
    count = 1000 if row < BLOCK else 10
    part = Part(shape, 2**45 - 5 * count, count, 5)
    out = np.empty(part.local_shape, dtype)
    values = values_of_part(resolve(SPECS[name], "w", shape, out.dtype, seed=7, draw=1), part)
    tracemalloc.start()
    try:
        values.read(0, out.reshape(-1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= values.workspace_bytes <= 64 * BLOCK


def test_a_part_of_a_decomposition_says_the_memory_of_all_of_it() -> None:
    shape = (900, 100)
    whole = resolve(SPECS["orthogonal"], "w", shape, np.dtype("f4"), seed=7, draw=1)
    values = values_of_part(whole, Part(shape, 2, 10, 5))
    assert values.workspace_bytes >= whole.workspace_bytes
    out = np.empty(10 * 100, np.float32)
    tracemalloc.start()
    try:
        values.read(0, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= values.workspace_bytes


def test_consecutive_reads_draw_each_block_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    philox = np.random.Philox

    def counting(*, key: int, counter: int) -> np.random.Philox:
        drawn.append(counter >> 192)
        return philox(key=key, counter=counter)

    monkeypatch.setattr(np.random, "Philox", counting)
    shape = (50_000, 7)
    part = Part(shape, 1, len(range(1, 50_000, 3)), 3)
    values = values_of_part(
        resolve(SPECS["normal"], "w", shape, np.dtype("f4"), seed=7, draw=1), part
    )
    values.read(0, np.empty(math.prod(part.local_shape), np.float32))
    assert drawn == list(range(-(-math.prod(shape) // BLOCK)))
