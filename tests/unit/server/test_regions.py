"""Which regions are one run of memory."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from paramd.spec import Region, region_slices
from paramd_server.arrays.backend import flat_range, region_shape

SHAPE = (3, 4, 2)


def ranges(size: int) -> list[tuple[int, int, int]]:
    """Every range of an axis with a step of 1, 2, -1 or 5."""
    return [
        (begin, count, step)
        for begin, count, step in product(range(size), range(size + 1), (1, 2, -1, 5))
        if not count or 0 <= begin + (count - 1) * step < size
    ]


@pytest.mark.parametrize("first", ranges(SHAPE[0]), ids=str)
def test_a_range_is_given_where_there_is_one_and_only_there(first: tuple[int, int, int]) -> None:
    array = np.arange(24).reshape(SHAPE)
    for rest in product(ranges(SHAPE[1]), ranges(SHAPE[2])):
        region: Region = (first, *rest)
        selected = array[region_slices(region)]
        assert selected.shape == region_shape(region)
        flat = selected.reshape(-1)
        is_run = bool((np.diff(flat) == 1).all())
        found = flat_range(region, SHAPE)
        assert (found is not None) == is_run, region
        if found is not None:
            np.testing.assert_array_equal(array.reshape(-1)[slice(*found)], flat)


def test_an_array_without_axes_is_one_run() -> None:
    assert flat_range((), ()) == (0, 1)
