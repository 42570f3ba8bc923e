"""Trainers that cannot be declared, and floods of them, on the raw wire."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from paramd.optimizer import create
from paramd.trainer_spec import TrainerSpec
from paramd.v1 import session_service_pb2 as spb
from paramd.v1 import trainer_pb2
from paramd.v1 import training_service_pb2 as pb
from paramd.wire.training import trainer_spec_to_wire
from tests.support.raw_calls import RawClient, refused

SPEC = TrainerSpec("new", ("bare",), create("sgd"))


def declare(client: RawClient, change: Any) -> Any:
    message = trainer_spec_to_wire(SPEC)
    change(message)
    return client.call("DeclareTrainer", pb.DeclareTrainerRequest(spec=message))


def argument(name: str, value: float) -> Any:
    def change(message: trainer_pb2.TrainerSpec) -> None:
        message.optimizer.arguments.fields[name].number_value = value

    return change


def field(name: str, value: Any) -> Any:
    def change(message: trainer_pb2.TrainerSpec) -> None:
        setattr(message, name, value)

    return change


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("INVALID_NAME", field("name", "")),
        ("INVALID_NAME", field("name", "n" * 1025)),
        ("PARAMETER_NOT_FOUND", lambda message: message.parameters.append("nobody")),
        ("INVALID_NAME", lambda message: message.parameters.append("")),
        ("INVALID_ARGUMENT", lambda message: message.parameters.append("bare")),
        ("TRAINER_MISMATCH", lambda message: message.parameters.append("s_w")),
        ("INVALID_ARGUMENT", lambda message: message.ClearField("optimizer")),
        ("INVALID_ARGUMENT", lambda message: message.ClearField("non_finite")),
        ("INVALID_ARGUMENT", lambda message: message.ClearField("worker_loss")),
        ("INVALID_ARGUMENT", lambda message: message.ClearField("parameters")),
        ("INVALID_ARGUMENT", field("two_bit_threshold", -1.0)),
        ("INVALID_ARGUMENT", field("two_bit_threshold", math.nan)),
        ("INVALID_ARGUMENT", argument("learning_rate", math.nan)),
        ("INVALID_ARGUMENT", argument("learning_rate", -1.0)),
        ("INVALID_ARGUMENT", argument("momentum", 1e308)),
        ("INVALID_ARGUMENT", argument("begin_num_update", 1e300)),
        ("INVALID_ARGUMENT", argument("x" * 1_000_000, 1.0)),
        ("INVALID_ARGUMENT", argument("beta1", 0.5)),
    ],
)
def test_specs_that_cannot_be(worker: RawClient, reason: str, change: Any) -> None:
    with refused(reason):
        declare(worker, change)


def test_each_copy_and_distributed_exclude_each_other(worker: RawClient) -> None:
    with refused("INVALID_ARGUMENT"):
        declare(
            worker,
            lambda message: message.MergeFrom(
                trainer_pb2.TrainerSpec(distributed=True, update_each_copy=True)
            ),
        )


def test_a_mismatch_says_what_and_stays_short(worker: RawClient) -> None:
    message = trainer_spec_to_wire(TrainerSpec("s", ("s_w",), create("adam")))
    with refused("TRAINER_MISMATCH") as refusal:
        worker.call("DeclareTrainer", pb.DeclareTrainerRequest(spec=message))
    assert "'s'" in refusal.message


def test_a_flood_of_names_holds_nobody_up(worker: RawClient) -> None:
    """200,000 names, one of them twice, and a heartbeat meanwhile."""
    message = trainer_spec_to_wire(SPEC)
    message.parameters.extend(f"p{number}" for number in range(200_000))
    message.parameters.append("p199999")
    calls = [
        worker.start("DeclareTrainer", pb.DeclareTrainerRequest(spec=message)) for _ in range(8)
    ]
    begun = time.monotonic()
    worker.call("Heartbeat", spb.HeartbeatRequest(identity=worker.identity))
    for call in calls:
        with refused("INVALID_ARGUMENT"):
            call.result()
    assert time.monotonic() - begun < 15


def test_a_flood_of_questions_is_refused(worker: RawClient) -> None:
    """The answer would be many times the request."""
    request = pb.ListTrainersRequest(names=["s"] * 140_000)
    begun = time.monotonic()
    with refused("INVALID_ARGUMENT"):
        worker.call("ListTrainers", request)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("lease_ms", [0, -1, 3_600_001, 2**63 - 1, -(2**63)])
def test_leases_that_cannot_be(worker: RawClient, lease_ms: int) -> None:
    with RawClient(worker.address) as stranger:
        for name in ("", "worker"):
            request = spb.JoinRequest(identity=stranger.identity, worker=name, lease_ms=lease_ms)
            with refused("INVALID_ARGUMENT"):
                stranger.call("Join", request)


def test_names_of_workers_that_cannot_be(worker: RawClient) -> None:
    request = spb.JoinRequest(identity=bytes(16), worker="ü" * 129, lease_ms=1000)
    with refused("INVALID_ARGUMENT"):
        worker.call("Join", request)
    with refused("INVALID_ARGUMENT"):
        worker.call("Join", spb.JoinRequest(identity=bytes(15), worker="x", lease_ms=1000))


def test_heartbeats_of_nobody(worker: RawClient) -> None:
    for identity in (bytes(16), b"", bytes(1000)):
        with refused("WORKER_NOT_JOINED", "INVALID_ARGUMENT"):
            worker.call("Heartbeat", spb.HeartbeatRequest(identity=identity))
    worker.call("Leave", spb.LeaveRequest(identity=bytes(16)))


def test_a_barrier_of_all_workers_is_for_workers(worker: RawClient) -> None:
    with RawClient(worker.address) as stranger:
        request = spb.BarrierRequest(name="b", operation=stranger.operation())
        with refused("WORKER_NOT_JOINED"):
            stranger.call("Barrier", request)
