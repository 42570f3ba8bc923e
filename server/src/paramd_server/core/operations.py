"""Changing calls that are carried out once, however often they are sent."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from paramd.errors import InvalidArgumentError, OperationExpiredError
from paramd_server.core.gate import Gate

__all__ = ["IDENTITY_BYTES", "Operation", "OperationWindow", "SavedWindow"]

IDENTITY_BYTES: Final = 16
# Windows beyond this many times the usual number are somebody's flood.
_CROWD: Final = 16


@dataclass(frozen=True)
class Operation:
    """Identifies one changing call of one session.

    Attributes:
        identity: 16 random bytes of one session in one process.
        sequence: counts its operations, from 1.
        acknowledged_below: the client has the answers of all operations below.
    """

    identity: bytes
    sequence: int
    # The same operation says more of it each time that it is sent.
    acknowledged_below: int = field(compare=False)

    def check(self) -> None:
        """Raises InvalidArgumentError where it identifies nothing."""
        if len(self.identity) != IDENTITY_BYTES or self.sequence < 1:
            raise InvalidArgumentError(
                f"an operation has an identity of {IDENTITY_BYTES} bytes and a sequence from 1, "
                f"but got {len(self.identity)} bytes and {self.sequence}"
            )


@dataclass(frozen=True)
class SavedWindow:
    """What is remembered of one session.

    Attributes:
        identity: of the session.
        floor: the client has the answers of all operations below.
        answers: of the operations that were carried out, by sequence.
    """

    identity: bytes
    floor: int
    answers: Mapping[int, bytes]


@dataclass
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    answer: bytes | None = None


@dataclass
class _Window:
    floor: int = 1
    entries: dict[int, _Entry] = field(default_factory=dict)
    used_at: float = 0.0


class OperationWindow:
    """Remembers the answers of operations until the client says that it has them.

    Args:
        max_identities: sessions that are remembered; the one idle for longest is forgotten first,
            and not before `min_idle_s`. Of sixteen times as many it is forgotten in any case.
        max_pending: unacknowledged operations of one session.
        min_idle_s: how long a session is remembered at least.

    Attributes:
        gate: an operation that is being carried out is inside, until its answer is kept too.
    """

    def __init__(
        self, *, max_identities: int = 4096, max_pending: int = 4096, min_idle_s: float = 3600.0
    ) -> None:
        self._max_identities = max_identities
        self._max_pending = max_pending
        self._min_idle_s = min_idle_s
        self._lock = threading.Lock()
        self._windows: OrderedDict[bytes, _Window] = OrderedDict()  # guarded by _lock
        self.gate = Gate()
        self._listeners: list[Callable[[bytes], None]] = []

    def listen(self, listener: Callable[[bytes], None]) -> None:
        """Has a function called with the identity of each session that sends an operation."""
        self._listeners.append(listener)

    def answered(self, operation: Operation) -> bytes | None:
        """The answer of an operation that has been carried out; None where it has not.

        Raises:
            OperationExpiredError, InvalidArgumentError: as `run`.
        """
        self._hear(operation)
        with self._lock:
            window = self._windows.get(operation.identity)
            if window is None:
                return None
            _check_open(window, operation)
            entry = window.entries.get(operation.sequence)
            return None if entry is None else entry.answer

    def run(self, operation: Operation, carry_out: Callable[[], bytes]) -> bytes:
        """Carries an operation out, unless it has been: then its answer of that time.

        Args:
            operation: what identifies it.
            carry_out: changes everything or, when it raises, nothing.

        Returns:
            The serialized answer.

        Raises:
            OperationExpiredError: where the client had said that it has the answer.
            InvalidArgumentError: where it identifies nothing.
        """
        entry = self._entry(operation)
        with self.gate.shared(), entry.lock:
            if entry.answer is None:
                entry.answer = carry_out()
            return entry.answer

    def saved(self) -> list[SavedWindow]:
        """What is remembered of every session, the one idle for longest first."""
        with self._lock:
            return [
                SavedWindow(
                    identity,
                    window.floor,
                    {
                        sequence: entry.answer
                        for sequence, entry in window.entries.items()
                        if entry.answer is not None
                    },
                )
                for identity, window in self._windows.items()
            ]

    def take_up(self, windows: Iterable[SavedWindow]) -> None:
        """Remembers what another start of the server did; every session was used just now."""
        now = time.monotonic()
        with self._lock:
            for window in windows:
                entries = {
                    sequence: _Entry(answer=answer) for sequence, answer in window.answers.items()
                }
                self._windows[window.identity] = _Window(window.floor, entries, now)

    def record(self, operation: Operation, answer: bytes) -> None:
        """Keeps the answer of an operation that was carried out together with others.

        Nothing is kept where the client has said that it does not wait for it any more.
        """
        with self._lock:
            window = self._windows.setdefault(operation.identity, _Window())
            window.used_at = time.monotonic()
            if operation.sequence >= window.floor:
                window.entries.setdefault(operation.sequence, _Entry()).answer = answer

    def _hear(self, operation: Operation) -> None:
        operation.check()
        for listener in self._listeners:
            listener(operation.identity)

    def _entry(self, operation: Operation) -> _Entry:
        self._hear(operation)
        with self._lock:
            window = self._windows.setdefault(operation.identity, _Window())
            self._windows.move_to_end(operation.identity)
            window.used_at = time.monotonic()
            self._forget(window, min(operation.acknowledged_below, operation.sequence))
            _check_open(window, operation)
            entry = window.entries.get(operation.sequence)
            if entry is None:
                if len(window.entries) >= self._max_pending:
                    raise InvalidArgumentError(
                        f"a session has at most {self._max_pending} unacknowledged operations"
                    )
                entry = window.entries[operation.sequence] = _Entry()
            self._drop_idle()
            return entry

    def _forget(self, window: _Window, below: int) -> None:
        if below > window.floor:
            window.floor = below
            for sequence in [each for each in window.entries if each < below]:
                del window.entries[sequence]

    def _drop_idle(self) -> None:
        while len(self._windows) > self._max_identities:
            identity, window = next(iter(self._windows.items()))
            crowded = len(self._windows) > _CROWD * self._max_identities
            if time.monotonic() - window.used_at < self._min_idle_s and not crowded:
                break
            del self._windows[identity]


def _check_open(window: _Window, operation: Operation) -> None:
    if operation.sequence < window.floor:
        raise OperationExpiredError(
            f"operation {operation.sequence} was acknowledged before; the window begins at "
            f"{window.floor}"
        )
