"""Arbitrary bytes and arbitrary messages at every RPC: an answer or a typed reason, no more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paramd.spec import ParameterSpec
from tests.support.contexts import device
from tests.support.raw_calls import METHODS, RawClient, refusal_of
from tests.support.server_process import ServerProcess, serve

LIMIT_BYTES: Final = 64 << 20
# The interpreter with its libraries, the limit, and what messages and specs take beside it.
MOST_RSS: Final = LIMIT_BYTES + (256 << 20)
_DEADLINE_S: Final = 20.0
# Waits are cut short, so that a batch of barriers does not take two seconds each.
_SHORT: Final = frozenset({"wait_ms"})
_INTS: Final = {
    FieldDescriptor.CPPTYPE_INT32: 31,
    FieldDescriptor.CPPTYPE_INT64: 63,
    FieldDescriptor.CPPTYPE_UINT32: 32,
    FieldDescriptor.CPPTYPE_UINT64: 64,
}
_NAMES: Final = ("w", "two", "rows", "later", "none", "net_", "", "x.npz", "../x", "n" * 1025)
_WORDS: Final = (*_NAMES, "shape", "dtype", "zero", "one", "constant", "xavier", "value", "uniform")
_NAME_FIELDS: Final = frozenset({"name", "names", "file_names"})
_HEADS: Final = (0, 1, 2, 3, 4, 5, 6, 8, 9, 16, 20, 24, 28, 32, 40, 48, 80)


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if field.name in _SHORT:
        return st.sampled_from([-(2**63), -1, 0, 1, 10])
    if kind in _INTS:
        bits = _INTS[kind]
        signed = kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
        low, high = (-(2**bits), 2**bits - 1) if signed else (0, 2**bits - 1)
        extremes = st.sampled_from([low, high, 0, 1, high // 2, high - 1])
        likely = st.sampled_from(_HEADS)
        return likely | likely | extremes | st.integers(low, high)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        numbers = [value.number for value in field.enum_type.values]
        return st.sampled_from(numbers) | st.sampled_from([*numbers, -1, 77, 2**31 - 1])
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return st.floats()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return (
            st.sampled_from([bytes(16), b"\1" * 16])
            | st.binary(max_size=40)
            | st.sampled_from([bytes(size) for size in _HEADS])
        )
    known = st.sampled_from(_NAMES if field.name in _NAME_FIELDS else _WORDS)
    return known | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def _value(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type, depth + 1)
    return _scalar(field)


def _is_map(descriptor: Descriptor) -> bool:
    return bool(descriptor.GetOptions().map_entry)


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = 0) -> Message:
    """Any message of a type: each field is there or not, of a oneof the last one wins."""
    message: Any = GetMessageClass(descriptor)()
    if depth > 5:
        return message  # type: ignore[no-any-return]
    for field in descriptor.fields:
        if not draw(st.integers(0, 3)):
            continue
        if field.containing_oneof is not None:
            others = [each.name for each in field.containing_oneof.fields]
            if draw(st.sampled_from(others)) != field.name:
                continue
        if field.message_type is not None and _is_map(field.message_type):
            entry = field.message_type.fields_by_name["value"]
            for key in draw(st.lists(st.sampled_from(_WORDS), max_size=2)):
                getattr(message, field.name)[key].CopyFrom(draw(_value(entry, depth)))
        elif field.is_repeated:
            for value in draw(st.lists(_value(field, depth), max_size=4)):
                target = getattr(message, field.name)
                target.add().CopyFrom(value) if isinstance(value, Message) else target.append(value)
        else:
            value = draw(_value(field, depth))
            if isinstance(value, Message):
                getattr(message, field.name).CopyFrom(value)
            else:
                setattr(message, field.name, value)
    return message  # type: ignore[no-any-return]


def requests(method: MethodDescriptor, one: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(one, max_size=6) if method.client_streaming else one


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("bytes")
    snapshots = str(directory / "snapshots")
    options = ("--memory-limit", str(LIMIT_BYTES), "--snapshot-dir", snapshots)
    with serve(directory, *options) as server:
        yield server
        assert server.trouble() == []
        server.terminate()
        assert server.await_end() == 0


@pytest.fixture
def client(server: ServerProcess) -> Iterator[RawClient]:
    with RawClient(server.address) as client:
        _build(client)
        yield client
        assert client.health() == 1
        peak = server.memory_bytes("VmHWM")
        assert peak < MOST_RSS, f"{peak >> 20} MiB"


def _build(client: RawClient) -> None:
    """What the messages may name, anew where an earlier one deleted it."""
    there = {info.current.name for info in client.infos()}
    wanted = (
        ParameterSpec("w", shape=(4, 5), grad_req="add"),
        ParameterSpec("two", shape=(2, 3), dtype=np.dtype("<i4")),
        ParameterSpec("rows", shape=(6, 2), stype="row_sparse", grad_stype="row_sparse"),
    )
    for spec in wanted:
        if spec.name not in there:
            client.declare(spec)
            contexts = (device(0), device(1)) if spec.name == "two" else (device(0),)
            client.initialize(spec.name, contexts=contexts)
    if "later" not in there:
        client.declare(ParameterSpec("later", shape=(0, 5), allow_deferred_init=True))
        client.initialize("later")


def throw(client: RawClient, method: str, request: Any) -> str:
    """Makes one call. Gives 'OK' or the reason of the refusal."""
    try:
        client.call(method, request, deadline_s=_DEADLINE_S)
    except grpc.RpcError as err:
        refusal = refusal_of(err)
        assert refusal.reason not in ("", "INTERNAL"), (method, refusal, request)
        assert refusal.detail_bytes <= 2048
        return refusal.reason
    return "OK"


_SETTINGS: Final = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_any_bytes(client: RawClient, method: str) -> None:
    outcomes: set[str] = set()

    @_SETTINGS
    @given(request=requests(METHODS[method], st.binary(max_size=200)))
    def run(request: Any) -> None:
        outcomes.add(throw(client, method, request))

    run()
    assert outcomes


@pytest.mark.parametrize("method", sorted(METHODS))
def test_any_messages(client: RawClient, method: str) -> None:
    outcomes: set[str] = set()
    one = messages(METHODS[method].input_type)

    @_SETTINGS
    @given(request=requests(METHODS[method], one))
    def run(request: Any) -> None:
        outcomes.add(throw(client, method, request))

    run()
    assert outcomes


@pytest.mark.parametrize("method", sorted(METHODS))
def test_messages_with_damaged_bytes(client: RawClient, method: str) -> None:
    one = st.tuples(
        messages(METHODS[method].input_type),
        st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=3),
    ).map(lambda pair: _damaged(*pair))

    @_SETTINGS
    @given(request=requests(METHODS[method], one))
    def run(request: Any) -> None:
        throw(client, method, request)

    run()


def _damaged(message: Message, changes: list[tuple[int, int]]) -> bytes:
    data = bytearray(message.SerializeToString())
    for position, value in changes:
        if data:
            data[position % len(data)] = value
    return bytes(data)
