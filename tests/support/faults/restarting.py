"""A server that is stopped and started again, and takes up what it saved."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tests.support.server_process import ServerProcess, serve

__all__ = ["RestartingServer"]


class RestartingServer:
    """`paramd-server` with one snapshot directory over all of its starts.

    Args:
        directory: for its files.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._server = self._start()

    @property
    def address(self) -> str:
        """Where it listens now."""
        return self._server.address

    def restart(self) -> str:
        """Stops it with SIGTERM, starts it again, and gives its new address."""
        self._server.terminate()
        code = self._server.await_end()
        assert code == 0, f"the server ended with {code}:\n{self._server.log}"
        self._server = self._start()
        return self.address

    def _start(self) -> ServerProcess:
        snapshots = str(self._directory / "snapshots")
        return self._stack.enter_context(serve(self._directory, "--snapshot-dir", snapshots))

    def __enter__(self) -> RestartingServer:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
