"""Streams of requests: opening messages, then tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from paramd.errors import InvalidMessageError, InvalidStreamError
from paramd.spec import TensorHead
from paramd.v1 import parameter_pb2
from paramd.wire.tensors import TensorReceiver, byte_view
from paramd_server.core.operations import Operation
from paramd_server.core.writing import WriteStage

__all__ = ["first_message", "operation_from_wire", "receive_tensors"]


def operation_from_wire(message: parameter_pb2.Operation) -> Operation:
    """The operation of a message. Whether it identifies anything is the window's to check."""
    return Operation(message.identity, message.sequence, message.acknowledged_below)


def first_message(messages: Iterator[bytes], message_class: Any, part: str) -> Any:
    """The opening message of a stream.

    Args:
        messages: of the stream.
        message_class: their class.
        part: which part of the oneof opens it.

    Raises:
        InvalidMessageError: for bytes that are no message.
        InvalidStreamError: where something else comes first, or nothing.
    """
    first = next(messages, None)
    name = message_class.DESCRIPTOR.name
    if first is None:
        raise InvalidStreamError(f"a stream of {name} begins with {part}, but nothing came")
    try:
        parsed = message_class.FromString(first)
    except DecodeError as err:
        raise InvalidMessageError(f"{len(first)} bytes are no {name} message") from err
    got = parsed.WhichOneof("part")
    if got != part:
        raise InvalidStreamError(f"a stream of {name} begins with {part}, but got {got}")
    return getattr(parsed, part)


def receive_tensors(messages: Iterator[bytes], message_class: Any, stage: WriteStage) -> None:
    """Takes the tensors of a stream into staged buffers.

    Raises:
        InvalidMessageError, InvalidStreamError: for what cannot come.
        What `stage.place` raises.
    """

    def place(head: TensorHead) -> list[memoryview]:
        return [byte_view(np.asarray(array)) for array in stage.place(head)]

    TensorReceiver(message_class, place).feed_all(messages)
