"""Views as data, against NumPy's own indexing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramd.errors import BroadcastError, InvalidRegionError
from paramd.ndarray.indexing import Range, View, broadcast_source, is_basic

_SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def _chains(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Any]]:
    """A shape, and basic indices that one after the other fit."""
    shape = draw(_SHAPES)
    current = np.empty(shape)
    keys = []
    for _ in range(draw(st.integers(0, 4))):
        items: list[Any] = []
        for size in current.shape[: draw(st.integers(0, current.ndim))]:
            numbers = st.integers(-size, size - 1) if size else st.nothing()
            bound = st.none() | st.integers(-7, 7)
            step = st.none() | st.integers(-3, 3).filter(bool)
            items.append(draw(numbers | st.builds(slice, bound, bound, step)))
        for _ in range(draw(st.integers(0, 1))):
            items.insert(draw(st.integers(0, len(items))), None)
        if draw(st.booleans()):
            items.append(...)
        one_item = len(items) == 1 and draw(st.booleans())
        key = items[0] if one_item else tuple(items)
        keys.append(key)
        current = current[(*items, ...)] if ... not in items else current[tuple(items)]
    return shape, keys


def _numbered(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(shape, dtype=int)).reshape(shape)


def _numpy_chain(array: np.ndarray[Any, Any], keys: list[Any]) -> np.ndarray[Any, Any]:
    for key in keys:
        array = np.asarray(array[key])
    return array


@settings(max_examples=800, deadline=None)
@given(_chains())
def test_views_of_views_show_what_numpy_shows(chain: tuple[tuple[int, ...], list[Any]]) -> None:
    shape, keys = chain
    array = _numbered(shape)
    view = View.whole(shape)
    for key in keys:
        assert is_basic(key)
        view = view.index(key)
    expected = _numpy_chain(array, keys)
    shown = view.of(array)
    assert shown.shape == view.shape == expected.shape
    assert view.size == expected.size
    np.testing.assert_array_equal(shown, expected)
    assert shown.size == 0 or np.shares_memory(shown, array)


@settings(max_examples=800, deadline=None)
@given(_chains())
def test_the_region_alone_gives_the_same_elements(
    chain: tuple[tuple[int, ...], list[Any]],
) -> None:
    shape, keys = chain
    array = _numbered(shape)
    view = View.whole(shape)
    for key in keys:
        view = view.index(key)
    if not view.size:
        return
    part = array[tuple(chosen.to_slice() for chosen in view.ranges)]
    assert part.shape == view.part_shape
    np.testing.assert_array_equal(part.reshape(view.shape), _numpy_chain(array, keys))
    for chosen, size in zip(view.ranges, shape, strict=True):
        assert chosen.step != 0
        last = chosen.begin + (chosen.count - 1) * chosen.step
        assert 0 <= chosen.begin < size
        assert 0 <= last < size


@settings(max_examples=600, deadline=None)
@given(_chains(), st.data())
def test_an_aligned_value_is_written_where_numpy_writes_it(
    chain: tuple[tuple[int, ...], list[Any]], data: st.DataObject
) -> None:
    shape, keys = chain
    view = View.whole(shape)
    for key in keys:
        view = view.index(key)
    if not view.size:
        return
    kept = data.draw(st.tuples(*[st.booleans()] * len(view.shape)))
    source = tuple(size if keep else 1 for size, keep in zip(view.shape, kept, strict=True))
    cut = data.draw(st.integers(0, len(source)))
    source = source[cut:] if all(size == 1 for size in source[:cut]) else (1, *source)
    value = -1 - _numbered(source)
    expected, actual = _numbered(shape), _numbered(shape)
    view.of(expected)[...] = value
    actual[tuple(chosen.to_slice() for chosen in view.ranges)] = view.align(value)
    np.testing.assert_array_equal(actual, expected)


@settings(max_examples=300, deadline=None)
@given(_SHAPES, _SHAPES)
def test_broadcasting_is_refused_where_numpy_refuses_it(
    source: tuple[int, ...], target: tuple[int, ...]
) -> None:
    try:
        np.empty(target)[...] = np.empty(source)
    except ValueError:
        with pytest.raises(BroadcastError, match="does not broadcast"):
            broadcast_source(source, target)
    else:
        aligned = broadcast_source(source, target)
        assert np.broadcast_shapes(aligned, target) == target
        assert len(aligned) == len(target)


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (2, InvalidRegionError, "index 2 is out of bounds for axis 0 with size 2"),
        (-3, InvalidRegionError, "index -3 is out of bounds for axis 0 with size 2"),
        ((0, 3), InvalidRegionError, "index 3 is out of bounds for axis 1 with size 3"),
        ((None, 0, 3), InvalidRegionError, "index 3 is out of bounds for axis 1"),
        ((0, 0, 0), InvalidRegionError, r"too many indices \(3\) for array with 2 dimensions"),
        ((..., ...), InvalidRegionError, "one ellipsis"),
        (slice(None, None, 0), ValueError, "step cannot be zero"),
    ],
)
def test_bad_indices_say_what_is_wrong(key: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        View.whole((2, 3)).index(key)


def test_a_slice_of_a_new_axis_can_be_empty() -> None:
    view = View.whole((3,)).index(None).index(slice(1, None))
    assert view.shape == (0, 3)
    assert view.of(np.arange(3)).shape == (0, 3)
    assert not view.is_whole


def test_a_view_of_everything_is_whole_in_any_shape() -> None:
    whole = View.whole((1, 3))
    assert whole.is_whole
    assert whole.index((0, None)).is_whole
    assert whole.index((slice(None), slice(0, 9))).is_whole
    assert not whole.index((0, slice(None, None, -1))).is_whole
    assert not whole.index((0, slice(0, 2))).is_whole


def test_a_range_of_fewer_than_two_has_step_one() -> None:
    assert Range(0, 5, 1).narrow(slice(4, None, -7)) == Range(4, 1, 1)
    assert Range(0, 5, 1).narrow(slice(3, 3)) == Range(0, 0, 1)
    assert Range(8, 3, -4).narrow(slice(None, None, -1)) == Range(0, 3, 4)


@pytest.mark.parametrize(
    ("key", "basic"),
    [
        (0, True),
        (np.int64(0), True),
        ((), True),
        ((0, slice(None), None, ...), True),
        ([0], False),
        (np.array([0]), False),
        (np.array(0), False),
        ((slice(None), [0]), False),
        (1.0, False),
        ("a", False),
    ],
)
def test_basic_indices_are_told_from_index_arrays(key: Any, basic: bool) -> None:
    assert is_basic(key) is basic
