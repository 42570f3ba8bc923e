"""More than there is: the memory limit, on every call that allocates, and pulls of rows."""

from __future__ import annotations

from typing import Final

import numpy as np
import pytest

from paramd.spec import InitializerSpec, ParameterSpec, TensorHead
from paramd.v1 import parameter_service_pb2 as pb
from paramd.wire.messages import context_to_wire
from paramd.wire.tensors import head_to_wire
from tests.support.contexts import device
from tests.support.raw_calls import (
    RawClient,
    payload,
    refused,
)

BIG: Final = 32 << 20


def test_memory_limit_on_every_call_that_allocates(unchanged: RawClient) -> None:
    """The limit is 64 MiB: 32 MiB values fit once with their gradients and not more."""
    shape = (BIG // 4,)
    wide = TensorHead("dense", (1, BIG), np.dtype("f4"), mode="assign")
    unchanged.declare(ParameterSpec("big", shape=shape))
    try:
        with refused("MEMORY_LIMIT"):
            unchanged.initialize("big", contexts=(device(0), device(1)))
        header = head_to_wire(TensorHead("big", shape, np.dtype("f4"), mode="assign"))
        opened = pb.SetDataOpen(
            operation=unchanged.operation(),
            initialize=True,
            contexts=[context_to_wire(device(n)) for n in range(2)],
        )
        chunks = payload(np.zeros(shape, "f4"))
        with refused("MEMORY_LIMIT"):
            unchanged.call(
                "SetData",
                [pb.SetDataRequest(open=opened), pb.SetDataRequest(header=header), *chunks],
            )
        assert unchanged.infos("big")[0].state == 1
        unchanged.call(
            "SetAttributes",
            pb.SetAttributesRequest(
                operation=unchanged.operation(), names=["big"], grad_req="GRAD_REQ_NULL"
            ),
        )
        unchanged.initialize("big")
        before = unchanged.everything()
        for dtype in (np.dtype("f8"), np.dtype("<i8")):
            number = {"f": "DTYPE_FLOAT64", "i": "DTYPE_INT64"}[dtype.kind]
            with refused("MEMORY_LIMIT"):
                unchanged.call(
                    "Cast",
                    pb.CastRequest(
                        operation=unchanged.operation(),
                        names=["dense", "big"],
                        dtype=number,
                    ),
                )
        with refused("MEMORY_LIMIT"):
            unchanged.call(
                "ResetCtx",
                pb.ResetCtxRequest(
                    operation=unchanged.operation(),
                    names=["dense", "big"],
                    contexts=[context_to_wire(device(n)) for n in range(4, 8)],
                ),
            )
        with refused("MEMORY_LIMIT"):
            unchanged.call(
                "SetAttributes",
                pb.SetAttributesRequest(
                    operation=unchanged.operation(), names=["two", "big"], grad_req="GRAD_REQ_ADD"
                ),
            )
        assert unchanged.everything() == before
        with refused("SHAPE_MISMATCH", "BROADCAST", "MEMORY_LIMIT"):
            unchanged.call(
                "SetData",
                [
                    pb.SetDataRequest(open=pb.SetDataOpen(operation=unchanged.operation())),
                    pb.SetDataRequest(header=head_to_wire(wide)),
                ],
            )
    finally:
        unchanged.call("Delete", pb.DeleteRequest(operation=unchanged.operation(), names=["big"]))


@pytest.mark.parametrize("shape", [(2**40,), (2**62, 2**62), (1, 2**62), (2**30, 2**30, 2**30)])
@pytest.mark.parametrize("init", ["zero", "one", "xavier", "orthogonal"])
def test_parameter_larger_than_any_memory(
    unchanged: RawClient, shape: tuple[int, ...], init: str
) -> None:
    unchanged.declare(ParameterSpec("vast", shape=shape))
    try:
        with refused("MEMORY_LIMIT", "INITIALIZER_FAILED"):
            unchanged.initialize("vast", init=InitializerSpec(init))
    finally:
        unchanged.call("Delete", pb.DeleteRequest(operation=unchanged.operation(), names=["vast"]))
