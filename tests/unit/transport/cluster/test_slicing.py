"""What is taken apart for the shards and put together again is what it was."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramd.compression import TwoBit, expand
from paramd.errors import (
    BroadcastError,
    InvalidRegionError,
    InvalidStreamError,
    RowIdError,
    ShapeMismatchError,
    WrongStorageTypeError,
)
from paramd.files import RowSparseRows
from paramd.placement import layout_of
from paramd.spec import Part
from paramd.transport.cluster.placed import Placed
from paramd.transport.cluster.slicing import (
    check_row_ids,
    check_write,
    cut,
    local_ids,
    merged_rows,
    repack,
    split_write,
    whole_ids,
)
from paramd.transport.records import PackedGradient, TensorWrite

NAME = "w"


def spread(
    shape: tuple[int, ...], num_shards: int, stype: str = "default", grad_stype: str = "default"
) -> Placed:
    layout = layout_of(NAME, shape, stype, num_shards, 0)
    assert layout.is_spread
    return Placed(NAME, layout, shape, stype, grad_stype)


@st.composite
def layouts(draw: st.DrawFn, max_rank: int = 3) -> Placed:
    num_shards = draw(st.integers(2, 6))
    rows = draw(st.integers(num_shards, 23))
    rest = draw(st.lists(st.integers(1, 4), max_size=max_rank - 1))
    stype = draw(st.sampled_from(["default", "row_sparse"]))
    return spread((rows, *rest), num_shards, stype)


@st.composite
def ranges(draw: st.DrawFn, size: int) -> tuple[int, int, int]:
    begin, last = draw(st.integers(0, size - 1)), draw(st.integers(0, size - 1))
    step = draw(st.integers(1, size + 2)) * (1 if last >= begin else -1)
    count = draw(st.integers(0, (last - begin) // step + 1))
    return begin, count, step


def rows_of(part: Part) -> slice:
    return slice(part.begin, part.begin + (part.count - 1) * part.step + 1, part.step)


def stored(placed: Placed, whole: np.ndarray[Any, Any]) -> dict[int, np.ndarray[Any, Any]]:
    """What each shard would hold."""
    return {shard: whole[rows_of(part)].copy() for shard, part in placed.parts.items()}


def together(placed: Placed, held: dict[int, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    whole = np.full(placed.whole, -1.0)
    for shard, part in placed.parts.items():
        whole[rows_of(part)] = held[shard]
    return whole


def at(region: Any, array: np.ndarray[Any, Any]) -> Any:
    """The indices of a region, to read or write with NumPy."""
    if region is None:
        return ...
    return np.ix_(*[begin + step * np.arange(count) for begin, count, step in region])


@given(st.data())
def test_each_row_of_a_range_is_on_one_shard(data: st.DataObject) -> None:
    placed = data.draw(layouts())
    begin, count, step = rows = data.draw(ranges(placed.whole[0]))
    asked = begin + step * np.arange(count)
    found = np.full(count, -1)
    for shard, part in placed.parts.items():
        there = cut(rows, part)
        if there is None:
            continue
        local_begin, local_count, local_step = there.local
        local = local_begin + local_step * np.arange(local_count)
        assert local_count > 0
        assert local.min() >= 0
        assert local.max() < part.count
        assert (found[there.where] == -1).all(), f"twice, at last on shard {shard}"
        found[there.where] = part.begin + part.step * local
    np.testing.assert_array_equal(found, asked)


@given(st.data(), st.sampled_from(["assign", "add", "multiply"]), st.booleans())
def test_dense_writes_do_what_numpy_does(data: st.DataObject, mode: str, gradient: bool) -> None:
    placed = data.draw(layouts())
    shape = placed.whole
    if placed.stype != "default":
        gradient = True
    whole = np.arange(math.prod(shape), dtype=np.float64).reshape(shape)
    region = data.draw(st.none() | st.tuples(*[ranges(size) for size in shape]))
    target = shape if region is None else tuple(count for _, count, _ in region)
    kept = [size if data.draw(st.booleans()) else 1 for size in target]
    value_shape = (1,) * data.draw(st.integers(0, 2)) + tuple(
        kept[data.draw(st.integers(0, len(kept))) :] if data.draw(st.booleans()) else target
    )
    value = np.random.default_rng(0).integers(1, 9, value_shape).astype(np.float64)
    write = TensorWrite(NAME, value, context=None, region=region, mode=mode)
    if not gradient and region is None and mode == "assign" and value.shape != shape:
        return  # A whole value has the whole shape.
    check_write(placed, write, gradient=gradient)
    held = stored(placed, whole)
    expected = whole.copy()
    apply(expected, write)
    pieces = split_write(placed, write, gradient=gradient)
    if gradient:
        assert pieces.keys() == placed.parts.keys()
    for shard, piece in pieces.items():
        apply(held[shard], piece)
    np.testing.assert_array_equal(together(placed, held), expected)


def apply(array: np.ndarray[Any, Any], write: TensorWrite) -> None:
    value = write.value
    assert isinstance(value, np.ndarray)
    while value.ndim > array.ndim:
        value = value[0]
    index = at(write.region, array)
    if write.mode == "assign":
        array[index] = value
    elif write.mode == "add":
        array[index] += value
    else:
        array[index] *= value


@given(st.data())
def test_rows_come_together_again(data: st.DataObject) -> None:
    placed = data.draw(layouts())
    size = placed.whole[0]
    ids = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1)))), np.int64)
    rows = np.random.default_rng(1).normal(size=(len(ids), *placed.whole[1:]))
    value = RowSparseRows(ids, rows, placed.whole)
    mode = data.draw(st.sampled_from(["assign_rows", "assign", "by_grad_req", "add"]))
    gradient = mode == "by_grad_req"
    write = TensorWrite(NAME, value, mode=mode)
    check_write(placed, write, gradient=gradient)
    pieces = split_write(placed, write, gradient=gradient)
    if mode in ("assign", "by_grad_req"):
        assert pieces.keys() == placed.parts.keys()
    held: dict[int, RowSparseRows] = {}
    for shard, piece in pieces.items():
        assert isinstance(piece.value, RowSparseRows)
        assert piece.value.shape == placed.parts[shard].local_shape
        held[shard] = piece.value
    merged = merged_rows(placed, held)
    np.testing.assert_array_equal(merged.ids, ids)
    np.testing.assert_array_equal(merged.rows, rows)
    assert merged.shape == placed.whole


@given(st.data())
def test_local_ids_are_those_of_the_part(data: st.DataObject) -> None:
    placed = data.draw(layouts())
    ids = np.array(sorted(data.draw(st.sets(st.integers(0, placed.whole[0] - 1)))), np.int64)
    found = np.zeros(len(ids), int)
    shares = local_ids(ids, placed.parts)
    assert shares.keys() == placed.parts.keys()
    for shard, part in placed.parts.items():
        mine, where = shares[shard]
        found[where] += 1
        np.testing.assert_array_equal(whole_ids(mine, part), ids[where])
        assert not len(mine) or (mine.min() >= 0 and mine.max() < part.count)
    assert (found == 1).all()


@given(layouts(), st.integers(0, 2**32 - 1))
def test_packed_gradients_are_repacked_without_loss(placed: Placed, seed: int) -> None:
    gradient = np.random.default_rng(seed).normal(size=placed.whole).astype(np.float32)
    packed, _ = TwoBit(0.5).compress(gradient)
    whole = expand(packed, placed.whole, np.float32, 0.5)
    compressed = PackedGradient(packed, placed.whole, np.dtype(np.float32), 0.5)
    for part in placed.parts.values():
        piece = repack(compressed, part)
        assert piece.shape == part.local_shape
        # `expand` also checks that the last byte is filled up with zeros.
        found = expand(piece.packed, piece.shape, piece.dtype, piece.threshold)
        np.testing.assert_array_equal(found, whole[rows_of(part)])


DENSE, TABLE = spread((6, 2), 3), spread((6, 2), 3, "row_sparse", "row_sparse")
ROWS = RowSparseRows(np.array([1, 4]), np.ones((2, 2)), (6, 2))


@pytest.mark.parametrize(
    ("placed", "write", "gradient", "error", "facts"),
    [
        (DENSE, TensorWrite(NAME, np.ones((5, 2))), False, ShapeMismatchError, r"\(6, 2\).*\(5, 2"),
        (
            DENSE,
            TensorWrite(NAME, np.ones((5, 2)), mode="by_grad_req"),
            True,
            ShapeMismatchError,
            r"\(6, 2\).*\(5, 2",
        ),
        (DENSE, TensorWrite(NAME, np.ones(3), mode="add"), False, BroadcastError, r"3,.*\(6, 2\)"),
        (
            DENSE,
            TensorWrite(NAME, np.ones((2, 6, 2)), mode="add"),
            True,
            BroadcastError,
            r"\(2, 6, 2\)",
        ),
        (
            DENSE,
            TensorWrite(NAME, np.ones(()), region=((4, 3, 1), (0, 2, 1))),
            False,
            InvalidRegionError,
            r"axis 0 of shape \(6, 2\)",
        ),
        (DENSE, TensorWrite(NAME, ROWS, mode="multiply"), False, WrongStorageTypeError, "assigned"),
        (
            TABLE,
            TensorWrite(NAME, np.ones(()), region=((0, 1, 1), (0, 2, 1))),
            False,
            WrongStorageTypeError,
            "set_row_sparse_data",
        ),
        (TABLE, TensorWrite(NAME, ROWS, mode="divide"), True, WrongStorageTypeError, "subtracted"),
        (
            TABLE,
            TensorWrite(NAME, RowSparseRows(ROWS.ids, ROWS.rows, (7, 2)), mode="add"),
            True,
            ShapeMismatchError,
            r"\(6, 2\).*\(7, 2\)",
        ),
    ],
)
def test_what_no_server_takes_is_refused_with_whole_shapes(
    placed: Placed, write: TensorWrite, gradient: bool, error: type[Exception], facts: str
) -> None:
    with pytest.raises(error, match=f"'w'.*{facts}"):
        check_write(placed, write, gradient=gradient)


@pytest.mark.parametrize(
    ("ids", "error", "facts"),
    [
        ([1, 6], RowIdError, "0 to 5, but got 6"),
        ([-1, 5], RowIdError, "got -1"),
        ([4, 1], InvalidStreamError, "sorted"),
        ([1, 1], InvalidStreamError, "unique"),
    ],
)
def test_wrong_ids_are_refused(ids: list[int], error: type[Exception], facts: str) -> None:
    with pytest.raises(error, match=f"'w'.*{facts}"):
        check_row_ids(NAME, np.array(ids), 6)
