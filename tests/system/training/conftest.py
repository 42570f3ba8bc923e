"""Sessions with a server for tests of training, and trainers that worked already."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest

import paramd
from paramd import optimizer as optimizers
from paramd.spec import ParameterSpec
from paramd.trainer_spec import TrainerSpec
from tests.support.clusters import GIVEN, NUM_SHARDS
from tests.support.contexts import memory_limit
from tests.support.raw_calls import RawClient, step_stream
from tests.support.server_process import ServerProcess, serve
from tests.support.waiting import wait_until

Connect = Callable[..., paramd.Session]

# What trainers do is the same on every number of shards. Nearly everything is split.
_OVER_SHARDS = ("test_paths", "test_states", "test_synchrony", "test_workers")
_SPLIT_ELEMENTS = "4"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs some modules on clusters, too."""
    if "served" in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition(".")[2]
        numbers = NUM_SHARDS if module in _OVER_SHARDS else (1,)
        ids = [f"{number} shards" if number > 1 else "1 server" for number in numbers]
        metafunc.parametrize("served", numbers, indirect=True, scope="module", ids=ids)


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """The module's server, or a cluster of several shards."""
    if request.param == 1 or GIVEN:
        yield request.getfixturevalue("shared_server")
        return
    directory = tmp_path_factory.mktemp("cluster")
    shards = ("--shards", str(request.param), "--split-elements", _SPLIT_ELEMENTS)
    # As much for each shard as the one server has.
    with serve(directory, *shards, *memory_limit(64, request.param)) as server:
        yield server


@pytest.fixture
def connect(served: ServerProcess) -> Iterator[Connect]:
    """Opens sessions with the module's server; all are closed, and the server is emptied."""
    before = len(served.trouble())
    target = ",".join(served.addresses)
    with paramd.connect(target) as session:
        wait_until(lambda: session.num_workers == 1, "the leases of earlier tests have ended")
    with ExitStack() as stack:

        def opened(**options: object) -> paramd.Session:
            session = paramd.connect(target, **options)  # type: ignore[arg-type]
            stack.callback(session.close)
            return session

        yield opened
    assert served.trouble()[before:] == []
    assert served.process.poll() is None
    with paramd.connect(target) as session:
        for trainer in session.trainers():
            session.delete_trainer(trainer.spec.name)
        session.delete([info.current.name for info in session.calls.list_parameters()])


@pytest.fixture
def session(connect: Connect) -> paramd.Session:
    return connect()


SGD = optimizers.create("sgd", learning_rate=0.5, momentum=0.5)


@pytest.fixture(scope="module")
def trained(shared_server: ServerProcess) -> bytes:
    """Trainers that have made a step. Gives the identity of a worker of the distributed ones."""
    identity = os.urandom(16)
    with RawClient(shared_server.address, identity) as client:
        for name in ("s", "a", "l", "c", "alien"):
            client.create(f"{name}_w", (2, 3))
            client.create(f"{name}_table", (10, 2), grad_stype="row_sparse")
            client.create(f"{name}_frozen", (2,), grad_req="null")
        client.create("whole", (2,), dtype=np.dtype("i4"))
        client.declare(ParameterSpec("bare", shape=(2, 3)))
        for name, settings in (
            ("s", {"distributed": True, "staleness": 0, "worker_loss": "continue"}),
            ("a", {"distributed": True}),
            ("l", {}),
            ("c", {"distributed": True, "two_bit_threshold": 0.5}),
            ("alien", {}),
        ):
            parameters = (f"{name}_w", f"{name}_table", f"{name}_frozen")
            client.declare_trainer(TrainerSpec(name, parameters, SGD, **settings))
        client.join("worker", lease_s=3600)
        for name in ("s", "a", "c"):
            assert client.join_trainer(name) == 0
        for name in ("s", "a", "l", "c"):
            sent = step_stream(
                client.operation(),
                name,
                (f"{name}_w", np.ones((2, 3), "f4")),
                ignore_stale_grad=True,
            )
            client.call("Step", sent)
    return identity


@pytest.fixture(scope="module")
def known() -> dict[str, object]:
    """What the server held at the end of the last test: it is asked once for each test."""
    return {}


@pytest.fixture
def worker(
    shared_server: ServerProcess, raw: RawClient, trained: bytes, known: dict[str, object]
) -> Iterator[RawClient]:
    """A client that has joined and is at clock 1: whatever it did, nothing has changed."""
    if not known:
        known.update(raw.everything(), memory=raw.used_bytes())
    before = dict(known)
    with RawClient(shared_server.address, trained, sequence=next(_sequences)) as client:
        yield client
    after: dict[str, object] = {**raw.everything(), "memory": raw.used_bytes()}
    known.clear()
    known.update(after)
    assert after == before
    assert raw.health() == 1


# Operations of one identity are numbered through all tests of a module.
_sequences = itertools.count(1000, 1000)
