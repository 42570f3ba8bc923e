"""Values survive the wire, and nonsense is refused."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from paramd.context import Context, cpu, cpu_pinned, gpu
from paramd.errors import InvalidArgumentError, InvalidNameError
from paramd.spec import GRAD_REQS, STYPES, InitializerSpec, ParameterSpec, StoredInfo, Version
from paramd.v1 import parameter_pb2, tensor_pb2
from paramd.wire.dtypes import BFLOAT16, DTYPES, dtype_from_wire, dtype_of, dtype_to_wire
from paramd.wire.messages import (
    context_from_wire,
    context_to_wire,
    grad_req_from_wire,
    info_from_wire,
    info_to_wire,
    initializer_from_wire,
    initializer_to_wire,
    shape_from_wire,
    spec_from_wire,
    spec_to_wire,
    stype_from_wire,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
initializers = st.builds(
    InitializerSpec,
    name=texts,
    arguments=st.dictionaries(texts, st.booleans() | texts | finite, max_size=4).map(
        MappingProxyType
    ),
    client_side=st.booleans(),
)
contexts = st.builds(
    Context,
    st.sampled_from(["cpu", "gpu", "cpu_pinned", "cpu_shared"]),
    st.integers(0, 2**31 - 1),
)
shapes = st.none() | st.lists(st.integers(-1, 2**63 - 1), max_size=32).map(tuple)
specs = st.builds(
    ParameterSpec,
    name=texts.filter(bool),
    shape=shapes,
    dtype=st.sampled_from(list(DTYPES.values())),
    stype=st.sampled_from(STYPES),
    grad_stype=st.sampled_from(STYPES),
    grad_req=st.sampled_from(GRAD_REQS),
    lr_mult=finite,
    wd_mult=finite,
    init=st.none() | initializers,
    allow_deferred_init=st.booleans(),
    differentiable=st.booleans(),
    constant=st.booleans(),
)


@given(spec=specs)
def test_specs_survive_the_wire(spec: ParameterSpec) -> None:
    data = spec_to_wire(spec).SerializeToString()
    assert spec_from_wire(parameter_pb2.ParameterSpec.FromString(data)) == spec


@given(
    info=st.builds(
        StoredInfo,
        declared=specs,
        current=specs,
        state=st.sampled_from(["declared", "deferred", "initialized"]),
        contexts=st.lists(contexts, max_size=3).map(tuple),
        version=st.builds(Version, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
        awaits_client_value=st.booleans(),
        value_bytes=st.integers(0, 2**63 - 1),
        gradient_bytes=st.integers(0, 2**63 - 1),
    )
)
def test_descriptions_survive_the_wire(info: StoredInfo) -> None:
    data = info_to_wire(info).SerializeToString()
    assert info_from_wire(parameter_pb2.ParameterInfo.FromString(data)) == info


@given(initializer=initializers)
def test_initializers_survive_the_wire(initializer: InitializerSpec) -> None:
    assert initializer_from_wire(initializer_to_wire(initializer)) == initializer


@pytest.mark.parametrize("value", [None, [1.0], {"a": 1.0}])
def test_initializer_arguments_are_plain(value: Any) -> None:
    message = parameter_pb2.Initializer(name="constant")
    message.arguments.update({"value": value})
    with pytest.raises(InvalidArgumentError, match="value"):
        initializer_from_wire(message)


@pytest.mark.parametrize("context", [cpu(), cpu(7), gpu(1), cpu_pinned(2)])
def test_contexts_survive_the_wire(context: Context) -> None:
    assert context_from_wire(context_to_wire(context)) == context


@pytest.mark.parametrize(("kind", "number"), [(0, 0), (5, 0), (-1, 0), (1, -1), (2, -(2**31))])
def test_contexts_that_cannot_be(kind: int, number: int) -> None:
    message = tensor_pb2.Context(device_type=kind, device_id=number)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        context_from_wire(message)


@pytest.mark.parametrize("dimensions", [[-2], [1] * 33, [3, -(2**63)]])
def test_shapes_that_cannot_be(dimensions: list[int]) -> None:
    with pytest.raises(InvalidArgumentError):
        shape_from_wire(tensor_pb2.Shape(dimensions=dimensions))


@pytest.mark.parametrize("number", [-1, 0, 4, 2**31 - 1])
def test_numbers_that_name_nothing(number: int) -> None:
    with pytest.raises(InvalidArgumentError, match=str(number)):
        stype_from_wire(number)
    with pytest.raises(InvalidArgumentError, match=str(number)):
        grad_req_from_wire(number)


def test_specs_that_cannot_be() -> None:
    good = spec_to_wire(ParameterSpec("w", shape=(1,)))
    for field, value in [("lr_mult", math.nan), ("wd_mult", math.inf), ("kind", 0), ("dtype", 0)]:
        wrong = parameter_pb2.ParameterSpec()
        wrong.CopyFrom(good)
        setattr(wrong, field, value)
        with pytest.raises(InvalidArgumentError):
            spec_from_wire(wrong)
    for name in ("", "n" * 1025, "ü" * 513):
        wrong = parameter_pb2.ParameterSpec()
        wrong.CopyFrom(good)
        wrong.name = name
        with pytest.raises(InvalidNameError):
            spec_from_wire(wrong)


def test_every_dtype_has_one_number() -> None:
    for number, dtype in DTYPES.items():
        assert dtype_to_wire(dtype) == number
        assert dtype_from_wire(number) == dtype
    named = {value.number for value in tensor_pb2.DESCRIPTOR.enum_types_by_name["DType"].values}
    assert named == {0, *DTYPES}
    for number in (-1, 0, 10, 2**31 - 1):
        with pytest.raises(InvalidArgumentError):
            dtype_from_wire(number)
    with pytest.raises(InvalidArgumentError):
        dtype_to_wire(np.dtype("c8"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, np.dtype("f4")),
        ("float16", np.dtype("f2")),
        (np.float64, np.dtype("f8")),
        (">i4", np.dtype("<i4")),
        ("bfloat16", BFLOAT16),
        (BFLOAT16, BFLOAT16),
        (np.dtype([("bfloat16", np.uint16)]), BFLOAT16),
        (bool, np.dtype("?")),
    ],
)
def test_dtypes_that_users_mean(value: Any, expected: np.dtype[Any]) -> None:
    assert dtype_of(value) == expected


@pytest.mark.parametrize("value", ["complex64", "U3", object, np.uint32, "i2", [("a", "u2")]])
def test_dtypes_that_no_parameter_has(value: Any) -> None:
    with pytest.raises(TypeError):
        dtype_of(value)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_spec_or_refused(data: bytes) -> None:
    try:
        message = parameter_pb2.ParameterSpec.FromString(data)
    except DecodeError:
        return
    try:
        spec = spec_from_wire(message)
    except (InvalidArgumentError, InvalidNameError):
        return
    assert spec_from_wire(spec_to_wire(spec)) == spec
