"""One server's part of a snapshot: captured at a moment, written meanwhile, committed later."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

from paramd_server.core.capture import CapturedState
from paramd_server.core.held_buffers import Scratch
from paramd_server.core.snapshot import SavedSection, SnapshotError, SnapshotName

__all__ = ["Capturer", "PartReport", "PartSaver", "PartStore"]

_log = logging.getLogger(__name__)

_JOIN_S: Final = 60.0
# Of all processors, that a snapshot takes while the server serves. Measured: docs/performance.md.
_SHARE: Final = 1 / 24

# Called with the part's entry in the manifest, or with None and what went wrong.
PartReport = Callable[[Mapping[str, Any] | None, str], None]


class Capturer(Protocol):
    """Takes the state of a server: `capture` with all but two of its arguments."""

    def __call__(
        self, *, scratch: Callable[[], Scratch], mark: Callable[[], Any] | None
    ) -> CapturedState:
        """See `paramd_server.core.capture.capture`."""


class PartStore(Protocol):
    """Where parts are written to. All raise SnapshotError: see storage.snapshots.SnapshotStore."""

    def scratch(self) -> Scratch:
        """A scratch file."""

    def write_part(
        self, name: SnapshotName, sections: Mapping[str, SavedSection]
    ) -> Mapping[str, Any]:
        """Writes a part; gives its entry in the manifest."""

    def commit(self, name: SnapshotName, manifest: bytes) -> None:
        """Makes a snapshot whole."""

    def discard(self, name: SnapshotName) -> None:
        """Removes what has been written."""

    def prune(self, kept: Collection[int]) -> None:
        """Removes the numbered snapshots that are not to stay."""


class PartSaver:
    """Saves the state of one server, one snapshot at a time.

    Args:
        capture: takes the state.
        store: where it goes.
    """

    def __init__(self, capture: Capturer, store: PartStore) -> None:
        self._capture = capture
        self._store = store
        self._lock = threading.Lock()
        # Guarded by _lock.
        self._state: CapturedState | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def begin(
        self, name: SnapshotName, report: PartReport, *, mark: Callable[[], Any] | None = None
    ) -> Any:
        """Captures the state right now, and has it written by a thread of its own.

        Args:
            name: of the snapshot.
            report: called by that thread at the end, once.
            mark: called at that moment, while nothing can change.

        Returns:
            What `mark` gave.

        Raises:
            SnapshotError: where one is under way, or no more are taken.
            RuntimeError: where this thread is in the middle of a change itself.
        """
        with self._lock:
            if self._closed:
                raise SnapshotError("the server stops")
            if self._thread is not None:
                raise SnapshotError("another snapshot is under way")
            thread = self._thread = threading.Thread(
                target=self._write, args=(name, report), name="snapshot-writer", daemon=True
            )
        begun = time.perf_counter()
        try:
            state = self._capture(scratch=self._store.scratch, mark=mark)
        except BaseException:
            with self._lock:
                self._thread = None
            raise
        took = time.perf_counter() - begun
        _log.info("captured snapshot %s in %.1f ms", name, took * 1e3)
        with self._lock:
            self._state = state
            if self._closed:
                state.cancel("the server stops")
        thread.start()
        return state.mark

    def finish(self, name: SnapshotName, manifest: bytes, kept: Collection[int]) -> None:
        """Makes a snapshot whole whose parts have all been written, and removes older ones.

        Args:
            name: of the snapshot.
            manifest: the same on every shard.
            kept: the numbers of the numbered snapshots that stay.

        Raises:
            SnapshotError: where it cannot be written.
        """
        self._store.commit(name, manifest)
        self._store.prune(kept)

    def discard(self, name: SnapshotName) -> None:
        """Removes what has been written of a snapshot that is not to be."""
        with self._lock:
            state = self._state
        if state is not None:
            state.cancel("the snapshot was given up")
        self._store.discard(name)

    def save_now(self, name: SnapshotName, *, blank_too: bool) -> Mapping[str, Any] | None:
        """Writes the state of a server on which nothing happens any more.

        Args:
            name: of the snapshot.
            blank_too: whether it is written where nothing would be lost without it.

        Returns:
            The part's entry in the manifest; None where it was not written.

        Raises:
            SnapshotError: where it cannot be written.
        """
        state = self._capture(scratch=self._store.scratch, mark=None)
        try:
            sections = state.sections()
            if not blank_too and all(section.blank for section in sections.values()):
                return None
            return self._store.write_part(name, sections)
        finally:
            state.release()

    @contextmanager
    def state_now(self) -> Iterator[dict[str, SavedSection]]:
        """The state of a server on which nothing happens any more, while the block runs."""
        state = self._capture(scratch=self._store.scratch, mark=None)
        try:
            yield state.sections()
        finally:
            state.release()

    def close(self) -> None:
        """Takes no more snapshots, gives up the one under way, and waits for its end."""
        with self._lock:
            self._closed = True
            state, thread = self._state, self._thread
        if state is not None:
            state.cancel("the server stops")
        if thread is not None and thread.is_alive():
            thread.join(_JOIN_S)

    def _write(self, name: SnapshotName, report: PartReport) -> None:
        state = self._state
        assert state is not None
        entry: Mapping[str, Any] | None = None
        error = ""
        try:
            # Who trains on the same processors loses a 24th of them, and what writers set aside.
            state.set_pace(_SHARE * len(os.sched_getaffinity(0)))
            entry = self._store.write_part(name, state.sections())
            # What could not be kept to the end may have been written wrongly.
            state.check()
        except SnapshotError as err:
            entry, error = None, str(err)
            self._store.discard(name)
        except Exception as err:
            _log.exception("a snapshot failed in a way that it should not")
            entry, error = None, f"{type(err).__name__}: {err}"
            self._store.discard(name)
        finally:
            state.release()
            with self._lock:
                self._state = self._thread = None
        report(entry, error)
