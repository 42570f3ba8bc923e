"""This session as a worker of the cluster: joining, heartbeats, leaving."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from contextlib import suppress

from paramd.errors import (
    DeadlineExceededError,
    LeaseEndedError,
    ParamdError,
    PermissionDeniedError,
    ServerUnavailable,
    SessionClosedError,
    TLSError,
    UnauthenticatedError,
    WorkerNotJoinedError,
)
from paramd.transport.connection import Connection
from paramd.v1 import session_service_pb2 as pb

__all__ = ["Membership"]

_log = logging.getLogger(__name__)

# Heartbeats in one lease: one that gets lost does not matter.
_BEATS = 3
# How long a session that closes takes to say so; its lease ends anyway.
_LEAVE_SECONDS = 1.0


class Membership:
    """The place of one session among the workers. Thread-safe.

    A forked child is another worker, without the name of its parent.

    Args:
        connection: of the session.
        worker: the worker's name, or ''.
        lease: seconds after which the server believes that a silent worker is gone.
    """

    def __init__(self, connection: Connection, worker: str, lease: float) -> None:
        self._connection = connection
        self._worker = worker
        self._lease = lease
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._identity = b""
        self._rank = 0
        self._ended = threading.Event()

    @property
    def joined(self) -> bool:
        """Whether this process has joined and not left. Its lease may have ended all the same."""
        return self._identity == self._connection.operations.identity

    @property
    def rank(self) -> int:
        """The rank that the server gave."""
        return self._rank

    def join(self) -> int:
        """Joins, or comes back after the lease has ended. Gives the rank."""
        identity = self._connection.operations.identity
        request = pb.JoinRequest(
            identity=identity,
            worker=self._worker if self._process == os.getpid() else "",
            lease_ms=int(self._lease * 1000),
        )
        answer = self._connection.unary("Join", request, pb.JoinResponse)
        # In a forked child the lock may be held by a thread that is not there.
        if self._process != os.getpid():
            self._lock, self._process, self._worker = threading.Lock(), os.getpid(), ""
        with self._lock:
            self._identity, self._rank = identity, answer.rank
            self._ended.set()
            self._ended = threading.Event()
            threading.Thread(
                target=_beat,
                # A session that nobody holds any more must not seem alive.
                args=(weakref.ref(self), self._ended, self._lease / _BEATS),
                name="paramd-heartbeat",
                daemon=True,
            ).start()
        return answer.rank

    def num_workers(self) -> int:
        """How many workers hold their leases now."""
        return self._ask(self._lease).num_workers

    def leave(self, timeout: float | None = None) -> None:
        """Leaves. Without having joined, nothing happens."""
        if not self.joined:
            return
        self._ended.set()
        request = pb.LeaveRequest(identity=self._identity)
        self._identity = b""
        self._connection.unary("Leave", request, pb.LeaveResponse, timeout=timeout)

    def close(self) -> None:
        """Leaves for good, or lets the lease end where the server cannot be reached."""
        with suppress(ParamdError):
            # What is suppressed costs the others one lease of waiting, and nobody anything else.
            self.leave(_LEAVE_SECONDS)

    def _ask(self, timeout: float) -> pb.HeartbeatResponse:
        request = pb.HeartbeatRequest(identity=self._connection.operations.identity)
        return self._connection.unary("Heartbeat", request, pb.HeartbeatResponse, timeout=timeout)

    def beat(self, ended: threading.Event) -> bool:
        """Renews the lease. Gives whether to go on."""
        try:
            self._ask(self._lease / _BEATS)
        except (LeaseEndedError, WorkerNotJoinedError) as err:
            if not ended.is_set():
                # The next push of this worker is refused with the same words.
                _log.warning("paramd: %s", err)
            return False
        except SessionClosedError:
            return False
        except (ServerUnavailable, DeadlineExceededError):
            # The next beat may come through; if none does, the lease ends.
            return True
        except (PermissionDeniedError, TLSError, UnauthenticatedError) as err:
            # The certificate or the token may be replaced in time.
            _log.warning("paramd: no heartbeat: %s", err)
            return True
        return True


def _beat(membership: weakref.ref[Membership], ended: threading.Event, pause: float) -> None:
    while not ended.wait(pause):
        alive = membership()
        if alive is None or not alive.beat(ended):
            return
        del alive
