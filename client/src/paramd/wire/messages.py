"""Plain values to protobuf messages and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from paramd.context import Context
from paramd.errors import InvalidArgumentError
from paramd.spec import (
    FirstValue,
    InitializerSpec,
    ParameterSpec,
    Part,
    Shape,
    StoredInfo,
    Version,
    check_name,
)
from paramd.v1 import parameter_pb2, tensor_pb2
from paramd.wire.dtypes import dtype_from_wire, dtype_to_wire

__all__ = [
    "context_from_wire",
    "context_to_wire",
    "contexts_from_wire",
    "contexts_to_wire",
    "grad_req_from_wire",
    "grad_req_to_wire",
    "info_from_wire",
    "info_to_wire",
    "initializer_from_wire",
    "initializer_to_wire",
    "part_from_wire",
    "part_to_wire",
    "shape_from_wire",
    "spec_from_wire",
    "spec_to_wire",
    "stype_from_wire",
    "stype_to_wire",
]

_MAX_RANK: Final = 32

_STYPES: Final = {1: "default", 2: "row_sparse", 3: "csr"}
_STYPE_NUMBERS: Final = {name: number for number, name in _STYPES.items()}
_GRAD_REQS: Final = {1: "write", 2: "add", 3: "null"}
_GRAD_REQ_NUMBERS: Final = {name: number for number, name in _GRAD_REQS.items()}
_DEVICE_TYPES: Final = {1: "cpu", 2: "gpu", 3: "cpu_pinned", 4: "cpu_shared"}
_DEVICE_NUMBERS: Final = {name: number for number, name in _DEVICE_TYPES.items()}
_STATES: Final = {1: "declared", 2: "deferred", 3: "initialized"}
_STATE_NUMBERS: Final = {name: number for number, name in _STATES.items()}


def context_to_wire(context: Context) -> tensor_pb2.Context:
    """The message of a context."""
    return tensor_pb2.Context(
        device_type=_DEVICE_NUMBERS[context.device_type],  # type: ignore[arg-type]
        device_id=context.device_id,
    )


def context_from_wire(message: tensor_pb2.Context) -> Context:
    """The context of a message.

    Raises:
        InvalidArgumentError: for an unknown device type or a negative id.
    """
    device_type = _DEVICE_TYPES.get(message.device_type)
    if device_type is None or message.device_id < 0:
        raise InvalidArgumentError(
            f"no context has device type {message.device_type} and id {message.device_id}"
        )
    return Context(device_type, message.device_id)


def contexts_to_wire(contexts: Iterable[Context]) -> list[tensor_pb2.Context]:
    """The messages of several contexts."""
    return [context_to_wire(context) for context in contexts]


def contexts_from_wire(messages: Iterable[tensor_pb2.Context]) -> tuple[Context, ...]:
    """The contexts of several messages."""
    return tuple(context_from_wire(message) for message in messages)


def _from_table(table: Mapping[int, str], number: int, what: str) -> str:
    name = table.get(number)
    if name is None:
        raise InvalidArgumentError(f"{what} number {number} is unknown")
    return name


def stype_to_wire(stype: str) -> Any:
    """The number of a storage type."""
    return _STYPE_NUMBERS[stype]


def stype_from_wire(number: int) -> str:
    """The storage type of a number."""
    return _from_table(_STYPES, number, "storage type")


def grad_req_to_wire(grad_req: str) -> Any:
    """The number of a grad_req."""
    return _GRAD_REQ_NUMBERS[grad_req]


def grad_req_from_wire(number: int) -> str:
    """The grad_req of a number."""
    return _from_table(_GRAD_REQS, number, "grad_req")


def shape_from_wire(message: tensor_pb2.Shape) -> Shape:
    """The dimensions of a shape, which may be unknown (0 or -1).

    Raises:
        InvalidArgumentError: for other negative dimensions, or more than 32 of them.
    """
    shape = tuple(message.dimensions)
    if len(shape) > _MAX_RANK or any(dimension < -1 for dimension in shape):
        raise InvalidArgumentError(
            f"a shape has at most {_MAX_RANK} dimensions of -1 or more, but got {shape[:40]}"
        )
    return shape


def initializer_to_wire(spec: InitializerSpec) -> parameter_pb2.Initializer:
    """The message of an initializer."""
    message = parameter_pb2.Initializer(name=spec.name, client_side=spec.client_side)
    if spec.arguments:
        message.arguments.update(spec.arguments)
    return message


def initializer_from_wire(message: parameter_pb2.Initializer) -> InitializerSpec:
    """The initializer of a message.

    Raises:
        InvalidArgumentError: where an argument is no number, text or truth value.
    """
    arguments: dict[str, float | str | bool] = {}
    for key, value in message.arguments.fields.items():
        kind = value.WhichOneof("kind")
        if kind not in ("number_value", "string_value", "bool_value"):
            raise InvalidArgumentError(f"initializer argument {key!r} is a {kind}")
        arguments[key] = getattr(value, kind)
    return InitializerSpec(
        name=message.name,
        arguments=MappingProxyType(arguments),
        client_side=message.client_side,
    )


def part_to_wire(part: Part) -> tensor_pb2.Part:
    """The message of a shard's part."""
    return tensor_pb2.Part(
        shape=tensor_pb2.Shape(dimensions=part.shape),
        rows=tensor_pb2.Range(begin=part.begin, count=part.count, step=part.step),
    )


def part_from_wire(message: tensor_pb2.Part) -> Part:
    """The part of a message.

    Raises:
        InvalidArgumentError: where it is no part of anything.
    """
    shape = shape_from_wire(message.shape)
    rows = message.rows
    if (
        not shape
        or min(shape) < 1
        or rows.begin < 0
        or rows.count < 1
        or rows.step < 1
        or rows.begin + (rows.count - 1) * rows.step >= shape[0]
    ):
        raise InvalidArgumentError(
            f"{rows.count} rows from {rows.begin} in steps of {rows.step} are no part of the shape "
            f"{shape[:40]}"
        )
    return Part(shape, rows.begin, rows.count, rows.step)


def spec_to_wire(spec: ParameterSpec) -> parameter_pb2.ParameterSpec:
    """The message of a parameter's spec."""
    message = parameter_pb2.ParameterSpec(
        name=spec.name,
        dtype=dtype_to_wire(spec.dtype),  # type: ignore[arg-type]
        stype=stype_to_wire(spec.stype),
        grad_stype=stype_to_wire(spec.grad_stype),
        grad_req=grad_req_to_wire(spec.grad_req),
        lr_mult=spec.lr_mult,
        wd_mult=spec.wd_mult,
        allow_deferred_init=spec.allow_deferred_init,
        differentiable=spec.differentiable,
        kind=2 if spec.constant else 1,  # type: ignore[arg-type]
    )
    if spec.shape is not None:
        message.shape.SetInParent()
        message.shape.dimensions.extend(spec.shape)
    if spec.init is not None:
        message.init.CopyFrom(initializer_to_wire(spec.init))
    if spec.part is not None:
        message.part.CopyFrom(part_to_wire(spec.part))
    return message


def spec_from_wire(message: parameter_pb2.ParameterSpec) -> ParameterSpec:
    """The spec of a message.

    Raises:
        InvalidNameError, InvalidArgumentError: for what no parameter can be.
    """
    multipliers = (message.lr_mult, message.wd_mult)
    if not all(np.isfinite(multipliers)):
        raise InvalidArgumentError(
            f"lr_mult and wd_mult are finite numbers, but got {multipliers}",
            parameter=message.name,
        )
    if message.kind not in (1, 2):
        raise InvalidArgumentError(f"parameter kind {message.kind} is unknown")
    part = part_from_wire(message.part) if message.HasField("part") else None
    if part is not None and part.local_shape != tuple(message.shape.dimensions):
        raise InvalidArgumentError(
            f"parameter {message.name!r}: a part of shape {part.local_shape} does not have the "
            f"shape {tuple(message.shape.dimensions)[:40]}",
            parameter=message.name,
        )
    return ParameterSpec(
        name=check_name(message.name),
        shape=shape_from_wire(message.shape) if message.HasField("shape") else None,
        dtype=dtype_from_wire(message.dtype),
        stype=stype_from_wire(message.stype),
        grad_stype=stype_from_wire(message.grad_stype),
        grad_req=grad_req_from_wire(message.grad_req),
        lr_mult=message.lr_mult,
        wd_mult=message.wd_mult,
        init=initializer_from_wire(message.init) if message.HasField("init") else None,
        allow_deferred_init=message.allow_deferred_init,
        differentiable=message.differentiable,
        constant=message.kind == 2,
        part=part,
    )


def info_to_wire(info: StoredInfo) -> parameter_pb2.ParameterInfo:
    """The message that describes a stored parameter."""
    message = parameter_pb2.ParameterInfo(
        declared=spec_to_wire(info.declared),
        current=spec_to_wire(info.current),
        state=_STATE_NUMBERS[info.state],  # type: ignore[arg-type]
        contexts=contexts_to_wire(info.contexts),
        version=tensor_pb2.Version(epoch=info.version.epoch, counter=info.version.counter),
        awaits_client_value=info.awaits_client_value,
        value_bytes=info.value_bytes,
        gradient_bytes=info.gradient_bytes,
    )
    if info.first_value is not None:
        message.first_value.CopyFrom(
            parameter_pb2.FirstValue(
                init=initializer_to_wire(info.first_value.init),
                seed=info.first_value.seed,
                draw=info.first_value.draw,
                contexts=contexts_to_wire(info.first_value.contexts),
            )
        )
    return message


def info_from_wire(message: parameter_pb2.ParameterInfo) -> StoredInfo:
    """The description in a message."""
    first = message.first_value
    return StoredInfo(
        declared=spec_from_wire(message.declared),
        current=spec_from_wire(message.current),
        state=_from_table(_STATES, message.state, "state"),
        contexts=contexts_from_wire(message.contexts),
        version=Version(message.version.epoch, message.version.counter),
        awaits_client_value=message.awaits_client_value,
        value_bytes=message.value_bytes,
        gradient_bytes=message.gradient_bytes,
        first_value=FirstValue(
            initializer_from_wire(first.init),
            first.seed,
            first.draw,
            contexts_from_wire(first.contexts),
        )
        if message.HasField("first_value")
        else None,
    )
