"""Streams of tensors: any chunking gives the arrays, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
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
from paramd.wire.envelope import encode_data, whole
from paramd.wire.tensor_receiver import TensorReceiver
from paramd.wire.tensors import (
    CHUNK_BYTES,
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
    chunks = list(data_messages(payload.data))
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


SIZES = [0, 1, 1000, 1 << 14, 1 << 17, (1 << 19) + 1, 1 << 20, 5 << 19]


@given(sizes=st.lists(st.sampled_from(SIZES), max_size=12))
def test_tensors_of_any_sizes_go_together_and_all_arrive(sizes: list[int]) -> None:
    arrays = [np.full(size, index, np.uint8) for index, size in enumerate(sizes)]
    tensors = [
        (TensorHead(f"t{index}", array.shape, array.dtype), (array,))
        for index, array in enumerate(arrays)
    ]
    messages = list(map(whole, tensor_messages(tensors, pb.GetDataResponse)))
    assert [found.tobytes() for found in receive(messages)] == [a.tobytes() for a in arrays]
    assert all(len(message) < CHUNK_BYTES + 64 for message in messages)
    if all(size <= 1 << 17 for size in sizes):
        # Headers and payload of about a chunk at a time.
        assert len(messages) <= 2 + 2 * sum(sizes) // (CHUNK_BYTES - (1 << 17))


def test_memory_of_one_tensor_may_be_used_again_for_its_next_part() -> None:
    """Whoever makes the parts overwrites one when the next is asked for, or no more are."""
    sent: list[bytes] = []

    def parts(sizes: list[int]) -> Iterator[np.ndarray[Any, Any]]:
        memory = np.zeros(max(sizes), np.uint8)
        for number, size in enumerate(sizes):
            memory[:] = number + 1
            sent.append(memory[:size].tobytes())
            yield memory[:size]
        memory[:] = 255

    splits = [[100], [50, 50], [1 << 15], [1 << 14, 1 << 15], [1 << 20, 1 << 19, 3], [1 << 18] * 3]
    tensors = (
        (TensorHead(f"t{index}", (sum(sizes),), np.dtype("u1")), parts(sizes))
        for index, sizes in enumerate(splits)
    )
    messages = map(whole, tensor_messages(tensors, pb.GetDataResponse))
    found = b"".join(each.tobytes() for each in receive(list(messages)))
    assert found == b"".join(sent)


@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=8), data=st.data())
def test_payload_of_several_headers_in_any_pieces(sizes: list[int], data: st.DataObject) -> None:
    payload = bytes(position % 251 for position in range(sum(sizes)))
    headers = [
        head_to_wire(TensorHead(f"t{index}", (size,), np.dtype("u1")))
        for index, size in enumerate(sizes)
    ]
    placed: list[str] = []
    complete: list[str] = []
    buffers: list[bytearray] = []

    def place(head: TensorHead) -> list[memoryview]:
        assert not complete
        placed.append(head.name)
        buffers.append(bytearray(head.size_bytes))
        return [memoryview(buffers[-1])]

    receiver = TensorReceiver(
        pb.GetDataResponse, place, complete=lambda head: complete.append(head.name)
    )
    heads = tensor_pb2.TensorHeads(headers=headers)
    receiver.feed(pb.GetDataResponse(heads=heads).SerializeToString())
    assert placed == [f"t{index}" for index in range(len(sizes))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(payload)), max_size=6)))
    for begin, end in zip([0, *cuts], [*cuts, len(payload)], strict=True):
        if begin < end:
            piece = payload[begin:end]
            receiver.feed(memoryview(piece) if data.draw(st.booleans()) else encode_data(piece))
    receiver.finish()
    assert complete == placed
    assert b"".join(buffers) == payload


def _heads(*sizes: int) -> bytes:
    headers = [
        head_to_wire(TensorHead(f"t{index}", (size,), np.dtype("u1")))
        for index, size in enumerate(sizes)
    ]
    return pb.GetDataResponse(heads=tensor_pb2.TensorHeads(headers=headers)).SerializeToString()


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([_heads()], "1 to"),
        ([_heads(*[0] * 5000)], "1 to"),
        ([_heads(3, 4)], "'t0': the stream ended 3 bytes early"),
        ([_heads(3, 4), encode_data(b"1234")], "'t1': the stream ended 3 bytes early"),
        ([_heads(3, 4), encode_data(b"12345678")], "'t1': the payload runs over"),
        ([_heads(3, 4), encode_data(b"12"), _heads(1)], "'t0'"),
        ([_heads(3, 4), encode_data(b"1234567"), encode_data(b"8")], "without a header"),
        ([_heads(0, 0), encode_data(b"1")], "without a header"),
    ],
)
def test_payload_that_does_not_fit_several_headers(messages: list[bytes], match: str) -> None:
    with pytest.raises(InvalidStreamError, match=match):
        receive(messages)


@pytest.mark.parametrize("size", [0, 3, 5])
def test_a_packed_tensor_has_exactly_its_payload(size: int) -> None:
    head = head_to_wire(TensorHead("w", (4,), np.dtype(np.uint8)))
    pack = tensor_pb2.TensorPack(
        tensors=[tensor_pb2.PackedTensor(header=head, data=b"x" * size)] * 2
    )
    with pytest.raises(InvalidStreamError, match="'w'"):
        receive([pb.GetDataResponse(pack=pack).SerializeToString()])
