"""A TCP proxy that loses connections: after a number of bytes, or when it is told to."""

from __future__ import annotations

import random
import socket
import struct
import threading
from types import TracebackType

from tests.support.faults.plan import Fault, FaultPlan

__all__ = ["ConnectionProxy"]

_CONNECT_S = 5.0
# As SO_SNDTIMEO takes it: seconds and microseconds.
_SEND_TIMEOUT = struct.pack("ll", 10, 0)
_JOIN_S = 10.0
_BLOCK_BYTES = 64 << 10
# Closes with a reset: what was not read yet is lost, as when a machine goes away.
_RESET = struct.pack("ii", 1, 0)


class _Link:
    """One connection through the proxy.

    Args:
        client: the client's side.
        server: the server's side.
        cut: which direction ends after how many bytes, or None.
    """

    def __init__(
        self, client: socket.socket, server: socket.socket, cut: tuple[Fault, int] | None
    ) -> None:
        self.port: int = server.getsockname()[1]
        self._client = client
        self._server = server
        self._cut = cut
        self._lock = threading.Lock()
        self._pumps_left = 2  # guarded by _lock
        self.was_cut = False
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            each.settimeout(None)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
        self.threads = [
            threading.Thread(target=self._pump, args=args, name="fault-link", daemon=True)
            for args in ((client, server, Fault.CUT_UP), (server, client, Fault.CUT_DOWN))
        ]

    @property
    def planned(self) -> Fault | None:
        """The cut that awaits it."""
        return None if self._cut is None else self._cut[0]

    @property
    def ended(self) -> bool:
        """Whether both its threads have."""
        return not any(thread.is_alive() for thread in self.threads)

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        """Loses the connection, towards both sides."""
        with self._lock:
            if self._pumps_left == 0:
                return
            for each in (self._client, self._server):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                try:
                    # Wakes the pumps, which close; says nothing to the other side yet.
                    each.shutdown(socket.SHUT_RD)
                except OSError:
                    continue  # It is gone already.

    def _pump(self, source: socket.socket, sink: socket.socket, direction: Fault) -> None:
        left = self._cut[1] if self._cut is not None and self._cut[0] == direction else None
        try:
            while data := source.recv(_BLOCK_BYTES):
                if left is not None and len(data) > left:
                    sink.sendall(data[:left])
                    self.was_cut = True
                    break
                sink.sendall(data)
                left = None if left is None else left - len(data)
        except OSError:
            pass  # One side has gone: so goes the other.
        self.end()
        with self._lock:
            self._pumps_left -= 1
            if self._pumps_left == 0:
                self._client.close()
                self._server.close()


class ConnectionProxy:
    """Carries bytes between clients and one address, and loses connections.

    Each connection is cut after a random number of bytes in one direction, until `num_cuts`
    have happened: in the middle of a frame, of a request, of a reply.

    Args:
        upstream: 'host:port', loopback.
        plan: counts what happens, and gives the seed.
        num_cuts: connections to cut.
        longest_bytes: a cut happens after 1 to so many bytes; fewer from the server, which says
            less.
    """

    def __init__(
        self, upstream: str, plan: FaultPlan, *, num_cuts: int = 0, longest_bytes: int = 20_000
    ) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._plan = plan
        self._longest = longest_bytes
        self._rng = random.Random(plan.seed + 1)
        self._lock = threading.Lock()
        self._links: list[_Link] = []  # guarded by _lock
        self._cuts_left = num_cuts  # guarded by _lock
        self._ended = False  # guarded by _lock
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._acceptor = threading.Thread(target=self._accept, name="fault-accept", daemon=True)
        self._acceptor.start()

    def lose(self, port: int) -> bool:
        """Loses the connection whose other end the upstream sees at a port; False if none is."""
        with self._lock:
            found = [link for link in self._links if link.port == port]
        for link in found:
            link.end()
        return bool(found)

    def close(self) -> None:
        """Ends all connections, and waits for the threads."""
        with self._lock:
            self._ended = True
            links = list(self._links)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(_JOIN_S)
        self._listener.close()
        for link in links:
            link.end()
        for link in links:
            for thread in link.threads:
                thread.join(_JOIN_S)
        with self._lock:
            self._count_cuts()

    def __enter__(self) -> ConnectionProxy:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # It was closed.
            try:
                server = socket.create_connection(self._upstream, _CONNECT_S)
            except OSError:
                client.close()
                continue
            with self._lock:
                if self._ended:
                    client.close()
                    server.close()
                    return
                self._count_cuts()
                link = _Link(client, server, self._draw())
                self._links.append(link)
                link.start()

    def _count_cuts(self) -> None:
        """Notes the cuts of links that have ended; those that did not happen are dealt again."""
        for link in [each for each in self._links if each.ended]:
            self._links.remove(link)
            if link.planned is not None:
                if link.was_cut:
                    self._plan.count(link.planned)
                else:
                    self._cuts_left += 1

    def _draw(self) -> tuple[Fault, int] | None:
        if self._cuts_left == 0:
            return None
        self._cuts_left -= 1
        fault = self._rng.choice((Fault.CUT_UP, Fault.CUT_DOWN))
        longest = self._longest if fault == Fault.CUT_UP else self._longest // 3
        return fault, self._rng.randint(1, longest)
