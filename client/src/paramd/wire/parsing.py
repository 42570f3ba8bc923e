"""Bytes that came, as a message of the class that is expected."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from paramd.errors import InvalidMessageError

__all__ = ["parse_message"]

M = TypeVar("M", bound=Message)


def parse_message(message_class: type[M], data: bytes) -> M:
    """The message that bytes are.

    Args:
        message_class: its generated class.
        data: a serialized message.

    Raises:
        InvalidMessageError: where they are none of that class.
    """
    try:
        return message_class.FromString(data)
    except DecodeError as err:
        name = message_class.DESCRIPTOR.name
        raise InvalidMessageError(f"{len(data)} bytes are no {name} message") from err
