"""Workers that come, go, die, stop and come back."""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paramd
from paramd.errors import (
    LeaseEndedError,
    SessionClosedError,
    TrainerNotFoundError,
    WorkerLostError,
    WorkerNotJoinedError,
)
from tests.support.server_process import ServerProcess, server_environment
from tests.support.waiting import wait_until
from tests.system.training.conftest import Connect

PROGRAM = Path(__file__).parents[2] / "support" / "training_worker.py"
LEASE_S = 1.0
# Beyond the lease: the pace at which waiters look, and a busy machine.
SLACK_S = 4.0
GRADS = {"n_w": np.ones(4, "f4")}


class Child:
    """A worker in a process of its own."""

    def __init__(self, target: str, worker: str, lease: float, **trainer: Any) -> None:
        options = {
            "connect": {"worker": worker, "lease": lease},
            "trainer": {"kvstore": "dist_sync", **trainer},
        }
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), target, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=server_environment({"PYTHONUNBUFFERED": "1"}),
            text=True,
        )
        self.joined = self.answer()

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def answer(self, timeout_s: float = 30.0) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        assert ready, f"no answer of worker {self.process.pid} in {timeout_s} s"
        answer = json.loads(self.process.stdout.readline() or '{"ended": true}')
        assert isinstance(answer, dict)
        return answer

    def ask(self, command: str) -> dict[str, Any]:
        self.tell(command)
        return self.answer()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        assert self.process.stdin is not None
        if self.process.poll() is None:
            # The program ends with its input.
            self.signal(signal.SIGCONT)
            self.process.stdin.close()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait(10)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                continue


@pytest.fixture
def children(served: ServerProcess) -> Iterator[Any]:
    with ExitStack() as stack:

        def start(worker: str, *, lease: float = LEASE_S, **trainer: Any) -> Child:
            child = Child(",".join(served.addresses), worker, lease, **trainer)
            stack.callback(child.end)
            return child

        yield start


def trainer_of(session: paramd.Session, **settings: Any) -> paramd.Trainer:
    params = paramd.ParameterDict("n_", session=session)
    params.get("w", shape=(4,), init="zeros")
    params.initialize()
    options = {"kvstore": "dist_sync", **settings}
    return paramd.Trainer(params, "sgd", {"learning_rate": 1.0}, **options)


def value(session: paramd.Session) -> float:
    return float(session.parameters("n_")["n_w"].data().asnumpy()[0])


def staged(trainer: paramd.Trainer, count: int = 1) -> None:
    wait_until(
        lambda: sum(each.staged for each in trainer.info().workers) == count, f"{count} are waiting"
    )


# Ranks, numbers, clocks


def test_rank_clock_and_number_of_workers(connect: Connect) -> None:
    sessions = [connect(worker=name) for name in "abc"]
    trainers = [trainer_of(session) for session in sessions]
    assert [trainer.clock for trainer in trainers] == [None, None, None]
    assert [trainer.rank for trainer in trainers] == [0, 1, 2]
    assert [session.num_workers for session in sessions] == [3, 3, 3]
    assert trainers[0].num_workers == 0, "nobody has joined the trainer yet"
    assert [trainer.join() for trainer in trainers] == [0, 0, 0]
    assert trainers[0].num_workers == 3
    trainers[1].leave()
    assert (trainers[0].num_workers, trainers[1].clock) == (2, None)
    assert sessions[1].joined
    sessions[2].leave()
    assert not sessions[2].joined
    assert (trainers[0].num_workers, sessions[0].num_workers) == (1, 2)
    trainers[0].step(1, grads=GRADS)
    assert trainers[0].clock == 1
    # The first step joins by itself, at the current clock.
    assert trainers[1].join() == 1
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(trainers[index].step, 1, grads=GRADS) for index in (0, 1)]
        for each in both:
            each.result(timeout=20)
    assert [trainers[index].clock for index in (0, 1)] == [2, 2]
    assert value(sessions[0]) == -3


def test_closing_a_session_leaves(connect: Connect) -> None:
    staying, going = connect(worker="stays", lease=600), connect(worker="goes", lease=600)
    trainer = trainer_of(staying)
    trainer.join()
    trainer_of(going).join()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(trainer.step, 1, grads=GRADS)
        staged(trainer)
        going.close()
        waiting.result(timeout=10)
    assert [each.worker for each in trainer.info().workers] == ["stays"]


def test_closing_a_session_ends_its_waiting_step(connect: Connect) -> None:
    watching, waiting = trainer_of(connect(worker="a")), connect(worker="b")
    watching.join()
    trainer = trainer_of(waiting)
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(trainer.step, 1, grads=GRADS)
        staged(watching)
        waiting.close()
        with pytest.raises(SessionClosedError):
            step.result(timeout=10)


def test_deleting_a_trainer_ends_waiting_steps(connect: Connect) -> None:
    trainer, other = trainer_of(connect(worker="a")), trainer_of(connect(worker="b"))
    other.join()
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(trainer.step, 1, grads=GRADS)
        staged(other)
        other.delete()
        with pytest.raises(TrainerNotFoundError):
            step.result(timeout=10)


# Death


def test_a_killed_worker_stalls_nobody_beyond_its_lease(connect: Connect, children: Any) -> None:
    session = connect(worker="lives")
    trainer = trainer_of(session)
    trainer.join()
    child = children("dies")
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(trainer.step, 1, grads=GRADS)
        assert child.ask("step 1") == {"value": -2.0, "clock": 1}
        step.result(timeout=10)
        step = pool.submit(trainer.step, 1, grads=GRADS)
        staged(trainer)
        assert not step.done()
        child.signal(signal.SIGKILL)
        killed = time.monotonic()
        step.result(timeout=LEASE_S + SLACK_S)
        assert time.monotonic() - killed < LEASE_S + SLACK_S
        for _ in range(3):
            pool.submit(trainer.step, 1, grads=GRADS).result(timeout=SLACK_S)
    assert value(session) == -6
    # Under its name it gets its rank and the current clock.
    again = children("dies")
    assert again.joined == {"clock": 5, "rank": child.joined["rank"]}
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(trainer.step, 1, grads=GRADS)
        assert again.ask("step 2") == {"value": -9.0, "clock": 6}
        step.result(timeout=10)


def test_a_killed_worker_can_stop_the_others_until_it_is_back(
    connect: Connect, children: Any
) -> None:
    session = connect(worker="lives")
    trainer = trainer_of(session, on_worker_loss="error")
    trainer.join()
    child = children("dies", on_worker_loss="error")
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(trainer.step, 1, grads=GRADS)
        staged(trainer)
        child.signal(signal.SIGKILL)
        with pytest.raises(WorkerLostError, match=r"dies \(rank 1\)"):
            step.result(timeout=LEASE_S + SLACK_S)
        with pytest.raises(WorkerLostError):
            trainer.step(1, grads=GRADS)
        assert value(session) == 0
        again = children("dies", on_worker_loss="error")
        assert again.joined == {"clock": 0, "rank": child.joined["rank"]}
        step = pool.submit(trainer.step, 1, grads=GRADS)
        assert again.ask("step 1") == {"value": -2.0, "clock": 1}
        step.result(timeout=10)


def test_who_starts_again_takes_its_place_at_once(connect: Connect, children: Any) -> None:
    session = connect(worker="other")
    trainer = trainer_of(session)
    trainer.join()
    child = children("twice", lease=600)
    child.tell("step 5")
    staged(trainer)
    child.signal(signal.SIGKILL)
    again = children("twice", lease=600)
    assert again.joined == {"clock": 0, "rank": child.joined["rank"]}
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(trainer.step, 1, grads=GRADS)
        wait_until(
            lambda: trainer.info().workers[0].staged or step.done(), "the other's push is in"
        )
        assert again.ask("step 1") == {"value": -2.0, "clock": 1}
        step.result(timeout=10)


def test_the_former_incarnation_is_refused(connect: Connect, children: Any) -> None:
    """Two processes of one name, because somebody made a mistake: the later one counts."""
    session = connect(worker="watches")
    trainer = trainer_of(session, kvstore="dist_async")
    first = children("name", lease=600, kvstore="dist_async")
    assert first.ask("step 1") == {"value": -1.0, "clock": 1}
    second = children("name", lease=600, kvstore="dist_async")
    assert second.joined["rank"] == first.joined["rank"]
    refusal = first.ask("step 100")
    assert refusal["error"] == "LeaseEndedError"
    assert "anew" in refusal["message"]
    assert value(session) == -1
    assert second.ask("step 1")["value"] == -2
    assert [each.worker for each in trainer.info().workers] == ["name"]


def test_a_process_that_was_stopped_for_too_long_is_told_so(
    connect: Connect, children: Any
) -> None:
    session = connect(worker="runs")
    trainer = trainer_of(session)
    trainer.join()
    child = children("stops")
    with ThreadPoolExecutor(1) as pool:
        child.signal(signal.SIGSTOP)
        for _ in range(2):
            pool.submit(trainer.step, 1, grads=GRADS).result(timeout=LEASE_S + SLACK_S)
        child.signal(signal.SIGCONT)
        refusal = child.ask("step 100")
        assert refusal["error"] == "LeaseEndedError"
        assert "join()" in refusal["message"]
        assert value(session) == -2
        # Not by itself: the worker says when it comes back.
        assert child.ask("step 100")["error"] == "LeaseEndedError"
        assert child.ask("join") == {"clock": 2, "rank": 1}
        step = pool.submit(trainer.step, 1, grads=GRADS)
        assert child.ask("step 1") == {"value": -4.0, "clock": 3}
        step.result(timeout=10)


def test_a_process_that_is_stopped_while_it_waits_is_told_so(
    connect: Connect, children: Any
) -> None:
    """What it had pushed counts: it was in before the lease ended."""
    session = connect(worker="runs")
    trainer = trainer_of(session)
    trainer.join()
    child = children("stops")
    child.tell("step 10")
    staged(trainer)
    child.signal(signal.SIGSTOP)
    wait_until(lambda: trainer.num_workers == 1, "its lease has ended")
    trainer.step(1, grads=GRADS)
    assert value(session) == -11
    child.signal(signal.SIGCONT)
    # Its push is committed: that it is out it learns from the next one.
    assert child.answer()["clock"] == 1
    assert child.ask("step 100")["error"] == "LeaseEndedError"
    assert value(session) == -11


def test_a_worker_keeps_its_lease_while_it_computes(connect: Connect) -> None:
    """Heartbeats renew it, and nothing else has to be called."""
    session = connect(worker="thinks", lease=0.6)
    trainer = trainer_of(session)
    trainer.join()
    until = time.monotonic() + 2.0
    watching = connect()
    wait_until(lambda: time.monotonic() > until or not watching.trainers()[0].workers, "2 seconds")
    assert time.monotonic() > until
    trainer.step(1, grads=GRADS)
    assert value(session) == -1


# Barriers


def test_a_barrier_of_all_who_have_joined(connect: Connect) -> None:
    sessions = [connect(worker=name) for name in "abc"]
    for session in sessions:
        session.join()
    with ThreadPoolExecutor(3) as pool:
        for _ in range(2):
            places = [pool.submit(session.barrier) for session in sessions]
            assert sorted(place.result(timeout=10) for place in places) == [0, 1, 2]
    outside = connect()
    with pytest.raises(ValueError, match="number of workers is not known"):
        outside.barrier()


def test_a_worker_that_dies_does_not_hold_a_barrier(connect: Connect, children: Any) -> None:
    session = connect(worker="lives")
    session.join()
    child = children("dies")
    with ThreadPoolExecutor(1) as pool:
        barrier = pool.submit(session.barrier, "b")
        with paramd.connect(session.target) as watching:
            assert not barrier.done()
            assert watching.trainers()
        child.signal(signal.SIGKILL)
        assert barrier.result(timeout=LEASE_S + SLACK_S) == 0


def test_a_worker_that_died_at_a_barrier_does_not_open_it(connect: Connect, children: Any) -> None:
    first, second = connect(worker="lives"), connect(worker="comes late")
    first.join()
    second.join()
    child = children("dies at it")
    child.tell("barrier")
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(first.barrier, "b")
        child.signal(signal.SIGKILL)
        wait_until(lambda: first.num_workers == 2, "its lease has ended")
        with pytest.raises(paramd.errors.BarrierTimeoutError):
            connect(num_workers=99).barrier("nobody", timeout=1.2)
        assert not waiting.done(), "one who lives has not come"
        second.barrier("b")
        waiting.result(timeout=10)


# Forks


def test_a_forked_child_does_not_take_its_parents_place(connect: Connect) -> None:
    session = connect(worker="parent")
    trainer = trainer_of(session, kvstore="dist_async")
    trainer.step(1, grads=GRADS)
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    def work() -> None:
        try:
            before = session.joined
            try:
                trainer.step(1, grads=GRADS)
                outcome = "stepped"
            except (WorkerNotJoinedError, LeaseEndedError) as err:
                outcome = type(err).__name__
                trainer.join()
                trainer.step(1, grads=GRADS)
            sending.send((before, outcome, session.rank, trainer.clock))
        finally:
            sending.close()
            session.close()
            os._exit(0)

    child = context.Process(target=work)
    with (
        pytest.warns(DeprecationWarning, match="fork")
        if sys.version_info >= (3, 12)
        else ExitStack()
    ):
        child.start()
    assert receiving.poll(30), "the child says nothing"
    before, outcome, rank, clock = receiving.recv()
    child.join(10)
    assert not before, "the child has not joined"
    assert outcome in ("stepped", "WorkerNotJoinedError")
    assert rank == 1
    assert clock is not None
    assert session.joined
    assert session.rank == 0
    values = trainer.step(1, grads=GRADS, pull=True)
    assert values is not None
    assert values["n_w"][0] == -3
    assert trainer.clock == 2
    assert [each.worker for each in trainer.info().workers] == ["parent"]
