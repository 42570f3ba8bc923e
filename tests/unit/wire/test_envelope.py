"""The hand-written envelope against protobuf's own."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from paramd.v1 import parameter_service_pb2 as pb
from paramd.wire.envelope import decode_data, encode_data

STREAMED = (
    pb.GetDataResponse,
    pb.SetDataRequest,
    pb.GetGradResponse,
    pb.SetGradRequest,
    pb.PullRowSparseResponse,
    pb.SaveResponse,
    pb.LoadRequest,
)
payloads = st.one_of(
    st.binary(max_size=400),
    st.sampled_from([0, 1, 127, 128, 129, 16383, 16384, 1 << 20, (1 << 21) - 1, 1 << 21]).map(
        bytes
    ),
)


def varint(value: int, *, padding: int = 0) -> bytes:
    """A varint, with needless further bytes if asked for."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(padding):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


@given(payload=payloads)
def test_encoding_is_protobufs(payload: bytes) -> None:
    for cls in STREAMED:
        expected = cls(data=payload).SerializeToString()
        assert encode_data(payload) == expected
        assert encode_data(memoryview(payload)) == expected


@given(payload=payloads)
def test_canonical_messages_are_decoded_without_a_copy(payload: bytes) -> None:
    message = pb.GetDataResponse(data=payload).SerializeToString()
    found = decode_data(message)
    assert found is not None
    assert found == payload
    assert found.obj is message


@given(message=st.binary(max_size=64))
def test_what_is_decoded_is_what_protobuf_reads(message: bytes) -> None:
    _agrees(message)


@given(
    payload=st.binary(max_size=200),
    padding=st.integers(0, 6),
    tag=st.sampled_from([b"\x12", b"\x92\x00", b"\x12\x12", b"\x0a", b"\x1a", b"\x10", b""]),
    tail=st.binary(max_size=6),
    delta=st.integers(-3, 3),
)
def test_near_misses_are_left_to_protobuf(
    payload: bytes, padding: int, tag: bytes, tail: bytes, delta: int
) -> None:
    length = varint(max(0, len(payload) + delta), padding=padding)
    _agrees(tag + length + payload + tail)


@given(first=st.binary(max_size=40), second=st.binary(max_size=40))
def test_two_data_fields_are_left_to_protobuf(first: bytes, second: bytes) -> None:
    message = encode_data(first) + encode_data(second)
    assert decode_data(message) is None
    assert pb.GetDataResponse.FromString(message).data == second


@given(payload=payloads.filter(bool), data=st.data())
def test_a_truncated_message_is_not_decoded(payload: bytes, data: st.DataObject) -> None:
    message = encode_data(payload)
    cut = data.draw(st.integers(0, len(message) - 1))
    assert decode_data(message[:cut]) is None


# protobuf reads a length of up to five bytes.
@pytest.mark.parametrize("padding", range(1, 5))
def test_a_length_that_is_not_the_shortest_is_left_to_protobuf(padding: int) -> None:
    message = b"\x12" + varint(3, padding=padding) + b"abc"
    assert decode_data(message) is None
    assert pb.GetDataResponse.FromString(message).data == b"abc"


def test_an_array_is_encoded_from_its_memory() -> None:
    array = np.arange(10, dtype="<f4")
    message = encode_data(array.view(np.uint8).data)
    assert pb.SetDataRequest.FromString(message).data == array.tobytes()


def _agrees(message: bytes) -> None:
    """Decoded means: protobuf reads the same, and would write exactly this message."""
    found = decode_data(message)
    try:
        parsed = pb.GetDataResponse.FromString(message)
        canonical = (
            parsed.WhichOneof("part") == "data"
            and pb.GetDataResponse(data=parsed.data).SerializeToString() == message
        )
    except DecodeError:
        canonical = False
    assert (found is not None) == canonical
    if found is not None:
        assert found == parsed.data


@pytest.mark.parametrize("size", [0, 1, 5, 300])
def test_bytes_that_look_like_a_message_are_payload_all_the_same(size: int) -> None:
    message = encode_data(bytes(size))
    front = memoryview(message)[:size]
    assert decode_data(encode_data(front)) == front
    back = memoryview(message)[len(message) - size :]
    assert encode_data(back) == message
