"""What a server of the same host shares: the table of places, and the memory that they are in."""

from __future__ import annotations

import logging
import os
import queue
import resource
import select
import socket
import threading
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import grpc
import numpy as np

from paramd.context import Context
from paramd.errors import InvalidMessageError, ParamdError, ServerUnavailable
from paramd.spec import Selector, TensorHead
from paramd.transport.conversions import selector_to_wire
from paramd.transport.local.entering import enter, map_memory
from paramd.v1 import local_pb2
from paramd.wire.directory import HEADER_WORDS, MAGIC, SLOT_WORDS, TableWord
from paramd.wire.local import send_message
from paramd.wire.messages import context_to_wire
from paramd.wire.parsing import parse_message
from paramd.wire.status import decode_error
from paramd.wire.tensors import head_from_wire

__all__ = ["Located", "Places"]

_log = logging.getLogger(__name__)

# A server that does not answer by then is asked over gRPC, which waits as the session says.
_ANSWER_SECONDS: Final = 5.0

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Seen(NamedTuple):
    """A copy at one place.

    Attributes:
        segment: the number of its segment.
        offset: of its first byte.
        source: its array, read-only.
    """

    segment: int
    offset: int
    source: np.ndarray[Any, Any]


class Located:
    """One copy of a parameter that can be read in shared memory.

    Args:
        head: its shape, dtype, storage type and context.
        first: the first word of its slot.
        layout: of the slot while the head holds.

    Attributes:
        key: under which its finder keeps it.
        seen: where it was found last, and its array there; None where it is not mapped. One value,
            so that no thread takes the array of one place for that of another.
    """

    __slots__ = ("first", "head", "key", "layout", "seen")

    def __init__(self, head: TensorHead, first: int, layout: int) -> None:
        self.head = head
        self.first = first
        self.layout = layout
        self.key: Any = None
        self.seen: Seen | None = None


class Places:
    """The memory of one server, mapped as far as it was needed. Thread-safe.

    Args:
        name: of the server's socket.
        authorization: as the metadata of a call, or ''.

    Attributes:
        words: the table of places.
        epoch: of the server.

    Raises:
        ServerUnavailable, UnauthenticatedError, PermissionDeniedError: where the server is not
            here, or lets this process not in.
        InvalidMessageError: where it speaks another language.
    """

    def __init__(self, name: str, authorization: str) -> None:
        entrance = enter(name, local_pb2.LOCAL_PURPOSE_FIND, authorization)
        self._connection, self._incoming = entrance.connection, entrance.incoming
        self._process = os.getpid()
        try:
            table = map_memory(entrance.descriptor, entrance.size)
            self.words = memoryview(table).cast("Q")
            if entrance.size < 8 * HEADER_WORDS or self.words[TableWord.MAGIC] != MAGIC:
                raise InvalidMessageError("the server's table of places is of another version")
        except OSError as err:
            self._connection.close()
            raise ServerUnavailable(f"the server's memory cannot be mapped: {err}") from err
        except BaseException:
            self._connection.close()
            raise
        self._num_slots = self.words[TableWord.NUM_SLOTS]
        self.epoch = self.words[TableWord.EPOCH]
        self._poll = select.poll()
        # The connection ends with the server, also with one that is killed.
        self._poll.register(self._connection, select.POLLRDHUP)
        self._poll_lock = threading.Lock()
        self._asking = threading.Lock()
        self._answers: queue.SimpleQueue[tuple[local_pb2.LocalResponse, int | None] | None] = (
            queue.SimpleQueue()
        )
        self._lock = threading.Lock()
        self._segments: dict[int, Bytes] = {}  # guarded by _lock
        # Each takes a descriptor, since Python's mmap keeps one; most are the program's own.
        self._max_segments = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
        # Those that were found, in the order of finding; guarded by _lock.
        self._located: dict[Located, None] = {}
        self._closed = False
        threading.Thread(target=self._listen, name="paramd-local", daemon=True).start()

    @property
    def usable(self) -> bool:
        """Whether the server lives, and this is the process that it let in."""
        if self._closed or self._process != os.getpid():
            return False
        with self._poll_lock:
            return not self._poll.poll(0)

    def locate(
        self, selectors: Sequence[Selector], current_context: Context
    ) -> list[Located | None]:
        """Finds copies; None for each that cannot be read in shared memory.

        Args:
            selectors: the copies, without regions.
            current_context: for those without a context.

        Raises:
            ParamdError: where the server does not answer.
        """
        question = local_pb2.LocateRequest(
            tensors=[selector_to_wire(selector) for selector in selectors],
            current_context=context_to_wire(current_context),
        )
        answer, _ = self._ask(local_pb2.LocalRequest(locate=question), "located")
        tensors = answer.located.tensors
        if len(tensors) != len(selectors):
            raise InvalidMessageError(
                f"the server located {len(tensors)} copies of {len(selectors)}"
            )
        found = [self._located_from_wire(each) for each in tensors]
        with self._lock:
            self._located.update((each, None) for each in found if each is not None)
        return found

    def forget(self, located: Located) -> None:
        """Lets go of a copy that is not where it was."""
        with self._lock:
            self._located.pop(located, None)

    def move(self, located: Located, segment: int, offset: int) -> Seen | None:
        """Turns to where a copy is now; None where it cannot be mapped.

        Raises:
            ParamdError: where the server does not answer.
        """
        with self._lock:
            memory = self._segments.get(segment)
        if memory is None:
            memory = self._map(segment)
            if memory is None:
                return None
        head = located.head
        size = int(np.prod(head.shape, dtype=np.int64)) * head.dtype.itemsize
        if offset + size > len(memory):
            # The words are of two moments: who compares the slot's sequence will see that.
            return None
        source = memory[offset : offset + size].view(head.dtype).reshape(head.shape)
        seen = Seen(segment, offset, source)
        with self._lock:
            if segment not in self._segments:
                return None
            located.seen = seen
        return seen

    def close(self) -> None:
        """Lets go of the memory. Closing twice is the same."""
        if self._closed:
            return
        self._closed = True
        if self._process == os.getpid():
            _shut(self._connection)
        else:
            # In a forked child, where the thread that would do it is not.
            self._connection.close()

    def _located_from_wire(self, message: local_pb2.Located) -> Located | None:
        if not message.HasField("header") or not message.HasField("slot"):
            return None
        if message.slot >= self._num_slots:
            raise InvalidMessageError(f"the table of places has no slot {message.slot}")
        first = HEADER_WORDS + message.slot * SLOT_WORDS
        return Located(head_from_wire(message.header), first, message.layout)

    def _map(self, segment: int) -> Bytes | None:
        if len(self._segments) >= self._max_segments:
            return None
        answer, descriptor = self._ask(local_pb2.LocalRequest(segment=segment), "segment")
        if descriptor is None or not answer.segment.size:
            return None
        try:
            memory: Bytes = np.frombuffer(map_memory(descriptor, answer.segment.size), np.uint8)
        except OSError as err:
            _log.info("values are received over gRPC, because memory cannot be mapped: %s", err)
            return None
        with self._lock:
            return self._segments.setdefault(segment, memory)

    def _ask(
        self, question: local_pb2.LocalRequest, expected: str
    ) -> tuple[local_pb2.LocalResponse, int | None]:
        with self._asking:
            try:
                send_message(self._connection, question.SerializeToString())
                answer = self._answers.get(timeout=_ANSWER_SECONDS)
            except (OSError, queue.Empty) as err:
                # An answer that came now would be taken for that of the next question.
                self.close()
                raise ServerUnavailable(f"the server does not say where values are: {err}") from err
        if answer is None:
            # For whoever asks next.
            self._answers.put(None)
            raise ServerUnavailable("the server has gone")
        response, descriptor = answer
        if response.WhichOneof("part") != expected:
            if descriptor is not None:
                os.close(descriptor)
            raise _failure(response)
        return response, descriptor

    def _listen(self) -> None:
        """Takes what the server says, for as long as it is there."""
        try:
            while (message := self._incoming.receive()) is not None:
                self._take(parse_message(local_pb2.LocalResponse, message))
        except (OSError, InvalidMessageError) as err:
            _log.debug("the connection to the server of this host has failed: %s", err)
        finally:
            self._closed = True
            self._answers.put(None)
            self._connection.close()
            self._incoming.close()
            self._keep(())

    def _take(self, response: local_pb2.LocalResponse) -> None:
        if response.WhichOneof("part") == "remaining":
            self._keep(response.remaining.numbers)
            return
        descriptor = None
        if response.HasField("segment") and response.segment.size and self._incoming.descriptors:
            descriptor = self._incoming.descriptors.pop(0)
        self._answers.put((response, descriptor))

    def _keep(self, numbers: Sequence[int]) -> None:
        """Lets go of all other segments, whose memory the server gets back no sooner."""
        remaining = set(numbers)
        with self._lock:
            for number in [each for each in self._segments if each not in remaining]:
                del self._segments[number]
            for located in self._located:
                if located.seen is not None and located.seen.segment not in remaining:
                    located.seen = None


def _failure(response: local_pb2.LocalResponse) -> ParamdError:
    if response.WhichOneof("part") == "error":
        return decode_error(grpc.StatusCode.INTERNAL, response.error, "no answer")
    return InvalidMessageError("the server answered another question")


def _shut(connection: socket.socket) -> None:
    try:
        # The thread that waits for messages ends by it, and closes the connection.
        connection.shutdown(socket.SHUT_RDWR)
    except OSError as err:
        _log.debug("the connection had ended: %s", err)
