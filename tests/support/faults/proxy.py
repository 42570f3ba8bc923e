"""The whole way from clients to a server, on which faults happen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.faults.calls import CallProxy, Replies
from tests.support.faults.connections import ConnectionProxy
from tests.support.faults.plan import FaultPlan

__all__ = ["FaultProxy", "fault_proxy"]


@dataclass(frozen=True)
class FaultProxy:
    """Clients connect to `connections`, which carries their bytes to `calls`, and that to a server.

    Attributes:
        connections: loses connections.
        calls: injects faults into calls.
    """

    connections: ConnectionProxy
    calls: CallProxy

    @property
    def address(self) -> str:
        """Where clients connect."""
        return self.connections.address

    def settle(self) -> None:
        """Sends again what waits to be sent again; fails where the server answered wrongly."""
        self.calls.settle()
        wrong = self.calls.violations
        assert not wrong, "\n".join([f"{len(wrong)} wrong answers, such as", *wrong[:5]])


@contextmanager
def fault_proxy(
    upstream: str,
    plan: FaultPlan,
    *,
    num_cuts: int = 0,
    restart: Callable[[], str] | None = None,
    same: Callable[[str, Replies, Replies], bool] = lambda _method, one, two: one == two,
) -> Iterator[FaultProxy]:
    """A proxy that injects faults; all of its threads have ended when the block ends.

    It prints the faults by class then.

    Args:
        upstream: 'host:port' of the server.
        plan: which call meets which fault.
        num_cuts: connections that are cut after a number of bytes.
        restart: starts the server again, and gives its new address.
        same: whether the replies to the same request sent twice agree.
    """
    try:
        with (
            CallProxy(upstream, plan, restart=restart, same=same) as calls,
            ConnectionProxy(calls.address, plan, num_cuts=num_cuts) as connections,
        ):
            calls.lose_connection = connections.lose
            yield FaultProxy(connections, calls)
    finally:
        print(plan.report())
