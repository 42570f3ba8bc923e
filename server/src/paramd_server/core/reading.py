"""Reads of values and gradients: never torn, and never in a writer's way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

from paramd.context import Context
from paramd.errors import DTypeMismatchError, WrongStorageTypeError
from paramd.spec import Selector, Shape, TensorHead, check_region
from paramd_server.arrays.backend import Buffer, HostArray, Pieces, flat_range
from paramd_server.core.initialization import finish_deferred
from paramd_server.core.parts import check_part
from paramd_server.core.registry import Registry
from paramd_server.core.row_sparse import IntArray, RowSparseGradient, check_ids
from paramd_server.core.stored_parameter import StoredParameter

__all__ = ["Reading", "RowReader", "open_gradients", "open_values"]


@dataclass(frozen=True)
class Reading:
    """One array that is being read.

    Attributes:
        head: describes the payload.
        parts: the payload: C-contiguous host arrays, one after the other, each valid until the
            next is asked for. Of at most 1 MiB there is one.
    """

    head: TensorHead
    parts: Iterable[HostArray]


@contextmanager
def open_values(
    registry: Registry, selectors: Sequence[Selector], current: Context
) -> Iterator[list[Reading]]:
    """Opens values for reading, all of the same moment, for as long as the block runs.

    Raises:
        What stands at GetData in parameter_service.proto.
    """

    def find(parameter: StoredParameter, context: Context) -> Buffer:
        return parameter.copies[context]

    def check(parameter: StoredParameter) -> None:
        if parameter.current.stype != "default":
            raise WrongStorageTypeError(
                f"Cannot return a copy of Parameter '{parameter.name}' via data() because its "
                f"storage type is {parameter.current.stype}. Please use row_sparse_data() instead.",
                parameter=parameter.name,
            )

    with _open(registry, selectors, current, check, find, gradient=False) as readings:
        yield readings


@contextmanager
def open_gradients(
    registry: Registry, selectors: Sequence[Selector], current: Context
) -> Iterator[list[Reading]]:
    """Opens gradients for reading, as open_values does values.

    Raises:
        What stands at GetGrad in parameter_service.proto.
    """

    def find(parameter: StoredParameter, context: Context) -> Buffer | RowSparseGradient:
        if parameter.current.grad_stype == "default":
            return parameter.gradients[context]
        return parameter.sparse_gradients[context]

    def check(parameter: StoredParameter) -> None:
        finish_deferred(parameter)
        parameter.check_gradient()

    with _open(registry, selectors, current, check, find, gradient=True) as readings:
        yield readings


@contextmanager
def _open(
    registry: Registry,
    selectors: Sequence[Selector],
    current: Context,
    check: Callable[[StoredParameter], None],
    find: Callable[[StoredParameter, Context], Buffer | RowSparseGradient],
    *,
    gradient: bool,
) -> Iterator[list[Reading]]:
    readings: list[Reading] = []
    held = _Held()
    try:
        with registry.hold([selector.name for selector in selectors]) as parameters:
            for parameter, selector in zip(parameters, selectors, strict=True):
                check_part(parameter.current, selector.part)
                check(parameter)
                finish_deferred(parameter)
                context = parameter.resolve(selector.context, current)
                found = find(parameter, context)
                head = _head(parameter, context, gradient=gradient)
                if isinstance(found, RowSparseGradient):
                    readings.append(_read_sparse(parameter, found, head, selector, held))
                else:
                    readings.append(_read_dense(parameter, found, head, selector, held))
        yield readings
    finally:
        held.close()


class _Held:
    """What readings hold until they are closed. No ExitStack, which takes longer for small ones."""

    def __init__(self) -> None:
        self._read: list[tuple[Pieces, Buffer, StoredParameter | None]] = []

    def add(self, pieces: Pieces, buffer: Buffer, parameter: StoredParameter | None = None) -> None:
        """Holds a buffer for as long as its pieces are taken.

        Args:
            pieces: of it.
            buffer: stays in the account, and is no spare that the next write fills.
            parameter: whose buffer it is, counted as being read; None for one of this reading.
        """
        if parameter is not None:
            buffer.readers += 1
        self._read.append((pieces, buffer, parameter))

    def close(self) -> None:
        """Lets go of everything, also where a device fails on the way."""
        failure: Exception | None = None
        while self._read:
            pieces, buffer, parameter = self._read.pop()
            try:
                pieces.close()
            except Exception as err:
                failure = err
            if parameter is not None:
                with parameter.lock:
                    buffer.readers -= 1
        if failure is not None:
            raise failure


def _head(parameter: StoredParameter, context: Context, *, gradient: bool) -> TensorHead:
    return TensorHead(
        name=parameter.name,
        shape=parameter.shape,
        dtype=parameter.current.dtype,
        context=context,
        version=parameter.gradient_version if gradient else parameter.version,
        step=None if gradient else parameter.step,
    )


def _read_dense(
    parameter: StoredParameter,
    buffer: Buffer,
    head: TensorHead,
    selector: Selector,
    held: _Held,
) -> Reading:
    backend = parameter.backend(buffer.context)
    begin, end = 0, math.prod(parameter.shape)
    if selector.region is not None:
        shape = check_region(parameter.name, selector.region, parameter.shape)
        head = replace(head, shape=shape)
        span = flat_range(selector.region, parameter.shape)
        if span is None:
            # A counted copy, as large as the part; then the original is free again.
            part = backend.part(buffer, selector.region)
            pieces = backend.pieces(part)
            held.add(pieces, part)
            return Reading(head, pieces)
        begin, end = span
    pieces = backend.pieces(buffer, begin, end)
    held.add(pieces, buffer, parameter)
    return Reading(head, pieces)


def _read_sparse(
    parameter: StoredParameter,
    gradient: RowSparseGradient,
    head: TensorHead,
    selector: Selector,
    held: _Held,
) -> Reading:
    if selector.region is not None:
        raise WrongStorageTypeError(
            f"Parameter '{parameter.name}': parts of a row_sparse gradient cannot be read; fetch "
            "all of it",
            parameter=parameter.name,
        )
    pieces = parameter.backend(gradient.rows.context).pieces(gradient.rows)
    held.add(pieces, gradient.rows)
    head = replace(head, stype="row_sparse", num_rows=len(gradient.ids))
    return Reading(head, chain((gradient.ids,), pieces))


class RowReader:
    """Pulls rows of one row_sparse parameter, block by block.

    Args:
        registry: of the server.
        name: of the parameter.
        context: as in Selector.
        current: the caller's current context.

    Raises:
        What stands at PullRowSparse in parameter_service.proto.
    """

    def __init__(
        self, registry: Registry, name: str, context: Context | None, current: Context
    ) -> None:
        with registry.hold([name]) as parameters:
            self._parameter = parameters[0]
            self._check_stype()
            finish_deferred(self._parameter)
            self._context = self._parameter.resolve(context, current)
            self._last_id = -1
            self._memory: HostArray | None = None
            self.head = _head(self._parameter, self._context, gradient=False)

    @property
    def row_shape(self) -> Shape:
        """The shape of one row."""
        return self.head.shape[1:]

    def blocks(self, ids: IntArray, block_bytes: int) -> Iterator[HostArray]:
        """Gathers rows in blocks, each atomically.

        Args:
            ids: sorted and unique, after those of the call before.
            block_bytes: about the size of a block, which has one row at least.

        Returns:
            Host arrays of shape (n, *row_shape), C-contiguous, in the order of the ids; each valid
            until the next is asked for.

        Raises:
            RowIdError, InvalidStreamError: for wrong ids.
            ParameterNotFoundError, ContextWithoutCopyError, DTypeMismatchError: where it went,
                or was cast, meanwhile.
            MemoryLimitError: where the memory for a block does not fit.
        """
        check_ids(self._parameter.name, ids, self.head.shape[0], after=self._last_id)
        if not ids.size:
            return
        self._last_id = int(ids[-1])
        row_bytes = math.prod(self.row_shape) * self.head.dtype.itemsize
        step = min(max(1, block_bytes // max(1, row_bytes)), len(ids))
        if self._memory is None or len(self._memory) < step:
            backend = self._parameter.backend(self._context)
            self._memory = backend.row_memory((step, *self.row_shape), self.head.dtype)
        for begin in range(0, len(ids), step):
            block = ids[begin : begin + step]
            rows = self._memory[: len(block)]
            self._take(block, rows)
            yield rows

    def _take(self, ids: IntArray, out: HostArray) -> None:
        parameter = self._parameter
        with parameter.lock:
            parameter.check_not_deleted()
            buffer = parameter.copies[parameter.resolve(self._context, self._context)]
            if buffer.dtype != self.head.dtype:
                raise DTypeMismatchError(
                    f"Parameter '{parameter.name}' was cast during the pull, from "
                    f"{self.head.dtype} to {buffer.dtype}",
                    parameter=parameter.name,
                )
            parameter.backend(self._context).take_rows(buffer, ids, out)

    def _check_stype(self) -> None:
        parameter = self._parameter
        if parameter.current.stype != "row_sparse":
            raise WrongStorageTypeError(
                f"Cannot return a copy of Parameter '{parameter.name}' via row_sparse_data() "
                f"because its storage type is {parameter.current.stype}. Please use data() "
                "instead.",
                parameter=parameter.name,
            )
