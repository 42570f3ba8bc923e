"""Parts that come in any order and in pieces of any size, in one array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramd.errors import InvalidStreamError
from paramd.placement import layout_of
from paramd.spec import Selector, TensorHead
from paramd.transport.cluster.catalogue import StalePlacementError
from paramd.transport.cluster.placed import Placed
from paramd.transport.cluster.reading import RowsPlan, plan_reads
from paramd.transport.protocols import Received
from paramd.transport.receiving import Place
from paramd.v1 import parameter_service_pb2 as pb
from paramd.v1 import tensor_pb2
from paramd.wire.tensors import head_to_wire

SHAPE = (11, 3)
WHOLE = np.arange(33, dtype=np.float32).reshape(SHAPE)


def placed(stype: str = "default") -> Placed:
    return Placed("w", layout_of("w", SHAPE, stype, 3, 4), SHAPE, stype, stype)


def _header(shape: tuple[int, ...]) -> bytes:
    header = head_to_wire(TensorHead("w", shape, np.dtype(np.float32)))
    header.stype = tensor_pb2.STORAGE_TYPE_ROW_SPARSE
    header.size_bytes = 0
    return pb.PullRowSparseResponse(header=header).SerializeToString()


@given(st.data())
def test_rows_may_come_in_pieces_of_any_size(data: st.DataObject) -> None:
    ids = np.array(sorted(data.draw(st.sets(st.integers(0, 10), min_size=1))), np.int64)
    where = placed("row_sparse")
    plan = RowsPlan(where, ids, None)
    heads = {}
    for shard in data.draw(st.permutations(sorted(plan.ids))):
        part = where.parts[shard]
        local = WHOLE[part.begin :: part.step][plan.ids[shard]].tobytes()
        receiver = plan.receiver(shard)
        receiver.feed(_header(part.local_shape))
        while local:
            size = data.draw(st.integers(1, len(local)))
            piece, local = local[:size], local[size:]
            receiver.feed(pb.PullRowSparseResponse(data=piece).SerializeToString())
        heads[shard] = receiver.finish()
    head, rows = plan.merge(heads)
    assert head.shape == SHAPE
    np.testing.assert_array_equal(rows, WHOLE[ids])


def _feed(plan: RowsPlan, messages: list[bytes]) -> None:
    receiver = plan.receiver(0)
    for message in messages:
        receiver.feed(message)
    receiver.finish()


def test_rows_that_do_not_fit_are_refused() -> None:
    where = placed("row_sparse")
    plan = RowsPlan(where, np.arange(11), None)
    data = pb.PullRowSparseResponse(data=bytes(12)).SerializeToString()
    for messages, words in (
        ([data], "before the header"),
        ([_header((4, 3)), _header((4, 3))], "between the rows"),
        ([_header((4, 3)), *[data] * 5], "more than 4 rows"),
        ([_header((4, 3)), *[data] * 3], "3 rows came, of 4"),
        ([], "before the header"),
    ):
        with pytest.raises(InvalidStreamError, match=words):
            _feed(plan, messages)
    with pytest.raises(StalePlacementError, match=r"\(4, 3\).*\(5, 3\)"):
        plan.receiver(0).feed(_header((5, 3)))


def _receive(place: Any, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    assert isinstance(place, Place)
    place.open(value.shape, value.dtype)[:] = value.tobytes()
    return place.complete()


@pytest.mark.parametrize("kind", ["new", "plain", "turned"])
def test_parts_are_received_in_place_where_that_is_possible(kind: str) -> None:
    where = placed()
    out = {
        "new": None,
        "plain": np.zeros(SHAPE, np.float32),
        "turned": np.zeros(SHAPE[::-1], np.float32).T,
    }[kind]
    plan = plan_reads({"w": where}, [Selector("w")], [out], gradient=False)
    received: dict[int, Received] = {}
    for shard in sorted(where.parts, reverse=True):
        part = where.parts[shard]
        local = WHOLE[part.begin : part.begin + part.count]
        (place,) = plan.outs[shard]
        piece = _receive(place, local)
        assert kind != "plain" or (out is not None and np.shares_memory(piece, out))
        received[shard] = [(TensorHead("w", local.shape, local.dtype), piece)]
    ((head, value),) = plan.merge(received)
    assert head.shape == SHAPE
    assert out is None or value is out
    np.testing.assert_array_equal(value, WHOLE)


def test_parts_of_different_dtypes_are_read_again() -> None:
    where = placed()
    plan = plan_reads({"w": where}, [Selector("w")], None, gradient=False)
    places = {shard: plan.outs[shard][0] for shard in where.parts}
    _receive(places[0], np.zeros(where.parts[0].local_shape, np.float32))
    with pytest.raises(StalePlacementError, match="float32 and as float64"):
        _receive(places[1], np.zeros(where.parts[1].local_shape))
    with pytest.raises(StalePlacementError, match="came as"):
        _receive(places[2], np.zeros((9, 3), np.float32))
