"""gRPC's fork support is on before gRPC is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["paramd", "paramd.wire.status"])
def test_importing_anything_of_paramd_turns_fork_support_on(module: str) -> None:
    program = (
        f"import {module}\nfrom paramd.transport import fork_support\nassert fork_support.ENABLED\n"
    )
    environment = {
        key: value for key, value in os.environ.items() if key != "GRPC_ENABLE_FORK_SUPPORT"
    }
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)


@pytest.mark.parametrize(("value", "enabled"), [("0", False), ("true", True), ("y", False)])
def test_what_the_user_set_stays(value: str, enabled: bool) -> None:
    program = (
        "import os, paramd\n"
        "from paramd.transport import fork_support\n"
        f"assert fork_support.ENABLED is {enabled}\n"
        f"assert os.environ['GRPC_ENABLE_FORK_SUPPORT'] == {value!r}\n"
    )
    environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": value}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
