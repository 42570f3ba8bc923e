"""Calls of processes of this host, whose payload comes in memory and not over a wire."""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from paramd.errors import InvalidMessageError, InvalidStreamError, MemoryLimitError
from paramd.v1 import call_service_pb2, local_pb2
from paramd.wire.local import Incoming, send_message
from paramd_server.arrays.memory import MemoryAccount
from paramd_server.rpc.call_streams import CallDispatcher, CallLoop
from paramd_server.rpc.running_calls import RunningCalls

__all__ = ["Calling", "Ring"]

_log = logging.getLogger(__name__)

# Four chunks: while the server takes one, the client fills the next ones.
_RING_BYTES: Final = 4 << 20
# As gRPC's own limit.
_MAX_REQUEST_BYTES: Final = 4 << 20
# Nobody can change the size, so that no access can fail; its content is the client's to change.
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# How long nobody else has made a call where the server waits awake for the next one.
_ALONE_S: Final = 0.0005
# See Spin. Between two bursts of calls there is one wait that is in vain.
_SUCCESSES: Final = 4
_USED: Final = call_service_pb2.CallResponse(blocks_used=1).SerializeToString()


class Ring:
    """Memory that one client writes and the server reads: payload, of which nothing is believed.

    Args:
        account: counts it.

    Attributes:
        descriptor: for the client.
        size: in bytes.

    Raises:
        MemoryLimitError: where there is none.
    """

    def __init__(self, account: MemoryAccount) -> None:
        self._account = account
        self.size = _RING_BYTES
        account.reserve(self.size)
        try:
            self.descriptor = os.memfd_create("paramd-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(self.descriptor, self.size)
                fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
                mapping = mmap.mmap(self.descriptor, self.size, prot=mmap.PROT_READ)
            except BaseException:
                os.close(self.descriptor)
                raise
        except OSError as err:
            account.release(self.size)
            raise MemoryLimitError(f"the system has no memory for a ring: {err}") from err
        self._bytes = memoryview(mapping)

    def block(self, offset: int, size: int) -> memoryview:
        """Some of its bytes. Raises InvalidStreamError where it does not have them."""
        if not 0 < size <= self.size or offset > self.size - size:
            raise InvalidStreamError(
                f"a ring of {self.size} bytes has no block of {size} at {offset}"
            )
        return self._bytes[offset : offset + size]

    def close(self) -> None:
        """Gives it up. Whoever still has a block of it can read on."""
        os.close(self.descriptor)
        self._account.release(self.size)


class Calling:
    """Carries out what comes over connections with LOCAL_PURPOSE_CALL.

    Args:
        dispatcher: carries out calls.
        account: counts the rings.
    """

    def __init__(self, dispatcher: CallDispatcher, account: MemoryAccount) -> None:
        self._dispatcher = dispatcher
        self._account = account

    def serve(self, connection: socket.socket, authorization: str) -> None:
        """See Purpose."""
        ring = Ring(self._account)
        try:
            welcome = local_pb2.LocalWelcome(size=ring.size)
            send_message(connection, welcome.SerializeToString(), (ring.descriptor,))
            self._answer(connection, authorization, ring)
        except (InvalidStreamError, InvalidMessageError) as err:
            # What is wrong with a call is told in its answer; this is no call.
            _log.warning("a connection of this host is ended: %s", err)
        finally:
            ring.close()

    def _answer(self, connection: socket.socket, authorization: str, ring: Ring) -> None:
        incoming = Incoming(connection, max_bytes=_MAX_REQUEST_BYTES + (64 << 10))

        @contextmanager
        def opened(block: call_service_pb2.RingBlock) -> Iterator[memoryview]:
            yield ring.block(block.offset, block.size)
            send_message(connection, _USED)

        context = _Context(connection, authorization)
        loop = CallLoop(self._dispatcher, context, block=opened)
        incoming.wait_awake(_Alone(self._dispatcher.calls), successes=_SUCCESSES)
        for response in loop.responses(iter(incoming.receive, None)):
            send_message(connection, response)


class _Alone:
    """Whether the calls of one connection are all that there have been for a while.

    Without the while the server would wait awake for one of several clients as long as that one has
    a processor, and keep the processor and the GIL from the others.
    """

    def __init__(self, calls: RunningCalls) -> None:
        self._calls = calls
        self._num_begun = calls.num_begun
        self._shared_at = time.monotonic()

    def __call__(self) -> bool:
        num_begun, now = self._calls.num_begun, time.monotonic()
        # One of them is its own.
        if num_begun - self._num_begun > 1:
            self._shared_at = now
        self._num_begun = num_begun
        return now - self._shared_at > _ALONE_S


class _Context:
    """See StreamContext."""

    def __init__(self, connection: socket.socket, authorization: str) -> None:
        self._connection = connection
        self._metadata = (("authorization", authorization),) if authorization else ()

    def invocation_metadata(self) -> Any:
        return self._metadata

    def cancel(self) -> None:
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError as err:
            _log.debug("a connection had ended: %s", err)
