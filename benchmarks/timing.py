"""Timing of two calls in turn, so that a drift of the machine meets both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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


def in_turn(calls: dict[str, Call], *, repeats: int, warm_up: int = 3) -> dict[str, Spread]:
    """Times each call that often, one after the other in rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(warm_up + repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_number >= warm_up:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: spread_of(each) for name, each in times.items()}


def spread_of(times: list[float]) -> Spread:
    """Percentiles of times in milliseconds."""
    low, median, high = np.percentile(times, (10, 50, 90))
    return Spread(float(median), float(low), float(high), len(times))
