"""A `libcuda.so.1` that says what a test wants, compiled from C: the real calls go to it.

It has what `paramd_server.arrays.cuda.driver` asks for and nothing else: who made a context on a
GPU would find no function for it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

GIB: Final = 1 << 30
NO_DEVICE: Final = 100
STUB_LIBRARY: Final = 34
UNKNOWN: Final = 999

# FAKE_CUDA_GPUS of them, called "Fake GPU 0" and so on, with 16, 17, ... GiB. FAKE_CUDA_INIT is
# what cuInit gives, FAKE_CUDA_VERSION the version.
_SOURCE: Final = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* The process that called cuInit: a driver does not work in one that was forked from it. */
static int owner = 0;

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

int cuInit(unsigned int flags) {
    int result = flags ? 1 : number("FAKE_CUDA_INIT", 0);
    if (owner && owner != getpid()) return 3;
    if (result == 0) owner = getpid();
    return result;
}

int cuDriverGetVersion(int *version) {
    *version = number("FAKE_CUDA_VERSION", 12040);
    return 0;
}

int cuDeviceGetCount(int *count) {
    if (owner != getpid()) return 3;
    *count = number("FAKE_CUDA_GPUS", 2);
    return 0;
}

int cuDeviceGet(int *device, int ordinal) {
    if (owner != getpid()) return 3;
    if (ordinal < 0 || ordinal >= number("FAKE_CUDA_GPUS", 2)) return 101;
    *device = 40 + ordinal;
    return 0;
}

int cuDeviceGetName(char *name, int size, int device) {
    if (owner != getpid()) return 3;
    if (device < 40 || snprintf(name, size, "Fake GPU %d", device - 40) >= size) return 1;
    return 0;
}

int cuDeviceTotalMem_v2(size_t *total, int device) {
    if (owner != getpid()) return 3;
    if (device < 40) return 101;
    *total = ((size_t)16 + device - 40) << 30;
    return 0;
}

int cuGetErrorName(int result, const char **name) {
    *name = result == 999 ? "CUDA_ERROR_UNKNOWN" : 0;
    return *name ? 0 : 1;
}
"""


def build_driver(directory: Path, source: str = _SOURCE) -> Path:
    """Compiles the library into a directory, for LD_LIBRARY_PATH; skips without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make a driver with")
    directory.mkdir(parents=True, exist_ok=True)
    library = directory / "libcuda.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(library), "-x", "c", "-"],
        input=source,
        text=True,
        check=True,
        timeout=60,
    )
    return library


def install_cupy(
    directory: Path, distribution: str, version: str, *, module: str = 'raise ImportError("broken")'
) -> None:
    """Makes a directory, for PYTHONPATH, look as though CuPy were installed there.

    Args:
        directory: that is made.
        distribution: such as 'cupy-cuda12x'.
        version: of it.
        module: what `cupy/__init__.py` holds.
    """
    (directory / "cupy").mkdir(parents=True)
    (directory / "cupy" / "__init__.py").write_text(module + "\n")
    info = directory / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    )


def hide_cupy(directory: Path) -> None:
    """Makes a directory, for PYTHONPATH, with which no CuPy is found, wherever one is installed."""
    directory.mkdir(parents=True)
    (directory / "sitecustomize.py").write_text('import sys\nsys.modules["cupy"] = None\n')
