"""Streams of tensors: any chunking gives the arrays, and nothing else does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from paramd.context import cpu
from paramd.errors import (
    InvalidArgumentError,
    InvalidMessageError,
    InvalidNameError,
    InvalidStreamError,
)
from paramd.spec import TensorHead, Version
from paramd.v1 import parameter_service_pb2 as pb
from paramd.v1 import tensor_pb2
from paramd.wire.dtypes import DTYPES
from paramd.wire.envelope import encode_data
from paramd.wire.tensors import (
    CHUNK_BYTES,
    TensorReceiver,
    byte_view,
    data_messages,
    head_from_wire,
    head_to_wire,
    region_from_wire,
    region_to_wire,
    tensor_messages,
)
from tests.support.receiving import feed_all


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


dtypes = st.sampled_from(list(DTYPES.values()))
shapes = st.lists(st.integers(0, 6), max_size=4).map(tuple)
heads = st.builds(
    TensorHead,
    name=st.text(min_size=1, max_size=20).filter(_encodable),
    shape=shapes,
    dtype=dtypes,
    context=st.none() | st.integers(0, 2**31 - 1).map(cpu),
    version=st.none() | st.builds(Version, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    region=st.none()
    | st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 3), max_size=4).map(tuple),
    mode=st.sampled_from(["", "assign", "add", "subtract", "multiply", "divide", "by_grad_req"]),
)


def receive(messages: list[bytes]) -> list[np.ndarray[Any, Any]]:
    """The payload of each tensor, in two buffers where it has two bytes or more."""
    found: list[np.ndarray[Any, Any]] = []

    def place(head: TensorHead) -> list[memoryview]:
        array = np.empty(head.size_bytes, np.uint8)
        found.append(array)
        half = head.size_bytes // 2
        return [array[:half].data, array[half:].data]

    receiver = TensorReceiver(pb.GetDataResponse, place)
    feed_all(receiver, messages)
    assert receiver.num_tensors == len(found)
    return found


@given(tensors=st.lists(st.tuples(shapes, dtypes), max_size=4), data=st.data(), slow=st.booleans())
def test_any_chunking_gives_the_arrays(
    tensors: list[tuple[tuple[int, ...], np.dtype[Any]]], data: st.DataObject, slow: bool
) -> None:
    messages: list[bytes] = []
    arrays = []
    for index, (shape, dtype) in enumerate(tensors):
        size = int(np.prod(shape)) * dtype.itemsize
        payload = bytes((index * 37 + position) % 256 for position in range(size))
        head = head_to_wire(TensorHead(f"t{index}", shape, dtype))
        messages.append(pb.GetDataResponse(header=head).SerializeToString())
        cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=6)))
        for begin, end in zip([0, *cuts], [*cuts, size], strict=True):
            # An empty chunk may come wherever payload may.
            if size:
                chunk = encode_data(payload[begin:end])
                # The same message in a form that only protobuf reads: the field comes twice.
                last = end == size and begin == end
                messages.append(encode_data(b"") + chunk if slow and not last else chunk)
        arrays.append(payload)
    messages = _without_trailing_empties(messages)
    assert [found.tobytes() for found in receive(messages)] == arrays


def _without_trailing_empties(messages: list[bytes]) -> list[bytes]:
    """A tensor that is complete takes no further chunk, not even an empty one."""
    kept = []
    missing = 0
    for message in messages:
        parsed = pb.GetDataResponse.FromString(message)
        if parsed.WhichOneof("part") == "header":
            missing = parsed.header.size_bytes
        elif not missing:
            continue
        else:
            missing -= len(parsed.data)
        kept.append(message)
    return kept


def test_payload_is_sent_in_chunks_of_at_most_the_limit() -> None:
    payload = np.arange(CHUNK_BYTES * 5 // 2, dtype=np.uint8)
    chunks = [pb.SetDataRequest.FromString(each).data for each in data_messages(payload.data)]
    assert [len(chunk) for chunk in chunks] == [CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES // 2]
    assert b"".join(chunks) == payload.tobytes()


@given(head=heads)
def test_heads_survive_the_wire(head: TensorHead) -> None:
    wire = tensor_pb2.TensorHeader.FromString(head_to_wire(head).SerializeToString())
    assert head_from_wire(wire) == head
    if head.region is not None:
        assert region_from_wire(region_to_wire(head.region)) == head.region


@given(rows=st.integers(0, 5), more=st.integers(0, 5), row=st.lists(st.integers(0, 4), max_size=2))
def test_row_sparse_heads_count_ids_and_rows(rows: int, more: int, row: list[int]) -> None:
    head = TensorHead("t", (rows + more, *row), np.dtype("f4"), stype="row_sparse", num_rows=rows)
    assert head.size_bytes == rows * (8 + 4 * int(np.prod(row)))
    assert head_from_wire(head_to_wire(head)) == head


@given(data=st.data())
def test_headers_with_any_numbers_are_read_or_refused(data: st.DataObject) -> None:
    extreme = st.sampled_from([-(2**63), -1, 0, 1, 2, 2**31, 2**62, 2**63 - 1])
    wire = tensor_pb2.TensorHeader(
        name=data.draw(st.sampled_from(["", "t", "n" * 1025])),
        shape=tensor_pb2.Shape(dimensions=data.draw(st.lists(extreme, max_size=40))),
        dtype=data.draw(st.integers(-1, 11)),  # type: ignore[arg-type]
        stype=data.draw(st.integers(-1, 4)),  # type: ignore[arg-type]
        size_bytes=data.draw(extreme),
        num_rows=data.draw(extreme),
        mode=data.draw(st.integers(-1, 9)),  # type: ignore[arg-type]
    )
    try:
        head = head_from_wire(wire)
    except (InvalidStreamError, InvalidNameError, InvalidArgumentError):
        return
    assert head.size_bytes == wire.size_bytes
    assert 0 <= head.size_bytes < 2**63


HEADER = pb.GetDataResponse(header=head_to_wire(TensorHead("t", (4,), np.dtype("u1"))))


@pytest.mark.parametrize(
    "messages",
    [
        [pb.GetDataResponse(data=b"1234"), HEADER],
        [HEADER, pb.GetDataResponse(data=b"123")],
        [HEADER, pb.GetDataResponse(data=b"12345")],
        [HEADER, pb.GetDataResponse(data=b"1234"), pb.GetDataResponse(data=b"")],
        [HEADER, pb.GetDataResponse(data=b"12"), HEADER],
        [HEADER],
        [pb.GetDataResponse()],
        [pb.GetDataResponse(data=b"")],
        [pb.SaveResponse(summary=pb.SaveSummary())],
    ],
)
def test_streams_in_the_wrong_order_are_refused(messages: list[Message]) -> None:
    with pytest.raises(InvalidStreamError):
        receive([each.SerializeToString() for each in messages])


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(InvalidMessageError):
        receive([b"\xff\xff"])


def test_callbacks_come_in_the_order_of_the_stream() -> None:
    events: list[str] = []

    def place(head: TensorHead) -> list[memoryview]:
        events.append(f"place {head.name}")
        return [memoryview(bytearray(4))]

    receiver = TensorReceiver(
        pb.SaveResponse,
        place,
        complete=lambda head: events.append(f"complete {head.name}"),
        other=lambda message: events.append(message.WhichOneof("part")),
    )
    header = pb.SaveResponse(header=HEADER.header)
    empty = pb.SaveResponse(header=head_to_wire(TensorHead("e", (0,), np.dtype("u1"))))
    manifest = pb.SaveResponse(manifest=pb.SaveManifest(last=True))
    feed_all(
        receiver,
        [
            each.SerializeToString()
            for each in [manifest, header, pb.SaveResponse(data=b"1234"), empty, manifest]
        ],
    )
    assert events == ["manifest", "place t", "complete t", "place e", "complete e", "manifest"]


def test_byte_views_share_memory() -> None:
    array = np.zeros((2, 3), "f4")
    byte_view(array)[:4] = np.array(1, "f4").tobytes()
    assert array[0, 0] == 1
    assert len(byte_view(np.zeros((0, 3)))) == 0
    assert len(byte_view(np.zeros((), "f8"))) == 8


@given(sizes=st.lists(st.sampled_from([0, 1, 1000, 1 << 17, (1 << 17) + 1, 1 << 20]), max_size=12))
def test_small_tensors_are_packed_and_all_arrive(sizes: list[int]) -> None:
    arrays = [np.full(size, index, np.uint8) for index, size in enumerate(sizes)]
    tensors = [
        (TensorHead(f"t{index}", array.shape, array.dtype), (array,))
        for index, array in enumerate(arrays)
    ]
    messages = list(tensor_messages(tensors, pb.GetDataResponse))
    assert [found.tobytes() for found in receive(messages)] == [a.tobytes() for a in arrays]
    assert all(len(message) < CHUNK_BYTES + 64 for message in messages)
    small = [size for size in sizes if size <= 1 << 17]
    if len(small) == len(sizes):
        assert len(messages) <= 1 + sum(small) // (512 << 10)


@pytest.mark.parametrize("size", [0, 3, 5])
def test_a_packed_tensor_has_exactly_its_payload(size: int) -> None:
    head = head_to_wire(TensorHead("w", (4,), np.dtype(np.uint8)))
    pack = tensor_pb2.TensorPack(
        tensors=[tensor_pb2.PackedTensor(header=head, data=b"x" * size)] * 2
    )
    with pytest.raises(InvalidStreamError, match="'w'"):
        receive([pb.GetDataResponse(pack=pack).SerializeToString()])
