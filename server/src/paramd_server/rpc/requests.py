"""Streams of requests: opening messages, then tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from paramd.errors import InvalidArgumentError, InvalidStreamError
from paramd.spec import TensorHead
from paramd.v1 import parameter_pb2
from paramd.wire.envelope import Payload
from paramd.wire.parsing import parse_message
from paramd.wire.tensor_receiver import TensorReceiver
from paramd.wire.tensors import byte_view
from paramd_server.arrays.backend import HostArray
from paramd_server.core.operations import IDENTITY_BYTES, Operation

__all__ = ["check_identity", "first_message", "operation_from_wire", "receive_tensors"]


def operation_from_wire(message: parameter_pb2.Operation) -> Operation:
    """The operation of a message. Whether it identifies anything is the window's to check."""
    return Operation(message.identity, message.sequence, message.acknowledged_below)


def check_identity(identity: bytes) -> None:
    """Checks the identity of a session. Raises InvalidArgumentError."""
    if len(identity) != IDENTITY_BYTES:
        raise InvalidArgumentError(
            f"an identity has {IDENTITY_BYTES} bytes, but got {len(identity)}"
        )


def first_message(messages: Iterator[Payload], message_class: Any, part: str) -> Any:
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
    if isinstance(first, memoryview):
        raise InvalidStreamError(f"a stream of {name} begins with {part}, but got data")
    parsed: Any = parse_message(message_class, first)
    got = parsed.WhichOneof("part")
    if got != part:
        raise InvalidStreamError(f"a stream of {name} begins with {part}, but got {got}")
    return getattr(parsed, part)


def receive_tensors(
    messages: Iterator[Payload],
    message_class: Any,
    place: Callable[[TensorHead], Sequence[HostArray]],
    *,
    ends: Sequence[str] = ("end",),
) -> Any:
    """Takes the tensors of a stream, up to the end message.

    Args:
        messages: of the stream, after those that open it.
        message_class: their class.
        place: gives for each header the arrays that the payload fills in turn.
        ends: the parts of the oneof that may be the last message.

    Returns:
        The last message.

    Raises:
        InvalidMessageError, InvalidStreamError: for what cannot come, or a stream without end.
        What `place` raises.
    """
    last: Any = None

    def views(head: TensorHead) -> list[memoryview]:
        return [byte_view(array) for array in place(head)]

    def other(message: Any) -> None:
        nonlocal last
        part = message.WhichOneof("part")
        if part not in ends:
            raise InvalidStreamError(f"unexpected message in a stream of tensors: {part}")
        last = message

    receiver = TensorReceiver(message_class, views, other=other)
    for message in messages:
        if last is not None:
            raise InvalidStreamError("a message came after the end of its stream")
        receiver.feed(message)
    receiver.finish()
    if last is None:
        raise InvalidStreamError("the stream was cut: its last message, end, is missing")
    return last
