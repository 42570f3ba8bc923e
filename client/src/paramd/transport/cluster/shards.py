"""The shards of one cluster, as one session reaches them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from paramd.transport.calls import Calls
from paramd.transport.cluster.fan_out import FanOut
from paramd.transport.cluster.handshakes import Handshakes
from paramd.transport.connection import Connection
from paramd.transport.operations import Operations

__all__ = ["Shards"]

T = TypeVar("T")


class Shards:
    """The connections of one session, one for each shard. Thread-safe.

    Args:
        connections: in the order of the shards; they share their operations.
        handshakes: what the shards said of themselves.

    Attributes:
        connections: in the order of the shards.
        calls: those of each shard alone.
    """

    def __init__(self, connections: Sequence[Connection], handshakes: Handshakes) -> None:
        self.connections = tuple(connections)
        self.calls = tuple(Calls(connection) for connection in connections)
        self._handshakes = handshakes
        self._fan_out = FanOut(tuple(connection.target for connection in connections))

    def __len__(self) -> int:
        return len(self.connections)

    @property
    def coordinator(self) -> Connection:
        """Shard 0's, which orders what concerns several shards."""
        return self.connections[0]

    @property
    def operations(self) -> Operations:
        """The identity and the numbered operations of this session, the same for all shards."""
        return self.connections[0].operations

    @property
    def split_elements(self) -> int:
        """Dense parameters of more elements are split."""
        return self._handshakes.split_elements

    @property
    def generation(self) -> int:
        """Of the cluster, as the coordinator said it last; another one after it has gone back."""
        return self._handshakes.generation

    def address(self, shard: int) -> str:
        """Of a shard."""
        return self.connections[shard].target

    def run(self, calls: Mapping[int, Callable[[], T]]) -> dict[int, T]:
        """Makes one call for each of some shards at the same time: see `FanOut.run`."""
        return self._fan_out.run(calls)

    def run_beside(self, own: Callable[[], None], calls: Mapping[int, Callable[[], None]]) -> None:
        """Makes calls while the caller's thread takes what they bring: see `FanOut.run_beside`."""
        self._fan_out.run_beside(own, calls)

    def run_all(self, call: Callable[[int], T]) -> list[T]:
        """Makes a call for each shard at the same time, and gives what came, in their order."""

        def bound(shard: int) -> Callable[[], T]:
            return lambda: call(shard)

        return list(self.run({shard: bound(shard) for shard in range(len(self))}).values())

    def hello(self) -> None:
        """Greets all shards.

        Raises:
            ClusterMismatchError: where they are not the shards of one cluster in their order.
        """
        self.run_all(lambda shard: self.connections[shard].hello())
        self._handshakes.establish()
