"""The examples, run as a user runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_digits_are_learned_although_a_worker_is_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "examples.digits"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Twice two workers, and the one that came back: with its rank, and the others' clock.
    # Lines of two processes may meet in one.
    joined = re.findall(r"(worker-\w): rank (\d), begins at clock (\d+)", done.stdout)
    assert len(joined) == 5, done.stdout
    before = {name: rank for name, rank, _ in joined[2:4]}
    name, rank, clock = joined[4]
    assert rank == before[name]
    assert int(clock) > 0
    reached = re.findall(r"network on held-out digits: (\S+)", done.stdout)
    again = re.findall(r"loaded from \S+ into a fresh server: (\S+)", done.stdout)
    assert again == [reached[1]] * 2
    assert min(map(float, reached)) >= 0.93
