"""A line to a server that can be cut for a while."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["Line", "line_to"]


class Line:
    """Carries bytes to an address, until it is cut, and again when it is mended.

    Args:
        upstream: 'host:port', loopback.

    Attributes:
        address: where it listens.
    """

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []  # guarded by _lock
        self._is_cut = False  # guarded by _lock
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def cut(self) -> None:
        """Loses all connections, and takes no new ones."""
        with self._lock:
            self._is_cut = True
            for each in self._sockets:
                _close(each)
            self._sockets.clear()

    def mend(self) -> None:
        """Takes connections again."""
        with self._lock:
            self._is_cut = False

    def close(self) -> None:
        _close(self._listener)
        self.cut()
        self._acceptor.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._is_cut:
                    _close(client)
                    continue
            try:
                server = socket.create_connection(self._upstream, 5)
            except OSError:
                _close(client)
                continue
            server.settimeout(None)
            with self._lock:
                self._sockets += [client, server]
            for pair in ((client, server), (server, client)):
                threading.Thread(target=_carry, args=pair, daemon=True).start()


def _carry(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
    except OSError:
        pass  # It was cut.
    _close(source)
    _close(sink)


def _close(each: socket.socket) -> None:
    with suppress(OSError):  # It may be closed already.
        each.shutdown(socket.SHUT_RDWR)
    each.close()


@contextmanager
def line_to(upstream: str) -> Iterator[Line]:
    """A line that is closed when the block ends."""
    proxy = Line(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
