"""The system suite passes against servers in containers, unchanged."""

from __future__ import annotations

import re
import sys

import pytest

from tests.container.conftest import StartCluster
from tests.container.engine import run
from tests.support.clusters import SPLIT_ELEMENTS

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

# The others start servers of their own, look into the server's process, or send hostile messages on
# behalf of workers who never leave.
ON_SHARDS = (
    "tests/system/parameters",
    *(
        f"tests/system/training/test_{name}.py"
        for name in ("paths", "states", "synchrony", "workers")
    ),
)
ON_ONE = (*ON_SHARDS, "tests/system/training/test_waiting.py")
# Of some 300: a suite that skips itself would pass, too.
AT_LEAST = 250


@pytest.mark.parametrize(("num_shards", "suite"), [(1, ON_ONE), (2, ON_SHARDS)])
def test_system_suite_passes(
    start_cluster: StartCluster, num_shards: int, suite: tuple[str, ...]
) -> None:
    # With more than one nearly every parameter is spread.
    options = () if num_shards == 1 else ("--split-elements", str(SPLIT_ELEMENTS))
    cluster = start_cluster(num_shards=num_shards, server=("--memory-limit", "64M", *options))
    output = run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *suite],
        environment={"PARAMD_TEST_TARGET": cluster.published},
        timeout_s=600,
    )
    passed = re.search(r"(\d+) passed", output)
    assert passed is not None, output
    print(output[-2000:])
    assert int(passed[1]) >= AT_LEAST
