"""Trainers, steps and optimizer states survive the wire, and nonsense is refused."""

from __future__ import annotations

import math
import time
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from hypothesis import given
from hypothesis import strategies as st

from paramd import lr_scheduler, optimizer
from paramd.errors import InvalidArgumentError, InvalidNameError, InvalidStreamError
from paramd.optimizer import NAMES
from paramd.spec import TensorHead
from paramd.trainer_spec import (
    NON_FINITE_POLICIES,
    STEP_STATES,
    WORKER_LOSS_POLICIES,
    StatesManifest,
    StepResult,
    TrainerInfo,
    TrainerSpec,
    TrainerWorker,
)
from paramd.v1 import tensor_pb2, trainer_pb2
from paramd.v1 import training_service_pb2 as pb
from paramd.wire.training import (
    manifest_from_wire,
    manifest_pages,
    optimizer_from_wire,
    optimizer_to_wire,
    step_result_from_wire,
    step_result_to_wire,
    trainer_info_from_wire,
    trainer_info_to_wire,
    trainer_spec_from_wire,
    trainer_spec_to_wire,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
schedules: st.SearchStrategy[lr_scheduler.Schedule | None] = st.sampled_from(
    [
        None,
        lr_scheduler.FactorScheduler(step=3, factor=0.5, warmup_steps=2),
        lr_scheduler.MultiFactorScheduler(step=[1, 5, 2**53], factor=0.25, base_lr=0.5),
        lr_scheduler.PolyScheduler(max_update=10, pwr=3),
        lr_scheduler.CosineScheduler(max_update=2**40, final_lr=1e-9, warmup_mode="constant"),
    ]
)


@st.composite
def optimizers(draw: st.DrawFn) -> optimizer.Optimizer:
    schedule = draw(schedules)
    # A schedule brings its rate along.
    rate = schedule.base_lr if schedule is not None else draw(st.floats(1e-300, 1e300))
    return optimizer.create(
        draw(st.sampled_from(NAMES)),
        wd=draw(st.floats(0, 1e300)),
        clip_gradient=draw(st.none() | st.floats(1e-300, 1e300)),
        rescale_grad=draw(st.floats(-1e300, 1e300)),
        begin_num_update=draw(st.integers(0, 2**53)),
        multi_precision=draw(st.booleans()),
        lr_scheduler=schedule,
        learning_rate=rate,
    )


specs = st.builds(
    TrainerSpec,
    name=texts,
    parameters=st.lists(texts, max_size=5, unique=True).map(tuple),
    optimizer=optimizers(),
    distributed=st.booleans(),
    staleness=st.none() | st.integers(0, 2**32 - 1),
    num_workers=st.integers(0, 2**32 - 1),
    non_finite=st.sampled_from(NON_FINITE_POLICIES),
    worker_loss=st.sampled_from(WORKER_LOSS_POLICIES),
    two_bit_threshold=st.just(0.0) | st.floats(1e-300, 1e300),
    update_each_copy=st.booleans(),
)
counts = st.integers(0, 2**64 - 1)
workers = st.builds(TrainerWorker, texts, st.integers(0, 2**32 - 1), counts, st.booleans())


@given(spec=specs)
def test_a_spec_survives(spec: TrainerSpec) -> None:
    assert trainer_spec_from_wire(trainer_spec_to_wire(spec)) == spec


@given(
    info=st.builds(
        TrainerInfo,
        spec=specs,
        learning_rate=st.floats(allow_nan=False),
        num_update=counts,
        num_steps=counts,
        workers=st.lists(workers, max_size=3).map(tuple),
        num_non_finite=counts,
        num_skipped=counts,
        state_bytes=st.integers(0, 2**63 - 1),
    )
)
def test_a_description_survives(info: TrainerInfo) -> None:
    assert trainer_info_from_wire(trainer_info_to_wire(info)) == info


@given(result=st.builds(StepResult, st.sampled_from(STEP_STATES), counts, st.booleans()))
def test_a_result_survives(result: StepResult) -> None:
    assert step_result_from_wire(step_result_to_wire(result)) == result


@pytest.mark.parametrize("state", [0, 5, 77])
def test_states_of_a_step_that_are_none(state: int) -> None:
    with pytest.raises(InvalidStreamError, match=str(state)):
        step_result_from_wire(pb.StepResult(state=state))  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 3000])
def test_a_manifest_survives_in_pages(count: int) -> None:
    manifest = StatesManifest(
        optimizer=optimizer.create("adam"),
        learning_rate=None if count % 2 else 0.25,
        num_updates=MappingProxyType({f"p{number}": number for number in range(count)}),
        arrays=tuple(
            (TensorHead(f"p{number}", (number, 2), np.dtype("f4")), state)
            for number in range(count)
            for state in ("mean", "variance")
        ),
    )
    pages = list(manifest_pages(manifest))
    assert [page.last for page in pages] == [False] * (len(pages) - 1) + [True]
    assert all(page.ByteSize() < 1 << 20 for page in pages)
    assert manifest_from_wire(pages) == manifest


def spec_message(**changes: Any) -> trainer_pb2.TrainerSpec:
    message = trainer_spec_to_wire(TrainerSpec("t", ("a", "b"), optimizer.create("sgd")))
    message.MergeFrom(trainer_pb2.TrainerSpec(**changes))
    return message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"parameters": ["a"]}, "'a'"),
        ({"non_finite": 9}, "9"),
        ({"worker_loss": 9}, "9"),
        *(({"two_bit_threshold": bad}, "threshold") for bad in (-1.0, math.nan, math.inf)),
    ],
)
def test_specs_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        trainer_spec_from_wire(spec_message(**changes))


def test_names_that_cannot_be() -> None:
    for message in (spec_message(parameters=["", "c"]), spec_message(name="n" * 1025)):
        with pytest.raises(InvalidNameError):
            trainer_spec_from_wire(message)
    with pytest.raises(InvalidNameError):
        trainer_spec_from_wire(trainer_pb2.TrainerSpec(optimizer=trainer_pb2.Optimizer(name="sgd")))


def test_policies_are_said() -> None:
    for field in ("non_finite", "worker_loss"):
        message = spec_message()
        message.ClearField(field)
        with pytest.raises(InvalidArgumentError, match="policy"):
            trainer_spec_from_wire(message)


def test_many_names_with_one_twice_are_refused_in_no_time() -> None:
    names = [f"p{number}" for number in range(60_000)]
    begun = time.process_time()
    with pytest.raises(InvalidArgumentError, match="'p59999'"):
        trainer_spec_from_wire(spec_message(parameters=[*names, names[-1]]))
    assert time.process_time() - begun < 1.0


def nested(depth: int) -> Value:
    value = Value(number_value=1)
    for _ in range(depth):
        value = Value(list_value=ListValue(values=[value]))
    return value


HOSTILE: dict[str, Value] = {
    "nothing": Value(),
    "null": Value(null_value=0),  # type: ignore[arg-type]
    "text": Value(string_value="0.1"),
    "long text": Value(string_value="x" * 100_000),
    "bool": Value(bool_value=True),
    "struct": Value(struct_value=Struct(fields={"a": Value(number_value=1)})),
    "list": nested(1),
    "lists in lists": nested(40),
    "nan": Value(number_value=math.nan),
    "inf": Value(number_value=math.inf),
    "negative": Value(number_value=-1e-9),
    "huge": Value(number_value=1.7976931348623157e308),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", sorted(set(HOSTILE) - {"huge"}))
def test_hyperparameters_that_cannot_be(name: str, what: str) -> None:
    message = optimizer_to_wire(optimizer.create(name))
    message.arguments.fields["learning_rate"].CopyFrom(HOSTILE[what])
    with pytest.raises(InvalidArgumentError) as caught:
        optimizer_from_wire(message)
    assert "learning_rate" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("field", ["begin_num_update", "multi_precision", "clip_gradient"])
@pytest.mark.parametrize("what", sorted(set(HOSTILE)))
def test_other_hyperparameters_that_cannot_be(field: str, what: str) -> None:
    if (field, what) in (("multi_precision", "bool"), ("clip_gradient", "huge")):
        pytest.skip("that is a value of it")
    message = optimizer_to_wire(optimizer.create("sgd"))
    message.arguments.fields[field].CopyFrom(HOSTILE[what])
    with pytest.raises(InvalidArgumentError, match=field):
        optimizer_from_wire(message)


@pytest.mark.parametrize("argument", ["", "lr_scheduler", "learning rate", "x" * 100_000, "name"])
def test_hyperparameters_that_no_optimizer_has(argument: str) -> None:
    message = optimizer_to_wire(optimizer.create("sgd"))
    message.arguments.fields[argument].CopyFrom(Value(number_value=1))
    with pytest.raises(InvalidArgumentError, match=r"lr_scheduler|does not take"):
        optimizer_from_wire(message)


@pytest.mark.parametrize("name", ["", "SGD", "adamax", "Optimizer", "x" * 100_000])
def test_optimizers_that_are_none(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        optimizer_from_wire(trainer_pb2.Optimizer(name=name))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("", {}),
        ("none", {}),
        ("factor", {}),
        ("factor", {"step": 0}),
        ("factor", {"step": 1, "factor": math.nan}),
        ("factor", {"step": 1.5}),
        ("multi_factor", {"step": [3, 2]}),
        ("multi_factor", {"step": [math.nan]}),
        ("multi_factor", {"step": list(range(1, 10_003))}),
        ("poly", {"max_update": 1e300}),
        ("cosine", {"max_update": -1}),
        ("cosine", {"max_update": 5, "warmup_mode": "x" * 10_000}),
    ],
)
def test_schedules_that_cannot_be(name: str, arguments: dict[str, Any]) -> None:
    message = optimizer_to_wire(optimizer.create("sgd"))
    message.scheduler.name = name
    message.scheduler.arguments.update(arguments)
    with pytest.raises(InvalidArgumentError):
        optimizer_from_wire(message)


def manifest_message(**changes: Any) -> pb.StatesManifest:
    message = pb.StatesManifest(optimizer=optimizer_to_wire(optimizer.create("sgd")), last=True)
    message.MergeFrom(pb.StatesManifest(**changes))
    return message


@pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf, -0.5])
def test_a_manifest_has_a_learning_rate_that_can_be(rate: float) -> None:
    with pytest.raises(InvalidArgumentError, match="rate"):
        manifest_from_wire([manifest_message(learning_rate=rate)])


def test_a_manifest_names_each_parameter_once() -> None:
    twice = manifest_message(names=["a", "a"], num_updates=[1, 2])
    with pytest.raises((InvalidArgumentError, InvalidStreamError), match="a"):
        manifest_from_wire([twice])


def test_a_manifest_names_each_state_once() -> None:
    head = tensor_pb2.TensorHeader(name="a", dtype=1, size_bytes=4)  # type: ignore[arg-type]
    arrays = [pb.StateArray(header=head, state="momentum")] * 2
    with pytest.raises((InvalidArgumentError, InvalidStreamError), match="a"):
        manifest_from_wire([manifest_message(names=["a"], num_updates=[1], arrays=arrays)])


def test_a_manifest_has_as_many_counts_as_names() -> None:
    with pytest.raises(InvalidStreamError, match="counts"):
        manifest_from_wire([manifest_message(names=["a"], num_updates=[1, 2])])


def test_a_manifest_counts_no_further_than_a_trainer_can() -> None:
    """The next update has a number, too."""
    with pytest.raises((InvalidArgumentError, InvalidStreamError)):
        manifest_from_wire([manifest_message(names=["a"], num_updates=[2**64 - 1])])
