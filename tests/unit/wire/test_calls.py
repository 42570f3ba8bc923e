"""The messages of call streams: what is written by hand is what protobuf writes, and reads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paramd.errors import InvalidMessageError
from paramd.v1 import call_service_pb2 as pb
from paramd.wire.calls import (
    END,
    OK,
    READY,
    Answer,
    Opening,
    decode_request,
    decode_response,
    encode_answer,
    encode_message,
    encode_opening,
)
from paramd.wire.envelope import decode_data, encode_data, joined_payload, whole


def _view(data: bytes) -> memoryview:
    return memoryview(data)


texts = st.text(max_size=200).filter(lambda text: text.isprintable())
payloads = st.binary(max_size=300).map(_view)
messages = st.lists(st.binary(max_size=300) | payloads, max_size=5)
statuses = (
    st.none()
    | st.just(OK)
    | st.builds(
        pb.CallStatus, code=st.integers(0, 2**31 - 1), details=texts, error=st.binary(max_size=300)
    )
)


def wholes(given: Any) -> list[bytes]:
    return list(map(whole, given))


@given(method=texts, messages=messages, complete=st.booleans())
def test_openings(method: str, messages: list[Any], complete: bool) -> None:
    data = encode_opening(method, messages, complete=complete)
    opened = pb.CallOpen(method=method, messages=wholes(messages), complete=complete)
    parsed = pb.CallRequest.FromString(data)
    assert parsed == pb.CallRequest(open=opened)
    # As another program writes it, which sets no field to what it is without.
    for form in (data, parsed.SerializeToString()):
        opening = decode_request(form)
        assert isinstance(opening, Opening)
        assert (opening.method, wholes(opening.messages), opening.complete) == (
            method,
            wholes(messages),
            complete,
        )


@given(messages=messages, status=statuses)
def test_answers(messages: list[Any], status: pb.CallStatus | None) -> None:
    data = encode_answer(messages, status)
    parsed = pb.CallResponse.FromString(data)
    expected = pb.CallAnswer(messages=wholes(messages), status=status)
    assert parsed == pb.CallResponse(answer=expected)
    answer = decode_response(data)
    assert isinstance(answer, Answer)
    assert wholes(answer.messages) == wholes(messages)
    assert answer.status == status


@given(data=st.binary(max_size=200))
@example(data=b"")
@example(data=READY)
@example(data=END)
@example(data=b"\x0a\x80")
@example(data=b"\x0a\x04\x0a\xff\xff\xff")
@example(data=b"\x0a\x03\x0a\x01\xff")
@example(data=b"\x0a\x02\x0a\x00\x0a\x02\x0a\x00")
@example(data=b"\x1a\x04\x12\x00\x12\x00")
@example(data=b"\x1a\x02\x18\x01")
@example(data=b"\x0a\x06\x18\xff\xff\xff\xff\x7f")
def test_any_bytes_are_read_as_protobuf_reads_them(data: bytes) -> None:
    _check_request(data)
    _check_response(data)


@given(message=messages, method=texts, cut=st.integers(0, 40), flip=st.integers(0, 2**16))
def test_nearly_right_messages_are_read_as_protobuf_reads_them(
    message: list[Any], method: str, cut: int, flip: int
) -> None:
    for data in (encode_opening(method, message, complete=True), encode_answer(message, OK)):
        changed = bytearray(data)
        changed[flip % len(changed)] ^= 1 + flip % 255
        for form in (data[cut:], data[: len(data) - cut], bytes(changed), data + data):
            _check_request(form)
            _check_response(form)


def _check_request(data: bytes) -> None:
    try:
        parsed = pb.CallRequest.FromString(data)
    except Exception:
        with pytest.raises(InvalidMessageError):
            decode_request(data)
        return
    found = decode_request(data)
    part = parsed.WhichOneof("part")
    if part == "open":
        assert isinstance(found, Opening)
        assert found.method == parsed.open.method
        assert wholes(found.messages) == list(parsed.open.messages)
        assert found.complete == parsed.open.complete
    elif part == "message":
        assert isinstance(found, bytes | memoryview)
        assert whole(found) == parsed.message
    elif part == "data":
        assert isinstance(found, memoryview)
        assert found == parsed.data
    else:
        assert found == parsed


def _check_response(data: bytes) -> None:
    try:
        parsed = pb.CallResponse.FromString(data)
    except Exception:
        with pytest.raises(InvalidMessageError):
            decode_response(data)
        return
    found = decode_response(data)
    part = parsed.WhichOneof("part")
    if part == "answer":
        assert isinstance(found, Answer)
        assert wholes(found.messages) == list(parsed.answer.messages)
        assert (found.status is not None) == parsed.answer.HasField("status")
        assert (found.status or OK) == parsed.answer.status
    elif part == "data":
        assert isinstance(found, memoryview)
        assert found == parsed.data
    else:
        assert found == parsed


def test_parts_of_a_call() -> None:
    assert pb.CallRequest.FromString(END).WhichOneof("part") == "end"
    assert pb.CallResponse.FromString(READY).WhichOneof("part") == "ready"
    assert pb.CallRequest.FromString(encode_message(b"x" * 200)).message == b"x" * 200
    assert pb.CallRequest.FromString(encode_data(b"x" * 200)).data == b"x" * 200
    assert decode_request(encode_message(b"\x0a\x00")) == b"\x0a\x00"


def test_a_payload_that_has_its_message_is_not_copied_again() -> None:
    joined = joined_payload([b"ab", memoryview(b"cde")])
    assert bytes(joined) == b"abcde"
    assert encode_data(joined) is joined.obj
    message = encode_data(b"x" * 1000)
    payload = decode_data(message)
    assert payload is not None
    assert encode_data(payload) is message
    # Parts of it, and what only looks like it, are.
    assert encode_data(payload[1:]) == encode_data(bytes(payload[1:]))
    assert encode_data(memoryview(bytearray(message))[3:]) == encode_data(message[3:])
