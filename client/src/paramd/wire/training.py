"""Trainers, steps and optimizer states to protobuf messages and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from paramd import lr_scheduler, optimizer
from paramd.errors import InvalidArgumentError, InvalidStreamError, ParamdError
from paramd.lr_scheduler import LRScheduler
from paramd.optimizer import Optimizer
from paramd.spec import TensorHead, check_name
from paramd.trainer_spec import (
    NON_FINITE_POLICIES,
    STEP_STATES,
    WORKER_LOSS_POLICIES,
    StagedPart,
    StatesManifest,
    StepResult,
    TrainerInfo,
    TrainerSpec,
    TrainerWorker,
)
from paramd.v1 import trainer_pb2, training_service_pb2
from paramd.wire.tensors import head_from_wire, head_to_wire

__all__ = [
    "manifest_from_wire",
    "manifest_pages",
    "optimizer_from_wire",
    "optimizer_to_wire",
    "staged_part_from_wire",
    "staged_part_to_wire",
    "step_result_from_wire",
    "step_result_to_wire",
    "trainer_info_from_wire",
    "trainer_info_to_wire",
    "trainer_spec_from_wire",
    "trainer_spec_to_wire",
]

# Names and headers of one page of a manifest: far below gRPC's limit of 4 MiB.
_PAGE_ITEMS: Final = 1024


def _arguments(message: Any) -> dict[str, Any]:
    """The values of a Struct: numbers, booleans, and lists of numbers."""
    found: dict[str, Any] = {}
    for key, value in message.fields.items():
        kind = value.WhichOneof("kind")
        if kind == "list_value":
            items = list(value.list_value.values)
            if any(item.WhichOneof("kind") != "number_value" for item in items):
                raise InvalidArgumentError(f"argument {key!r} is a list of other than numbers")
            found[key] = [_number(item.number_value) for item in items]
        elif kind == "bool_value":
            found[key] = value.bool_value
        elif kind == "string_value":
            found[key] = value.string_value
        elif kind == "number_value":
            found[key] = _number(value.number_value)
        else:
            raise InvalidArgumentError(f"argument {key!r} is a {kind}")
    return found


def _number(value: float) -> float | int:
    """Whole numbers come as such: a Struct has only doubles."""
    return int(value) if math.isfinite(value) and value.is_integer() else value


def optimizer_to_wire(value: Optimizer) -> trainer_pb2.Optimizer:
    """The message of an optimizer."""
    message = trainer_pb2.Optimizer(name=value.name)
    message.arguments.update(dict(value.arguments()))
    if value.lr_scheduler is not None:
        message.scheduler.name = value.lr_scheduler.name
        message.scheduler.arguments.update(dict(value.lr_scheduler.arguments()))
    return message


def optimizer_from_wire(message: trainer_pb2.Optimizer) -> Optimizer:
    """The optimizer of a message.

    Raises:
        InvalidArgumentError: for an unknown name, or an argument that it cannot have.
    """
    try:
        scheduler: LRScheduler | None = None
        if message.HasField("scheduler"):
            arguments = _arguments(message.scheduler.arguments)
            scheduler = lr_scheduler.from_arguments(message.scheduler.name, arguments)
        return optimizer.from_arguments(message.name, _arguments(message.arguments), scheduler)
    except (TypeError, ValueError, OverflowError) as err:
        raise InvalidArgumentError(str(err)) from err


def trainer_spec_to_wire(spec: TrainerSpec) -> trainer_pb2.TrainerSpec:
    """The message of a trainer's spec."""
    return trainer_pb2.TrainerSpec(
        name=spec.name,
        parameters=spec.parameters,
        optimizer=optimizer_to_wire(spec.optimizer),
        distributed=spec.distributed,
        staleness=spec.staleness,
        num_workers=spec.num_workers,
        non_finite=1 + NON_FINITE_POLICIES.index(spec.non_finite),  # type: ignore[arg-type]
        worker_loss=1 + WORKER_LOSS_POLICIES.index(spec.worker_loss),  # type: ignore[arg-type]
        two_bit_threshold=spec.two_bit_threshold,
        update_each_copy=spec.update_each_copy,
    )


def trainer_spec_from_wire(message: trainer_pb2.TrainerSpec) -> TrainerSpec:
    """The spec of a message.

    Raises:
        InvalidNameError, InvalidArgumentError: for what no trainer can be.
    """
    names: dict[str, None] = {}
    for name in message.parameters:
        if check_name(name) in names:
            raise InvalidArgumentError(f"parameter '{name}' is named twice", parameter=name)
        names[name] = None
    if not 0.0 <= message.two_bit_threshold < math.inf:
        raise InvalidArgumentError(
            f"a compression threshold is above 0, but got {message.two_bit_threshold}"
        )
    return TrainerSpec(
        name=check_name(message.name),
        parameters=tuple(names),
        optimizer=optimizer_from_wire(message.optimizer),
        distributed=message.distributed,
        staleness=message.staleness if message.HasField("staleness") else None,
        num_workers=message.num_workers,
        non_finite=_named(NON_FINITE_POLICIES, message.non_finite, "policy for NaN"),
        worker_loss=_named(WORKER_LOSS_POLICIES, message.worker_loss, "policy for lost workers"),
        two_bit_threshold=message.two_bit_threshold,
        update_each_copy=message.update_each_copy,
    )


def _named(names: Sequence[str], number: int, what: str) -> str:
    if not 0 < number <= len(names):
        raise InvalidArgumentError(f"{what} number {number} is unknown")
    return names[number - 1]


def trainer_info_to_wire(info: TrainerInfo) -> trainer_pb2.TrainerInfo:
    """The message that describes a trainer."""
    return trainer_pb2.TrainerInfo(
        spec=trainer_spec_to_wire(info.spec),
        learning_rate=info.learning_rate,
        num_update=info.num_update,
        num_steps=info.num_steps,
        num_non_finite=info.num_non_finite,
        num_skipped=info.num_skipped,
        state_bytes=info.state_bytes,
        num_lost_steps=info.num_lost_steps,
        workers=[
            trainer_pb2.TrainerWorker(
                worker=each.worker, rank=each.rank, clock=each.clock, staged=each.staged
            )
            for each in info.workers
        ],
    )


def trainer_info_from_wire(message: trainer_pb2.TrainerInfo) -> TrainerInfo:
    """The description in a message."""
    return TrainerInfo(
        spec=trainer_spec_from_wire(message.spec),
        learning_rate=message.learning_rate,
        num_update=message.num_update,
        num_steps=message.num_steps,
        num_non_finite=message.num_non_finite,
        num_skipped=message.num_skipped,
        state_bytes=message.state_bytes,
        num_lost_steps=message.num_lost_steps,
        workers=tuple(
            TrainerWorker(each.worker, each.rank, each.clock, each.staged)
            for each in message.workers
        ),
    )


def step_result_to_wire(result: StepResult) -> training_service_pb2.StepResult:
    """The message of a step's result."""
    message = training_service_pb2.StepResult(
        state=1 + STEP_STATES.index(result.state),  # type: ignore[arg-type]
        clock=result.clock,
        skipped=result.skipped,
        position=result.position,
    )
    if result.staged is not None:
        message.staged.CopyFrom(staged_part_to_wire(result.staged))
    return message


def step_result_from_wire(message: training_service_pb2.StepResult) -> StepResult:
    """The result in a message."""
    if not 0 < message.state <= len(STEP_STATES):
        raise InvalidStreamError(f"the server answered a step with state number {message.state}")
    return StepResult(
        STEP_STATES[message.state - 1],
        message.clock,
        message.skipped,
        staged_part_from_wire(message.staged) if message.HasField("staged") else None,
        message.position,
    )


def staged_part_to_wire(part: StagedPart) -> training_service_pb2.StagedPart:
    """The message of a shard's part of a push."""
    return training_service_pb2.StagedPart(
        shard=part.shard, epoch=part.epoch, names=part.names, non_finite=part.non_finite
    )


def staged_part_from_wire(message: training_service_pb2.StagedPart) -> StagedPart:
    """A shard's part of a push in a message."""
    return StagedPart(message.shard, message.epoch, tuple(message.names), message.non_finite)


def manifest_pages(manifest: StatesManifest) -> Iterator[training_service_pb2.StatesManifest]:
    """The messages of a manifest."""
    names = list(manifest.num_updates)
    page = training_service_pb2.StatesManifest(
        optimizer=optimizer_to_wire(manifest.optimizer), learning_rate=manifest.learning_rate
    )
    count = max(len(names), len(manifest.arrays), 1)
    for begin in range(0, count, _PAGE_ITEMS):
        some = names[begin : begin + _PAGE_ITEMS]
        page.names.extend(some)
        page.num_updates.extend(manifest.num_updates[name] for name in some)
        for head, state in manifest.arrays[begin : begin + _PAGE_ITEMS]:
            page.arrays.add(header=head_to_wire(head), state=state)
        page.last = begin + _PAGE_ITEMS >= count
        yield page
        page = training_service_pb2.StatesManifest()


def manifest_from_wire(
    pages: Sequence[training_service_pb2.StatesManifest],
) -> StatesManifest:
    """The manifest in its pages.

    Raises:
        InvalidStreamError, InvalidArgumentError: where it contradicts itself.
    """
    num_updates: dict[str, int] = {}
    arrays: list[tuple[TensorHead, str]] = []
    for page in pages:
        if len(page.names) != len(page.num_updates):
            raise InvalidStreamError("a manifest has as many counts as names")
        for name, count in zip(page.names, page.num_updates, strict=True):
            if check_name(name) in num_updates:
                raise InvalidStreamError(f"parameter {name!r} comes twice", parameter=name)
            num_updates[name] = count
        arrays += [(head_from_wire(each.header), each.state) for each in page.arrays]
    first = pages[0]
    try:
        return StatesManifest(
            optimizer=optimizer_from_wire(first.optimizer),
            learning_rate=first.learning_rate if first.HasField("learning_rate") else None,
            num_updates=num_updates,
            arrays=tuple(arrays),
        )
    except ParamdError:
        raise
    except ValueError as err:
        raise InvalidArgumentError(str(err)) from err
