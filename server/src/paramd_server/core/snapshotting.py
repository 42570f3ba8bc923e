"""The snapshots of a server, or of the shards of a cluster: asked for, ordered, put together."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from paramd.errors import SnapshotFailedError
from paramd_server.core.part_saving import PartSaver
from paramd_server.core.snapshot import (
    SnapshotError,
    SnapshotInfo,
    SnapshotName,
    SnapshotOrigin,
)

__all__ = ["OneServer", "SnapshotCounts", "SnapshotOrders", "SnapshotShelf", "Snapshots"]

_log = logging.getLogger(__name__)

_MAX_WAITING: Final = 16
_MAX_REMEMBERED: Final = 256
_JOIN_S: Final = 60.0


class SnapshotShelf(Protocol):
    """The snapshots that there are: see storage.snapshots.SnapshotStore."""

    def next_number(self) -> int:
        """A number above all others."""

    def check_directory(self, directory: str) -> None:
        """Raises PathNotAllowedError, SnapshotError where a name cannot be given."""

    def all(self) -> Sequence[SnapshotInfo]:
        """Those that are whole, from the oldest."""

    def kept(self, upcoming: SnapshotName | None = None) -> Sequence[int]:
        """The numbers of the numbered ones that are to stay when another one is whole."""

    def manifest(
        self, name: SnapshotName, parts: Sequence[Mapping[str, Any]], origin: SnapshotOrigin
    ) -> bytes:
        """The manifest of one."""


class SnapshotOrders(Protocol):
    """How snapshots come about: on one server, or on all shards through the cluster's log."""

    def begin(self, name: SnapshotName, snapshots: Snapshots) -> SnapshotOrigin:
        """Has every shard capture its state, and later call `snapshots.report`.

        Raises:
            SnapshotError: where that cannot be.
        """

    def finish(self, name: SnapshotName, manifest: bytes, kept: Sequence[int]) -> None:
        """Has every shard make it whole. Raises SnapshotError where this server cannot."""

    def discard(self, name: SnapshotName) -> None:
        """Has every shard give it up."""


@dataclass(frozen=True)
class SnapshotCounts:
    """How snapshots went since the server was started.

    Attributes:
        num_saved: that became whole.
        num_failed: that did not.
        last: the newest that is whole, of before the start, too; None for none.
    """

    num_saved: int
    num_failed: int
    last: SnapshotInfo | None


@dataclass
class _Order:
    """A snapshot that was asked for."""

    name: SnapshotName
    origin: SnapshotOrigin | None = None
    parts: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    error: str = ""
    info: SnapshotInfo | None = None
    ending: bool = False

    @property
    def ended(self) -> bool:
        return self.info is not None or bool(self.error)


class Snapshots:
    """Takes orders for snapshots, and sees to it that they come about one after the other.

    Args:
        shelf: those that there are; None where the server keeps none.
        orders: how they come about.
        num_shards: how many parts each has.
        every_s: seconds from one to the next that nobody asked for; 0 for none.
    """

    def __init__(
        self,
        shelf: SnapshotShelf | None,
        orders: SnapshotOrders,
        *,
        num_shards: int = 1,
        every_s: float = 0.0,
    ) -> None:
        self._shelf = shelf
        self._orders = orders
        self._num_shards = num_shards
        self._every_s = every_s
        self._changed = threading.Condition()
        # All that follow are guarded by _changed.
        self._waiting: deque[_Order] = deque()
        self._current: _Order | None = None
        self._known: OrderedDict[int, _Order] = OrderedDict()
        self._num_saved = 0
        self._num_failed = 0
        self._last: SnapshotInfo | None = None
        self._next_at = float("inf")
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="snapshots", daemon=True)

    def start(self) -> None:
        """Begins to carry orders out. The shelf is locked by now."""
        if self._shelf is None:
            return
        self._last = next(reversed(self._shelf.all()), None)
        if self._every_s:
            self._next_at = time.monotonic() + self._every_s
        self._thread.start()

    def close(self) -> None:
        """Takes no more orders, and fails those that have not been carried out."""
        with self._changed:
            self._closed = True
            for order in (*self._waiting, *([self._current] if self._current else ())):
                self._fail(order, "the server stops")
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    # What clients ask

    def request(self, directory: str = "") -> int:
        """Orders a snapshot of the state of now, or of when those ordered before are done.

        Args:
            directory: the name that it is to have; '' for a number alone.

        Returns:
            Its number.

        Raises:
            SnapshotFailedError: where none can be saved.
            PathNotAllowedError: where the name is no name below the server's directory.
        """
        if self._shelf is None:
            raise SnapshotFailedError(
                "no snapshot can be saved: the server was started without --snapshot-dir"
            )
        if directory:
            try:
                self._shelf.check_directory(directory)
            except SnapshotError as err:
                raise SnapshotFailedError(str(err)) from err
        with self._changed:
            if self._closed:
                raise SnapshotFailedError("no snapshot can be saved: the server stops")
            if len(self._waiting) >= _MAX_WAITING:
                raise SnapshotFailedError(f"{_MAX_WAITING} snapshots have been ordered already")
            order = _Order(SnapshotName(self._shelf.next_number(), directory))
            self._waiting.append(order)
            self._known[order.name.number] = order
            while len(self._known) > _MAX_REMEMBERED:
                self._known.popitem(last=False)
            self._changed.notify_all()
        return order.name.number

    def wait(self, number: int, wait_s: float) -> SnapshotInfo | None:
        """The snapshot of a number, when it is whole; None where it is not yet.

        Args:
            number: that `request` gave, on this start of the server or an earlier one.
            wait_s: how long to wait for it.

        Raises:
            SnapshotFailedError: where it could not be saved.
        """
        deadline = time.monotonic() + wait_s
        with self._changed:
            order = self._known.get(number)
            while order is not None and not order.ended:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
        if order is not None:
            if order.info is None:
                raise SnapshotFailedError(f"snapshot {order.name} was not saved: {order.error}")
            return order.info
        for info in self.all():
            if info.name.number == number:
                return info
        raise SnapshotFailedError(
            f"there is no snapshot {number}: it was not finished, or newer ones have taken its "
            "place"
        )

    def all(self) -> Sequence[SnapshotInfo]:
        """The snapshots that are whole, from the oldest."""
        return () if self._shelf is None else self._shelf.all()

    def counts(self) -> SnapshotCounts:
        """How snapshots went."""
        with self._changed:
            return SnapshotCounts(self._num_saved, self._num_failed, self._last)

    # What shards report

    def report(
        self, number: int, shard: int, entry: Mapping[str, Any] | None, error: str = ""
    ) -> None:
        """Notes that a shard has written its part, or could not. Repeating it is safe.

        Args:
            number: of the snapshot.
            shard: which.
            entry: of the part in the manifest; None where it could not be written.
            error: why.
        """
        with self._changed:
            # The report may come before the order has got its origin.
            while self._current is not None and self._current.origin is None:
                if self._current.ended:
                    break
                self._changed.wait()
            order = self._current
            if order is None or order.name.number != number or order.ended or order.ending:
                return
            if entry is not None:
                order.parts[shard] = entry
                if len(order.parts) < self._num_shards:
                    return
            order.ending = True
        if entry is None:
            self._end(order, error or "its part could not be written")
        else:
            self._put_together(order)

    def abandon(self, why: str) -> None:
        """Gives up the one under way: a shard that takes part in it has gone."""
        with self._changed:
            order = self._current
            if order is None or order.ended or order.ending:
                return
            order.ending = True
        self._end(order, why)

    # Carrying out

    def _serve(self) -> None:
        while True:
            with self._changed:
                order = self._next()
                if order is None:
                    return
                self._current = order
            try:
                origin = self._orders.begin(order.name, self)
            except SnapshotError as err:
                self._end(order, str(err))
            except Exception as err:
                _log.exception("a snapshot failed in a way that it should not")
                self._end(order, f"{type(err).__name__}: {err}")
            else:
                with self._changed:
                    order.origin = origin
                    self._changed.notify_all()
            with self._changed:
                while not order.ended:
                    self._changed.wait()
                self._current = None

    def _next(self) -> _Order | None:
        """The next order, when it is there; None at the end. Called with the lock held."""
        while not self._closed:
            if self._waiting:
                return self._waiting.popleft()
            left = self._next_at - time.monotonic()
            if left <= 0:
                self._next_at = time.monotonic() + self._every_s
                assert self._shelf is not None
                return _Order(SnapshotName(self._shelf.next_number()))
            self._changed.wait(None if left == float("inf") else left)
        return None

    def _put_together(self, order: _Order) -> None:
        assert self._shelf is not None
        assert order.origin is not None
        parts = [order.parts[shard] for shard in sorted(order.parts)]
        try:
            kept = self._shelf.kept(order.name)
            manifest = self._shelf.manifest(order.name, parts, order.origin)
            self._orders.finish(order.name, manifest, kept)
            info = next(each for each in self._shelf.all() if each.name == order.name)
        except (SnapshotError, StopIteration, OSError) as err:
            self._end(order, str(err) or "it has gone again")
            return
        with self._changed:
            if not order.ended:
                order.info = self._last = info
                self._num_saved += 1
                self._changed.notify_all()
        _log.info("saved snapshot %s: %d bytes", order.name, info.size_bytes)

    def _end(self, order: _Order, error: str) -> None:
        """Fails an order, and has what was written of it removed."""
        try:
            self._orders.discard(order.name)
        except SnapshotError as err:
            _log.warning("what was written of snapshot %s stays: %s", order.name, err)
        with self._changed:
            self._fail(order, error)

    def _fail(self, order: _Order, error: str) -> None:
        if not order.ended:
            order.error = error
            self._num_failed += 1
            self._changed.notify_all()
            _log.warning("snapshot %s was not saved: %s", order.name, error)


class OneServer:
    """How snapshots of a server without other shards come about.

    Args:
        saver: of the server.
    """

    def __init__(self, saver: PartSaver) -> None:
        self._saver = saver

    def begin(self, name: SnapshotName, snapshots: Snapshots) -> SnapshotOrigin:
        """See SnapshotOrders."""

        def report(entry: Mapping[str, Any] | None, error: str) -> None:
            snapshots.report(name.number, 0, entry, error)

        self._saver.begin(name, report)
        return SnapshotOrigin()

    def finish(self, name: SnapshotName, manifest: bytes, kept: Collection[int]) -> None:
        """See SnapshotOrders."""
        self._saver.finish(name, manifest, kept)

    def discard(self, name: SnapshotName) -> None:
        """See SnapshotOrders."""
        self._saver.discard(name)
