"""The coordinator's records to protobuf messages and back."""

from __future__ import annotations

from typing import Any

from paramd.errors import InvalidMessageError
from paramd.v1 import cluster_service_pb2 as pb
from paramd.v1 import parameter_pb2
from paramd_server.core.operations import Operation
from paramd_server.core.training.records import (
    CommittedPush,
    Record,
    SnapshotRecord,
    SnapshotResult,
    StepRecord,
    UpdateRecord,
)
from paramd_server.core.training.updates import ParameterRate, Plan

__all__ = ["operation_from_record", "operation_to_record", "record_from_wire", "record_to_wire"]


def operation_to_record(operation: Operation) -> parameter_pb2.Operation:
    """The message of an operation: what identifies it."""
    return parameter_pb2.Operation(identity=operation.identity, sequence=operation.sequence)


def operation_from_record(message: parameter_pb2.Operation) -> Operation:
    """The operation of a message. It acknowledges nothing."""
    return Operation(message.identity, message.sequence, 0)


def _rates_to_wire(rates: Plan) -> list[pb.ParameterRate]:
    return [
        pb.ParameterRate(name=name, learning_rate=rate.learning_rate, num_update=rate.num_update)
        for name, rate in rates.items()
    ]


def _rates_from_wire(messages: Any) -> Plan:
    return {each.name: ParameterRate(each.learning_rate, each.num_update) for each in messages}


def record_to_wire(position: int, record: Record) -> pb.LogRecord:
    """The message of a record."""
    message = pb.LogRecord(position=position)
    if isinstance(record, StepRecord):
        message.step.CopyFrom(
            pb.StepRecord(
                trainer=record.trainer,
                clock=record.clock,
                num_steps=record.num_steps,
                pushes=[
                    pb.CommittedPush(
                        operation=operation_to_record(each.operation),
                        clock=each.clock,
                        skipped=each.skipped,
                        batch_size=each.batch_size,
                    )
                    for each in record.pushes
                ],
                rates=_rates_to_wire(record.rates),
            )
        )
    elif isinstance(record, UpdateRecord):
        message.update.CopyFrom(
            pb.UpdateRecord(
                trainer=record.trainer,
                operation=operation_to_record(record.operation),
                num_steps=record.num_steps,
                skipped=record.skipped,
                batch_size=record.batch_size,
                zero_grad=record.zero_grad,
                reduced=record.reduced,
                rates=_rates_to_wire(record.rates),
            )
        )
    elif isinstance(record, SnapshotRecord):
        message.snapshot.CopyFrom(
            pb.SnapshotRecord(number=record.number, directory=record.directory)
        )
    else:
        message.snapshot_result.CopyFrom(
            pb.SnapshotResult(
                number=record.number,
                directory=record.directory,
                manifest=record.manifest,
                kept=record.kept,
            )
        )
    return message


def record_from_wire(message: pb.LogRecord) -> Record:
    """The record of a message.

    Raises:
        InvalidMessageError: for one that this version does not know.
    """
    kind = message.WhichOneof("record")
    if kind == "step":
        step = message.step
        return StepRecord(
            step.trainer,
            step.clock,
            step.num_steps,
            tuple(
                CommittedPush(
                    operation_from_record(each.operation), each.clock, each.skipped, each.batch_size
                )
                for each in step.pushes
            ),
            _rates_from_wire(step.rates),
        )
    if kind == "update":
        update = message.update
        return UpdateRecord(
            update.trainer,
            operation_from_record(update.operation),
            update.num_steps,
            update.skipped,
            update.batch_size,
            update.zero_grad,
            update.reduced,
            _rates_from_wire(update.rates),
        )
    if kind == "snapshot":
        return SnapshotRecord(message.snapshot.number, message.snapshot.directory)
    if kind == "snapshot_result":
        result = message.snapshot_result
        return SnapshotResult(result.number, result.directory, result.manifest, tuple(result.kept))
    raise InvalidMessageError(f"record {message.position} of the log is of an unknown kind: {kind}")
