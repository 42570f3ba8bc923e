"""Timing of calls in turn, so that a drift of the machine meets all of them.

NumPy and the standard library only: the peers' programs use it in their own environments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Call", "Spread", "in_turn", "spread_of"]

Call = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """Times of one call.

    Attributes:
        median_ms: the median.
        low_ms: the 10th percentile.
        high_ms: the 90th percentile.
        repeats: how many were counted.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int


def in_turn(
    calls: Mapping[str, Call], *, repeats: int, warm_up: int = 3, burst: int = 1
) -> dict[str, Spread]:
    """Times each call that often, one after the other in rounds.

    Args:
        calls: by name.
        repeats: how many times of each are counted, rounded up to whole bursts.
        warm_up: rounds before, which are not counted.
        burst: how often a call is made in each of its turns. With more than one, a call that is not
            counted comes before them, so that small calls find what a loop of them would find in
            the processor's caches, and not what the others left there.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(warm_up + -(-repeats // burst)):
        for name, call in calls.items():
            if burst > 1:
                call()
            for _ in range(burst):
                start = time.perf_counter()
                call()
                if round_number >= warm_up:
                    times[name].append((time.perf_counter() - start) * 1e3)
    return {name: spread_of(each) for name, each in times.items()}


def spread_of(times: Sequence[float]) -> Spread:
    """Percentiles of times in milliseconds."""
    low, median, high = np.percentile(times, (10, 50, 90))
    return Spread(float(median), float(low), float(high), len(times))
