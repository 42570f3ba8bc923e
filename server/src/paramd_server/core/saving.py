"""Reading parameters for a file: the mean over the copies, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from paramd.spec import TensorHead
from paramd_server.arrays.backend import Buffer, HostArray
from paramd_server.core.initialization import finish_deferred
from paramd_server.core.mean import mean_of_arrays, mean_of_buffers
from paramd_server.core.registry import Registry
from paramd_server.core.stored_parameter import StoredParameter

__all__ = ["SavedTensor", "open_saved"]

_BLOCK_BYTES: Final = 1 << 20
_BLOCK_IDS: Final = 1 << 17


@dataclass(frozen=True)
class SavedTensor:
    """One tensor of a file to be.

    Attributes:
        head: describes it.
        blocks: gives its payload, as C-contiguous arrays one after the other.
    """

    head: TensorHead
    blocks: Callable[[], Iterator[HostArray]]


@contextmanager
def open_saved(registry: Registry, names: Sequence[str]) -> Iterator[list[SavedTensor]]:
    """Opens parameters for saving, for as long as the block runs.

    Dense values are those of one moment. A row_sparse table is read in blocks of rows, each of
    one moment.

    Raises:
        NotInitializedError, DeferredInitializationError, ParameterNotFoundError.
    """
    with ExitStack() as stack:
        saved = []
        with registry.hold(names) as parameters:
            for parameter in parameters:
                finish_deferred(parameter)
                parameter.check_initialized()
            for parameter in parameters:
                if parameter.current.stype == "row_sparse":
                    saved.append(_open_table(parameter))
                else:
                    saved.append(_open_dense(parameter, stack))
        yield saved


def _open_dense(parameter: StoredParameter, stack: ExitStack) -> SavedTensor:
    buffers = list(parameter.copies.values())
    for buffer in buffers:
        buffer.readers += 1
        stack.callback(_release, parameter, buffer)

    def blocks() -> Iterator[HostArray]:
        if len(buffers) > 1:
            yield from mean_of_buffers(parameter, buffers)
        else:
            yield from parameter.backend(buffers[0].context).pieces(buffers[0])

    head = TensorHead(
        parameter.name, parameter.shape, parameter.current.dtype, version=parameter.version
    )
    return SavedTensor(head, blocks)


def _release(parameter: StoredParameter, buffer: Buffer) -> None:
    with parameter.lock:
        buffer.readers -= 1


def _open_table(parameter: StoredParameter) -> SavedTensor:
    head = TensorHead(
        parameter.name,
        parameter.shape,
        parameter.current.dtype,
        stype="row_sparse",
        num_rows=parameter.shape[0],
        version=parameter.version,
    )
    num_rows = head.num_rows
    row_bytes = head.size_bytes // max(1, num_rows) - 8
    step = max(1, _BLOCK_BYTES // max(1, row_bytes))

    def blocks() -> Iterator[HostArray]:
        for begin in range(0, num_rows, _BLOCK_IDS):
            yield np.arange(begin, min(begin + _BLOCK_IDS, num_rows), dtype=np.int64)
        for begin in range(0, num_rows, step):
            yield _table_block(parameter, begin, min(begin + step, num_rows))

    return SavedTensor(head, blocks)


def _table_block(parameter: StoredParameter, begin: int, end: int) -> HostArray:
    with parameter.lock:
        parameter.check_not_deleted()
        row_size = math.prod(parameter.shape[1:])
        rows = [
            parameter.backend(context).flat(buffer, begin * row_size, end * row_size)
            for context, buffer in parameter.copies.items()
        ]
        mean = mean_of_arrays(rows)
        # The mean of one array is the array itself, which changes once the lock is gone.
        return mean.copy() if len(rows) == 1 else mean
