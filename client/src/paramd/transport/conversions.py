"""Plain values of calls to messages and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from paramd.errors import InvalidArgumentError, InvalidStreamError
from paramd.spec import InitializerSpec, LoadOptions, Part, Selector, StoredInfo
from paramd.transport.operations import Operation
from paramd.transport.records import DeviceStatus, SessionStatus, WorkerStatus
from paramd.transport.sending import batches
from paramd.v1 import parameter_service_pb2 as pb
from paramd.v1 import session_service_pb2, tensor_pb2
from paramd.wire.messages import (
    context_from_wire,
    context_to_wire,
    contexts_to_wire,
    grad_req_to_wire,
    info_from_wire,
    initializer_to_wire,
    part_to_wire,
)
from paramd.wire.tensors import region_to_wire

__all__ = [
    "attribute_fields",
    "infos_from_wire",
    "load_openings",
    "name_size",
    "selector_to_wire",
    "status_from_wire",
]

_DTYPE_SOURCES = {"current": 1, "saved": 2}


def status_from_wire(message: session_service_pb2.GetStatusResponse) -> SessionStatus:
    """The status in a message."""
    return SessionStatus(
        server_version=message.server_version,
        epoch=message.epoch,
        uptime=message.uptime_ms / 1000,
        num_parameters=message.num_parameters,
        memory_bytes=message.memory_bytes,
        memory_limit_bytes=message.memory_limit_bytes,
        num_gpus=message.num_gpus,
        workers=tuple(
            WorkerStatus(
                worker=each.worker,
                identity=each.identity,
                num_pushes=each.num_pushes,
                num_pushed_tensors=each.num_pushed_tensors,
            )
            for each in message.workers
        ),
        num_snapshots=message.num_snapshots,
        num_failed_snapshots=message.num_failed_snapshots,
        last_snapshot=message.last_snapshot,
        last_snapshot_created=message.last_snapshot_created,
        devices=tuple(
            DeviceStatus(
                context=context_from_wire(each.context),
                name=each.name,
                memory_bytes=each.memory_bytes,
                memory_limit_bytes=each.memory_limit_bytes,
                total_bytes=each.total_bytes,
            )
            for each in message.devices
        ),
    )


def name_size(name: str) -> int:
    """Bytes of a name on the wire."""
    return len(name.encode("utf-8", "replace"))


def infos_from_wire(messages: Sequence[Any], expected: int, method: str) -> list[StoredInfo]:
    """The descriptions in messages, which must be as many as expected."""
    if len(messages) != expected:
        raise InvalidStreamError(f"{method}: {len(messages)} parameters instead of {expected}")
    return [info_from_wire(message) for message in messages]


def selector_to_wire(selector: Selector) -> pb.TensorSelector:
    """The message of a selector."""
    message = pb.TensorSelector(name=selector.name)
    if selector.context is not None:
        message.context.CopyFrom(context_to_wire(selector.context))
    if selector.region is not None:
        message.region.CopyFrom(region_to_wire(selector.region))
        message.region.SetInParent()
    if selector.part is not None:
        message.part.CopyFrom(part_to_wire(selector.part))
    return message


def attribute_fields(attribute: str, value: Any, part: Part | None = None) -> dict[str, Any]:
    """The fields of SetAttributesRequest for one attribute.

    Args:
        attribute: its name.
        value: to be.
        part: with 'shape', which is then that of the part: what of the parameter the shard holds.

    Raises:
        InvalidArgumentError: where there is no such attribute, or it cannot have the value.
    """
    if part is not None:
        if attribute != "shape":
            raise InvalidArgumentError(f"a part goes with a shape, but came with {attribute!r}")
        return {"shape": tensor_pb2.Shape(dimensions=value), "part": part_to_wire(part)}
    if attribute == "shape":
        return {"shape": tensor_pb2.Shape(dimensions=value)}
    if attribute == "grad_req":
        return {"grad_req": grad_req_to_wire(value)}
    if attribute in ("lr_mult", "wd_mult"):
        return {attribute: float(value)}
    if attribute == "init" and value is None:
        return {"clear_init": True}
    if attribute == "init" and isinstance(value, InitializerSpec):
        return {"init": initializer_to_wire(value)}
    raise InvalidArgumentError(f"attribute {attribute!r} cannot be set to {value!r}")


def load_openings(operation: Operation, options: LoadOptions) -> Iterator[bytes]:
    """The messages that open a Load: long lists of names go into several."""
    source: Any = _DTYPE_SOURCES[options.dtype_source]
    opened = pb.LoadOpen(
        operation=operation.to_wire(),
        contexts=contexts_to_wire(options.contexts),
        allow_missing=options.allow_missing,
        ignore_extra=options.ignore_extra,
        restore_prefix=options.restore_prefix,
        cast_dtype=options.cast_dtype,
        dtype_source=source,
        source=options.source,
        path=options.path,
    )
    for batch in batches(options.names, name_size):
        opened.names.extend(batch)
        yield pb.LoadRequest(open=opened).SerializeToString()
        opened = pb.LoadOpen()
    for batch in batches(options.file_names, name_size):
        opened.file_names.extend(batch)
        yield pb.LoadRequest(open=opened).SerializeToString()
        opened = pb.LoadOpen()
    if not options.names and not options.file_names:
        yield pb.LoadRequest(open=opened).SerializeToString()
