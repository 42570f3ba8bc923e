"""An embedded server for a module of tests, and two workers on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import paramd
from paramd import Session

Together = Callable[[Callable[[Session, int], None]], None]


@pytest.fixture(scope="module")
def server_session() -> Iterator[Session]:
    with paramd.connect("local") as session:
        yield session


@pytest.fixture
def session(server_session: Session) -> Iterator[Session]:
    """The module's session; trainers and parameters are removed after the test."""
    yield server_session
    for trainer in server_session.trainers():
        server_session.delete_trainer(trainer.spec.name)
    server_session.delete([info.current.name for info in server_session.calls.list_parameters()])


@pytest.fixture
def together(session: Session) -> Together:
    """Runs a function in two workers at a time, which have sessions of their own."""
    embedded = session._embedded
    assert embedded is not None
    target = embedded.target

    def run(work: Callable[[Session, int], None]) -> None:
        def worker(rank: int) -> None:
            with paramd.connect(target, worker=f"w{rank}", num_workers=2) as own:
                work(own, rank)

        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(worker, rank) for rank in range(2)]:
                done.result(60)

    return run
