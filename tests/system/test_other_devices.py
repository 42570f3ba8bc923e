"""Other backends serve everything that the tests ask for, and only have to be registered.

A part of the system tests runs again: on NumPy under a name that no file of the server has a
backend for, and on the GPU backend over what stands in for CUDA. All of them do so with
`pytest --devices numpy --context 'cpu_shared(0)' tests/system`, and with emulated and gpu(0).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import paramd
from paramd.errors import ContextNotAvailableError
from tests.support.contexts import CONTEXT_VARIABLE, DEVICES_VARIABLE
from tests.support.emulated_cuda import have_compiler
from tests.support.server_process import serve

pytestmark = [pytest.mark.real_devices, pytest.mark.slow, pytest.mark.timeout(300)]

# Values, rows, training, views of arrays, and what servers keep when they stop.
SUITE = (
    "tests/system/parameters/test_values.py",
    "tests/system/parameters/test_row_sparse.py",
    "tests/system/training/test_paths.py",
    "tests/system/training/test_restart.py",
    "tests/system/test_arrays.py",
)
ONE_SERVER = "not shards"
# A suite that skips itself would pass, too.
AT_LEAST = 100


@pytest.mark.parametrize(
    ("devices", "context"),
    [
        ("numpy", "cpu_shared(0)"),
        pytest.param(
            "emulated",
            "gpu(0)",
            marks=pytest.mark.skipif(not have_compiler(), reason="needs g++ for kernels"),
        ),
    ],
)
def test_system_tests_pass_on_other_devices(devices: str, context: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    options = ["--devices", devices, "--context", context, "-k", ONE_SERVER]
    theirs = (CONTEXT_VARIABLE, DEVICES_VARIABLE)
    ours = {key: value for key, value in os.environ.items() if key not in theirs}
    done = subprocess.run(
        [*command, *options, *SUITE], env=ours, capture_output=True, text=True, check=False
    )
    print(done.stdout[-5000:], done.stderr[-5000:])
    assert done.returncode == 0
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= AT_LEAST
    assert "skipped" not in done.stdout


def test_servers_lack_its_contexts_where_it_is_not_registered(tmp_path: Path) -> None:
    with serve(tmp_path) as server, paramd.connect(server.address):
        parameter = paramd.Parameter("w", shape=(2,))
        with pytest.raises(ContextNotAvailableError, match=r"cpu_shared\(0\)"):
            parameter.initialize(ctx=paramd.Context("cpu_shared", 0))
