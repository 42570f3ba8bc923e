"""How much memory the server takes: at rest, in a pull, in a write.

Sizes: the state is given in decimal megabytes (1 MB is 10**6 bytes), the bounds of the issue with
it: "1 GB of values and their gradients within 2.1 GB" is state * 2.1. What a bare server takes is
measured and subtracted where the state is small, since it does not grow with the state.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from paramd.spec import InitializerSpec, ParameterSpec
from paramd.v1 import parameter_service_pb2 as pb
from paramd.wire.messages import context_to_wire, initializer_to_wire
from paramd.wire.tensors import head_to_wire
from tests.support.contexts import device, is_main_memory
from tests.support.raw_calls import RawClient, data_stream, head, payload, selector
from tests.support.server_process import ServerProcess, serve

MB: Final = 10**6
GB: Final = 10**9
pytestmark = pytest.mark.skipif(
    not is_main_memory(), reason="the bounds are those of main memory, where nothing is copied"
)

LONG: Final = bool(os.environ.get("PARAMD_TEST_LONG"))
ONE: Final = InitializerSpec("one")


def drain(client: RawClient, *names: str) -> int:
    """Pulls and throws away: the bytes that came."""
    request = pb.GetDataRequest(tensors=[selector(name) for name in names])
    return sum(len(message) for message in client.start("GetData", request))


def chunks_of(value: float, size: int) -> Iterator[bytes]:
    """A write's payload without holding all of it here."""
    chunk = pb.SetDataRequest(data=np.full(1 << 18, value, "f4").tobytes()).SerializeToString()
    for _ in range(size >> 20):
        yield chunk
    if rest := size % (1 << 20):
        tail = np.full(rest // 4, value, "f4").tobytes()
        yield pb.SetDataRequest(data=tail).SerializeToString()


def write(client: RawClient, name: str, value: float, shape: tuple[int, ...]) -> None:
    """Overwrites a parameter."""
    empty = np.broadcast_to(np.array(value, "f4"), shape)
    opened = data_stream(client.operation(), (name, empty))
    first, header = next(opened), next(opened)
    size = 4 * int(np.prod(shape))

    def messages() -> Iterator[object]:
        yield first
        yield header
        yield from chunks_of(value, size)

    client.call("SetData", messages())  # type: ignore[arg-type]


def touch_gradients(client: RawClient, name: str) -> None:
    """Gradients of zero take no memory until somebody writes them: so this writes them."""
    opened = pb.SetGradOpen(operation=client.operation())
    ones = np.ones((), "f4")
    client.call(
        "SetGrad",
        [
            pb.SetGradRequest(open=opened),
            pb.SetGradRequest(header=head_to_wire(head(name, ones, mode="assign"))),
            *payload(ones),
        ],
    )


def check_budget(server: ServerProcess, state: int) -> None:
    with RawClient(server.address) as client:
        bare = server.memory_bytes()
        shape = (state // 4,)
        client.create("w", shape, init=ONE)
        touch_gradients(client, "w")
        rest = server.memory_bytes()
        assert client.device_bytes() == 2 * state
        assert rest - bare < 2.1 * state, f"at rest {(rest - bare) / MB:.0f} MB"

        server.reset_peak()
        before = server.memory_bytes()
        assert drain(client, "w") > state
        pulled = server.memory_bytes("VmHWM") - before
        assert pulled < 64 * MB, f"a pull added {pulled / MB:.0f} MB"

        # What gRPC has received and nobody has taken yet is more on a busy machine.
        written = min(_write_peak(client, server, shape) for _ in range(2))
        assert written < state + 64 * MB, f"a write added {written / MB:.0f} MB"
        np.testing.assert_array_equal(client.get("w", region=((0, 5, 1),)), np.full(5, 3, "f4"))
        if state >= GB:
            total = server.memory_bytes("VmHWM")
            assert rest < 2.1 * state, f"at rest with everything {rest / MB:.0f} MB"
            assert total < 3.2 * state


def _write_peak(client: RawClient, server: ServerProcess, shape: tuple[int, ...]) -> int:
    """The bytes that a write adds while it is under way."""
    server.reset_peak()
    before = server.memory_bytes()
    write(client, "w", 3, shape)
    return server.memory_bytes("VmHWM") - before


def test_state_of_128_mb(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        check_budget(server, 128 * MB)
        assert server.trouble() == []


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="takes 20 s and 4 GB: PARAMD_TEST_LONG=1 runs it")
def test_state_of_1_gb(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        check_budget(server, GB)
        assert server.trouble() == []


def test_a_thousand_parameters_of_64_kb(tmp_path: Path) -> None:
    count, shape = 1000, (16_000,)
    state = count * 64_000
    names = [f"layer{index}_weight" for index in range(count)]
    with serve(tmp_path) as server, RawClient(server.address) as client:
        bare = server.memory_bytes()
        client.declare(*(ParameterSpec(name, shape=shape) for name in names))
        entries = [
            pb.InitializeEntry(name=name, init=initializer_to_wire(ONE), seed=1) for name in names
        ]
        client.call(
            "Initialize",
            pb.InitializeRequest(
                operation=client.operation(), entries=entries, contexts=[context_to_wire(device())]
            ),
        )
        assert client.device_bytes() == 2 * state
        assert len(client.infos()) == count
        rest = server.memory_bytes() - bare
        assert rest < 2.1 * state, f"{rest / MB:.0f} MB"
        server.reset_peak()
        before = server.memory_bytes()
        assert drain(client, *names) > state
        pulled = server.memory_bytes("VmHWM") - before
        assert pulled < 64 * MB, f"a pull added {pulled / MB:.0f} MB"
        server.reset_peak()
        tensors = [(name, np.full(shape, 2, "f4")) for name in names]
        client.call("SetData", data_stream(client.operation(), *tensors))
        written = server.memory_bytes("VmHWM") - before
        assert written < state + 64 * MB, f"a write added {written / MB:.0f} MB"
        assert client.device_bytes() == 2 * state
        assert server.trouble() == []


def test_write_in_place_costs_its_own_size_and_no_copy(tmp_path: Path) -> None:
    """An addition to a part: the part is staged, the rest stays where it is."""
    shape = (32 << 20,)  # 128 MiB
    with serve(tmp_path) as server, RawClient(server.address) as client:
        client.create("w", shape, init=ONE, grad_req="null")
        server.reset_peak()
        before = server.memory_bytes()
        client.set("w", np.ones(1000, "f4"), region=((0, 1000, 7),), mode="add")
        added = server.memory_bytes("VmHWM") - before
        assert added < 16 * MB, f"{added / MB:.0f} MB"


def test_spare_buffers_are_given_back_at_rest(tmp_path: Path) -> None:
    """After a write the old buffer waits to be used again, but not for ever."""
    # Much more than what malloc may keep of the messages that carried it, some 50 MB.
    size = 256 * MB
    with serve(tmp_path) as server, RawClient(server.address) as client:
        client.create("w", (size // 4,), init=ONE, grad_req="null")
        rest = server.memory_bytes()
        for value in range(3):
            write(client, "w", value, (size // 4,))
        deadline = time.monotonic() + 20
        while server.memory_bytes() > rest + size // 2:
            assert time.monotonic() < deadline, f"{(server.memory_bytes() - rest) / MB:.0f} MB"
            time.sleep(0.05)
