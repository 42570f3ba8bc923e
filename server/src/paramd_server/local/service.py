"""What a server offers to processes of its user on its host, where the system has what it takes."""

from __future__ import annotations

import logging
from collections.abc import Callable

from paramd.v1 import local_pb2
from paramd.wire.directory import is_supported
from paramd_server.core.registry import Registry
from paramd_server.core.sharing import Sharing
from paramd_server.local.calls import Calling
from paramd_server.local.door import Door
from paramd_server.local.finding import Finding
from paramd_server.rpc.call_streams import CallDispatcher

__all__ = ["LocalService", "open_local_service"]

_log = logging.getLogger(__name__)


class LocalService:
    """Shares the memory of values with processes of this host.

    Args:
        registry: of the server.
        dispatcher: carries out calls.
        authorize: raises UnauthenticatedError or PermissionDeniedError where what is shown as
            'authorization' does not carry the right to read.

    Raises:
        OSError: where the system has no such sockets or memory.
    """

    def __init__(
        self,
        registry: Registry,
        dispatcher: CallDispatcher,
        authorize: Callable[[str], None],
    ) -> None:
        sharing = Sharing(registry)
        self._finding = Finding(sharing, registry.devices.shared_memory)
        try:
            self._door = Door(
                {
                    local_pb2.LOCAL_PURPOSE_FIND: self._finding,
                    local_pb2.LOCAL_PURPOSE_CALL: Calling(dispatcher, registry.devices.account),
                },
                authorize,
            )
        except BaseException:
            self._finding.close()
            raise

    @property
    def socket_name(self) -> str:
        """Of the abstract socket."""
        return self._door.name

    def stop_sharing(self) -> None:
        """Has those who read in place turn to calls, where they learn that the server stops."""
        self._finding.close()

    def close(self) -> None:
        """Ends all connections. Idempotent."""
        self._door.close()
        self._finding.close()


def open_local_service(
    registry: Registry, dispatcher: CallDispatcher, authorize: Callable[[str], None]
) -> LocalService | None:
    """The local service; None, with a line in the log, where the machine cannot have one."""
    if not is_supported():
        _log.info("no memory is shared: this processor does not keep the order of stores")
        return None
    try:
        return LocalService(registry, dispatcher, authorize)
    except OSError as err:
        _log.warning("no memory is shared with processes of this host: %s", err)
        return None
