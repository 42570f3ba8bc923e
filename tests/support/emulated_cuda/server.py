"""`python -m tests.support.emulated_cuda.server ARGUMENTS`: paramd-server with emulated GPUs.

The arguments are those of paramd-server. The machine is described by the environment:
EMULATED_CUDA_DEVICES, EMULATED_CUDA_MEMORY (bytes of each device) and EMULATED_CUDA_SEED.
EMULATED_CUDA_CACHE may name a directory for compiled kernels, which processes of one test session
then share.
The shards of --shards are such servers, too, and so is what starts again from another snapshot.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from paramd_server.arrays.cuda import driver
from tests.support.emulated_cuda.driver import emulated_driver
from tests.support.emulated_cuda.emulator import Emulator
from tests.support.emulated_cuda.stand_in import install
from tests.support.other_devices.processes import variables_for_processes

__all__ = ["main"]


@contextmanager
def _machine_of_the_environment() -> Iterator[Emulator]:
    with install(
        num_devices=int(os.environ.get("EMULATED_CUDA_DEVICES", "2")),
        memory_bytes=int(os.environ.get("EMULATED_CUDA_MEMORY", str(1 << 30))),
        seed=int(os.environ.get("EMULATED_CUDA_SEED", "0")),
    ) as emulator:
        yield emulator


def main() -> None:
    """Serves; ends the process with an error where there are faults."""
    if "paramd_server.arrays.cuda.kinds" in sys.modules:
        raise RuntimeError("the server has looked for a driver already")
    with (
        _machine_of_the_environment() as emulator,
        # Before anything has taken the function out of its module.
        mock.patch.object(driver, "find_driver", functools.partial(emulated_driver, emulator)),
    ):
        from paramd_server.__main__ import main as serve

        os.environ.update(variables_for_processes(server="tests.support.emulated_cuda.server"))
        try:
            serve(prog_name="paramd-server")
        except SystemExit as end:
            if end.code:
                raise


if __name__ == "__main__":
    main()
