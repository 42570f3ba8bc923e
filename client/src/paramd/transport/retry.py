"""When a failed call is sent again, and what becomes of gRPC's errors."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any, Final

import grpc

from paramd.errors import (
    DeadlineExceededError,
    ParamdError,
    ServerUnavailable,
    StalledError,
)
from paramd.wire.status import DETAIL_KEY, decode_error

__all__ = ["Backoff", "RetryPolicy", "error_of", "is_retried"]

# How gRPC itself words a cut connection under the codes INTERNAL and UNKNOWN.
_CUT_WORDS: Final = ("RST_STREAM", "Stream removed", "GOAWAY", "Connection reset")


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    Attributes:
        first: upper bound of the first pause, in seconds.
        factor: by which the bound grows.
        longest: bound of every pause, in seconds.
    """

    first: float = 0.05
    factor: float = 2.0
    longest: float = 2.0

    def pause(self, failures: int) -> float:
        """A random pause in seconds after that many failures (from 1)."""
        bound = min(self.longest, self.first * self.factor ** min(failures - 1, 32))
        return random.uniform(bound / 10, bound)


class Backoff:
    """The patience of one call.

    Args:
        policy: the pauses.
        limit: seconds from now, or from the last success to get further, to give up after.
    """

    def __init__(self, policy: RetryPolicy, limit: float) -> None:
        self._policy = policy
        self._limit = limit
        self._failures = 0
        self._furthest = 0
        self._give_up_at = time.monotonic() + limit

    def remaining(self) -> float:
        """Seconds that are left, at least a millisecond."""
        return max(self._give_up_at - time.monotonic(), 0.001)

    def got_to(self, moved: int) -> None:
        """Renews the patience if an attempt got further than every one before it.

        A stream that takes hours is restarted as long as it gains; one that breaks at the same
        place again and again is given up.
        """
        if moved > self._furthest:
            self._furthest = moved
            self._failures = 0
            self._give_up_at = time.monotonic() + self._limit

    def next_pause(self) -> float | None:
        """Seconds to wait before the next attempt; None to give up."""
        self._failures += 1
        pause = self._policy.pause(self._failures)
        return pause if time.monotonic() + pause < self._give_up_at else None


def _detail_of(error: grpc.RpcError) -> bytes | None:
    metadata: Any = error.trailing_metadata()
    for key, value in metadata or ():
        if key == DETAIL_KEY:
            return value if isinstance(value, bytes) else None
    return None


def error_of(error: grpc.RpcError, method: str, target: str) -> ParamdError:
    """The exception of ours for one of gRPC's.

    Args:
        error: a finished call that failed.
        method: the RPC, for the message.
        target: the server, for the message.
    """
    code: grpc.StatusCode = error.code()
    text = error.details() or code.name
    detail = _detail_of(error)
    if detail is not None:
        return decode_error(code, detail, text)
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) and any(
        words in text for words in _CUT_WORDS
    ):
        code = grpc.StatusCode.UNAVAILABLE
    return decode_error(code, None, f"{method} at {target}: {text}")


def is_retried(error: ParamdError) -> bool:
    """Whether the same call may succeed later.

    A lost connection, a server that restarts, a stream in which nothing moves, a deadline of one
    attempt: what was carried out all the same is not carried out again.
    """
    return isinstance(error, ServerUnavailable | StalledError | DeadlineExceededError)
