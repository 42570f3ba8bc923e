"""Hostile writes: headers, chunks and order; a typed reason, and nothing has changed."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pytest
from google.protobuf.message import Message

from paramd.context import gpu
from paramd.spec import TensorHead
from paramd.v1 import parameter_service_pb2 as pb
from paramd.v1 import tensor_pb2
from paramd.wire.messages import context_to_wire
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
)

Messages = list[Message | bytes]

WRITES: Final = ("SetData", "SetGrad", "Load", "SetData initialize")


def opening(client: RawClient, method: str, name: str) -> tuple[type[Any], Message]:
    """The class of a write's messages, and its first one."""
    operation = client.operation()
    if method == "SetData initialize":
        opened = pb.SetDataOpen(
            operation=operation, initialize=True, contexts=[context_to_wire(device())]
        )
        return pb.SetDataRequest, pb.SetDataRequest(open=opened)
    if method == "SetData":
        return pb.SetDataRequest, pb.SetDataRequest(open=pb.SetDataOpen(operation=operation))
    if method == "SetGrad":
        return pb.SetGradRequest, pb.SetGradRequest(open=pb.SetGradOpen(operation=operation))
    load = pb.LoadOpen(operation=operation, names=[name], file_names=[name])
    return pb.LoadRequest, pb.LoadRequest(open=load)


def good_header(name: str = "dense") -> tensor_pb2.TensorHeader:
    return head_to_wire(TensorHead(name, SHAPE, np.dtype("f4"), mode="assign"))


def change(**fields: Any) -> tensor_pb2.TensorHeader:
    header = good_header()
    for field, value in fields.items():
        if isinstance(value, Message):
            getattr(header, field).CopyFrom(value)
        else:
            setattr(header, field, value)
    return header


def shaped(*dimensions: int) -> tensor_pb2.Shape:
    return tensor_pb2.Shape(dimensions=dimensions)


def with_shape(*dimensions: int, size: int, **more: Any) -> tensor_pb2.TensorHeader:
    header = change(size_bytes=size, **more)
    header.shape.Clear()
    header.shape.CopyFrom(shaped(*dimensions))
    return header


HEADERS: Final = {
    "negative size": change(size_bytes=-1),
    "smallest size": change(size_bytes=-(2**63)),
    "too small a size": change(size_bytes=79),
    "too large a size": change(size_bytes=81),
    "largest size": change(size_bytes=INT64_MAX),
    "size of zero": change(size_bytes=0),
    "negative dimension": with_shape(-4, 5, size=-80),
    "two negative dimensions": with_shape(-4, -5, size=80),
    "product that overflows to the size": with_shape(2**62, 2**62, 5, size=0),
    "product that overflows": with_shape(INT64_MAX, INT64_MAX, size=80),
    "many dimensions": with_shape(*[1] * 33, 20, size=80),
    "num_rows of a dense tensor": change(num_rows=4),
    "negative num_rows": change(stype=2, num_rows=-1, size_bytes=0),
    "too many rows": change(stype=2, num_rows=5, size_bytes=5 * 28),
    "overflowing num_rows": change(stype=2, num_rows=INT64_MAX, size_bytes=80),
    "row_sparse size without ids": change(stype=2, num_rows=4, size_bytes=80),
    "row_sparse without a dimension": with_shape(size=0, stype=2),
    "csr": change(stype=3),
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("method", WRITES)
def test_header_that_contradicts_itself(unchanged: RawClient, method: str, header: str) -> None:
    cls, first = opening(unchanged, method, "dense")
    with refused("INVALID_STREAM"):
        messages = [first, cls(header=HEADERS[header]), *payload(VALUE)]
        unchanged.call(method.split()[0], messages)


@pytest.mark.parametrize(
    ("field", "value"), [("dtype", 0), ("dtype", 10), ("dtype", -1), ("stype", 0), ("stype", 4)]
)
@pytest.mark.parametrize("method", WRITES)
def test_header_with_an_unknown_type(
    unchanged: RawClient, method: str, field: str, value: int
) -> None:
    cls, first = opening(unchanged, method, "dense")
    with refused("INVALID_ARGUMENT"):
        messages = [first, cls(header=change(**{field: value})), *payload(VALUE)]
        unchanged.call(method.split()[0], messages)


def orders(cls: type[Any], first: Message) -> dict[str, Messages]:
    """Streams with too much, too little, or in the wrong order."""
    header = cls(header=good_header())
    chunks: Messages = [*payload(VALUE)]
    short: Messages = [cls(data=VALUE.tobytes()[:79])]
    return {
        "nothing at all": [],
        "no opening": [header, *chunks],
        "chunk first": [*chunks, header],
        "chunk before the header": [first, *chunks, header, *chunks],
        "nothing after the header": [first, header],
        "a byte too few": [first, header, *short],
        "a byte too many": [first, header, cls(data=VALUE.tobytes() + b"\0")],
        "a chunk too many": [first, header, *chunks, *chunks],
        "header in the payload": [first, header, *short, header, *chunks],
        "opening in the payload": [first, header, *short, first, *chunks],
        "opened twice after a tensor": [first, header, *chunks, first],
        "message without a part": [first, cls(), header, *chunks],
        "same tensor twice": [first, header, *chunks, header, *chunks],
    }


@pytest.mark.parametrize("case", orders(pb.SetDataRequest, pb.SetDataRequest()))
@pytest.mark.parametrize("method", WRITES)
def test_messages_in_the_wrong_order(unchanged: RawClient, method: str, case: str) -> None:
    cls, first = opening(unchanged, method, "dense")
    with refused("INVALID_STREAM"):
        unchanged.call(method.split()[0], orders(cls, first)[case])


@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize("data", [b"", bytes(79), bytes(81)], ids=len)
def test_pack_that_contradicts_itself(unchanged: RawClient, method: str, data: bytes) -> None:
    message_class, opened = opening(unchanged, method, "dense")
    packed = tensor_pb2.PackedTensor(header=good_header(), data=data)
    pack = message_class(pack=tensor_pb2.TensorPack(tensors=[packed]))
    with refused("INVALID_STREAM"):
        unchanged.call(method.split()[0], [opened, pack])


@pytest.mark.parametrize("method", WRITES)
def test_same_tensor_twice_in_a_pack(unchanged: RawClient, method: str) -> None:
    message_class, opened = opening(unchanged, method, "dense")
    packed = tensor_pb2.PackedTensor(header=good_header(), data=bytes(80))
    pack = message_class(pack=tensor_pb2.TensorPack(tensors=[packed, packed]))
    with refused("INVALID_STREAM"):
        unchanged.call(method.split()[0], [opened, pack])


@pytest.mark.parametrize("method", WRITES)
def test_stream_without_its_end(unchanged: RawClient, method: str) -> None:
    cls, first = opening(unchanged, method, "dense")
    messages: Messages = [first, cls(header=good_header()), *payload(VALUE + 1)]
    for count in range(len(messages) + 1):
        with refused("INVALID_STREAM"):
            unchanged.start(method.split()[0], messages[:count], ends=False).result()


@pytest.mark.parametrize("method", WRITES)
def test_messages_behind_the_end(unchanged: RawClient, method: str) -> None:
    cls, first = opening(unchanged, method, "dense")
    header, end = cls(header=good_header()), cls(end=tensor_pb2.StreamEnd())
    messages: Messages = [first, header, *payload(VALUE + 1), end]
    for more in (end, header, cls(data=b""), first):
        with refused("INVALID_STREAM"):
            unchanged.start(method.split()[0], [*messages, more], ends=False).result()


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("method", WRITES)
def test_bytes_that_are_no_message(unchanged: RawClient, method: str, position: int) -> None:
    cls, first = opening(unchanged, method, "dense")
    messages: Messages = [first, cls(header=good_header()), *payload(VALUE)]
    messages.insert(position, b"\x0a\xff\xff\xff\xff\x7f")
    with refused("INVALID_MESSAGE"):
        unchanged.call(method.split()[0], messages)


def test_same_parameter_twice_where_one_tensor_is_for_all_contexts(unchanged: RawClient) -> None:
    stream = data_stream(unchanged.operation(), ("two", VALUE), context=device(1))
    with refused("INVALID_STREAM"):
        unchanged.call("SetData", [*stream, pb.SetDataRequest(header=good_header("two"))])


I4: Final = np.dtype("<i4")

WRONG_DATA: Final[dict[str, Any]] = {
    "shape": ("dense", np.zeros((4, 6), "f4"), {}, "SHAPE_MISMATCH"),
    "rank": ("dense", np.zeros((20,), "f4"), {}, "SHAPE_MISMATCH"),
    "no dimension": ("dense", np.zeros((), "f4"), {}, "SHAPE_MISMATCH"),
    "zero dimension": ("dense", np.zeros((0, 5), "f4"), {}, "SHAPE_MISMATCH"),
    "zero dimension of a deferred one": (
        "deferred",
        np.zeros((0, 5), "f4"),
        {},
        "SHAPE_MISMATCH",
    ),
    "huge empty value of a deferred one": (
        "deferred",
        np.zeros((0, 5), "f4"),
        {"shape": (0, 2**62)},
        "SHAPE_MISMATCH",
    ),
    "huge empty value of an unknown shape": (
        "formless",
        np.zeros((0, 5), "f4"),
        {"shape": (0, 2**62, 2**62)},
        "SHAPE_MISMATCH",
    ),
    "no rows of an unknown shape that overflows": (
        "formless",
        np.zeros(0, "f4"),
        {"shape": (5, 2**62), "stype": "row_sparse"},
        "MEMORY_LIMIT",
    ),
    "never initialized": ("declared", VALUE, {}, "UNINITIALIZED_VALUE"),
    "never initialized, no shape": ("shapeless", VALUE, {}, "UNINITIALIZED_VALUE"),
    "shape of a deferred one": ("deferred", np.zeros((4, 6), "f4"), {}, "SHAPE_MISMATCH"),
    "part of a deferred one": ("deferred", VALUE, {"mode": "add"}, "DEFERRED"),
    "context without a copy": ("dense", VALUE, {"context": device(5)}, "CONTEXT_WITHOUT_COPY"),
    "context that the server lacks": ("dense", VALUE, {"context": gpu(99)}, "CONTEXT_WITHOUT_COPY"),
    "does not broadcast": ("dense", np.zeros(4, "f4"), {"context": device()}, "BROADCAST"),
    "mode of a push": ("dense", VALUE, {"mode": "by_grad_req"}, "INVALID_STREAM"),
    "no mode": ("dense", VALUE, {"mode": ""}, "INVALID_STREAM"),
    "region of another rank": (
        "dense",
        VALUE,
        {"region": ((0, 4, 1),)},
        "INVALID_REGION",
    ),
    "region beyond": ("dense", VALUE, {"region": ((1, 4, 1), (0, 5, 1))}, "INVALID_REGION"),
    "region from a negative index": (
        "dense",
        VALUE,
        {"region": ((-4, 4, 1), (0, 5, 1))},
        "INVALID_REGION",
    ),
    "region of step 0": ("dense", VALUE, {"region": ((0, 4, 0), (0, 5, 1))}, "INVALID_REGION"),
    "region of a negative count": (
        "dense",
        VALUE,
        {"region": ((0, -4, 1), (0, 5, 1))},
        "INVALID_REGION",
    ),
    "region that overflows": (
        "dense",
        VALUE,
        {"region": ((0, INT64_MAX, INT64_MAX), (0, 5, 1))},
        "INVALID_REGION",
    ),
    "region of a row_sparse value": (
        "table",
        np.zeros((1, 3), "f4"),
        {"region": ((0, 1, 1), (0, 3, 1))},
        "WRONG_STORAGE_TYPE",
    ),
    "addition to a row_sparse value": (
        "table",
        np.zeros((10, 3), "f4"),
        {"mode": "add"},
        "WRONG_STORAGE_TYPE",
    ),
}


@pytest.mark.parametrize("case", WRONG_DATA)
def test_value_that_does_not_fit(unchanged: RawClient, case: str) -> None:
    name, value, more, reason = WRONG_DATA[case]
    header_fields = {"mode": "assign", "shape": value.shape, "dtype": value.dtype, **more}
    header = head_to_wire(TensorHead(name, **header_fields))
    with refused(reason) as outcome:
        messages = [
            *data_stream(unchanged.operation(), ("whole", np.arange(6, dtype=I4))),
            pb.SetDataRequest(header=header),
            *payload(value),
        ]
        unchanged.call("SetData", messages)
    assert outcome.refusal is not None
    assert outcome.refusal.parameter == name


WRONG_GRADIENTS: Final[dict[str, Any]] = {
    "shape": ("dense", np.zeros((4, 6), "f4"), {}, "SHAPE_MISMATCH"),
    "broadcast of a push": ("dense", np.zeros((1, 5), "f4"), {}, "SHAPE_MISMATCH"),
    "dtype": ("whole", np.zeros(6, "f4"), {}, "DTYPE_MISMATCH"),
    "no gradient": ("frozen", VALUE, {}, "NO_GRADIENT"),
    "never initialized": ("declared", VALUE, {}, "NOT_INITIALIZED"),
    "deferred": ("deferred", VALUE, {}, "DEFERRED"),
    "context without a copy": ("dense", VALUE, {"context": device(5)}, "CONTEXT_WITHOUT_COPY"),
    "several copies and none current": ("two", VALUE, {"context": gpu(99)}, "CONTEXT_WITHOUT_COPY"),
    "no mode": ("dense", VALUE, {"mode": ""}, "INVALID_STREAM"),
    "does not broadcast": ("dense", np.zeros(4, "f4"), {"mode": "add"}, "BROADCAST"),
    "region beyond": (
        "dense",
        VALUE,
        {"mode": "add", "region": ((1, 4, 1), (0, 5, 1))},
        "INVALID_REGION",
    ),
    "region of a push": (
        "dense",
        VALUE,
        {"region": ((0, 4, 1), (0, 5, 1))},
        "SHAPE_MISMATCH",
    ),
    "region of a row_sparse gradient": (
        "table",
        np.zeros((10, 3), "f4"),
        {"mode": "assign", "region": ((0, 10, 1), (0, 3, 1))},
        "WRONG_STORAGE_TYPE",
    ),
    "product with a row_sparse gradient": (
        "table",
        np.zeros((10, 3), "f4"),
        {"mode": "multiply"},
        "WRONG_STORAGE_TYPE",
    ),
}


@pytest.mark.parametrize("case", WRONG_GRADIENTS)
def test_gradient_that_does_not_fit(unchanged: RawClient, case: str) -> None:
    name, value, more, reason = WRONG_GRADIENTS[case]
    fields = {"mode": "by_grad_req", "shape": value.shape, "dtype": value.dtype, **more}
    messages = [
        *grad_stream(unchanged.operation(), ("embedding", np.ones((10, 3), "f4"))),
        pb.SetGradRequest(header=head_to_wire(TensorHead(name, **fields))),
        *payload(value),
    ]
    with refused(reason) as outcome:
        unchanged.call("SetGrad", messages)
    assert outcome.refusal is not None
    assert outcome.refusal.parameter == name


WRONG_IDS: Final = {
    "negative": ([-1, 2], "ROW_ID_OUT_OF_RANGE"),
    "smallest": ([-(2**63)], "ROW_ID_OUT_OF_RANGE"),
    "the number of rows": ([0, 10], "ROW_ID_OUT_OF_RANGE"),
    "largest": ([INT64_MAX], "ROW_ID_OUT_OF_RANGE"),
    "unsorted": ([3, 1], "INVALID_STREAM"),
    "twice": ([1, 1], "INVALID_STREAM"),
}


@pytest.mark.parametrize("case", WRONG_IDS)
@pytest.mark.parametrize("name", ["table", "embedding", "dense"])
def test_row_ids_of_a_gradient(unchanged: RawClient, name: str, case: str) -> None:
    ids, reason = WRONG_IDS[case]
    row = 5 if name == "dense" else 3
    shape = (4, 5) if name == "dense" else (10, 3)
    header = TensorHead(
        name, shape, np.dtype("f4"), stype="row_sparse", num_rows=len(ids), mode="by_grad_req"
    )
    data = np.array(ids, "<i8").tobytes() + np.ones((len(ids), row), "f4").tobytes()
    messages = [
        *grad_stream(unchanged.operation(), ("two", VALUE), context=device(1)),
        pb.SetGradRequest(header=head_to_wire(header)),
        pb.SetGradRequest(data=data),
    ]
    with refused(reason):
        unchanged.call("SetGrad", messages)


@pytest.mark.parametrize("case", WRONG_IDS)
@pytest.mark.parametrize("name", ["table", "dense"])
def test_row_ids_of_a_value(unchanged: RawClient, name: str, case: str) -> None:
    ids, reason = WRONG_IDS[case]
    shape = (4, 5) if name == "dense" else (10, 3)
    header = TensorHead(
        name, shape, np.dtype("f4"), stype="row_sparse", num_rows=len(ids), mode="assign"
    )
    data = np.array(ids, "<i8").tobytes() + np.ones((len(ids), shape[1]), "f4").tobytes()
    messages = [
        *data_stream(unchanged.operation(), ("two", VALUE)),
        pb.SetDataRequest(header=head_to_wire(header)),
        pb.SetDataRequest(data=data),
    ]
    with refused(reason):
        unchanged.call("SetData", messages)


@pytest.mark.parametrize("case", WRONG_IDS)
def test_row_ids_of_a_pull(unchanged: RawClient, case: str) -> None:
    ids, reason = WRONG_IDS[case]
    with refused(reason):
        unchanged.pull_rows("table", ids)
