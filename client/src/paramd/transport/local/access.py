"""Decides whether values are read in shared memory: looks for the server's door when it may."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from paramd.errors import ParamdError, TransportUnavailableError
from paramd.transport.call_streams import StreamedMethod
from paramd.transport.local.places import Places
from paramd.transport.local.streams import LocalStreams
from paramd.transport.local.values import LocalValues
from paramd.v1 import parameter_service_pb2, training_service_pb2
from paramd.wire.directory import is_supported

__all__ = ["TRANSPORTS", "LocalAccess"]

_log = logging.getLogger(__name__)

TRANSPORTS: Final = ("auto", "tcp", "shm")
"""What `transport=` of `connect` may be."""


# What is often called, and answered without waiting for others. Not PullRowSparse: both sides send
# at the same time, and each would wait for the other to receive.
_METHODS: Final = {
    parameter_service_pb2: ("GetData", "GetGrad", "SetData", "SetGrad", "ZeroGrad", "List"),
    training_service_pb2: ("Step", "Update", "HoldSteps", "SetLearningRate"),
}
_PATHS: Final = {
    method.name: f"/{service.full_name}/{method.name}"
    for module, names in _METHODS.items()
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.name in names
}


class LocalAccess:
    """One server's values in shared memory, where they can be had. Thread-safe.

    Args:
        transport: 'auto', 'tcp' (never), or 'shm' (`require` raises where there is none).
        target: the server, for messages.
        socket_name: gives the name of the server's socket, as it said in the last handshake; ''
            where it has none, None before a handshake.
        authorization: gives what is shown as the metadata 'authorization', or ''.
        lost: called when a server that had let this process in has gone: another one at its address
            has another socket, of which only a handshake tells.
    """

    def __init__(
        self,
        transport: str,
        target: str,
        *,
        socket_name: Callable[[], str | None],
        authorization: Callable[[], str],
        lost: Callable[[], None],
    ) -> None:
        self._lost = lost
        self._transport = transport
        self._target = target
        self._socket_name = socket_name
        self._authorization = authorization
        self._closed = transport == "tcp"
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._values: LocalValues | None = None
        self._streams: LocalStreams | None = None
        # The socket that was tried last, with success or without, and why without.
        self._tried: str | None = None
        self._why = ""

    def values(self) -> LocalValues | None:
        """What reads values; None where they come over gRPC."""
        values = self._values
        if values is not None and values.usable:
            return values
        return None if self._closed else self._open()

    def method(self, name: str, plain: Any) -> Any:
        """The multi-callable of an RPC: over a socket of this host where there is one.

        Args:
            name: of the RPC.
            plain: the multi-callable that goes over gRPC.
        """
        path = _PATHS.get(name)
        if path is None or self.values() is None or self._streams is None:
            return plain
        return StreamedMethod(path, plain, self._streams)

    def require(self) -> None:
        """Looks for the server's memory now, where nothing else will do. After a handshake.

        Raises:
            TransportUnavailableError: where the transport is 'shm', and there is none.
        """
        if self._transport == "shm" and self.values() is None:
            raise TransportUnavailableError(
                f"transport='shm': no memory is shared with {self._target}: {self._why}"
            )

    def start_over_in_child(self) -> None:
        """Forgets the parent's connections and memory."""
        if self._values is not None:
            self._values.close()
        if self._streams is not None:
            self._streams.abandon()
        self._begin()

    def close(self) -> None:
        """Lets go of the memory. Closing twice is the same."""
        self._closed = True
        self._let_go()

    def _open(self) -> LocalValues | None:
        name = self._socket_name()
        if name is None:
            return None
        if name == self._tried:
            self._notice_loss()
            return None
        with self._lock:
            if name == self._tried:
                # Another thread was faster.
                return self._values
            self._let_go()
            values = self._enter(name)
            if values is not None:
                self._streams = LocalStreams(name, self._authorization)
            self._values, self._tried = values, name
            if self._closed:
                self._let_go()
            return self._values

    def _notice_loss(self) -> None:
        with self._lock:
            values = self._values
            if values is None or values.usable:
                return
            self._let_go()
        self._lost()

    def _let_go(self) -> None:
        values, self._values = self._values, None
        streams, self._streams = self._streams, None
        if values is not None:
            values.close()
        if streams is not None:
            streams.close()

    def _enter(self, name: str) -> LocalValues | None:
        if not is_supported():
            self._why = "this processor does not keep the order of loads that it takes"
        elif not name:
            self._why = "the server shares none"
        else:
            try:
                return LocalValues(Places(name, self._authorization()))
            except ParamdError as err:
                self._why = str(err)
        _log.info("values come from %s over gRPC: %s", self._target, self._why)
        return None
