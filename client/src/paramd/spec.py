"""What a parameter is declared to be: plain values that client and server share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from paramd.context import Context
from paramd.errors import InvalidNameError, InvalidRegionError

__all__ = [
    "GRAD_REQS",
    "MAX_NAME_BYTES",
    "MODES",
    "STYPES",
    "FirstValue",
    "InitializeEntry",
    "InitializerSpec",
    "LoadOptions",
    "ParameterSpec",
    "Part",
    "Region",
    "Selector",
    "Shape",
    "StoredInfo",
    "TensorHead",
    "Version",
    "check_name",
    "check_region",
    "merge_shapes",
    "region_slices",
    "shape_is_known",
]

Shape = tuple[int, ...]

# For each axis of the stored array: the `count` indices begin, begin + step, ...
Region = tuple[tuple[int, int, int], ...]

# How a written tensor meets what is stored, in the order of paramd.v1.WriteMode.
MODES = ("assign", "add", "subtract", "multiply", "divide", "by_grad_req", "assign_rows")

STYPES = ("default", "row_sparse", "csr")
GRAD_REQS = ("write", "add", "null")
MAX_NAME_BYTES = 1024
_ID_BYTES: Final = 8
_ELEMENTS_PER_PACKED_BYTE: Final = 4


@dataclass(frozen=True)
class InitializerSpec:
    """An initializer as data.

    Attributes:
        name: lower-case registered name, such as 'xavier'; '' if client_side.
        arguments: keyword arguments.
        client_side: the value is computed by the client and sent as data.
    """

    name: str = ""
    arguments: Mapping[str, float | str | bool] = field(
        default_factory=lambda: MappingProxyType({})
    )
    client_side: bool = False


@dataclass(frozen=True)
class Part:
    """What one shard holds of a parameter that is spread over several.

    Attributes:
        shape: of the whole parameter.
        begin: the first row (axis 0) that is here.
        count: how many rows are here, at least 1.
        step: from one of them to the next: 1, or for row_sparse parameters the number of shards.
    """

    shape: Shape
    begin: int
    count: int
    step: int

    @property
    def local_shape(self) -> Shape:
        """The shape of this part."""
        return (self.count, *self.shape[1:])


@dataclass(frozen=True)
class ParameterSpec:
    """A parameter as it is declared, or as it is now.

    Attributes:
        name: identity on the cluster, 1 to 1024 bytes of UTF-8.
        shape: None if nothing is known; 0 and -1 are unknown dimensions.
        dtype: element type of values and gradients.
        stype: storage type of the values: 'default', 'row_sparse' or 'csr'.
        grad_stype: storage type of the gradients.
        grad_req: 'write', 'add' or 'null'.
        lr_mult: learning rate multiplier.
        wd_mult: weight decay multiplier.
        init: declared initializer, or None.
        allow_deferred_init: whether `initialize` may come before the shape is known.
        differentiable: False forces grad_req to 'null'.
        constant: whether it is a Constant.
        part: what of it a shard holds, where it is spread over several; `shape` is then that of the
            part. Only between clients and shards: what users see are whole parameters.
    """

    name: str
    shape: Shape | None = None
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))
    stype: str = "default"
    grad_stype: str = "default"
    grad_req: str = "write"
    lr_mult: float = 1.0
    wd_mult: float = 1.0
    init: InitializerSpec | None = None
    allow_deferred_init: bool = False
    differentiable: bool = True
    constant: bool = False
    part: Part | None = None


@dataclass(frozen=True)
class Version:
    """One committed write: the server's start, and the count of writes since."""

    epoch: int
    counter: int


@dataclass(frozen=True)
class FirstValue:
    """What the server computed a first value from, or will.

    Attributes:
        init: what fills the parameter.
        seed: key of the random stream.
        draw: how many times the client drew for this name before, under the same seed.
        contexts: of the copies.
    """

    init: InitializerSpec
    seed: int
    draw: int
    contexts: tuple[Context, ...]


@dataclass(frozen=True)
class StoredInfo:
    """A parameter as a server describes it.

    Attributes:
        declared: as the first client declared it.
        current: as it is now.
        state: 'declared', 'deferred' or 'initialized'.
        contexts: where the copies are, or of a deferred parameter will be.
        version: of the last committed write.
        awaits_client_value: only a client that holds the initializer can go on.
        value_bytes: size of all copies.
        gradient_bytes: size of all gradient buffers.
        first_value: of a deferred parameter, and of one whose last initialization the server
            computed; None where its value came from a client.
    """

    declared: ParameterSpec
    current: ParameterSpec
    state: str
    contexts: tuple[Context, ...]
    version: Version
    awaits_client_value: bool
    value_bytes: int
    gradient_bytes: int
    first_value: FirstValue | None = None


@dataclass(frozen=True)
class TensorHead:
    """What goes before the payload of one tensor.

    Attributes:
        name: the parameter.
        shape: full logical shape; of a write, the shape of what is sent.
        dtype: element type of the payload.
        stype: 'default' or 'row_sparse'.
        num_rows: of a row_sparse tensor, the rows in the payload.
        context: of a write, None means every copy.
        version: of a read, what the payload is a version of.
        region: of a write, the part of the target; None means all of it.
        mode: of a write, one of MODES.
        two_bit_threshold: of a compressed gradient; 0 for an ordinary payload.
        step: of a read value whose trainer's steps are whole on all shards: which trainer, as a
            number, and how many steps it had made.
        part: of a write, what the shard is to hold of the parameter; None where none is known.
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    stype: str = "default"
    num_rows: int = 0
    context: Context | None = None
    version: Version | None = None
    region: Region | None = None
    mode: str = ""
    two_bit_threshold: float = 0.0
    step: tuple[int, int] | None = None
    part: Part | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the payload; for row_sparse the ids (int64) and the rows."""
        if self.two_bit_threshold:
            return -(-math.prod(self.shape) // _ELEMENTS_PER_PACKED_BYTE)
        if self.stype == "row_sparse":
            row = math.prod(self.shape[1:]) * self.dtype.itemsize
            return self.num_rows * (_ID_BYTES + row)
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class InitializeEntry:
    """One parameter to initialize.

    Attributes:
        name: the parameter.
        init: what the client resolved.
        seed: key of the random stream.
        draw: how many times this process initialized the name since it set the seed.
    """

    name: str
    init: InitializerSpec
    seed: int
    draw: int


@dataclass(frozen=True)
class Selector:
    """One array of one parameter.

    Attributes:
        name: the parameter.
        context: of the copy; None for the only one, or the one on the current context.
        region: the part of it; None for all.
        part: what the shard is to hold of the parameter; None where no shards are known.
    """

    name: str
    context: Context | None = None
    region: Region | None = None
    part: Part | None = None


@dataclass(frozen=True)
class LoadOptions:
    """How a file's tensors are loaded.

    Attributes:
        names: the parameters to load, restore_prefix included.
        contexts: where to; empty for where they are, or the default.
        allow_missing: parameters that the file lacks stay as they are.
        ignore_extra: tensors without a parameter are passed over.
        restore_prefix: in front of each name of the file.
        cast_dtype: whether dtypes are converted.
        dtype_source: 'current' or 'saved', with cast_dtype.
        source: where the tensors come from, for messages.
        path: a file below the server's snapshot directory, which the server reads itself; or ''.
        file_names: every name in the file, where not all are streamed.
    """

    names: tuple[str, ...]
    contexts: tuple[Context, ...] = ()
    allow_missing: bool = False
    ignore_extra: bool = False
    restore_prefix: str = ""
    cast_dtype: bool = False
    dtype_source: str = "current"
    source: str = "param_dict"
    path: str = ""
    file_names: tuple[str, ...] = ()


def check_name(name: str) -> str:
    """The name itself, if a parameter, claim or barrier can have it.

    Raises:
        InvalidNameError: where it is empty, too long, or no UTF-8.
    """
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError as err:
        raise InvalidNameError(f"a name is UTF-8 text, but got {name!r}") from err
    if not 0 < size <= MAX_NAME_BYTES:
        shown = name if size <= 80 else name[:60] + "..."
        raise InvalidNameError(f"a name has 1 to {MAX_NAME_BYTES} bytes, but got {size}: {shown!r}")
    return name


def check_region(name: str, region: Region, shape: Shape) -> Shape:
    """The shape of a region of an array.

    Raises:
        InvalidRegionError: where the array does not have it.
    """
    if len(region) != len(shape):
        raise InvalidRegionError(
            f"Parameter '{name}': a region of {len(region)} axes on shape {shape}", parameter=name
        )
    for axis, ((begin, count, step), size) in enumerate(zip(region, shape, strict=True)):
        last = begin + (count - 1) * step
        inside = count == 0 or (0 <= begin < size and 0 <= last < size)
        if count < 0 or step == 0 or not inside:
            raise InvalidRegionError(
                f"Parameter '{name}': axis {axis} of shape {shape} has no part of {count} indices "
                f"from {begin} by {step}",
                parameter=name,
            )
    return tuple(count for _, count, _ in region)


def region_slices(region: Region) -> tuple[slice, ...]:
    """The slices that select a region of an array that has it."""
    slices = []
    for begin, count, step in region:
        end: int | None = begin + count * step
        if count == 0:
            begin, end = 0, 0
        elif end is not None and end < 0:
            # A negative end would count from the back.
            end = None
        slices.append(slice(begin, end, step))
    return tuple(slices)


def shape_is_known(shape: Shape | None) -> bool:
    """Whether every dimension is known. The shape () counts as unknown, as in MXNet."""
    return bool(shape) and all(dimension > 0 for dimension in shape or ())


def merge_shapes(left: Shape | None, right: Shape | None) -> Shape | None:
    """The shape that both describe, with 0 and -1 as wildcards.

    Args:
        left: a shape, or None for 'nothing is known'.
        right: another one.

    Returns:
        Each dimension from the side that knows it, from `left` where none does.

    Raises:
        ValueError: where they contradict each other. The caller knows which parameter it is.
    """
    if left is None or right is None:
        return right if left is None else left
    if len(left) != len(right):
        raise ValueError(f"{len(left)} dimensions against {len(right)}")
    merged = []
    for one, other in zip(left, right, strict=True):
        if one != other and one > 0 and other > 0:
            raise ValueError(f"dimension {one} against {other}")
        merged.append(one if one > 0 else (other if other > 0 else one))
    return tuple(merged)
