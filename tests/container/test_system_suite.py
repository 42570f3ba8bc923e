"""The system suite passes against servers in containers, unchanged."""

from __future__ import annotations

import re
import sys

import pytest

from tests.container.conftest import StartCluster
from tests.container.engine import run

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

# The others start servers of their own, look into the server's process, or send hostile messages on
# behalf of workers who never leave.
SUITE = (
    "tests/system/parameters",
    *(
        f"tests/system/training/test_{name}.py"
        for name in ("paths", "states", "synchrony", "workers", "waiting")
    ),
)
# Of some 300: a suite that skips itself would pass, too.
AT_LEAST = 250


@pytest.mark.parametrize("num_shards", [1])
def test_system_suite_passes(start_cluster: StartCluster, num_shards: int) -> None:
    cluster = start_cluster(num_shards=num_shards, server=("--memory-limit", "64M"))
    output = run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUITE],
        environment={"PARAMD_TEST_TARGET": cluster.published},
        timeout_s=600,
    )
    passed = re.search(r"(\d+) passed", output)
    assert passed is not None, output
    print(output[-2000:])
    assert int(passed[1]) >= AT_LEAST
