"""From the addresses of a target to the calls of a session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from paramd.transport.calls import Calls
from paramd.transport.cluster.calls import ClusterCalls
from paramd.transport.cluster.handshakes import Handshakes, check_single
from paramd.transport.cluster.shards import Shards
from paramd.transport.connection import Connection, ConnectionOptions
from paramd.transport.operations import ProcessOperations
from paramd.transport.protocols import SessionCalls
from paramd.transport.whereabouts import Resolve, Whereabouts

__all__ = ["Servers"]


class Servers:
    """What one session reaches: one server, or the shards of a cluster.

    Args:
        addresses: one, or all shards in their order.
        options: of each connection.
        end_of_server: why they are gone for good, or None if that is not known.
        resolve: gives the addresses anew when a server cannot be reached; None: they never change.

    Attributes:
        calls: the session's.
        coordinator: the connection to the one server, or to shard 0.

    Raises:
        ValueError: where one of them is no address.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        options: ConnectionOptions,
        *,
        end_of_server: Callable[[], str | None] = lambda: None,
        resolve: Resolve | None = None,
    ) -> None:
        whereabouts = Whereabouts(addresses, resolve)
        self._shards: Shards | None = None
        if len(addresses) == 1:
            check = partial(check_single, addresses[0])
            self.coordinator = Connection(
                addresses[0],
                options,
                end_of_server=end_of_server,
                check=check,
                locate=partial(whereabouts.of, 0),
            )
            self._connections: tuple[Connection, ...] = (self.coordinator,)
            self.calls: SessionCalls = Calls(self.coordinator)
            return
        handshakes = Handshakes(addresses)
        operations = ProcessOperations()
        self._connections = tuple(
            Connection(
                address,
                options,
                end_of_server=end_of_server,
                check=handshakes.check(shard),
                operations=operations,
                locate=partial(whereabouts.of, shard),
            )
            for shard, address in enumerate(addresses)
        )
        self.coordinator = self._connections[0]
        self._shards = Shards(self._connections, handshakes)
        self.calls = ClusterCalls(self._shards)

    def hello(self) -> None:
        """Greets every server.

        Raises:
            ClusterMismatchError: where they are not all the shards of one cluster in their order.
            TransportUnavailableError: where shared memory is asked for, and there is none.
        """
        if self._shards is None:
            self.coordinator.hello()
        else:
            self._shards.hello()
        for connection in self._connections:
            connection.local.require()

    def begin_closing(self) -> None:
        """Says that what fails from now on fails because the session closes."""
        for connection in self._connections:
            connection.closing = True

    def close(self) -> None:
        """Ends every call with SessionClosedError. Closing twice is the same."""
        for connection in self._connections:
            connection.close()
