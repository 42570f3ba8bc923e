"""The same values, however a parameter is divided."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramd.errors import InitializerError
from paramd.initial_values import BLOCK, fill, resolve
from paramd.spec import InitializerSpec
from paramd.wire.dtypes import DTYPES

SPECS = [
    InitializerSpec("zero"),
    InitializerSpec("one"),
    InitializerSpec("constant", {"value": 2.5}),
    InitializerSpec("uniform", {"scale": 3.0}),
    InitializerSpec("normal", {"sigma": 2.0}),
    InitializerSpec("xavier"),
    InitializerSpec("msraprelu"),
    InitializerSpec("bilinear"),
    InitializerSpec("lstmbias", {"forget_bias": 2.0}),
    InitializerSpec("orthogonal"),
]
# Several blocks, with rows shorter and longer than one, and rows that cross from one to the next.
SHAPES = [(4, 3, 5, 7), (400, 3, 11, 13), (8, 2, 150, 100), (4, 3, 200, 120), (2000, 1, 1, 90)]
FLOATING = [dtype for dtype in DTYPES.values() if dtype.kind not in "iub"]


def _whole(
    spec: InitializerSpec, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> np.ndarray[Any, np.dtype[Any]]:
    return fill(spec, "w", shape, dtype, seed=7, draw=1)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_ranges_have_the_values_of_the_whole(spec: InitializerSpec, data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from(SHAPES))
    dtype = data.draw(st.sampled_from(FLOATING))
    size = math.prod(shape)
    cuts = data.draw(st.lists(st.integers(0, size), max_size=6))
    cuts += data.draw(st.lists(st.sampled_from(range(0, size + 1, BLOCK)), max_size=2))
    edges = sorted([0, *cuts, size])
    parts = np.empty(size, dtype)
    for begin, end in itertools.pairwise(edges):
        part = parts[begin:end]
        fill(spec, "w", shape, dtype, seed=7, draw=1, out=part, begin=begin)
    np.testing.assert_array_equal(parts.reshape(shape), _whole(spec, shape, dtype))


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_one_reader_gives_the_values_in_any_order(data: st.DataObject) -> None:
    shape = (3, 70_001)
    dtype = np.dtype(data.draw(st.sampled_from(["f2", "f4"])))
    values = resolve(InitializerSpec("normal"), "w", shape, dtype, seed=7, draw=1)
    whole = _whole(InitializerSpec("normal"), shape, dtype).reshape(-1)
    for begin in data.draw(st.lists(st.integers(0, whole.size), min_size=2, max_size=5)):
        out = np.empty(data.draw(st.integers(0, whole.size - begin)), dtype)
        values.read(begin, out)
        np.testing.assert_array_equal(out, whole[begin : begin + out.size])


@pytest.mark.parametrize("name", ["uniform", "normal", "orthogonal"])
def test_seed_draw_and_name_each_change_the_values(name: str) -> None:
    spec, dtype = InitializerSpec(name), np.dtype(np.float32)
    keys = [("w", 7, 1), ("w", 8, 1), ("w", 7, 2), ("v", 7, 1), ("w", 1, 7), ("w", 2**64 - 1, 0)]
    values = {
        fill(spec, key, (20, 30), dtype, seed=seed, draw=draw).tobytes() for key, seed, draw in keys
    }
    assert len(values) == len(keys)


def test_values_of_a_seed_stay_what_they_were() -> None:
    # A change here changes the models of everybody who set a seed: it is not to be made lightly.
    values = fill(
        InitializerSpec("uniform", {"scale": 1.0}),
        "dense0_weight",
        (2, BLOCK),
        np.dtype(np.float32),
        seed=42,
        draw=0,
    )
    expected = [
        [-0.09975802898406982, -0.9443187713623047, -0.3896067142486572],
        [-0.17534089088439941, -0.6381900310516357, 0.9738233089447021],
    ]
    np.testing.assert_array_equal(values[:, :3], np.array(expected, np.float32))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("spec", SPECS[:-1], ids=lambda spec: spec.name)
def test_filling_takes_the_memory_of_a_block(spec: InitializerSpec, dtype: str) -> None:
    shape = (256, 4, 40, 50)
    out = np.empty(shape, dtype)
    values = resolve(spec, "w", shape, out.dtype, seed=7, draw=1)
    tracemalloc.start()
    try:
        values.read(0, out.reshape(-1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= values.workspace_bytes <= 64 * BLOCK


@pytest.mark.parametrize("shape", [(500, 500), (900, 100), (100, 900)])
def test_orthogonal_takes_the_memory_that_it_says(shape: tuple[int, int]) -> None:
    out = np.empty(shape, np.float32)
    values = resolve(InitializerSpec("orthogonal"), "w", shape, out.dtype, seed=7, draw=1)
    tracemalloc.start()
    try:
        values.read(0, out.reshape(-1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= values.workspace_bytes <= 8 * out.nbytes + 2**20 + out.nbytes


@pytest.mark.parametrize(
    ("out", "begin"),
    [
        (np.empty((4, 4), np.float32)[:, ::2], 0),
        (np.empty(8, np.float64), 0),
        (np.empty(9, np.float32), 0),
        (np.empty(4, np.float32), 5),
        (np.empty(4, np.float32), -1),
    ],
)
def test_arrays_that_do_not_fit_are_refused(out: np.ndarray[Any, Any], begin: int) -> None:
    with pytest.raises(ValueError, match=r"expected a C-contiguous|are not in shape"):
        fill(
            InitializerSpec("one"), "w", (4, 2), np.dtype(np.float32),
            seed=0, draw=0, out=out, begin=begin,
        )  # fmt: skip


@pytest.mark.parametrize("key", [(-1, 0), (2**64, 0), (0, -1), (0, 2**64)])
def test_keys_beyond_64_bits_are_refused(key: tuple[int, int]) -> None:
    with pytest.raises(InitializerError, match="2\\*\\*64"):
        fill(InitializerSpec("one"), "w", (2,), np.dtype(np.float32), seed=key[0], draw=key[1])
