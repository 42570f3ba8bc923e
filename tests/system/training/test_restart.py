"""A server that is stopped and started again: workers go on as if nothing had been."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paramd
from paramd import Trainer
from tests.support.contexts import device
from tests.support.server_process import ServerProcess, serve
from tests.support.waiting import wait_until

# One after the other, local, in step, and not. With a state, with two, with a weight of before.
NAMES = ("dcasgd", "adam", "rmsprop", "sgd")
RATE = {"learning_rate": 1.0, "momentum": 0.5}
ONES = np.ones((2, 3), "f4")


class Server:
    """A server at one address, over all of its starts."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.address = f"unix:{directory}/s"
        self._stack = ExitStack()
        self.start()

    def start(self) -> None:
        snapshots = str(self._directory / "snapshots")
        self._process: ServerProcess = self._stack.enter_context(
            serve(self._directory, "--snapshot-dir", snapshots, listen=[self.address])
        )

    def stop(self) -> None:
        self._process.terminate()
        assert self._process.await_end() == 0, self._process.log

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


def declare(session: paramd.Session) -> paramd.ParameterDict:
    params = paramd.ParameterDict("n_", session=session)
    params.get("w", shape=(2, 3), init="ones")
    params.get("table", shape=(6, 2), init="ones", grad_stype="row_sparse")
    params.get("half", shape=(4,), dtype="float16", init="ones")
    params.initialize()
    return params


def grads(rank: int, number: int) -> dict[str, Any]:
    rng = np.random.default_rng([rank, number])
    return {
        "n_w": rng.standard_normal((2, 3)).astype("f4"),
        "n_table": ([rank, 5], rng.standard_normal((2, 2)).astype("f4")),
        "n_half": rng.standard_normal(4).astype("f2"),
    }


def test_states_and_rates_survive_a_restart(server: Server) -> None:
    """All optimizers at once: each on its own parameters, so that one restart is enough."""
    with paramd.connect(server.address, worker="one", lease=60) as session:
        trainers: dict[str, tuple[Trainer, Trainer]] = {}
        for name, kvstore in zip(NAMES, itertools.cycle(("local", "dist_sync", "dist_async"))):
            made = []
            for side in ("here", "there"):
                params = paramd.ParameterDict(f"{name}_{side}_", session=session)
                params.get("w", shape=(2, 3), init="ones")
                params.get("half", shape=(4,), dtype="float16", init="ones")
                params.initialize()
                made.append(Trainer(params, name, {"multi_precision": True}, kvstore=kvstore))
            trainers[name] = (made[0], made[1])
            for trainer in made:
                trainer.set_learning_rate(0.0625)

        def step(name: str, side: int, number: int) -> None:
            prefix = f"{name}_{('here', 'there')[side]}_"
            sent = {
                prefix + "w": grads(0, number)["n_w"],
                prefix + "half": grads(0, number)["n_half"],
            }
            trainers[name][side].step(2, grads=sent)

        for name in NAMES:
            for number in range(5):
                step(name, 0, number)
            for number in range(3):
                step(name, 1, number)
        server.restart()
        for name in NAMES:
            for number in range(3, 5):
                step(name, 1, number)
            here, there = (
                session.parameters(f"{name}_{side}_").pull() for side in ("here", "there")
            )
            for kind in ("w", "half"):
                ours, theirs = there[f"{name}_there_{kind}"], here[f"{name}_here_{kind}"]
                assert ours.tobytes() == theirs.tobytes(), f"{name} {kind}"
            infos = [trainer.info() for trainer in trainers[name]]
            assert infos[0].num_update == infos[1].num_update == 5
            assert infos[0].num_steps == infos[1].num_steps == 5
            assert infos[0].state_bytes == infos[1].state_bytes
            assert infos[0].learning_rate == infos[1].learning_rate == 0.0625
            assert infos[0].workers == infos[1].workers


def test_a_restart_during_a_round(server: Server) -> None:
    """The push that waited is sent again by itself, and applied once."""
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(paramd.connect(server.address, worker=name, lease=30))
            for name in "ab"
        ]
        trainers = [
            Trainer(declare(session), "sgd", RATE, kvstore="dist_sync", num_workers=2)
            for session in sessions
        ]
        for trainer in trainers:
            trainer.join()
        pool = stack.enter_context(ThreadPoolExecutor(2))
        all_grads = [{"n_w": ONES * (1 + rank)} for rank in range(2)]

        def step(rank: int) -> Future[Any]:
            return pool.submit(
                trainers[rank].step, 1, grads=all_grads[rank], ignore_stale_grad=True, pull=["n_w"]
            )

        for each in (step(0), step(1)):
            np.testing.assert_array_equal(each.result(timeout=20)["n_w"], -2 * ONES)
        waiting = step(0)
        wait_until(
            lambda: any(each.staged for each in trainers[1].info().workers), "its push is in"
        )
        server.restart()
        info = trainers[1].info()
        assert [(each.worker, each.clock) for each in info.workers] == [("a", 1), ("b", 1)]
        last = step(1)
        for each in (waiting, last):
            # momentum 0.5: -3, then -1.5 - 3
            np.testing.assert_array_equal(each.result(timeout=30)["n_w"], -6.5 * ONES)
        assert [trainer.clock for trainer in trainers] == [2, 2]
        assert trainers[0].info().num_steps == 2
        assert sessions[0].rank == 0


def test_a_worker_that_dies_while_the_server_is_down(server: Server) -> None:
    """Its lease begins anew with the server, and ends."""
    with (
        paramd.connect(server.address, worker="lives") as session,
        ThreadPoolExecutor(1) as pool,
    ):
        gone = paramd.connect(server.address, worker="dies", lease=1.0, timeout=1.0)
        trainers = [
            Trainer(declare(each), "sgd", RATE, kvstore="dist_sync") for each in (session, gone)
        ]
        for trainer in trainers:
            trainer.join()
        server.stop()
        gone.close()
        server.start()
        step = pool.submit(trainers[0].step, 1, grads={"n_w": ONES}, ignore_stale_grad=True)
        step.result(timeout=15)
        assert [each.worker for each in trainers[0].info().workers] == ["lives"]


def test_compression_and_buffers_go_on(server: Server) -> None:
    """What compression left over on the server, for steps by the buffers of two contexts."""
    values = []
    for restarted in (False, True):
        with paramd.connect(server.address) as session:
            prefix = f"r{restarted}_"
            params = paramd.ParameterDict(prefix, session=session)
            params.get("w", shape=(4,), init="zeros")
            params.initialize(ctx=[device(0), device(1)])
            trainer = Trainer(
                params,
                "sgd",
                {"learning_rate": 1.0},
                compression_params={"type": "2bit", "threshold": 0.5},
            )
            for number in range(4):
                if restarted and number in (1, 3):
                    server.restart()
                for context in (device(0), device(1)):
                    params[prefix + "w"].grad(context)[:] = 0.3
                trainer.step(1)
            values.append(params[prefix + "w"].data(device(1)).asnumpy())
    np.testing.assert_array_equal(values[0], values[1])
    assert values[0].any()
