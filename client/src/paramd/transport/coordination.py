"""What workers agree on through the server: work that is done once, and barriers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from paramd.errors import (
    BarrierTimeoutError,
    ClaimLostError,
    ParamdError,
    ServerUnavailable,
    SessionClosedError,
)
from paramd.spec import check_name
from paramd.transport.connection import Connection
from paramd.transport.operations import Operation
from paramd.v1 import session_service_pb2 as pb

__all__ = ["alone", "claim", "meet"]

# How long the server keeps one question waiting.
_POLL_SECONDS = 1.0


def _new_operation(connection: Connection) -> Operation:
    # Claims and arrivals are remembered by name, not in the window of operations: so this one
    # need not hold the window open for as long as the work takes.
    with connection.operations.begin() as operation:
        return operation


class _Claim:
    """A claim that is held, and the thread that renews it."""

    def __init__(self, connection: Connection, name: str, lease: float) -> None:
        self._connection = connection
        self._name = name
        self._lease = lease
        self._operation = _new_operation(connection)
        self._process = os.getpid()
        self._ended = threading.Event()
        self._lost: ParamdError | None = None
        self._renewer: threading.Thread | None = None

    def ask(self, action: Any, *, wait: float = 0.0, timeout: float | None = None) -> int:
        """Sends one action, and gives the state in the answer."""
        request = pb.OnceRequest(
            name=self._name,
            action=action,
            operation=self._operation.to_wire(),
            lease_ms=int(self._lease * 1000),
            wait_ms=int(wait * 1000),
        )
        answer = self._connection.unary("Once", request, pb.OnceResponse, timeout=timeout)
        return answer.state

    def wait_for(self) -> bool:
        """True once this session holds the claim, False once the work is done."""
        while True:
            asked_at = time.monotonic()
            state = self.ask(pb.ONCE_ACTION_CLAIM, wait=_POLL_SECONDS)
            if state == pb.ONCE_STATE_CLAIMED:
                return True
            if state == pb.ONCE_STATE_DONE:
                return False
            # A server with too many waiting callers answers at once.
            self._connection.attempts.sleep(max(0.0, 0.1 - (time.monotonic() - asked_at)))

    def start_renewing(self) -> None:
        """Renews the lease until the claim is finished or given up."""
        self._renewer = threading.Thread(target=self._renew, name="paramd-renew", daemon=True)
        self._renewer.start()

    def _renew(self) -> None:
        held_until = time.monotonic() + self._lease
        while not self._ended.wait(self._lease / 3):
            left = held_until - time.monotonic()
            try:
                self.ask(pb.ONCE_ACTION_RENEW, timeout=max(min(left, self._lease / 3), 0.05))
            except (ClaimLostError, SessionClosedError) as err:
                self._lost = err
                return
            except (ServerUnavailable, TimeoutError):
                # COMPLETE will tell whether the claim outlived it.
                continue
            held_until = time.monotonic() + self._lease

    def stop_renewing(self) -> None:
        self._ended.set()
        if self._renewer is not None and self._process == os.getpid():
            self._renewer.join()

    def complete(self) -> None:
        """Says that the work is done."""
        if self._process != os.getpid():
            return
        if self._lost is not None:
            raise self._lost
        self.ask(pb.ONCE_ACTION_COMPLETE)

    def give_up(self) -> None:
        """Lets the next one have it, though the work has succeeded."""
        if self._process != os.getpid():
            return
        if self._lost is not None:
            raise self._lost
        self.ask(pb.ONCE_ACTION_ABANDON)

    def abandon(self, cause: BaseException) -> None:
        """Gives the claim up, because of an exception that matters more than what fails here."""
        if self._process != os.getpid():
            return
        try:
            self.ask(pb.ONCE_ACTION_ABANDON, timeout=self._lease / 3)
        except ParamdError as err:
            cause.add_note(f"giving up the claim {self._name!r} failed, it lapses by itself: {err}")


@contextmanager
def claim(connection: Connection, name: str, lease: float) -> Iterator[bool]:
    """Does a block of work once on the cluster. See `Session.once`."""
    check_name(name)
    held = _Claim(connection, name, lease)
    if not held.wait_for():
        yield False
        return
    held.start_renewing()
    try:
        yield True
    except BaseException as err:
        held.stop_renewing()
        held.abandon(err)
        raise
    held.stop_renewing()
    held.complete()


@contextmanager
def alone(connection: Connection, name: str, lease: float) -> Iterator[None]:
    """Does a block of work while no other session, and no other thread, does one of that name."""
    held = _Claim(connection, name, lease)
    if not held.wait_for():
        raise ClaimLostError(f"the claim {name!r}, which is never done, was called done")
    held.start_renewing()
    try:
        yield
    except BaseException as err:
        held.stop_renewing()
        held.abandon(err)
        raise
    held.stop_renewing()
    held.give_up()


def meet(connection: Connection, name: str, num_workers: int, timeout: float | None) -> int:
    """Waits at a barrier. See `Session.barrier`."""
    check_name(name)
    operation = _new_operation(connection)
    give_up_at = None if timeout is None else time.monotonic() + timeout

    def ask(wait: float, *, leave: bool = False) -> pb.BarrierResponse:
        request = pb.BarrierRequest(
            name=name,
            num_workers=num_workers,
            operation=operation.to_wire(),
            wait_ms=int(wait * 1000),
            leave=leave,
        )
        return connection.unary("Barrier", request, pb.BarrierResponse)

    try:
        while True:
            asked_at = time.monotonic()
            left = _POLL_SECONDS if give_up_at is None else give_up_at - asked_at
            answer = ask(max(0.0, min(_POLL_SECONDS, left)))
            if answer.open:
                return answer.index
            if left <= 0:
                break
            connection.attempts.sleep(min(max(0.0, 0.1 - (time.monotonic() - asked_at)), left))
    except (KeyboardInterrupt, SystemExit):
        ask(0.0, leave=True)
        raise
    if ask(0.0, leave=True).open:
        # It opened just before we left: the others go on and count on us. Ask which we were.
        return ask(0.0).index
    raise BarrierTimeoutError(
        f"barrier {name!r}: {answer.num_arrived} of {num_workers} workers came within {timeout:g} s"
    )
