"""Bad input on every call that it can reach: a typed reason, and nothing has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest
from google.protobuf.message import Message

from paramd.spec import ParameterSpec, TensorHead
from paramd.v1 import parameter_pb2, tensor_pb2
from paramd.v1 import parameter_service_pb2 as pb
from paramd.v1 import session_service_pb2 as spb
from paramd.wire.messages import context_to_wire, spec_to_wire
from paramd.wire.tensors import head_to_wire
from tests.support.contexts import device
from tests.support.raw_calls import (
    INT64_MAX,
    SHAPE,
    VALUE,
    RawClient,
    data_stream,
    grad_stream,
    payload,
    refused,
    selector,
)

NAMED_CALLS: Final = (
    "List",
    "Delete",
    "Initialize",
    "GetData",
    "GetGrad",
    "SetData",
    "SetGrad",
    "ZeroGrad",
    "ResetCtx",
    "Cast",
    "SetAttributes",
    "PullRowSparse",
    "Save",
    "Load",
)


def named(client: RawClient, method: str, name: str) -> Any:
    """The request of any call that takes names."""
    operation = client.operation()
    header = head_to_wire(TensorHead(name or "x", SHAPE, np.dtype("f4"), mode="assign"))
    header.name = name
    requests: dict[str, Callable[[], Any]] = {
        "List": lambda: pb.ListRequest(names=[name]),
        "Delete": lambda: pb.DeleteRequest(operation=operation, names=["dense", name]),
        "Initialize": lambda: pb.InitializeRequest(
            operation=operation,
            entries=[
                pb.InitializeEntry(name="declared", init=parameter_pb2.Initializer(name="zero")),
                pb.InitializeEntry(name=name, init=parameter_pb2.Initializer(name="zero")),
            ],
            contexts=[context_to_wire(device())],
        ),
        "GetData": lambda: pb.GetDataRequest(tensors=[selector("dense"), selector(name)]),
        "GetGrad": lambda: pb.GetGradRequest(tensors=[selector("dense"), selector(name)]),
        "SetData": lambda: [
            *data_stream(operation, ("dense", VALUE + 1)),
            pb.SetDataRequest(header=header),
            *payload(VALUE),
        ],
        "SetGrad": lambda: [
            *grad_stream(operation, ("dense", VALUE + 1)),
            pb.SetGradRequest(header=header),
            *payload(VALUE),
        ],
        "ZeroGrad": lambda: pb.ZeroGradRequest(operation=operation, names=["dense", name]),
        "ResetCtx": lambda: pb.ResetCtxRequest(
            operation=operation, names=["dense", name], contexts=[context_to_wire(device(3))]
        ),
        "Cast": lambda: pb.CastRequest(
            operation=operation, names=["dense", name], dtype=tensor_pb2.DTYPE_FLOAT16
        ),
        "SetAttributes": lambda: pb.SetAttributesRequest(
            operation=operation, names=["dense", name], lr_mult=7.0
        ),
        "PullRowSparse": lambda: [pb.PullRowSparseRequest(open=pb.PullRowSparseOpen(name=name))],
        "Save": lambda: pb.SaveRequest(names=["dense", name]),
        "Load": lambda: [
            pb.LoadRequest(
                open=pb.LoadOpen(
                    operation=operation, names=["dense", name], file_names=["dense", name]
                )
            ),
            pb.LoadRequest(header=header),
            *payload(VALUE),
        ],
    }
    return requests[method]()


@pytest.mark.parametrize("method", NAMED_CALLS)
def test_unknown_name(unchanged: RawClient, method: str) -> None:
    with refused("PARAMETER_NOT_FOUND") as outcome:
        unchanged.call(method, named(unchanged, method, "no such parameter"))
    assert outcome.refusal is not None
    assert outcome.refusal.parameter == "no such parameter"


@pytest.mark.parametrize("name", ["", "n" * 10_240, "\x00" * 2000], ids=["empty", "10KB", "nul"])
@pytest.mark.parametrize("method", NAMED_CALLS)
def test_name_that_no_parameter_can_have(unchanged: RawClient, method: str, name: str) -> None:
    with refused("PARAMETER_NOT_FOUND", "INVALID_NAME"):
        unchanged.call(method, named(unchanged, method, name))


@pytest.mark.parametrize("method", NAMED_CALLS)
def test_name_that_is_not_utf8(unchanged: RawClient, method: str) -> None:
    request = named(unchanged, method, "MARKER")
    messages = request if isinstance(request, list) else [request]
    encoded = [
        (each if isinstance(each, bytes) else each.SerializeToString()).replace(
            b"MARKER", b"M\xff\xfe\xc0ER"
        )
        for each in messages
    ]
    with refused("INVALID_MESSAGE"):
        unchanged.call(method, encoded if isinstance(request, list) else encoded[0])


@pytest.mark.parametrize("name", ["", "n" * 10_240])
def test_declared_name_is_checked(unchanged: RawClient, name: str) -> None:
    wire = spec_to_wire(ParameterSpec("x", shape=(1,)))
    wire.name = name
    fine = spec_to_wire(ParameterSpec("fine", shape=(1,)))
    with refused("INVALID_NAME"):
        unchanged.call(
            "Declare",
            pb.DeclareRequest(declarations=[pb.Declaration(spec=fine), pb.Declaration(spec=wire)]),
        )


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("dtype", 0, "INVALID_ARGUMENT"),
        ("dtype", 99, "INVALID_ARGUMENT"),
        ("stype", 0, "INVALID_ARGUMENT"),
        ("stype", -1, "INVALID_ARGUMENT"),
        ("grad_stype", 77, "INVALID_ARGUMENT"),
        ("grad_req", 0, "INVALID_ARGUMENT"),
        ("kind", 9, "INVALID_ARGUMENT"),
        ("lr_mult", float("nan"), "INVALID_ARGUMENT"),
        ("wd_mult", float("inf"), "INVALID_ARGUMENT"),
        ("shape", tensor_pb2.Shape(dimensions=[-2]), "INVALID_ARGUMENT"),
        ("shape", tensor_pb2.Shape(dimensions=[1] * 33), "INVALID_ARGUMENT"),
        ("init", parameter_pb2.Initializer(name="no such"), "INITIALIZER_FAILED"),
    ],
)
def test_declaration_that_says_nonsense(
    unchanged: RawClient, field: str, value: Any, reason: str
) -> None:
    wire = spec_to_wire(ParameterSpec("nonsense", shape=(1,)))
    if isinstance(value, Message):
        getattr(wire, field).CopyFrom(value)
    else:
        setattr(wire, field, value)
    fine = spec_to_wire(ParameterSpec("fine", shape=(1,)))
    with refused(reason):
        unchanged.call(
            "Declare",
            pb.DeclareRequest(declarations=[pb.Declaration(spec=fine), pb.Declaration(spec=wire)]),
        )


def pull(*messages: pb.PullRowSparseRequest) -> list[pb.PullRowSparseRequest]:
    return [pb.PullRowSparseRequest(open=pb.PullRowSparseOpen(name="table")), *messages]


def ids_message(*ids: int) -> pb.PullRowSparseRequest:
    return pb.PullRowSparseRequest(ids=np.array(ids, "<i8").tobytes())


def test_row_ids_must_rise_over_the_blocks_of_a_pull(unchanged: RawClient) -> None:
    with refused("INVALID_STREAM"):
        unchanged.call("PullRowSparse", pull(ids_message(1, 5), ids_message(5, 6)))


def test_next_pull_of_a_stream_begins_anew(unchanged: RawClient) -> None:
    answers = unchanged.call("PullRowSparse", [*pull(ids_message(5)), *pull(ids_message(1))])
    assert [each.WhichOneof("part") for each in answers] == ["header", "data"] * 2


def test_block_of_ids_that_is_no_multiple_of_8_bytes(unchanged: RawClient) -> None:
    with refused("INVALID_STREAM"):
        unchanged.call("PullRowSparse", pull(pb.PullRowSparseRequest(ids=b"\0" * 9)))


def test_pull_of_rows_that_was_not_opened(unchanged: RawClient) -> None:
    with refused("INVALID_STREAM"):
        unchanged.call("PullRowSparse", [ids_message(1)])
    with refused("INVALID_STREAM"):
        unchanged.call("PullRowSparse", [pb.PullRowSparseRequest()])
    with refused("INVALID_MESSAGE"):
        unchanged.call("PullRowSparse", [b"\xff\xff"])
    assert unchanged.call("PullRowSparse", []) == []


@pytest.mark.parametrize(
    ("name", "context", "reason"),
    [
        ("dense", None, "WRONG_STORAGE_TYPE"),
        ("declared", None, "WRONG_STORAGE_TYPE"),
        ("table", device(4), "CONTEXT_WITHOUT_COPY"),
    ],
)
def test_pull_of_rows_that_are_not_there(
    unchanged: RawClient, name: str, context: Any, reason: str
) -> None:
    with refused(reason):
        unchanged.pull_rows(name, [0], context)


READS: Final = {
    "never initialized": (selector("declared"), "NOT_INITIALIZED"),
    "deferred": (selector("deferred"), "DEFERRED"),
    "context without a copy": (selector("dense", context=device(9)), "CONTEXT_WITHOUT_COPY"),
    "several copies": (selector("two", context=device(2)), "CONTEXT_WITHOUT_COPY"),
    "region beyond": (selector("dense", region=((0, 5, 1), (0, 5, 1))), "INVALID_REGION"),
    "region below": (selector("dense", region=((3, 5, -1), (0, 5, 1))), "INVALID_REGION"),
    "region of step 0": (selector("dense", region=((0, 1, 0), (0, 5, 1))), "INVALID_REGION"),
    "region of another rank": (selector("dense", region=()), "INVALID_REGION"),
    "region that overflows": (
        selector("dense", region=((INT64_MAX, INT64_MAX, INT64_MAX), (0, 5, 1))),
        "INVALID_REGION",
    ),
    "region of 33 axes": (selector("dense", region=((0, 1, 1),) * 33), "INVALID_STREAM"),
    "device type": (
        pb.TensorSelector(name="dense", context=tensor_pb2.Context(device_type=9)),  # type: ignore[arg-type]
        "INVALID_ARGUMENT",
    ),
    "negative device": (
        pb.TensorSelector(
            name="dense", context=tensor_pb2.Context(device_type="DEVICE_TYPE_CPU", device_id=-1)
        ),
        "INVALID_ARGUMENT",
    ),
}


@pytest.mark.parametrize("case", READS)
@pytest.mark.parametrize("method", ["GetData", "GetGrad"])
def test_read_of_what_is_not_there(unchanged: RawClient, method: str, case: str) -> None:
    wanted, reason = READS[case]
    request = pb.GetDataRequest if method == "GetData" else pb.GetGradRequest
    with refused(reason):
        unchanged.call(method, request(tensors=[selector("dense"), wanted]))


def test_read_of_another_storage_type(unchanged: RawClient) -> None:
    with refused("WRONG_STORAGE_TYPE"):
        unchanged.get("table")
    with refused("WRONG_STORAGE_TYPE"):
        unchanged.get_grad("table", region=((0, 1, 1), (0, 3, 1)))
    with refused("NO_GRADIENT"):
        unchanged.get_grad("frozen")


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        (((3, 4, -1), (4, 5, -1)), VALUE[::-1, ::-1]),
        (((0, 0, 1), (0, 5, 1)), VALUE[:0]),
        (((2**62, 0, INT64_MAX), (0, 5, 1)), VALUE[:0]),
        (((1, 1, INT64_MAX), (1, 2, 3)), VALUE[1:2, 1::3]),
        (((3, 1, -(2**63)), (0, 1, 1)), VALUE[3:, :1]),
    ],
)
def test_odd_regions_that_are_there(unchanged: RawClient, region: Any, expected: Any) -> None:
    np.testing.assert_array_equal(unchanged.get("dense", region=region), expected)


@pytest.mark.parametrize(
    ("contexts", "reason"),
    [
        ([], "INVALID_ARGUMENT"),
        (
            [tensor_pb2.Context(device_type="DEVICE_TYPE_GPU", device_id=99)],
            "CONTEXT_NOT_AVAILABLE",
        ),
        (
            [tensor_pb2.Context(device_type="DEVICE_TYPE_CPU_SHARED", device_id=99)],
            "CONTEXT_NOT_AVAILABLE",
        ),
        ([tensor_pb2.Context()], "INVALID_ARGUMENT"),
        (
            [tensor_pb2.Context(device_type="DEVICE_TYPE_CPU", device_id=-(2**31))],
            "INVALID_ARGUMENT",
        ),
    ],
)
def test_contexts_that_the_server_lacks(
    unchanged: RawClient, contexts: list[tensor_pb2.Context], reason: str
) -> None:
    zero = parameter_pb2.Initializer(name="zero")
    with refused(reason):
        unchanged.call(
            "Initialize",
            pb.InitializeRequest(
                operation=unchanged.operation(),
                entries=[pb.InitializeEntry(name="dense", init=zero)],
                contexts=contexts,
                force_reinit=True,
            ),
        )
    with refused(reason):
        unchanged.call(
            "ResetCtx",
            pb.ResetCtxRequest(operation=unchanged.operation(), names=["dense"], contexts=contexts),
        )
    with refused(reason):
        opened = pb.SetDataOpen(operation=unchanged.operation(), initialize=True, contexts=contexts)
        unchanged.call("SetData", [pb.SetDataRequest(open=opened)])


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (pb.InitializeEntry(name="shapeless"), "UNKNOWN_SHAPE"),
        (pb.InitializeEntry(name="declared"), "INITIALIZER_FAILED"),
        (
            pb.InitializeEntry(name="declared", init=parameter_pb2.Initializer(name="x" * 100_000)),
            "INITIALIZER_FAILED",
        ),
    ],
)
def test_initialization_that_cannot_be(
    unchanged: RawClient, entry: pb.InitializeEntry, reason: str
) -> None:
    zero = parameter_pb2.Initializer(name="zero")
    with refused(reason):
        unchanged.call(
            "Initialize",
            pb.InitializeRequest(
                operation=unchanged.operation(),
                entries=[pb.InitializeEntry(name="dense", init=zero), entry],
                contexts=[context_to_wire(device())],
                force_reinit=True,
            ),
        )


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        ({}, "INVALID_ARGUMENT"),
        ({"shape": tensor_pb2.Shape(dimensions=[4, 6])}, "SHAPE_MISMATCH"),
        ({"shape": tensor_pb2.Shape(dimensions=[20])}, "SHAPE_MISMATCH"),
        ({"shape": tensor_pb2.Shape(dimensions=[-1, 5])}, "SHAPE_MISMATCH"),
        ({"shape": tensor_pb2.Shape(dimensions=[-7, 5])}, "INVALID_ARGUMENT"),
        ({"grad_req": 0}, "INVALID_ARGUMENT"),
        ({"grad_req": 12}, "INVALID_ARGUMENT"),
        ({"lr_mult": float("nan")}, "INVALID_ARGUMENT"),
        ({"wd_mult": float("-inf")}, "INVALID_ARGUMENT"),
        ({"init": parameter_pb2.Initializer(name="no such")}, "INITIALIZER_FAILED"),
    ],
)
def test_attribute_that_cannot_be_set(
    unchanged: RawClient, attribute: dict[str, Any], reason: str
) -> None:
    request = pb.SetAttributesRequest(
        operation=unchanged.operation(), names=["two", "dense"], **attribute
    )
    with refused(reason):
        unchanged.call("SetAttributes", request)


@pytest.mark.parametrize("dtype", [0, 10, -5])
def test_cast_to_an_unknown_dtype(unchanged: RawClient, dtype: int) -> None:
    with refused("INVALID_ARGUMENT"):
        unchanged.call(
            "Cast",
            pb.CastRequest(operation=unchanged.operation(), names=["dense"], dtype=dtype),  # type: ignore[arg-type]
        )


def test_reset_of_what_was_never_initialized(unchanged: RawClient) -> None:
    with refused("UNINITIALIZED_CONTEXT"):
        unchanged.call(
            "ResetCtx",
            pb.ResetCtxRequest(
                operation=unchanged.operation(),
                names=["dense", "declared"],
                contexts=[context_to_wire(device(2))],
            ),
        )


@pytest.mark.parametrize(
    ("identity", "sequence"), [(b"", 1), (b"x" * 15, 1), (b"x" * 4096, 1), (b"x" * 16, 0)]
)
@pytest.mark.parametrize("method", ["Delete", "SetData", "SetGrad", "Load", "Once", "Barrier"])
def test_operation_that_identifies_nothing(
    unchanged: RawClient, method: str, identity: bytes, sequence: int
) -> None:
    operation = parameter_pb2.Operation(identity=identity, sequence=sequence)
    requests: dict[str, Any] = {
        "Delete": pb.DeleteRequest(operation=operation, names=["dense"]),
        "SetData": list(data_stream(operation, ("dense", VALUE + 3))),
        "SetGrad": list(grad_stream(operation, ("dense", VALUE + 3))),
        "Load": [pb.LoadRequest(open=pb.LoadOpen(operation=operation))],
        "Once": spb.OnceRequest(
            name="work", action="ONCE_ACTION_CLAIM", operation=operation, lease_ms=50
        ),
        "Barrier": spb.BarrierRequest(name="meet", num_workers=1, operation=operation),
    }
    with refused("INVALID_ARGUMENT"):
        unchanged.call(method, requests[method])


@pytest.mark.parametrize(
    ("lease_ms", "action"),
    [
        (0, "ONCE_ACTION_CLAIM"),
        (-1, "ONCE_ACTION_CLAIM"),
        (INT64_MAX, "ONCE_ACTION_CLAIM"),
        (0, "ONCE_ACTION_RENEW"),
        (-(2**63), "ONCE_ACTION_RENEW"),
        (1000, "ONCE_ACTION_UNSPECIFIED"),
    ],
)
def test_once_with_a_lease_that_cannot_be(unchanged: RawClient, lease_ms: int, action: Any) -> None:
    operation = unchanged.operation()
    name = f"lease {action} {lease_ms}"
    if action == "ONCE_ACTION_RENEW":
        claim = spb.OnceRequest(
            name=name, action="ONCE_ACTION_CLAIM", operation=operation, lease_ms=60_000
        )
        unchanged.call("Once", claim)
    request = spb.OnceRequest(name=name, action=action, operation=operation, lease_ms=lease_ms)
    with refused("INVALID_ARGUMENT"):
        unchanged.call("Once", request)


def test_session_calls_with_nonsense(unchanged: RawClient) -> None:
    operation = unchanged.operation()
    for name in ("", "b" * 10_240):
        with refused("INVALID_NAME"):
            unchanged.call(
                "Barrier", spb.BarrierRequest(name=name, num_workers=2, operation=operation)
            )
        with refused("INVALID_NAME"):
            unchanged.call("Once", spb.OnceRequest(name=name, operation=operation, lease_ms=1))
    with refused("WORKER_NOT_JOINED"):
        unchanged.call("Barrier", spb.BarrierRequest(name="b", num_workers=0, operation=operation))
    with refused("PROTOCOL_MISMATCH"):
        unchanged.call("Hello", spb.HelloRequest(protocol=0, identity=unchanged.identity))
    with refused("INVALID_ARGUMENT"):
        unchanged.call("Hello", spb.HelloRequest(protocol=1, identity=b"short"))
    with refused("INVALID_ARGUMENT"):
        unchanged.call(
            "Hello", spb.HelloRequest(protocol=1, identity=unchanged.identity, worker="w" * 1000)
        )
    with refused("CLAIM_LOST"):
        unchanged.call(
            "Once",
            spb.OnceRequest(name="none", action="ONCE_ACTION_COMPLETE", operation=operation),
        )


def test_page_token_that_names_nothing(unchanged: RawClient) -> None:
    with refused("INVALID_ARGUMENT"):
        unchanged.call("List", pb.ListRequest(page_token="no such parameter"))


def test_more_names_than_a_call_may_have(unchanged: RawClient) -> None:
    with refused("INVALID_ARGUMENT"):
        unchanged.call("List", pb.ListRequest(names=["dense"] * 131_073))
    with refused("INVALID_ARGUMENT"):
        selectors = [pb.TensorSelector(name="dense")] * 131_073
        unchanged.call("GetData", pb.GetDataRequest(tensors=selectors))
