"""Many clients and many threads at once."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import paramd
from paramd import Parameter, ParameterDict, Session, init
from paramd.files import RowSparseRows
from paramd.spec import Selector
from paramd.transport.calls import Calls, TensorWrite
from tests.support.contexts import device, named
from tests.support.proxies import ramp


class Level(init.Initializer):
    """One number, computed by the client."""

    def __init__(self, level: float) -> None:
        super().__init__(level=level)
        self.level = level

    def _init_weight(self, name: str, arr: Any) -> None:
        arr[:] = self.level


def _together(count: int, work: Callable[[int], None]) -> None:
    gate = threading.Barrier(count)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            gate.wait(30)
            work(index)
        except BaseException as err:
            errors.append(err)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []


@pytest.mark.parametrize("kind", ["server", "client", "mixed"])
@pytest.mark.parametrize("force", [False, True])
def test_of_many_first_values_one_is_everywhere(
    target: str, session: Session, kind: str, force: bool
) -> None:
    if force:
        Parameter("w", shape=(60, 2), session=session).initialize("zeros")

    def work(index: int) -> None:
        own = kind == "client" or (kind == "mixed" and index % 2 == 0)
        value = Level(index + 1) if own else init.Constant(index + 1)
        with paramd.connect(target) as mine, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weight = Parameter("w", shape=(60, 2), session=mine)
            weight.initialize(value, force_reinit=force)
            assert len(np.unique(weight.data().asnumpy())) == 1 or force

    _together(6, work)
    weight = Parameter("w", session=session)
    values = np.unique(weight.data().asnumpy())
    assert len(values) == 1
    assert values[0] >= 1


def test_additions_of_many_clients_all_count(target: str, session: Session) -> None:
    Parameter("w", shape=(20, 3), session=session).initialize("zeros")
    ids = np.arange(0, 20, 3)
    rows = RowSparseRows(ids, np.ones((len(ids), 3), "f4"), (20, 3))
    Parameter("t", shape=(20, 3), stype="row_sparse", session=session).initialize("zeros")

    def work(index: int) -> None:
        with paramd.connect(target) as mine:
            for _ in range(10):
                whole = TensorWrite("w", np.ones((20, 3), "f4"), mode="add")
                mine.calls.set_data([whole, TensorWrite("t", rows, mode="add")])

    _together(4, work)
    ((_, value),) = session.calls.get_data([Selector("w")], device(0))
    np.testing.assert_array_equal(value, np.full((20, 3), 40))
    _, found = session.calls.pull_rows("t", np.arange(20), None, device(0))
    expected = np.zeros((20, 3))
    expected[ids] = 40
    np.testing.assert_array_equal(found, expected)


def test_many_threads_of_one_session(session: Session) -> None:
    params = ParameterDict()
    for index in range(12):
        params.get(f"w{index}", shape=(7, index + 1))
    params.initialize("zeros")

    def work(index: int) -> None:
        name = f"w{index}"
        for number in range(10):
            params.set_data({name: np.full((7, index + 1), number)})
            assert len(params.pull()) == 12
            assert (params[name].data()[3:6].asnumpy() == number).all()

    _together(12, work)


def test_forked_children_have_one_identity_of_their_own(session: Session) -> None:
    weight = Parameter("w", shape=(50, 4))
    weight.initialize("zeros")
    weight.set_data(ramp(50, 4))
    parent = session.identity

    def body() -> None:
        identities = {each.operations.identity for each in session._servers._connections}
        assert len(identities) == 1
        assert session.identity != parent
        np.testing.assert_array_equal(weight.data().asnumpy(), ramp(50, 4))
        weight.data()[10:40] = 5
        status = session.status()
        assert all(
            session.identity in {each.identity for each in shard.workers} for shard in status.shards
        )

    stop = threading.Event()
    errors: list[BaseException] = []

    def stream() -> None:
        try:
            while not stop.is_set():
                assert weight.data().asnumpy().shape == (50, 4)
        except BaseException as err:
            errors.append(err)

    streaming = threading.Thread(target=stream)
    for number in range(6):
        if number == 3:
            streaming.start()
        weight.set_data(ramp(50, 4))
        assert _run_in_child(body) == 0
        assert (weight.data()[10:40].asnumpy() == 5).all()
    stop.set()
    streaming.join(30)
    assert errors == []
    assert session.identity == parent


def _run_in_child(body: Callable[[], None]) -> int:
    pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.alarm(30)
            body()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_errors_of_several_shards_are_joined(session: Session, raw: Sequence[Calls]) -> None:
    weight = Parameter("w", shape=(7, 2))
    weight.initialize("zeros")
    with pytest.raises(RuntimeError, match=rf"'w'.*{named(3)}") as caught:
        session.calls.get_data([Selector("w", device(3))], device(0))
    notes = "\n".join(caught.value.__notes__)
    assert "at shard 0" in notes
    assert "shard 1" in notes
    assert "shard 2" in notes
    assert "ContextWithoutCopyError" in notes


def test_pushes_of_a_worker_are_counted(target: str) -> None:
    with paramd.connect(target, worker="counted") as mine:
        weight = Parameter("w", shape=(7, 2), session=mine)
        weight.initialize("zeros")
        for _ in range(3):
            weight.grad()[:] = 1
        (worker,) = [each for each in mine.workers() if each.identity == mine.identity]
        assert worker.worker == "counted"
        assert worker.num_pushes == 3
        assert mine.num_gpus() == min(each.num_gpus for each in mine.status().shards)
        mine.delete("w")
