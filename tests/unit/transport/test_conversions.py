"""Plain values of calls to messages."""

from __future__ import annotations

from typing import Any

import pytest

from paramd.errors import InvalidArgumentError
from paramd.spec import Part
from paramd.transport.conversions import attribute_fields
from paramd.v1 import parameter_service_pb2 as pb
from paramd.wire.messages import part_from_wire, shape_from_wire

PART = Part((10, 3), 1, 5, 2)


@pytest.mark.parametrize("part", [PART, None])
def test_a_shape_goes_with_its_part(part: Part | None) -> None:
    fields = attribute_fields("shape", PART.local_shape, part)
    request = pb.SetAttributesRequest.FromString(
        pb.SetAttributesRequest(**fields).SerializeToString()
    )
    assert request.WhichOneof("attribute") == "shape"
    assert shape_from_wire(request.shape) == (5, 3)
    assert (part_from_wire(request.part) if request.HasField("part") else None) == part


@pytest.mark.parametrize(("attribute", "value"), [("lr_mult", 2.0), ("init", None)])
def test_other_attributes_have_no_part(attribute: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=f"a part goes with a shape.*{attribute}"):
        attribute_fields(attribute, value, PART)
