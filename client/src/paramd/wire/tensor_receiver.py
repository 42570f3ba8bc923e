"""Receiving tensors: headers in, and payload straight into its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from paramd.errors import InvalidStreamError
from paramd.spec import TensorHead
from paramd.v1 import tensor_pb2
from paramd.wire.envelope import Payload, decode_data
from paramd.wire.parsing import parse_message
from paramd.wire.tensors import head_from_wire

__all__ = ["TensorReceiver"]

# For each one there is made room before its payload has come.
_MAX_HEADERS: Final = 4096


class TensorReceiver:
    """Takes the messages of a stream of tensors and puts the payload where it belongs.

    Args:
        message_class: generated class of the stream's messages.
        place: called with each header; gives the buffers (writable, flat bytes) that the payload
            fills in turn. What it raises ends the stream. Where several headers come at once, it is
            called with all of them before payload comes.
        complete: called with each header when its payload is there, in the same order.
        other: called with each message that is neither header nor data; without it such a
            message is an error.
    """

    def __init__(
        self,
        message_class: type[Any],
        place: Callable[[TensorHead], Sequence[memoryview]],
        *,
        complete: Callable[[TensorHead], None] | None = None,
        other: Callable[[Any], None] | None = None,
    ) -> None:
        self._message_class = message_class
        self._place = place
        self._complete = complete
        self._other = other
        # Those whose payload is still to come, the first of them perhaps in part.
        self._open: deque[_OpenTensor] = deque()
        self.num_tensors = 0

    def feed(self, message: Payload) -> None:
        """Takes the next message; a view is a payload alone.

        Raises:
            InvalidMessageError: for bytes that are no message.
            InvalidStreamError: for a message that cannot come now, or payload that runs over.
        """
        if isinstance(message, memoryview):
            self._put(message)
            return
        payload = decode_data(message)
        if payload is None:
            payload = self._feed_slowly(message)
        if payload is not None:
            self._put(payload)

    def finish(self) -> None:
        """Checks that no tensor is left half-way.

        Raises:
            InvalidStreamError: where bytes are missing.
        """
        if self._open:
            tensor = self._open[0]
            head = tensor.head
            raise InvalidStreamError(
                f"tensor {head.name!r}: the stream ended {tensor.missing} bytes early, of "
                f"{head.size_bytes}",
                parameter=head.name,
            )

    def _feed_slowly(self, message: bytes) -> memoryview | None:
        parsed = parse_message(self._message_class, message)
        part = parsed.WhichOneof("part")
        if part == "data":
            return memoryview(parsed.data)
        if part == "header":
            self._begin((parsed.header,))
        elif part == "heads":
            self._begin(parsed.heads.headers)
        elif part == "pack":
            for tensor in parsed.pack.tensors:
                self._begin((tensor.header,))
                data = tensor.data
                if data:
                    self._put(memoryview(data))
                self.finish()
        elif self._other is not None and part is not None:
            self.finish()
            self._other(parsed)
        else:
            raise InvalidStreamError(f"unexpected message in a stream of tensors: {part}")
        return None

    def _begin(self, headers: Sequence[tensor_pb2.TensorHeader]) -> None:
        self.finish()
        if not 0 < len(headers) <= _MAX_HEADERS:
            raise InvalidStreamError(
                f"1 to {_MAX_HEADERS} headers come at once, but got {len(headers)}"
            )
        for header in headers:
            head = head_from_wire(header)
            # It has been checked against the rest of the header.
            self._open.append(_OpenTensor(head, header.size_bytes, self._place(head)))
            self.num_tensors += 1
        self._close_complete()

    def _close_complete(self) -> None:
        while self._open and not self._open[0].missing:
            head = self._open.popleft().head
            if self._complete is not None:
                self._complete(head)

    def _put(self, payload: memoryview) -> None:
        if not self._open:
            raise InvalidStreamError(
                f"{len(payload)} bytes of payload without a header before them"
            )
        while True:
            tensor = self._open[0]
            payload = tensor.put(payload)
            if tensor.missing:
                return
            self._close_complete()
            if not payload:
                return
            if not self._open:
                raise InvalidStreamError(
                    f"tensor {tensor.head.name!r}: the payload runs over its "
                    f"{tensor.head.size_bytes} bytes",
                    parameter=tensor.head.name,
                )


class _OpenTensor:
    """A tensor whose payload is still to come.

    Args:
        head: describes it.
        size: of its payload, in bytes.
        views: what the payload fills in turn.

    Attributes:
        missing: how many bytes have not come.
    """

    __slots__ = ("_left", "head", "missing")

    def __init__(self, head: TensorHead, size: int, views: Sequence[memoryview]) -> None:
        self.head = head
        self.missing = size
        self._left = [view for view in views if len(view)]

    def put(self, payload: memoryview) -> memoryview:
        """Takes what it lacks, and gives back the rest."""
        if len(self._left) == 1 and len(payload) >= self.missing:
            # All that it lacks, for one place: so small tensors come.
            self._left[0][:] = payload[: self.missing]
            rest = payload[self.missing :]
            self.missing = 0
            return rest
        rest = payload[self.missing :]
        payload = payload[: self.missing]
        self.missing -= len(payload)
        while len(payload):
            target = self._left[0]
            count = min(len(payload), len(target))
            target[:count] = payload[:count]
            payload = payload[count:]
            if count == len(target):
                self._left.pop(0)
            else:
                self._left[0] = target[count:]
        return rest
