"""What training takes of the server's memory, and what it gives back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paramd
from paramd import Trainer
from paramd.errors import MemoryLimitError
from paramd.trainer_spec import TrainerSpec
from paramd.v1 import parameter_service_pb2
from paramd.v1 import training_service_pb2 as pb
from tests.support.contexts import device, memory_limit
from tests.support.raw_calls import RawClient, refused, rows_messages, step_stream
from tests.support.server_process import ServerProcess, serve
from tests.support.waiting import wait_until
from tests.system.training.conftest import SGD, Connect

MIB = 1 << 20
# Elements of float32 that take one MiB.
ONE_MIB = MIB // 4


def create(session: paramd.Session, *mib: int) -> paramd.ParameterDict:
    params = paramd.ParameterDict("n_", session=session)
    for number, size in enumerate(mib):
        params.get(f"p{number}", shape=(size * ONE_MIB,), init="zeros", grad_req="add")
    params.initialize()
    return params


def ones(*mib: int) -> dict[str, np.ndarray[Any, Any]]:
    return {f"n_p{number}": np.ones(size * ONE_MIB, "f4") for number, size in enumerate(mib)}


def delete(client: RawClient, *names: str) -> None:
    client.call(
        "Delete", parameter_service_pb2.DeleteRequest(operation=client.operation(), names=names)
    )


def used(session: paramd.Session) -> int:
    """What buffers take on `device(0)`, or of main memory, where that is the same."""
    status = session.status()
    own = [each.memory_bytes for each in status.devices if each.context == device(0)]
    return own[0] if own else status.memory_bytes


def test_states_are_those_of_parameters_that_have_been_stepped(session: paramd.Session) -> None:
    trainer = Trainer(create(session, 1, 2), "adam")
    bare = used(session)
    trainer.step(1, grads=ones(1), ignore_stale_grad=True)
    assert trainer.info().state_bytes == 2 * MIB
    assert used(session) == bare + 2 * MIB
    trainer.step(1, grads=ones(1, 2))
    assert used(session) == bare + 6 * MIB
    for _ in range(5):
        trainer.step(1, grads=ones(1, 2), pull=True)
    wait_until(lambda: used(session) == bare + 6 * MIB, "the account is as before")
    trainer.delete()
    assert used(session) == bare


def test_a_deleted_parameter_gives_its_memory_back(session: paramd.Session) -> None:
    # From here on there is a stream of calls, with its ring.
    session.calls.list_parameters()
    empty = used(session)
    trainer = Trainer(create(session, 2, 2), "adam")
    trainer.step(1, grads=ones(2, 2))
    before = used(session)
    session.delete("n_p1")
    assert used(session) == empty + (before - empty) // 2
    session.delete("n_p0")
    assert used(session) == empty
    assert trainer.info().state_bytes == 0


def test_one_staged_copy_for_each_worker(shared_server: ServerProcess) -> None:
    """A worker that sends its push again, or another one, replaces what waits."""
    with RawClient(shared_server.address) as first, RawClient(shared_server.address) as second:
        first.create("w", (4 * ONE_MIB,))
        spec = TrainerSpec("t", ("w",), SGD, distributed=True, staleness=0, num_workers=3)
        first.declare_trainer(spec)
        for client in (first, second):
            client.join()
            client.join_trainer("t")
        bare = first.status().memory_bytes
        value = np.ones(4 * ONE_MIB, "f4")
        for number in range(4):
            for count, client in enumerate((first, second)):
                operation = client.operation()
                for _ in range(2):
                    sent = step_stream(operation, "t", ("w", value))
                    assert client.call("Step", sent)[0].result.state == pb.STEP_STATE_STAGED
                waiting = 2 if number else count + 1
                assert first.status().memory_bytes == bare + waiting * 4 * MIB
        first.delete_trainer("t")
        assert first.status().memory_bytes == bare
        delete(first, "w")
        first.leave()
        second.leave()


def test_a_push_that_waits_is_not_sent_for_nothing(tmp_path: Path) -> None:
    """Sent again after a lost reply it needs no second copy beside the one that waits."""
    with (
        serve(tmp_path, *memory_limit(16)) as server,
        RawClient(server.address) as client,
    ):
        client.create("w", (ONE_MIB * 5,), grad_req="add")
        spec = TrainerSpec("t", ("w",), SGD, distributed=True, staleness=0, num_workers=2)
        client.declare_trainer(spec)
        client.join()
        client.join_trainer("t")
        operation = client.operation()
        for _ in range(2):
            sent = step_stream(operation, "t", ("w", np.ones(ONE_MIB * 5, "f4")))
            assert client.call("Step", sent)[0].result.state == pb.STEP_STATE_STAGED


def test_a_stream_that_breaks_off_gives_everything_back(shared_server: ServerProcess) -> None:
    with RawClient(shared_server.address) as client:
        client.create("w", (4 * ONE_MIB,))
        client.create("rows", (10, 2), grad_stype="row_sparse")
        client.declare_trainer(TrainerSpec("t", ("w", "rows"), SGD))
        bare = client.used_bytes()
        whole = [
            *step_stream(client.operation(), "t", ("w", np.ones(4 * ONE_MIB, "f4"))),
            *rows_messages("rows", [1], np.ones((1, 2), "f4"), (10, 2)),
        ]
        for count in range(len(whole)):
            call = client.start("Step", whole[:count], ends=False)
            with refused("INVALID_STREAM"):
                list(call)
        wait_until(lambda: client.used_bytes() == bare, "all is given back")
        client.delete_trainer("t")
        delete(client, "w", "rows")


@pytest.mark.parametrize("kvstore", ["local", "dist_sync", "dist_async"])
def test_a_step_that_does_not_fit_changes_nothing(session: paramd.Session, kvstore: str) -> None:
    """64 MiB: 2 x 12 of values, and 2 x 24 of states are too many."""
    params = paramd.ParameterDict("n_", session=session)
    for number in (0, 1):
        params.get(f"p{number}", shape=(12 * ONE_MIB,), init="zeros", grad_req="add")
    params.initialize()
    trainer = Trainer(params, "adam", kvstore=kvstore)
    before = used(session)
    with pytest.raises(MemoryLimitError, match="n_p"):
        trainer.step(1, grads=ones(12, 12))
    wait_until(lambda: used(session) == before, "all is given back")
    info = trainer.info()
    assert (info.num_steps, info.num_update, info.state_bytes) == (0, 0, 0)
    assert not any(value.any() for value in params.pull().values())
    session.delete("n_p1")
    made = paramd.Parameter("n_p1", shape=(ONE_MIB,), init="zeros", session=session)
    made.initialize()
    trainer.step(1, grads={"n_p1": np.ones(ONE_MIB, "f4")}, ignore_stale_grad=True)
    assert trainer.info().num_steps == 1


def test_a_round_that_does_not_fit_can_be_made_smaller(connect: Connect) -> None:
    first, second = connect(worker="a"), connect(worker="b")
    create(first, 12, 12)
    trainers = [
        Trainer(session.parameters("n_"), "adam", kvstore="dist_sync")
        for session in (first, second)
    ]
    for trainer in trainers:
        trainer.join()
    bare = used(first)
    with ThreadPoolExecutor(2) as pool:

        def step(trainer: Trainer) -> str:
            try:
                trainer.step(1, grads=ones(12, 12))
            except MemoryLimitError:
                return "refused"
            return "committed"

        steps = [pool.submit(step, trainer) for trainer in trainers]
        wait_until(lambda: any(each.done() for each in steps), "one was refused")
        for each, trainer in zip(steps, trainers, strict=True):
            if each.done():
                assert each.result() == "refused"
                trainer.leave()
        for each in steps:
            assert each.result(timeout=20) == "refused"
    assert trainers[0].info().num_steps == 0
    wait_until(lambda: used(first) == bare, "all is given back")
