"""Writes: staged while their stream comes in, checked whole, committed in one step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from paramd.context import Context
from paramd.errors import (
    BroadcastError,
    InvalidStreamError,
    MemoryLimitError,
    ShapeMismatchError,
    WrongStorageTypeError,
)
from paramd.spec import ParameterSpec, Shape, TensorHead, Version, check_region
from paramd_server.arrays.backend import Buffer, HostArray
from paramd_server.core.parts import check_part
from paramd_server.core.registry import Registry
from paramd_server.core.row_sparse import check_ids
from paramd_server.core.shared_copies import changing
from paramd_server.core.stored_parameter import StoredParameter

__all__ = [
    "Action",
    "StagedWrite",
    "TensorStage",
    "WriteStage",
    "check_broadcast",
    "check_dense",
    "check_rows",
    "check_staged_ids",
    "naming",
    "write_dense",
    "write_rows",
]

# A step of a commit that has been prepared and cannot fail any more.
Action = Callable[[], None]


@dataclass(frozen=True)
class StagedWrite:
    """One tensor that has come in, or is coming in.

    Attributes:
        head: describes it.
        value: host buffer of the dense value, or of the rows.
        ids: host buffer of the row ids, int64; None for a dense value.
        checked: of which parameter, spec and contexts it was checked that it may be written.
    """

    head: TensorHead
    value: Buffer
    ids: Buffer | None
    checked: tuple[StoredParameter, ParameterSpec, tuple[Context, ...]] | None = None


class TensorStage(ABC):
    """Collects the tensors of one stream.

    Args:
        registry: of the server.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._writes: list[StagedWrite] = []
        self._placed: dict[str, set[Context | None]] = {}

    def place(self, head: TensorHead) -> list[HostArray]:
        """Checks a header and makes room for its payload.

        Returns:
            The host arrays that the payload fills in turn.

        Raises:
            What stands at SetData and SetGrad in parameter_service.proto. Nothing has been
            allocated then.
        """
        there = self._placed.get(head.name, set())
        if there and (head.context is None or {head.context, None} & there):
            raise InvalidStreamError(
                f"Parameter '{head.name}' comes twice in one stream", parameter=head.name
            )
        with self._registry.hold([head.name]) as parameters:
            (parameter,) = parameters
            self._check(parameter, head)
            checked = parameter, parameter.current, tuple(parameter.copies)
            shared = self._is_read_in_place(parameter)
        devices = self._registry.devices
        ids: Buffer | None = None
        shape, dtype = head.shape, head.dtype
        with naming(head.name):
            if head.stype == "row_sparse":
                ids = devices.stage((head.num_rows,), np.dtype(np.int64))
                shape = (head.num_rows, *head.shape[1:])
            elif head.two_bit_threshold:
                shape, dtype = (head.size_bytes,), np.dtype(np.uint8)
            value = devices.stage(shape, dtype, shared=shared)
        self._writes.append(StagedWrite(head, value, ids, checked))
        self._placed.setdefault(head.name, set()).add(head.context)
        arrays = [] if ids is None else [devices.staged_array(ids)]
        return [*arrays, devices.staged_array(value)]

    @property
    def names(self) -> list[str]:
        """The parameters whose tensors have been placed."""
        return [write.head.name for write in self._writes]

    def _is_read_in_place(self, _parameter: StoredParameter) -> bool:
        """Whether what is staged becomes a value that processes of this host read in place."""
        return False

    def _check(self, parameter: StoredParameter, head: TensorHead) -> None:
        check_part(parameter.current, head.part)
        self.check(parameter, head)

    @abstractmethod
    def check(self, parameter: StoredParameter, head: TensorHead) -> None:
        """Raises where a tensor cannot be written to a parameter. Changes nothing."""


class WriteStage(TensorStage):
    """Collects the tensors of one stream and commits them together."""

    def place(self, head: TensorHead) -> list[HostArray]:
        """See TensorStage. Only a trainer takes compressed gradients."""
        if head.two_bit_threshold:
            raise InvalidStreamError(
                f"Parameter '{head.name}': a compressed gradient is for a trainer",
                parameter=head.name,
            )
        return super().place(head)

    def commit(self) -> list[Version]:
        """Writes everything, or nothing when it raises.

        Returns:
            The version that each tensor's parameter has after it.
        """
        writes, self._writes = self._writes, []
        with self._registry.hold([write.head.name for write in writes]) as parameters:
            for parameter, write in zip(parameters, writes, strict=True):
                if write.checked != (parameter, parameter.current, tuple(parameter.copies)):
                    # Again: what was right when the header came may not be so any more.
                    self._check(parameter, write.head)
                check_staged_ids(parameter, write)
            actions = []
            for parameter, write in zip(parameters, writes, strict=True):
                with naming(parameter.name):
                    actions.append(self.prepare(parameter, write))
            with changing(parameters):
                for action in actions:
                    action()
            return self.versions(parameters)

    @abstractmethod
    def prepare(self, parameter: StoredParameter, write: StagedWrite) -> Action:
        """Does all of a write that can fail, and gives the rest."""

    @abstractmethod
    def versions(self, parameters: Sequence[StoredParameter]) -> list[Version]:
        """The versions to report."""


class naming:  # noqa: N801 - it is used like a function
    """Adds the parameter's name to what the memory account says in a block.

    Args:
        name: of the parameter.

    Raises:
        MemoryLimitError: instead of one without a name.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, err: BaseException | None, _traceback: object) -> None:
        if isinstance(err, MemoryLimitError):
            name = self._name
            raise MemoryLimitError(f"Parameter '{name}': {err}", parameter=name) from err


def check_staged_ids(parameter: StoredParameter, write: StagedWrite) -> None:
    """Checks the row ids that came. Raises RowIdError, InvalidStreamError."""
    if write.ids is not None:
        check_ids(parameter.name, parameter.staged_array(write.ids), write.head.shape[0])


def check_broadcast(name: str, value: Shape, target: Shape) -> None:
    """Checks that an assignment broadcasts, as in NumPy.

    Raises:
        BroadcastError: where it does not.
    """
    if value == target:
        return
    # NumPy drops leading dimensions of 1 when it assigns.
    trimmed = value
    while len(trimmed) > len(target) and trimmed[0] == 1:
        trimmed = trimmed[1:]
    fits = len(trimmed) <= len(target) and all(
        one in (1, other) for one, other in zip(trimmed[::-1], target[::-1], strict=False)
    )
    if not fits:
        raise BroadcastError(
            f"Parameter '{name}': could not broadcast a value of shape {value} into shape {target}",
            parameter=name,
        )


def check_rows(parameter: StoredParameter, head: TensorHead) -> None:
    """Checks a row_sparse tensor that is to be written.

    Raises:
        ShapeMismatchError: where its logical shape is not the parameter's.
        WrongStorageTypeError: where it has a region.
    """
    if head.shape != parameter.shape:
        raise ShapeMismatchError(
            f"Parameter '{parameter.name}': expected a row_sparse value of shape "
            f"{parameter.shown_shape}, but got {head.shape}",
            parameter=parameter.name,
        )
    if head.region is not None:
        raise WrongStorageTypeError(
            f"Parameter '{parameter.name}': rows cannot be written to a part of an array",
            parameter=parameter.name,
        )


def check_dense(parameter: StoredParameter, head: TensorHead) -> None:
    """Checks a dense tensor that is to be written to all or a part of an array.

    Raises:
        InvalidRegionError, BroadcastError.
    """
    target = parameter.shape
    if head.region is not None:
        target = check_region(parameter.name, head.region, target)
    check_broadcast(parameter.name, head.shape, target)


def write_dense(
    parameter: StoredParameter,
    buffers: dict[Context, Buffer],
    context: Context,
    write: StagedWrite,
    mode: str,
) -> Action:
    """Prepares the write of a dense value to one dense buffer.

    Args:
        parameter: locked.
        buffers: its copies or its gradients.
        context: which of them.
        write: of a dense tensor.
        mode: 'assign', 'add', 'subtract', 'multiply' or 'divide'.
    """
    head = write.head
    whole = mode == "assign" and head.region is None
    if whole and head.shape == parameter.shape:
        # The staged memory becomes the parameter's: no copy at all.
        staged = parameter.as_dtype(write.value, parameter.current.dtype)
        adopted = parameter.backend(context).adopt(staged, context)

        def publish() -> None:
            buffers[context] = adopted

        return publish
    target = parameter.writable(buffers, context, keep=not whole)

    def combine() -> None:
        value = parameter.staged_array(write.value)
        while value.ndim > len(parameter.shape):
            value = value[0]
        parameter.backend(context).write(target, value, region=head.region, mode=mode)
        buffers[context] = target

    return combine


def write_rows(
    parameter: StoredParameter,
    buffers: dict[Context, Buffer],
    context: Context,
    write: StagedWrite,
    mode: str,
) -> Action:
    """Prepares the write of some rows to one dense buffer; the other rows stay.

    Args:
        parameter: locked.
        buffers: its copies or its gradients.
        context: which of them.
        write: of a row_sparse tensor.
        mode: 'assign', 'add' or 'subtract'.
    """
    assert write.ids is not None
    ids, rows = parameter.staged_array(write.ids), parameter.staged_array(write.value)
    target = parameter.writable(buffers, context, keep=True, rows=ids)

    def combine() -> None:
        parameter.backend(context).put_rows(target, ids, rows, mode=mode)
        buffers[context] = target

    return combine
