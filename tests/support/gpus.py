"""Whether tests that need a GPU can run here."""

from __future__ import annotations

import pytest

from paramd_server.arrays.cuda.runtime import load_runtime
from paramd_server.arrays.kinds import DeviceError

__all__ = ["gpu_or_skip"]


def gpu_or_skip() -> int:
    """Skips the test where there is no GPU, or no CuPy for it; says why.

    Returns:
        How many GPUs there are.
    """
    try:
        return load_runtime()[1]
    except DeviceError as err:
        pytest.skip(f"needs a GPU and CuPy: {err}")
