"""Reads of one step over all shards.

Shards carry a step out one shortly after the other, so that a reader who asks in between gets
values of two steps. Each value says which step of its trainer it is of, so the reader sees that,
and asks again; where that does not help, it has the coordinator let the next step wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from paramd.errors import TornReadError
from paramd.transport.protocols import Received
from paramd.transport.training import TrainingCalls

__all__ = ["is_whole", "whole_step"]

# A step takes milliseconds to reach all shards. Where workers step all the time, the coordinator is
# asked to pause.
_FREE_TRIES: Final = 5
_PAUSE_SECONDS: Final = 0.002
# How long a reader goes on trying.
_PATIENCE_SECONDS: Final = 30.0


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


def whole_step(
    read: Callable[[], dict[int, Received]], coordinator: TrainingCalls
) -> dict[int, Received]:
    """Reads until all values are of one step of their trainers.

    Args:
        read: asks all shards at the same time.
        coordinator: can let steps wait.

    Raises:
        TornReadError: where they never are.
    """
    for attempt in range(_FREE_TRIES):
        received = read()
        if is_whole(received):
            return received
        time.sleep(_PAUSE_SECONDS * attempt)
    began = time.monotonic()
    while time.monotonic() - began < _PATIENCE_SECONDS:
        held = coordinator.hold_steps()
        if not held:
            time.sleep(_PAUSE_SECONDS * 5)
            continue
        try:
            until = time.monotonic() + held
            while time.monotonic() < until:
                received = read()
                if is_whole(received):
                    return received
                time.sleep(_PAUSE_SECONDS)
        finally:
            coordinator.release_steps()
    raise TornReadError(
        f"the shards were read for {_PATIENCE_SECONDS:g} s, and each time between two steps: pull "
        "fewer parameters at a time, or with a step (pull=)"
    )
