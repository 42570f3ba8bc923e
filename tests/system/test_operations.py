"""The same operation sent again is carried out once; a stream that breaks changes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

from paramd.spec import ParameterSpec, TensorHead
from paramd.v1 import parameter_pb2
from paramd.v1 import parameter_service_pb2 as pb
from paramd.wire.messages import context_to_wire
from paramd.wire.tensors import head_to_wire
from tests.support.contexts import device, has_memory_of_its_own, memory_limit
from tests.support.raw_calls import (
    SHAPE,
    VALUE,
    RawClient,
    as_bytes,
    data_stream,
    grad_stream,
    payload,
    refusal_of,
    refused,
)
from tests.support.server_process import ServerProcess, serve

ONES = np.ones(SHAPE, "f4")


@pytest.fixture
def name(raw: RawClient, request: pytest.FixtureRequest) -> Iterator[str]:
    """A parameter of the test's own, whose gradients add up."""
    name = f"of {request.node.name}"[:200]
    raw.create(name, SHAPE, grad_req="add")
    yield name
    if raw.infos(prefix=name):
        raw.call("Delete", pb.DeleteRequest(operation=raw.operation(), names=[name]))


def counters(client: RawClient, *names: str) -> list[int]:
    return [info.version.counter for info in client.infos(*names)]


def test_push_that_is_sent_again_is_added_once(raw: RawClient, name: str) -> None:
    messages = [as_bytes(each) for each in grad_stream(raw.operation(), (name, ONES))]
    first = raw.call("SetGrad", messages)
    assert raw.call("SetGrad", messages) == first
    assert raw.call("SetGrad", messages[:1]) == first, "the answer needs no payload"
    np.testing.assert_array_equal(raw.get_grad(name), ONES)
    (worker,) = [each for each in raw.status().workers if each.identity == raw.identity]
    assert (worker.num_pushes, worker.num_pushed_tensors) == (1, 1)


def test_push_that_is_sent_many_times_at_once_is_added_once(raw: RawClient, name: str) -> None:
    messages = [as_bytes(each) for each in grad_stream(raw.operation(), (name, ONES))]
    barrier = threading.Barrier(8)

    def send(_: int) -> Any:
        with RawClient(raw.address) as client:
            client.health()
            barrier.wait()
            return client.call("SetGrad", messages)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    assert all(answer == answers[0] for answer in answers)
    np.testing.assert_array_equal(raw.get_grad(name), ONES)


def test_push_that_is_sent_again_while_the_first_still_streams(raw: RawClient, name: str) -> None:
    messages = [as_bytes(each) for each in grad_stream(raw.operation(), (name, ONES))]
    go_on = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield from messages[:2]
        go_on.wait()
        yield from messages[2:]

    call = raw.start("SetGrad", slowly())
    second = raw.call("SetGrad", messages)
    go_on.set()
    assert pb.SetGradResponse.FromString(call.result()) == second
    np.testing.assert_array_equal(raw.get_grad(name), ONES)


UNARY: dict[str, Callable[[RawClient, str], Message]] = {
    "Initialize": lambda client, name: pb.InitializeRequest(
        operation=client.operation(),
        entries=[pb.InitializeEntry(name=name, init=parameter_pb2.Initializer(name="one"))],
        contexts=[context_to_wire(device())],
        force_reinit=True,
    ),
    "ZeroGrad": lambda client, name: pb.ZeroGradRequest(operation=client.operation(), names=[name]),
    "ResetCtx": lambda client, name: pb.ResetCtxRequest(
        operation=client.operation(), names=[name], contexts=[context_to_wire(device(1))]
    ),
    "Cast": lambda client, name: pb.CastRequest(
        operation=client.operation(), names=[name], dtype="DTYPE_FLOAT64"
    ),
    "SetAttributes": lambda client, name: pb.SetAttributesRequest(
        operation=client.operation(), names=[name], grad_req="GRAD_REQ_WRITE"
    ),
    "Delete": lambda client, name: pb.DeleteRequest(operation=client.operation(), names=[name]),
}


@pytest.mark.parametrize("method", UNARY)
def test_unary_call_that_is_sent_again_changes_nothing_more(
    raw: RawClient, name: str, method: str
) -> None:
    raw.set(name, VALUE)
    raw.push(name, VALUE)
    request = UNARY[method](raw, name)
    first = raw.call(method, request)
    if method == "Delete":
        with RawClient(raw.address) as other:
            other.create(name, SHAPE)
    after = raw.everything()
    assert raw.call(method, request) == first
    assert raw.everything() == after


def test_set_data_and_load_that_are_sent_again(raw: RawClient, name: str) -> None:
    write = [as_bytes(each) for each in data_stream(raw.operation(), (name, ONES), mode="add")]
    assert raw.call("SetData", write) == raw.call("SetData", write)
    np.testing.assert_array_equal(raw.get(name), ONES)
    header = TensorHead(name, SHAPE, np.dtype("f4"), mode="assign")
    load: list[Message | bytes] = [
        pb.LoadRequest(
            open=pb.LoadOpen(operation=raw.operation(), names=[name], file_names=[name])
        ),
        pb.LoadRequest(header=head_to_wire(header)),
        *payload(VALUE),
    ]
    first = raw.call("Load", load)
    raw.set(name, ONES)
    raw.sequence -= 1  # The set acknowledged the load: take back what the client said.
    with refused("OPERATION_EXPIRED"):
        raw.call("Load", load)
    assert first.loaded == [name]
    np.testing.assert_array_equal(raw.get(name), ONES)


def test_operation_that_was_acknowledged_has_expired(raw: RawClient, name: str) -> None:
    messages = [as_bytes(each) for each in grad_stream(raw.operation(), (name, ONES))]
    raw.call("SetGrad", messages)
    raw.push(name, ONES)
    with refused("OPERATION_EXPIRED"):
        raw.call("SetGrad", messages)
    np.testing.assert_array_equal(raw.get_grad(name), 2 * ONES)


def test_operation_that_failed_can_be_sent_again(raw: RawClient, name: str) -> None:
    operation = raw.operation()
    with refused("SHAPE_MISMATCH"):
        raw.call("SetGrad", grad_stream(operation, (name, np.ones((4, 6), "f4"))))
    with refused("INVALID_STREAM"):
        raw.call("SetGrad", [*list(grad_stream(operation, (name, ONES)))[:2]])
    raw.call("SetGrad", grad_stream(operation, (name, ONES)))
    np.testing.assert_array_equal(raw.get_grad(name), ONES)


def test_identities_do_not_share_operations(raw: RawClient, name: str) -> None:
    with RawClient(raw.address) as other:
        other.push(name, ONES)
    with RawClient(raw.address) as another:
        another.push(name, ONES)
    np.testing.assert_array_equal(raw.get_grad(name), 2 * ONES)


def whole_write(client: RawClient, method: str, names: list[str]) -> list[Message | bytes]:
    """Two tensors of two chunks each."""
    cls: Any = {"SetData": pb.SetDataRequest, "SetGrad": pb.SetGradRequest, "Load": pb.LoadRequest}[
        method
    ]
    operation = client.operation()
    opened: dict[str, Message] = {
        "SetData": pb.SetDataOpen(operation=operation),
        "SetGrad": pb.SetGradOpen(operation=operation),
        "Load": pb.LoadOpen(operation=operation, names=names, file_names=names),
    }
    messages: list[Message | bytes] = [cls(open=opened[method])]
    for name in names:
        messages.append(
            cls(header=head_to_wire(TensorHead(name, SHAPE, np.dtype("f4"), mode="assign")))
        )
        data = (ONES * 9).tobytes()
        messages += [cls(data=data[:40]), cls(data=data[40:])]
    return messages


@pytest.mark.parametrize("boundary", range(8))
@pytest.mark.parametrize("method", ["SetData", "SetGrad", "Load"])
def test_stream_that_is_cancelled_at_a_message_changes_nothing(
    raw: RawClient, name: str, method: str, boundary: int
) -> None:
    other = f"{name} too"
    raw.create(other, SHAPE)
    messages = whole_write(raw, method, [name, other])
    before, used = raw.everything(), raw.used_bytes()
    sent, over = threading.Event(), threading.Event()

    def broken() -> Iterator[Message | bytes]:
        yield from messages[:boundary]
        sent.set()
        over.wait(10)

    call = raw.start(method, broken())
    assert sent.wait(10)
    raw.status()
    call.cancel()
    over.set()
    with pytest.raises(grpc.FutureCancelledError):
        call.result()
    _await(lambda: raw.used_bytes() == used, "the memory is not free again")
    assert raw.everything() == before
    raw.call("Delete", pb.DeleteRequest(operation=raw.operation(), names=[other]))


def test_stream_that_is_cancelled_behind_a_tensor_never_changes_anything(
    raw: RawClient, name: str
) -> None:
    """GRPC may show a cancelled stream like one that has ended: many times, to meet it."""
    other = f"{name} too"
    raw.create(other, SHAPE)
    before = counters(raw, name, other)
    for _ in range(300):
        sent, over = threading.Event(), threading.Event()
        messages = whole_write(raw, "SetData", [name, other])[:4]

        def broken(
            messages: Any = messages, sent: Any = sent, over: Any = over
        ) -> Iterator[Message | bytes]:
            yield from messages
            sent.set()
            over.wait(10)

        call = raw.start("SetData", broken())
        assert sent.wait(10)
        raw.status()
        call.cancel()
        over.set()
    _await(lambda: raw.health() == 1, "the server is not well")
    after = counters(raw, name, other)
    raw.call("Delete", pb.DeleteRequest(operation=raw.operation(), names=[other]))
    assert after == before


def test_connection_that_is_lost_in_a_tensor_changes_nothing(raw: RawClient, name: str) -> None:
    before, used = raw.everything(), raw.used_bytes()
    for _ in range(20):
        client = RawClient(raw.address)
        sent, over = threading.Event(), threading.Event()

        def broken(
            client: RawClient = client, sent: Any = sent, over: Any = over
        ) -> Iterator[Message | bytes]:
            yield from whole_write(client, "SetData", [name])[:3]
            sent.set()
            over.wait(10)

        call = client.start("SetData", broken())
        assert sent.wait(10)
        client.status()
        client.channel.close()
        over.set()
        assert call.done()
    _await(lambda: raw.used_bytes() == used, "the memory is not free again")
    assert raw.everything() == before


def _await(holds: Callable[[], bool], message: str) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, message
        time.sleep(0.01)


def test_deadline_of_a_stream_frees_its_memory(raw: RawClient, name: str) -> None:
    used = raw.used_bytes()
    over = threading.Event()

    def forever() -> Iterator[Message | bytes]:
        yield from whole_write(raw, "SetData", [name])[:3]
        over.wait(30)

    call = raw.start("SetData", forever(), deadline_s=0.3)
    with pytest.raises(grpc.RpcError) as caught:
        call.result()
    over.set()
    assert refusal_of(caught.value).code is grpc.StatusCode.DEADLINE_EXCEEDED
    _await(lambda: raw.used_bytes() == used, "the memory is not free again")
    np.testing.assert_array_equal(raw.get(name), np.zeros(SHAPE, "f4"))


@pytest.mark.parametrize("method", ["SetData", "SetGrad"])
def test_one_wrong_tensor_of_many_changes_none(raw: RawClient, name: str, method: str) -> None:
    names = [f"{name} {index}" for index in range(5)]
    for each in names:
        raw.create(each, SHAPE)
    before = raw.everything()
    tensors = [(each, ONES) for each in names]
    tensors[3] = (names[3], np.ones((9, 9), "f4"))
    stream = data_stream if method == "SetData" else grad_stream
    with refused("SHAPE_MISMATCH"):
        raw.call(method, stream(raw.operation(), *tensors))
    assert raw.everything() == before
    raw.call("Delete", pb.DeleteRequest(operation=raw.operation(), names=names))


def test_load_that_runs_out_of_memory_in_the_middle_changes_none(
    raw: RawClient, shared_server: ServerProcess, name: str
) -> None:
    """Of 1 MiB each, on two contexts: staged they fit the 64 MiB, their copies do not."""
    count = 40 if has_memory_of_its_own() else 20
    names = [f"{name} {index}" for index in range(count)]
    shape = (1 << 18,)
    for each in names:
        raw.create(each, shape, grad_req="null", contexts=(device(0), device(1)))
    raw.call("Save", pb.SaveRequest(names=names, path="many.npz"))
    for each in names:
        raw.set(each, np.full(shape, 3, "f4"))
    before, used = raw.everything(), raw.used_bytes()
    assert 40 << 20 <= raw.device_bytes() < 44 << 20
    opened = pb.LoadOpen(operation=raw.operation(), names=names, path="many.npz")
    with refused("MEMORY_LIMIT"):
        raw.call("Load", [pb.LoadRequest(open=opened)])
    assert raw.everything() == before
    assert raw.used_bytes() == used
    raw.call("Delete", pb.DeleteRequest(operation=raw.operation(), names=names))
    (shared_server.log_file.parent / "snapshots" / "many.npz").unlink()


def test_slow_reader_gets_the_old_value_whole_and_costs_one_copy(raw: RawClient) -> None:
    # 12 MiB are more than a connection buffers, and five times that is below the limit.
    shape = (3 << 20,)
    size = 12 << 20
    raw.create("watched", shape, grad_req="null")
    raw.set("watched", np.full(shape, 1, "f4"))
    used = raw.device_bytes()
    with RawClient(raw.address) as reader:
        request = pb.GetDataRequest(tensors=[pb.TensorSelector(name="watched")])
        calls = [reader.start("GetData", request) for _ in range(3)]
        firsts = [next(call) for call in calls]
        assert raw.device_bytes() == used, "readers alone cost nothing"
        for value in (2, 3, 4):
            raw.set("watched", np.full(shape, value, "f4"))
            assert raw.device_bytes() == used + size, "readers share one old copy"
        raw.set("watched", np.ones((), "f4"), mode="add", context=device())
        assert raw.device_bytes() == used + size
        np.testing.assert_array_equal(raw.get("watched"), np.full(shape, 5, "f4"))
        for first, call in zip(firsts, calls, strict=True):
            assert pb.GetDataResponse.FromString(first).header.version.counter == 2
            data = b"".join(pb.GetDataResponse.FromString(each).data for each in call)
            np.testing.assert_array_equal(np.frombuffer(data, "<f4"), np.full(shape, 1, "f4"))
    _await(lambda: raw.device_bytes() == used, "the old copy is not free again")
    raw.call("Delete", pb.DeleteRequest(operation=raw.operation(), names=["watched"]))


def test_addition_to_what_is_read_goes_to_a_copy(raw: RawClient) -> None:
    shape = (4 << 20,)
    raw.create("adding", shape, grad_req="null")
    with RawClient(raw.address) as reader:
        request = pb.GetDataRequest(tensors=[pb.TensorSelector(name="adding")])
        call = reader.start("GetData", request)
        next(call)
        raw.set("adding", np.ones((1,), "f4"), region=((0, 1, 1),))
        raw.set("adding", np.ones((), "f4"), mode="add", context=device())
        data = b"".join(pb.GetDataResponse.FromString(each).data for each in call)
        assert not np.frombuffer(data, "<f4").any()
    value = raw.get("adding")
    assert value[0] == 2
    assert (value[1:] == 1).all()
    raw.call("Delete", pb.DeleteRequest(operation=raw.operation(), names=["adding"]))


def test_initialize_that_exceeds_the_memory_limit_initializes_nothing(tmp_path: Path) -> None:
    with serve(tmp_path, *memory_limit(40)) as server, RawClient(server.address) as client:
        names = ["small", "large"]
        client.declare(
            ParameterSpec("small", shape=(1000,)), ParameterSpec("large", shape=(10**7,))
        )
        with refused("MEMORY_LIMIT"):
            client.initialize(*names)
        assert [info.state for info in client.infos(*names)] == [1, 1]
        assert client.device_bytes() == 0


def test_rows_of_a_parameter_that_is_cast_during_the_pull(raw: RawClient, name: str) -> None:
    table = f"{name} table"
    raw.create(table, (4, 2), stype="row_sparse")
    requests: SimpleQueue[Message | None] = SimpleQueue()
    answers = raw.start("PullRowSparse", iter(requests.get, None))
    requests.put(pb.PullRowSparseRequest(open=pb.PullRowSparseOpen(name=table)))
    next(answers)
    raw.call(
        "Cast", pb.CastRequest(operation=raw.operation(), names=[table], dtype="DTYPE_FLOAT64")
    )
    requests.put(pb.PullRowSparseRequest(ids=np.arange(4).tobytes()))
    with refused("DTYPE_MISMATCH"):
        next(answers)
    requests.put(None)
    raw.call("Delete", pb.DeleteRequest(operation=raw.operation(), names=[table]))
