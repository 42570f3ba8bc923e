"""Reads of one step over all shards.

Shards carry a step out one shortly after the other, so that a reader who asks in between gets
values of two steps. Each value says which step of its trainer it is of, so the reader sees that,
and asks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from paramd.errors import TornReadError
from paramd.transport.protocols import Received

__all__ = ["is_whole", "whole_step"]

# A step takes milliseconds to reach all shards. A cluster that never stands still for the time of a
# read is told to the caller.
_TRIES: Final = 50
_PAUSE_SECONDS: Final = 0.002


def is_whole(received: Mapping[int, Received]) -> bool:
    """Whether all values that came are of one step of their trainers."""
    steps: dict[int, int] = {}
    for values in received.values():
        for head, _ in values:
            if head.step is not None:
                trainer, number = head.step
                if steps.setdefault(trainer, number) != number:
                    return False
    return True


def whole_step(read: Callable[[], dict[int, Received]]) -> dict[int, Received]:
    """Reads until all values are of one step of their trainers.

    Args:
        read: asks all shards at the same time.

    Raises:
        TornReadError: where they never are.
    """
    for attempt in range(_TRIES):
        received = read()
        if is_whole(received):
            return received
        time.sleep(_PAUSE_SECONDS * (attempt % 5))
    raise TornReadError(
        f"the shards were read {_TRIES} times, and each time between two steps: pull fewer "
        "parameters at a time, or with a step (pull=)"
    )
