"""What reads ask for, and the messages that answer them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from paramd.context import Context, cpu
from paramd.errors import InvalidArgumentError
from paramd.spec import Selector
from paramd.v1 import parameter_service_pb2
from paramd.wire.envelope import Payload
from paramd.wire.messages import context_from_wire, part_from_wire
from paramd.wire.tensors import region_from_wire, tensor_messages
from paramd_server.core.reading import Reading

__all__ = ["check_count", "current_context", "reading_messages", "selectors_from_wire"]

_MAX_COUNT: Final = 131_072


def check_count(count: int) -> None:
    """Checks how many arrays a call names. Raises InvalidArgumentError."""
    # A few bytes each in the request, but a few hundred in the answer or while it is read.
    if count > _MAX_COUNT:
        raise InvalidArgumentError(f"a call names at most {_MAX_COUNT} arrays, but got {count}")


def current_context(request: Any) -> Context:
    """The caller's current context."""
    if request.HasField("current_context"):
        return context_from_wire(request.current_context)
    return cpu()


def selectors_from_wire(
    messages: Sequence[parameter_service_pb2.TensorSelector],
) -> list[Selector]:
    """The arrays that a call names."""
    check_count(len(messages))
    return [
        Selector(
            each.name,
            context_from_wire(each.context) if each.HasField("context") else None,
            region_from_wire(each.region) if each.HasField("region") else None,
            part_from_wire(each.part) if each.HasField("part") else None,
        )
        for each in messages
    ]


def reading_messages(readings: Iterable[Reading], message_class: Any) -> Iterator[Payload]:
    """The messages of arrays that are being read."""
    tensors = ((reading.head, reading.parts) for reading in readings)
    return tensor_messages(tensors, message_class)
