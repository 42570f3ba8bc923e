"""The kernels for GPUs, run on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from paramd_server.arrays.cuda.source import kernel_source
from tests.support.emulated_cuda.compiler import compile_kernel, have_compiler

__all__ = ["address", "launch", "needs_compiler", "same"]

Array = np.ndarray[Any, Any]

needs_compiler = pytest.mark.skipif(
    not have_compiler(), reason="no C++ compiler in PATH, which stands in for a GPU's"
)


def address(array: Array | None, first: int = 0) -> np.uintp:
    """A pointer to an element of an array, which need not be inside; null for None."""
    if array is None:
        return np.uintp(0)
    return np.uintp(array.ctypes.data + first * array.itemsize)


def launch(
    kernel: str,
    types: Mapping[str, np.dtype[Any]],
    *args: Any,
    mode: str = "",
    threads: int = 96,
    order: int = 0,
) -> None:
    """Runs a kernel to its end.

    Args:
        kernel: as for `kernel_source`.
        types: as for `kernel_source`.
        args: NumPy scalars.
        mode: as for `kernel_source`.
        threads: a multiple of 32.
        order: of the threads, one after the other: 0, or the seed of another.
    """
    source = kernel_source(kernel, types, mode=mode)
    run = compile_kernel(source.code, source.function, source.options)
    run((threads // 32,), (32,), args, order=order)


def same(left: Array, right: Array) -> bool:
    """Whether two arrays have the same bits, but for those of NaN, which is one everywhere."""
    assert left.dtype == right.dtype
    assert left.shape == right.shape
    bits = np.dtype(f"u{left.itemsize}")
    equal = np.ascontiguousarray(left).view(bits) == np.ascontiguousarray(right).view(bits)
    if left.dtype.kind in "fV":
        # ml_dtypes warns of the NaN that it is asked about.
        with np.errstate(invalid="ignore"):
            equal |= np.isnan(left) & np.isnan(right)
    return bool(equal.all())
