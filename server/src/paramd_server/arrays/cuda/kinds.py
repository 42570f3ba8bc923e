"""GPU contexts and pinned host memory, as kinds of devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from paramd_server.arrays.kinds import BackendKind

__all__ = ["CUDA_KINDS"]

CUDA_KINDS: Final[Sequence[BackendKind]] = ()
