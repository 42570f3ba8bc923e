"""Bad pushes on the raw wire: a typed reason each, and nothing has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import pytest
from google.protobuf.message import Message

from paramd.spec import TensorHead
from paramd.v1 import parameter_pb2, tensor_pb2
from paramd.v1 import training_service_pb2 as pb
from paramd.wire.tensors import head_to_wire
from tests.support.contexts import device
from tests.support.raw_calls import (
    INT64_MAX,
    RawClient,
    payload,
    refused,
    rows_messages,
    selector,
    step_stream,
)

Array = np.ndarray[Any, Any]
ONES: Final = np.ones((2, 3), "f4")
ROWS: Final = np.ones((2, 2), "f4")
TABLE: Final = (10, 2)


def push(client: RawClient, *messages: Message | bytes, trainer: str = "s", **options: Any) -> Any:
    """A push of the worker's clock; parameters may be missing from it."""
    if trainer not in ("l", "alien") and "clock" not in options:
        options["clock"] = client.join_trainer(trainer)
    options = {"ignore_stale_grad": True, **options}
    opened = step_stream(client.operation(), trainer, **options)
    return client.call("Step", [*opened, *messages])


def tensor(name: str, value: Array, **head: Any) -> list[Message | bytes]:
    described = TensorHead(name, value.shape, value.dtype, **{"mode": "by_grad_req", **head})
    return [pb.StepRequest(header=head_to_wire(described)), *payload(value)]


@pytest.mark.parametrize("trainer", ["s", "a", "l"])
@pytest.mark.parametrize(
    ("reason", "says", "name", "value"),
    [
        ("SHAPE_MISMATCH", r"(2, 3)", "{}_w", np.ones((3, 2), "f4")),
        ("SHAPE_MISMATCH", r"(2, 3)", "{}_w", np.ones((), "f4")),
        ("SHAPE_MISMATCH", r"(2, 3)", "{}_w", np.ones((1, 2, 3), "f4")),
        ("SHAPE_MISMATCH", r"(10, 2)", "{}_table", np.ones((9, 2), "f4")),
        ("NO_GRADIENT", "grad_req", "{}_frozen", np.ones(2, "f4")),
        ("PARAMETER_NOT_FOUND", "nobody", "nobody", ONES),
        ("INVALID_ARGUMENT", "is not one of trainer", "alien_w", ONES),
        ("INVALID_ARGUMENT", "is not one of trainer", "bare", ONES),
    ],
)
def test_a_tensor_that_does_not_belong(
    worker: RawClient, trainer: str, reason: str, says: str, name: str, value: Array
) -> None:
    good = tensor(f"{trainer}_table", np.ones(TABLE, "f4")) if "table" not in name else []
    with refused(reason) as refusal:
        push(worker, *good, *tensor(name.format(trainer), value), trainer=trainer)
    assert says in refusal.message


@pytest.mark.parametrize("dtype", ["c8", "U1"])
def test_dtypes_that_no_tensor_has(worker: RawClient, dtype: str) -> None:
    """The wire has no number for them."""
    header = head_to_wire(TensorHead("s_w", (2, 3), np.dtype("f4"), mode="by_grad_req"))
    header.dtype = 99 if dtype == "c8" else 0  # type: ignore[assignment]
    with refused("INVALID_ARGUMENT", "INVALID_STREAM", "DTYPE_MISMATCH"):
        push(worker, pb.StepRequest(header=header), *payload(ONES))


@pytest.mark.parametrize(
    "head",
    [
        {"context": device(0)},
        {"region": ((0, 1, 1), (0, 3, 1))},
        {"two_bit_threshold": 0.5},
    ],
)
def test_headers_with_more_than_a_gradient_has(worker: RawClient, head: dict[str, Any]) -> None:
    value = ONES if "two_bit_threshold" not in head else np.zeros(4, "u1")
    described = TensorHead("s_w", (2, 3), np.dtype("f4"), mode="by_grad_req", **head)
    with refused("INVALID_STREAM", "SHAPE_MISMATCH", "INVALID_REGION"):
        push(worker, pb.StepRequest(header=head_to_wire(described)), *payload(value))


@pytest.mark.parametrize("mode", ["assign", "add", "multiply", "assign_rows"])
def test_a_push_has_no_other_mode_than_that_of_a_gradient(worker: RawClient, mode: str) -> None:
    with refused("INVALID_STREAM"):
        push(worker, *tensor("s_w", ONES, mode=mode))


BAD_IDS: Final = (
    ("ROW_ID_OUT_OF_RANGE", [3, 10]),
    ("ROW_ID_OUT_OF_RANGE", [-1, 3]),
    ("ROW_ID_OUT_OF_RANGE", [3, INT64_MAX]),
    ("ROW_ID_OUT_OF_RANGE", [-INT64_MAX - 1, 3]),
    ("INVALID_STREAM", [5, 3]),
    ("INVALID_STREAM", [3, 3]),
)


@pytest.mark.parametrize("trainer", ["s", "a", "l"])
def test_ids_are_in_range_sorted_and_unique(worker: RawClient, trainer: str) -> None:
    for reason, ids in BAD_IDS:
        sent = rows_messages(f"{trainer}_table", ids, ROWS, TABLE)
        with refused(reason) as refusal:
            push(worker, *tensor(f"{trainer}_w", ONES), *sent, trainer=trainer)
        assert f"{trainer}_table" in refusal.message


@pytest.mark.parametrize("shape", [(11, 2), (10, 3), (10,), (2**40, 2)])
def test_rows_of_another_table(worker: RawClient, shape: tuple[int, ...]) -> None:
    rows = np.ones((2, *shape[1:]), "f4")
    with refused("SHAPE_MISMATCH", "INVALID_STREAM"):
        push(worker, *rows_messages("s_table", [1, 2], rows, shape))


def test_a_tensor_twice(worker: RawClient) -> None:
    for second in (tensor("s_w", ONES), list(rows_messages("s_w", [0, 1], ONES, (2, 3)))):
        with refused("INVALID_STREAM") as refusal:
            push(worker, *tensor("s_w", ONES), *second)
        assert "twice" in refusal.message


@pytest.mark.parametrize(
    ("trainer", "threshold"), [("s", 0.5), ("c", 0.25), ("c", 5e-324), ("c", 1e300), ("l", 0.5)]
)
def test_compressed_gradients_of_another_threshold(
    worker: RawClient, trainer: str, threshold: float
) -> None:
    described = TensorHead(
        f"{trainer}_w", (2, 3), np.dtype("f4"), mode="by_grad_req", two_bit_threshold=threshold
    )
    sent: list[Message | bytes] = [
        pb.StepRequest(header=head_to_wire(described)),
        *payload(np.zeros(described.size_bytes, "u1")),
    ]
    with refused("INVALID_STREAM") as refusal:
        push(worker, *sent, trainer=trainer)
    assert f"{threshold:g}" in refusal.message


@pytest.mark.parametrize("threshold", [-0.5, float("nan"), float("inf")])
def test_thresholds_that_cannot_be(worker: RawClient, threshold: float) -> None:
    described = TensorHead("c_w", (2, 3), np.dtype("f4"), mode="by_grad_req", two_bit_threshold=0.5)
    header = head_to_wire(described)
    header.two_bit_threshold = threshold
    sent: list[Message | bytes] = [
        pb.StepRequest(header=header),
        *payload(np.zeros(described.size_bytes, "u1")),
    ]
    with refused("INVALID_STREAM"):
        push(worker, *sent, trainer="c")


BAD_NUMBERS: Final = (
    *({"batch_size": size} for size in (0.0, -0.0, -1.0, float("nan"), float("inf"))),
    *({"learning_rate": rate} for rate in (float("nan"), float("inf"), float("-inf"), -0.1)),
)


@pytest.mark.parametrize("trainer", ["s", "a", "l"])
def test_numbers_that_cannot_be(worker: RawClient, trainer: str) -> None:
    for options in BAD_NUMBERS:
        with refused("INVALID_ARGUMENT") as refusal:
            push(worker, *tensor(f"{trainer}_w", ONES), trainer=trainer, **options)
        assert f"{next(iter(options.values())):g}" in refusal.message


@pytest.mark.parametrize("trainer", ["s", "a"])
def test_clocks_that_the_worker_has_not_reached(worker: RawClient, trainer: str) -> None:
    now = worker.join_trainer(trainer)
    for clock in (now - 1, now + 1, 2**63, 2**64 - 1):
        # Ahead of what the server knows is who was there before it went back to a snapshot.
        with refused("ROLLED_BACK" if clock > now else "CLOCK_MISMATCH") as refusal:
            push(worker, *tensor(f"{trainer}_w", ONES), trainer=trainer, clock=clock)
        assert f"has committed {now}" in refusal.message
        assert str(clock) in refusal.message


@pytest.mark.parametrize("trainer", ["s", "a", "c"])
def test_who_never_joined(worker: RawClient, trainer: str) -> None:
    with RawClient(worker.address) as stranger:
        with refused("WORKER_NOT_JOINED") as refusal:
            push(stranger, *tensor(f"{trainer}_w", ONES), trainer=trainer, clock=0)
        assert "join" in refusal.message
        with refused("WORKER_NOT_JOINED"):
            stranger.join_trainer(trainer)
        stranger.join()
        with refused("WORKER_NOT_JOINED"):
            push(stranger, *tensor(f"{trainer}_w", ONES), trainer=trainer, clock=0)
        leave = pb.LeaveTrainerRequest(identity=stranger.identity, trainer=trainer)
        stranger.call("LeaveTrainer", leave)


def test_trainers_that_are_not_there(worker: RawClient) -> None:
    operation = worker.operation()
    calls: dict[str, Callable[[], Any]] = {
        "Step": lambda: list(step_stream(operation, "none", ("s_w", ONES))),
        "AwaitStep": lambda: pb.AwaitStepRequest(operation=operation, trainer="none"),
        "JoinTrainer": lambda: pb.JoinTrainerRequest(identity=worker.identity, trainer="none"),
        "LeaveTrainer": lambda: pb.LeaveTrainerRequest(identity=worker.identity, trainer="none"),
        "SetLearningRate": lambda: pb.SetLearningRateRequest(operation=operation, trainer="none"),
        "Update": lambda: pb.UpdateRequest(operation=operation, trainer="none", batch_size=1),
        "AllreduceGrads": lambda: pb.AllreduceGradsRequest(operation=operation, trainer="none"),
        "DeleteTrainer": lambda: pb.DeleteTrainerRequest(operation=operation, trainer="none"),
        "SaveStates": lambda: pb.SaveStatesRequest(trainer="none"),
        "ListTrainers": lambda: pb.ListTrainersRequest(names=["s", "none"]),
        "LoadStates": lambda: [
            pb.LoadStatesRequest(open=pb.LoadStatesOpen(operation=operation, trainer="none"))
        ],
    }
    for method, request in calls.items():
        with refused("TRAINER_NOT_FOUND") as refusal:
            worker.call(method, request())
        assert "'none'" in refusal.message


def test_a_distributed_trainer_has_no_buffers(worker: RawClient) -> None:
    operation = worker.operation()
    with refused("INVALID_ARGUMENT") as refusal:
        worker.call("Update", pb.UpdateRequest(operation=operation, trainer="s", batch_size=1))
    assert "grads=" in refusal.message


def test_nobody_joins_a_local_trainer(worker: RawClient) -> None:
    with refused("INVALID_ARGUMENT"):
        worker.join_trainer("l")


def test_a_stream_that_is_cut_at_any_message_changes_nothing(worker: RawClient) -> None:
    whole = [
        *step_stream(worker.operation(), "s", clock=1, ignore_stale_grad=True),
        *tensor("s_w", ONES),
        *rows_messages("s_table", [1, 2], ROWS, TABLE),
    ]
    for count in range(len(whole) + 1):
        operation = worker.operation()
        opened = step_stream(operation, "s", clock=1, ignore_stale_grad=True)
        with refused("INVALID_STREAM"):
            list(worker.start("Step", [*opened, *whole[1:]][:count], ends=False))


def test_a_stream_that_goes_on_after_its_end(worker: RawClient) -> None:
    end = pb.StepRequest(end=tensor_pb2.StreamEnd())
    with refused("INVALID_STREAM") as refusal:
        push(worker, *tensor("s_w", ONES), end)
    assert "after the end" in refusal.message


@pytest.mark.parametrize("change", [-1, 1, 4])
def test_payload_of_another_size(worker: RawClient, change: int) -> None:
    header, *_ = tensor("s_w", ONES)
    data = pb.StepRequest(data=bytes(24 + change))
    with refused("INVALID_STREAM"):
        push(worker, header, data)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [b"\xff\xff"],
        [pb.StepRequest()],
        [pb.StepRequest(data=b"1234")],
        [pb.StepRequest(end=tensor_pb2.StreamEnd())],
        [pb.StepRequest(open=pb.StepOpen(trainer="s", batch_size=1))],
        [pb.StepRequest(open=pb.StepOpen())],
    ],
)
def test_what_does_not_open_a_step(worker: RawClient, messages: Iterable[Message | bytes]) -> None:
    reasons = ("INVALID_STREAM", "INVALID_MESSAGE", "INVALID_ARGUMENT", "TRAINER_NOT_FOUND")
    with refused(*reasons):
        list(worker.start("Step", messages, ends=False))


def test_identities_of_another_size(worker: RawClient) -> None:
    for size in (0, 1, 15, 17, 1 << 16):
        operation = parameter_pb2.Operation(identity=bytes(size), sequence=1)
        for messages in (
            step_stream(operation, "s", ("s_w", ONES), clock=1),
            step_stream(operation, "l", ("l_w", ONES)),
        ):
            with refused("INVALID_ARGUMENT"):
                worker.call("Step", messages)
        with refused("INVALID_ARGUMENT"):
            worker.call("AwaitStep", pb.AwaitStepRequest(operation=operation, trainer="s"))
        with refused("INVALID_ARGUMENT"):
            worker.call("JoinTrainer", pb.JoinTrainerRequest(identity=bytes(size), trainer="s"))


@pytest.mark.parametrize("trainer", ["s", "a", "l"])
@pytest.mark.parametrize(
    ("reason", "name"),
    [
        ("PARAMETER_NOT_FOUND", "nobody"),
        ("NOT_INITIALIZED", "bare"),
        ("INVALID_NAME", ""),
    ],
)
def test_values_that_cannot_be_pulled_refuse_the_whole_step(
    worker: RawClient, trainer: str, reason: str, name: str
) -> None:
    """Who gets an error makes its step again: so nothing of it has been applied."""
    with refused(reason, "PARAMETER_NOT_FOUND"):
        push(
            worker,
            *tensor(f"{trainer}_w", ONES),
            trainer=trainer,
            pull=[selector(f"{trainer}_w"), selector(name)],
        )


def test_a_pull_from_a_context_without_a_copy_refuses_the_whole_step(worker: RawClient) -> None:
    with refused("CONTEXT_WITHOUT_COPY"):
        push(worker, *tensor("s_w", ONES), pull=[selector("s_w", context=device(5))])


def test_a_push_without_its_gradients(worker: RawClient) -> None:
    with refused("STALE_GRADIENT") as refusal:
        push(worker, *tensor("s_w", ONES), ignore_stale_grad=False)
    assert "s_table" in refusal.message


def test_a_step_whose_answer_was_acknowledged(worker: RawClient) -> None:
    old = parameter_pb2.Operation(identity=worker.identity, sequence=1, acknowledged_below=1)
    with refused("OPERATION_EXPIRED"):
        worker.call("Step", step_stream(old, "s", ("s_w", ONES), clock=1))
