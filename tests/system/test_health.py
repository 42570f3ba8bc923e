"""Health checks are answered while everything else is busy, waiting or stalled."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from paramd.spec import InitializerSpec, TensorHead
from paramd.v1 import parameter_service_pb2 as pb
from paramd.v1 import session_service_pb2 as spb
from paramd.wire.tensors import head_to_wire
from tests.support.raw_calls import RawClient, payload, refusal_of, selector
from tests.support.server_process import ServerProcess, serve

NUM_STREAMS = 64
HEALTHY_WITHIN_S = 1.0
BIG = (2 << 20,)
HUGE = (16 << 20,)  # 64 MiB: more than a connection buffers


@contextmanager
def stalled_pulls(address: str, count: int) -> Iterator[list[Any]]:
    """Pulls of 64 MiB whose readers take the header and nothing more."""
    with ExitStack() as stack:
        calls = []
        for _ in range(count):
            client = stack.enter_context(RawClient(address))
            call = client.start("GetData", pb.GetDataRequest(tensors=[selector("huge")]))
            next(call)
            calls.append(call)
        yield calls


@contextmanager
def paused_uploads(address: str, count: int) -> Iterator[list[Any]]:
    """Writes of 8 MiB that stop after the first chunk."""
    done = threading.Event()
    started = threading.Semaphore(0)
    header = head_to_wire(TensorHead("big", BIG, np.dtype("f4"), mode="assign"))

    def messages(client: RawClient) -> Iterator[Message | bytes]:
        yield pb.SetDataRequest(open=pb.SetDataOpen(operation=client.operation()))
        yield pb.SetDataRequest(header=header)
        yield payload(np.ones(1 << 18, "f4"))[0]
        started.release()
        done.wait()

    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(address)) for _ in range(count)]
        calls = [client.start("SetData", messages(client)) for client in clients]
        for _ in calls:
            assert started.acquire(timeout=30)
        try:
            yield calls
        finally:
            done.set()
            for call in calls:
                call.cancel()


def check_quickly(address: str, times: int = 5) -> None:
    """Each check comes over a connection of its own, as a probe's does."""
    for _ in range(times):
        began = time.monotonic()
        with RawClient(address) as probe:
            assert probe.health() == health_pb2.HealthCheckResponse.SERVING
        took = time.monotonic() - began
        assert took < HEALTHY_WITHIN_S, f"a health check took {took:.2f} s"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(tmp_path_factory.mktemp("health"), "--memory-limit", "1G") as server:
        with RawClient(server.address) as client:
            client.create("big", BIG, grad_req="null")
            client.create("huge", HUGE, grad_req="null")
        yield server
        assert server.trouble() == []


def test_health_and_reflection_answer(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "paramd.v1.ParameterService", "paramd.v1.SessionService"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="nothing"), timeout=10)
        assert refusal_of(caught.value).code is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (listed,) = reflection.ServerReflectionInfo(iter([request]), timeout=10)
        found = {each.name for each in listed.list_services_response.service}
        assert found >= {
            "paramd.v1.ParameterService",
            "paramd.v1.SessionService",
            "grpc.health.v1.Health",
        }


def test_stalled_pulls_do_not_delay_a_health_check(server: ServerProcess) -> None:
    with stalled_pulls(server.address, NUM_STREAMS):
        check_quickly(server.address)


def test_paused_uploads_do_not_delay_a_health_check(server: ServerProcess) -> None:
    with paused_uploads(server.address, NUM_STREAMS):
        check_quickly(server.address)


def test_waiting_barriers_do_not_delay_a_health_check(server: ServerProcess) -> None:
    def request(client: RawClient) -> spb.BarrierRequest:
        return spb.BarrierRequest(
            name="all", num_workers=NUM_STREAMS + 1, operation=client.operation(), wait_ms=2000
        )

    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.address)) for _ in range(NUM_STREAMS)]
        calls = [client.start("Barrier", request(client)) for client in clients]
        check_quickly(server.address, times=3)
        answers = [spb.BarrierResponse.FromString(call.result()) for call in calls]
        assert not any(answer.open for answer in answers)
        assert max(answer.num_arrived for answer in answers) == NUM_STREAMS


def test_more_streams_than_threads_do_not_delay_a_health_check(tmp_path: Path) -> None:
    with serve(tmp_path, "--threads", "4") as server:
        with RawClient(server.address) as client:
            client.create("big", BIG, grad_req="null")
            client.create("huge", HUGE, grad_req="null")
        with stalled_pulls(server.address, 4):
            check_quickly(server.address)
        assert server.trouble() == []


def test_calls_that_wait_for_a_parameter_do_not_delay_a_health_check(tmp_path: Path) -> None:
    """A large initialization holds the parameter, and 32 listings wait for it."""
    with serve(tmp_path) as server, RawClient(server.address) as client:
        slow = InitializerSpec("xavier")
        client.create("slow", (4096, 4096), grad_req="null", init=slow)
        thread = threading.Thread(
            target=lambda: client.initialize("slow", init=slow, force_reinit=True)
        )
        thread.start()
        calls = [client.start("List", pb.ListRequest(names=["slow"])) for _ in range(32)]
        check_quickly(server.address, times=3)
        thread.join()
        for call in calls:
            call.result()
        assert server.trouble() == []


@pytest.mark.parametrize("stall", [stalled_pulls, paused_uploads])
def test_stream_in_which_nothing_moves_is_cut_off(tmp_path: Path, stall: Any) -> None:
    with serve(tmp_path, "--stall-timeout", "1") as server, RawClient(server.address) as client:
        client.create("big", BIG, grad_req="null")
        client.create("huge", HUGE, grad_req="null")
        client.set("big", np.ones(BIG, "f4"))
        used = client.used_bytes()
        began = time.monotonic()
        with stall(server.address, 3) as calls:
            _await_cut(server, count=3)
            for call in calls:
                # A pull ends once it is read on, an upload by itself.
                end = call.result if stall is paused_uploads else lambda call=call: list(call)
                with pytest.raises(grpc.RpcError) as caught:
                    end()
                assert refusal_of(caught.value).code is grpc.StatusCode.CANCELLED
        assert 0.9 < time.monotonic() - began < 10
        _await_memory(client, used)
        np.testing.assert_array_equal(client.get("big"), np.ones(BIG, "f4"))
        assert server.trouble() == []


def _await_cut(server: ServerProcess, count: int) -> None:
    deadline = time.monotonic() + 10
    while server.log.count("cut off") < count:
        assert time.monotonic() < deadline, "the server cut no stream off"
        time.sleep(0.02)


def _await_memory(client: RawClient, used: int) -> None:
    deadline = time.monotonic() + 10
    while client.used_bytes() != used:
        assert time.monotonic() < deadline, f"{client.used_bytes()} against {used}"
        time.sleep(0.02)
