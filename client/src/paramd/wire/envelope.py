"""The envelope of a chunk, encoded and decoded by hand.

Every stream message that carries payload is a protobuf message with the payload as field 2. On
the hot path the message is written and read here, over memoryviews, without the copies that a
generated class makes. What is not exactly the canonical form is left to protobuf, so that the
wire stays ordinary protobuf for every other implementation.

Encoding: https://protobuf.dev/programming-guides/encoding/ (tag 0x12 is field 2, length-delimited).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

__all__ = ["Payload", "decode_data", "encode_data", "field_prefix", "joined_payload", "whole"]

Payload = bytes | memoryview
"""A serialized message, or as a view the payload of one that has nothing else (field 2)."""

_TAG: Final = 0x12
# Enough for every length below 2**35; a message never has that size.
_MAX_VARINT_BYTES: Final = 5


def field_prefix(tag: int, size: int) -> bytes:
    """What stands before the content of a length-delimited field.

    Args:
        tag: of a field below 16: one byte.
        size: of the content, in bytes.
    """
    if size <= 0x7F:
        return bytes((tag, size))
    out = bytearray((tag,))
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)


_prefixes: Final[dict[int, bytes]] = {1 << 20: field_prefix(_TAG, 1 << 20)}


def encode_data(payload: memoryview | bytes) -> bytes:
    """The message whose only field is field 2 with this payload.

    Args:
        payload: contiguous bytes (a memoryview of format 'B').

    Returns:
        The serialized message. The payload is copied once; not at all where it is what
        `joined_payload` or `decode_data` gave, since the message is there then.
    """
    size = len(payload)
    prefix = _prefixes.get(size) or field_prefix(_TAG, size)
    if isinstance(payload, memoryview):
        message = payload.obj
        if (
            size
            and isinstance(message, bytes)
            and len(message) == len(prefix) + size
            and message.startswith(prefix)
            # It may be the front of bytes that only look like a message.
            and _address(payload) == _address(message) + len(prefix)
        ):
            return message
    return b"".join((prefix, payload))


def _address(data: memoryview | bytes) -> int:
    """Of the first byte; there is one."""
    address: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return address


def joined_payload(payloads: Sequence[memoryview | bytes]) -> memoryview:
    """One payload of several, which are copied once: into the message that it will be."""
    size = sum(map(len, payloads))
    prefix = _prefixes.get(size) or field_prefix(_TAG, size)
    return memoryview(b"".join((prefix, *payloads)))[len(prefix) :]


def whole(message: Payload) -> bytes:
    """The serialized message, also of a payload, which is copied then."""
    return encode_data(message) if isinstance(message, memoryview) else message


def decode_data(message: bytes | memoryview) -> memoryview | None:
    """The payload of a message in canonical form, without a copy.

    Args:
        message: a serialized message.

    Returns:
        A view into `message`; None unless the message is exactly field 2 and nothing else, its
        length in the shortest form.
    """
    total = len(message)
    if total < 2 or message[0] != _TAG:
        return None
    size = 0
    for index in range(1, min(total, _MAX_VARINT_BYTES + 1)):
        byte = message[index]
        size |= (byte & 0x7F) << (7 * (index - 1))
        if byte < 0x80:
            shortest = byte != 0 or index == 1
            if shortest and total - index - 1 == size:
                return memoryview(message)[index + 1 :]
            return None
    return None
