"""The messages of a call stream (`call_service.proto`), encoded and decoded by hand.

One request and one answer carry a whole small call, so that what the generated classes copy, and
what they cost for each field, is most of such a call. As with the envelope of a chunk, what comes
in another form than ours is left to protobuf.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import grpc

from paramd.v1 import call_service_pb2 as pb
from paramd.wire.envelope import Payload, decode_data, field_prefix
from paramd.wire.parsing import parse_message

__all__ = [
    "END",
    "OK",
    "READY",
    "Answer",
    "Opening",
    "Payload",
    "code_of_status",
    "decode_request",
    "decode_response",
    "encode_answer",
    "encode_message",
    "encode_opening",
    "is_ok",
]

READY: Final = pb.CallResponse(ready=pb.CallReady()).SerializeToString()
"""The first message of a server."""
END: Final = pb.CallRequest(end=pb.CallEnd()).SerializeToString()
"""The last part of a call that was not complete when it was opened."""
OK: Final = pb.CallStatus()
"""How a call ends that has not failed."""

# Tags of length-delimited fields, and of a varint.
_FIELD_1: Final = 0x0A
_FIELD_2: Final = 0x12
_FIELD_3: Final = 0x1A
_VARINT_3: Final = 0x18
_COMPLETE: Final = bytes((_VARINT_3, 1))
_OK_STATUS: Final = bytes((_FIELD_2, 0))


class Opening(NamedTuple):
    """The first part of a call.

    Attributes:
        method: its path.
        messages: the first ones.
        complete: whether these are all.
    """

    method: str
    messages: Sequence[Payload]
    complete: bool


class Answer(NamedTuple):
    """Messages of an answer.

    Attributes:
        messages: in their order.
        status: how the call ended; None where more comes.
    """

    messages: Sequence[Payload]
    status: pb.CallStatus | None


def encode_opening(method: str, messages: Iterable[Payload], *, complete: bool) -> bytes:
    """The part that opens a call. Each message is copied once."""
    path = method.encode()
    pieces: list[Payload] = [field_prefix(_FIELD_1, len(path)), path]
    _add(pieces, _FIELD_2, messages)
    if complete:
        pieces.append(_COMPLETE)
    return _enclose(_FIELD_1, pieces)


def encode_message(message: bytes) -> bytes:
    """The part for a message of a call that has been opened, and that is no payload alone.

    For a payload the envelope of a chunk is the part: `encode_data`.
    """
    return field_prefix(_FIELD_3, len(message)) + message


def encode_answer(messages: Iterable[Payload], status: pb.CallStatus | None) -> bytes:
    """The response with messages of an answer. Each is copied once.

    Args:
        messages: in their order.
        status: with the last ones; None where more comes.
    """
    pieces: list[Payload] = []
    _add(pieces, _FIELD_1, messages)
    if status is OK:
        pieces.append(_OK_STATUS)
    elif status is not None:
        data = status.SerializeToString()
        pieces += (field_prefix(_FIELD_2, len(data)), data)
    return _enclose(_FIELD_3, pieces)


def _add(pieces: list[Payload], tag: int, messages: Iterable[Payload]) -> None:
    for message in messages:
        size = len(message)
        if isinstance(message, memoryview):
            envelope = field_prefix(_FIELD_2, size)
            pieces += (field_prefix(tag, len(envelope) + size), envelope, message)
        else:
            pieces += (field_prefix(tag, size), message)


def _enclose(tag: int, pieces: list[Payload]) -> bytes:
    return b"".join((field_prefix(tag, sum(map(len, pieces))), *pieces))


def decode_request(message: bytes) -> Opening | Payload | pb.CallRequest:
    """A part of a call.

    Args:
        message: a serialized CallRequest.

    Returns:
        What opens a call; or one of its messages, as a view into `message` where it is a payload;
        or the parsed part of another kind (`end`, `block`, or none at all).

    Raises:
        InvalidMessageError: for bytes that are no CallRequest.
    """
    payload = decode_data(message)
    if payload is not None:
        return payload
    opening = _opening_by_hand(message)
    return opening if opening is not None else _parsed_request(message)


def _opening_by_hand(message: bytes) -> Opening | None:
    fields = _enclosed(message, _FIELD_1)
    if fields is None:
        return None
    view = memoryview(message)
    method, complete = "", False
    messages: list[Payload] = []
    for tag, begin, end in fields:
        if tag == _FIELD_2:
            messages.append(_payload_or_message(view[begin:end]))
        elif tag == _FIELD_1:
            try:
                method = str(view[begin:end], "utf-8")
            except UnicodeDecodeError:
                return None
        elif tag == _VARINT_3:
            complete = bool(begin)
        else:
            return None
    return Opening(method, messages, complete)


def _parsed_request(message: bytes) -> Opening | Payload | pb.CallRequest:
    parsed = parse_message(pb.CallRequest, message)
    part = parsed.WhichOneof("part")
    if part == "open":
        messages = [_payload_or_message(memoryview(each)) for each in parsed.open.messages]
        return Opening(parsed.open.method, messages, parsed.open.complete)
    if part == "message":
        return _payload_or_message(memoryview(parsed.message))
    return memoryview(parsed.data) if part == "data" else parsed


def decode_response(message: bytes) -> Answer | memoryview | pb.CallResponse:
    """A response of a server.

    Args:
        message: a serialized CallResponse.

    Returns:
        Messages of an answer; or one payload, as a view into `message`; or the parsed response of
        another kind (`ready`, `blocks_used`, or none at all).

    Raises:
        InvalidMessageError: for bytes that are no CallResponse.
    """
    payload = decode_data(message)
    if payload is not None:
        return payload
    answer = _answer_by_hand(message)
    return answer if answer is not None else _parsed_response(message)


def _answer_by_hand(message: bytes) -> Answer | None:
    fields = _enclosed(message, _FIELD_3)
    if fields is None:
        return None
    view = memoryview(message)
    messages: list[Payload] = []
    status: pb.CallStatus | None = None
    for tag, begin, end in fields:
        if tag == _FIELD_1:
            messages.append(_payload_or_message(view[begin:end]))
        elif tag == _FIELD_2 and status is None and begin == end:
            status = OK
        else:
            return None
    return Answer(messages, status)


def _parsed_response(message: bytes) -> Answer | memoryview | pb.CallResponse:
    parsed = parse_message(pb.CallResponse, message)
    part = parsed.WhichOneof("part")
    if part == "answer":
        messages = [_payload_or_message(memoryview(each)) for each in parsed.answer.messages]
        return Answer(messages, parsed.answer.status if parsed.answer.HasField("status") else None)
    return memoryview(parsed.data) if part == "data" else parsed


def is_ok(status: pb.CallStatus) -> bool:
    """Whether a call has not failed."""
    return status is OK or not status.code


def code_of_status(status: pb.CallStatus) -> grpc.StatusCode:
    """The code of gRPC for how a call ended; UNKNOWN for one that gRPC does not know."""
    return _CODES.get(status.code, grpc.StatusCode.UNKNOWN)


_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def _payload_or_message(message: memoryview) -> Payload:
    payload = decode_data(message)
    return bytes(message) if payload is None else payload


def _enclosed(message: bytes, tag: int) -> list[tuple[int, int, int]] | None:
    """The fields of a message that is the only field of another one.

    Returns:
        For each its tag, and where its content begins and ends; of a varint its value and 0. None
        where it is not in this form, or has fields that nothing here has.
    """
    total = len(message)
    if not total or message[0] != tag:
        return None
    try:
        size, index = _varint(message, 1)
        if index + size != total:
            return None
        fields: list[tuple[int, int, int]] = []
        while index < total:
            each = message[index]
            value, index = _varint(message, index + 1)
            if each == _VARINT_3:
                fields.append((each, value, 0))
                continue
            if each not in (_FIELD_1, _FIELD_2) or index + value > total:
                return None
            fields.append((each, index, index + value))
            index += value
    except IndexError:
        return None
    return fields


def _varint(message: bytes, index: int) -> tuple[int, int]:
    """A number, and where it ends. IndexError where it does not, or is longer than any of ours."""
    byte = message[index]
    if byte < 0x80:
        return byte, index + 1
    value = byte & 0x7F
    for shift in (7, 14, 21, 28):
        index += 1
        byte = message[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
    raise IndexError
