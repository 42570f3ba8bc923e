"""Optimizer states on the raw wire that cannot be: a typed reason each, and nothing has changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paramd.spec import TensorHead
from paramd.v1 import parameter_pb2, tensor_pb2
from paramd.v1 import training_service_pb2 as pb
from paramd.wire.tensors import head_to_wire
from paramd.wire.training import optimizer_to_wire
from tests.support.raw_calls import RawClient, payload, refused
from tests.support.server_process import ServerProcess
from tests.system.training.conftest import SGD


def load_stream(
    operation: parameter_pb2.Operation, *pages: pb.StatesManifest, trainer: str = "s"
) -> list[Any]:
    opened = pb.LoadStatesOpen(operation=operation, trainer=trainer)
    return [
        pb.LoadStatesRequest(open=opened),
        *(pb.LoadStatesRequest(manifest=page) for page in pages),
    ]


def page(**fields: Any) -> pb.StatesManifest:
    return pb.StatesManifest(optimizer=optimizer_to_wire(SGD), last=True, **fields)


def array(name: str = "s_w", shape: tuple[int, ...] = (2, 3), **head: Any) -> pb.StateArray:
    described = TensorHead(name, shape, np.dtype("f4"), **head)
    return pb.StateArray(header=head_to_wire(described), state="momentum")


def test_streams_of_states_that_are_cut_anywhere(worker: RawClient) -> None:
    manifest = page(names=["s_w"], num_updates=[1], arrays=[array()])
    for count in range(5):
        whole = [
            *load_stream(worker.operation(), manifest),
            pb.LoadStatesRequest(header=array().header),
            *payload(np.ones((2, 3), "f4")),
        ]
        with refused("INVALID_STREAM"):
            worker.start("LoadStates", whole[:count], ends=False).result()


@pytest.mark.parametrize(
    "arrays",
    [
        [array(), array()],
        [array(stype="row_sparse", num_rows=1)],
        [array(two_bit_threshold=0.5)],
        [array(shape=(2**40, 2**20))],
    ],
)
def test_arrays_that_no_state_is(worker: RawClient, arrays: list[pb.StateArray]) -> None:
    manifest = page(names=["s_w"], num_updates=[1], arrays=arrays)
    sent = load_stream(worker.operation(), manifest)
    for each in arrays:
        sent.append(pb.LoadStatesRequest(header=each.header))
        if each.header.size_bytes < 1 << 20:
            sent += payload(np.ones(each.header.size_bytes, "u1"))
    with refused("INVALID_ARGUMENT", "STATES_MISMATCH", "MEMORY_LIMIT"):
        worker.call("LoadStates", sent)


def test_a_manifest_without_end_is_cut_off(worker: RawClient, shared_server: ServerProcess) -> None:
    """Pages of a megabyte each; the limit of the server's memory is 64 MiB."""
    names = [f"{number:07}" + "x" * 1000 for number in range(1000)]
    full = pb.StatesManifest(optimizer=optimizer_to_wire(SGD), names=names, num_updates=[1] * 1000)
    sent = 0
    shared_server.reset_peak()
    before = shared_server.memory_bytes("VmHWM")

    def pages() -> Any:
        nonlocal sent
        yield from load_stream(worker.operation())
        for _ in range(200):
            sent += 1
            yield pb.LoadStatesRequest(manifest=full)

    with refused("INVALID_STREAM", "STATES_MISMATCH", "INVALID_ARGUMENT", "MEMORY_LIMIT"):
        worker.start("LoadStates", pages(), ends=False).result()
    assert shared_server.memory_bytes("VmHWM") - before < 100 << 20


def test_tensors_before_their_manifest(worker: RawClient) -> None:
    sent = [
        *load_stream(worker.operation()),
        pb.LoadStatesRequest(header=array().header),
        *payload(np.ones((2, 3), "f4")),
    ]
    with refused("INVALID_STREAM"):
        worker.call("LoadStates", sent)
    end = pb.LoadStatesRequest(end=tensor_pb2.StreamEnd())
    with refused("INVALID_STREAM"):
        worker.start("LoadStates", [*load_stream(worker.operation()), end], ends=False).result()
