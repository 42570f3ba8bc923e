"""Parts of parameters on a real server, in messages: what comes back, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from paramd.initial_values import fill
from paramd.spec import FirstValue, InitializerSpec, ParameterSpec, Part, Shape, StoredInfo
from paramd.v1 import parameter_service_pb2 as pb
from paramd.v1 import tensor_pb2
from paramd.wire.messages import info_from_wire, part_to_wire, spec_to_wire
from tests.support.contexts import device
from tests.support.raw_calls import INT64_MAX, RawClient, refused

pytestmark = pytest.mark.usefixtures("world")

WHOLE = (10, 3)
EVEN = Part(WHOLE, 4, 3, 1)
STRIDED = Part(WHOLE, 1, 5, 2)
NORMAL = InitializerSpec("normal", {"sigma": 2.0})
# Rows as (begin, count, step), with the shape of the whole, that are no part of anything.
NO_PARTS = {
    "negative begin": (WHOLE, (-1, 3, 1)),
    "no rows": (WHOLE, (0, 0, 1)),
    "negative count": (WHOLE, (4, -3, 1)),
    "no step": (WHOLE, (4, 3, 0)),
    "negative step": (WHOLE, (4, 3, -1)),
    "one too many": (WHOLE, (8, 3, 1)),
    "beyond the end by steps": (WHOLE, (1, 5, 3)),
    "overflow": (WHOLE, (INT64_MAX, INT64_MAX, INT64_MAX)),
    "overflow of the sum": (WHOLE, (1, 3, INT64_MAX)),
    "no shape": ((), (0, 3, 1)),
    "unknown rows": ((0, 3), (0, 3, 1)),
    "unknown columns": ((10, -1), (0, 3, 1)),
    "too many dimensions": ((3,) * 33, (0, 3, 1)),
}


def wire_part(shape: Sequence[int], rows: tuple[int, int, int]) -> tensor_pb2.Part:
    begin, count, step = rows
    return tensor_pb2.Part(
        shape=tensor_pb2.Shape(dimensions=shape),
        rows=tensor_pb2.Range(begin=begin, count=count, step=step),
    )


def declare(client: RawClient, spec: ParameterSpec, *compared: str) -> StoredInfo:
    declaration = pb.Declaration(spec=spec_to_wire(spec), compared=compared)
    answer = client.call("Declare", pb.DeclareRequest(declarations=[declaration]))
    (info,) = answer.parameters
    return info_from_wire(info)


def set_shape(client: RawClient, name: str, shape: Shape, part: tensor_pb2.Part | None) -> None:
    request = pb.SetAttributesRequest(
        operation=client.operation(), names=[name], shape=tensor_pb2.Shape(dimensions=shape)
    )
    if part is not None:
        request.part.CopyFrom(part)
    client.call("SetAttributes", request)


def info_of(client: RawClient, name: str) -> StoredInfo:
    (info,) = client.infos(name)
    return info_from_wire(info)


@pytest.mark.parametrize("part", [EVEN, STRIDED])
def test_a_declared_part_has_its_rows_of_the_first_value(raw: RawClient, part: Part) -> None:
    name = f"part {part.step}"
    spec = ParameterSpec(name, part.local_shape, part=part)
    assert declare(raw, spec).current == spec
    raw.initialize(name, init=NORMAL)
    whole = fill(NORMAL, name, WHOLE, np.dtype("f4"), seed=1, draw=0)
    np.testing.assert_array_equal(raw.get(name), whole[part.begin :: part.step][: part.count])
    info = info_of(raw, name)
    assert info.first_value == FirstValue(NORMAL, 1, 0, (device(0),))
    assert info.current.part == info.declared.part == part
    assert declare(raw, spec, "shape") == info
    assert declare(raw, ParameterSpec(name), "shape") == info


def test_a_deferred_parameter_becomes_a_part(raw: RawClient) -> None:
    spec = ParameterSpec("late", (0, 3), allow_deferred_init=True)
    declare(raw, spec)
    raw.initialize("late", init=NORMAL)
    assert info_of(raw, "late").first_value == FirstValue(NORMAL, 1, 0, (device(0),))
    for _ in range(2):
        set_shape(raw, "late", STRIDED.local_shape, part_to_wire(STRIDED))
    info = info_of(raw, "late")
    assert (info.declared, info.current.shape, info.current.part) == (spec, (5, 3), STRIDED)
    whole = fill(NORMAL, "late", WHOLE, np.dtype("f4"), seed=1, draw=0)
    np.testing.assert_array_equal(raw.get("late"), whole[1::2])


@pytest.mark.parametrize("kind", NO_PARTS)
def test_what_is_no_part_is_not_declared(unchanged: RawClient, kind: str) -> None:
    shape, rows = NO_PARTS[kind]
    for local in {(rows[1], *shape[1:]), shape, (3, 3)}:
        wire = spec_to_wire(ParameterSpec("nonsense", (3, 3)))
        del wire.shape.dimensions[:]
        wire.shape.dimensions.extend(local)
        wire.part.CopyFrom(wire_part(shape, rows))
        fine = pb.Declaration(spec=spec_to_wire(ParameterSpec("fine", (1,))))
        with refused("INVALID_ARGUMENT"):
            unchanged.call(
                "Declare", pb.DeclareRequest(declarations=[fine, pb.Declaration(spec=wire)])
            )


@pytest.mark.parametrize("kind", NO_PARTS)
def test_what_is_no_part_is_not_set(unchanged: RawClient, kind: str) -> None:
    shape, rows = NO_PARTS[kind]
    with refused("INVALID_ARGUMENT"):
        set_shape(unchanged, "formless", (3, 3), wire_part(shape, rows))


@pytest.mark.parametrize("local", [WHOLE, (0, 3), (3,), (3, 3, 1), ()])
def test_a_part_of_another_shape_than_comes_with_it(unchanged: RawClient, local: Shape) -> None:
    wire = spec_to_wire(ParameterSpec("nonsense", local))
    wire.part.CopyFrom(part_to_wire(EVEN))
    with refused("INVALID_ARGUMENT") as outcome:
        unchanged.call("Declare", pb.DeclareRequest(declarations=[pb.Declaration(spec=wire)]))
    assert "(3, 3)" in outcome.message
    with refused("INVALID_ARGUMENT") as outcome:
        set_shape(unchanged, "formless", local, part_to_wire(EVEN))
    assert "(3, 3)" in outcome.message


def test_a_part_without_a_shape(unchanged: RawClient) -> None:
    wire = spec_to_wire(ParameterSpec("nonsense"))
    wire.part.CopyFrom(part_to_wire(EVEN))
    with refused("INVALID_ARGUMENT"):
        unchanged.call("Declare", pb.DeclareRequest(declarations=[pb.Declaration(spec=wire)]))
    attributes: list[dict[str, Any]] = [{}, {"lr_mult": 2.0}, {"clear_init": True}]
    for attribute in attributes:
        request = pb.SetAttributesRequest(
            operation=unchanged.operation(),
            names=["formless"],
            part=part_to_wire(EVEN),
            **attribute,
        )
        with refused("INVALID_ARGUMENT"):
            unchanged.call("SetAttributes", request)


@pytest.mark.parametrize(
    "part",
    [Part((12, 5), 0, 4, 3), Part((8, 5), 4, 4, 1), Part((4, 5), 0, 4, 1), Part((5, 5), 1, 4, 1)],
)
def test_a_whole_shape_becomes_no_part(unchanged: RawClient, part: Part) -> None:
    # The world's "dense" and "declared" have the shape (4, 5), without a part.
    for name in ("dense", "declared"):
        with refused("SHAPE_MISMATCH"):
            set_shape(unchanged, name, (4, 5), part_to_wire(part))
        with refused("ATTRIBUTE_MISMATCH"):
            declare(unchanged, ParameterSpec(name, (4, 5), part=part))


def test_another_part_is_refused_with_the_shapes_of_the_wholes(raw: RawClient) -> None:
    spec = ParameterSpec("taken", EVEN.local_shape, part=EVEN)
    before = declare(raw, spec)
    others = [
        (Part((11, 3), 4, 3, 1), "(11, 3)"),
        (Part(WHOLE, 5, 3, 1), "3 rows from 5 of shape (10, 3)"),
        (Part(WHOLE, 0, 10, 1), "10 rows from 0 of shape (10, 3)"),
        (STRIDED, "5 rows from 1 in steps of 2 of shape (10, 3)"),
    ]
    for part, shown in others:
        with refused("ATTRIBUTE_MISMATCH") as outcome:
            declare(raw, ParameterSpec("taken", part.local_shape, part=part))
        assert shown in outcome.message
        assert "(10, 3)" in outcome.message
        with refused("SHAPE_MISMATCH") as outcome:
            set_shape(raw, "taken", part.local_shape, part_to_wire(part))
        assert shown in outcome.message
    for shape in (WHOLE, (3, 3)):
        with refused("ATTRIBUTE_MISMATCH"):
            declare(raw, ParameterSpec("taken", shape), "shape")
        with refused("SHAPE_MISMATCH"):
            set_shape(raw, "taken", shape, None)
    assert info_of(raw, "taken") == before


@pytest.mark.parametrize(
    ("part", "init", "reason"),
    [
        (Part((INT64_MAX, 3), 5, 2, INT64_MAX // 2), "normal", "INITIALIZER_FAILED"),
        (Part((INT64_MAX, INT64_MAX), 0, 1, 1), "normal", "INITIALIZER_FAILED"),
        (Part((2**40, 16), 0, 2**39, 2), "normal", "MEMORY_LIMIT"),
        (Part((2**40, 16), 0, 2**39, 2), "zero", "MEMORY_LIMIT"),
        (Part((2**20, 2**10), 5, 1, 1), "orthogonal", "MEMORY_LIMIT"),
        (Part((2**20, 2**10), 5, 1, 1), "bilinear", "INITIALIZER_FAILED"),
    ],
)
def test_a_huge_part_has_no_first_value(raw: RawClient, part: Part, init: str, reason: str) -> None:
    name = f"{part} {init}"
    declare(raw, ParameterSpec(name, part.local_shape, part=part))
    before = raw.everything()
    used = raw.used_bytes()
    with refused(reason):
        raw.initialize(name, init=InitializerSpec(init))
    assert raw.everything() == before
    assert raw.used_bytes() == used


def test_a_small_part_of_something_huge_has_its_first_value(raw: RawClient) -> None:
    part = Part((2**50, 16), 2**50 - 3, 3, 1)
    declare(raw, ParameterSpec("tail", part.local_shape, part=part))
    raw.initialize("tail", init=NORMAL)
    # 12 of the 48 values or so are farther from 0 than 0.67 sigma on either side.
    assert np.isfinite(raw.get("tail")).all()
    assert len(np.unique(raw.get("tail"))) > 40
