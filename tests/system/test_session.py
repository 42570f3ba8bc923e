from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paramd.errors import ServerUnavailable, SessionClosedError
from paramd.session import Session, connect


@pytest.fixture(scope="module")
def local() -> Iterator[Session]:
    with connect("local", worker="w0") as session:
        yield session


def _embedded(session: Session) -> tuple[int, Path]:
    embedded = session._embedded
    assert embedded is not None
    return embedded.pid, Path(embedded.target.removeprefix("unix:")).parent


def _wait_until_gone(pid: int) -> None:
    give_up_at = time.monotonic() + 15
    while os.path.exists(f"/proc/{pid}") and _state(pid) != "Z":
        assert time.monotonic() < give_up_at, f"process {pid} is still there"
        time.sleep(0.02)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_status_shows_the_worker(local: Session) -> None:
    status = local.status()
    assert [(each.worker, each.identity) for each in status.workers] == [("w0", local.identity)]
    assert local.num_gpus() == status.num_gpus


def test_embedded_server_is_private_and_ends_with_its_session() -> None:
    session = connect("local")
    pid, directory = _embedded(session)
    assert directory.stat().st_mode & 0o777 == 0o700
    session.close()
    _wait_until_gone(pid)
    assert not directory.exists()
    with pytest.raises(SessionClosedError):
        session.status()


@pytest.mark.parametrize("last", ["pass", "import os; os.kill(os.getpid(), 9)"])
def test_embedded_server_ends_with_its_process(last: str) -> None:
    script = (
        "import paramd.session as s; c = s.connect('local'); print(c._embedded.pid, flush=True)\n"
        + last
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=60, check=False
    )
    _wait_until_gone(int(done.stdout))


def test_death_of_an_embedded_server_is_reported() -> None:
    with connect("local") as session:
        pid, _ = _embedded(session)
        os.kill(pid, 9)
        start = time.monotonic()
        with pytest.raises(ServerUnavailable, match="embedded server ended with status -9"):
            session.status()
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("limit", ["memory_limit", "gpu_memory_limit"])
def test_embedded_server_that_does_not_start_says_why(limit: str) -> None:
    option = "--" + limit.replace("_", "-")
    with pytest.raises(ServerUnavailable, match=rf"ended with status 2(.|\n)*'{option}'"):
        connect("local", **{limit: "a lot"})  # type: ignore[arg-type]


def test_local_session_refuses_to_be_pickled(local: Session) -> None:
    with pytest.raises(pickle.PicklingError, match="local"):
        pickle.dumps(local)


def test_once_is_done_once_by_many(local: Session) -> None:
    done: list[bool] = []

    def work() -> None:
        with local.once("many") as first:
            done.append(first)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(done) == [False] * 7 + [True]


def test_next_one_does_what_failed(local: Session) -> None:
    with pytest.raises(KeyError), local.once("failing"):
        raise KeyError("broken")
    with local.once("failing") as first:
        assert first


def test_barrier_gives_each_worker_a_place(local: Session) -> None:
    places: list[int] = []
    for _ in range(3):
        threads = [
            threading.Thread(target=lambda: places.append(local.barrier(num_workers=4)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(places) == sorted([0, 1, 2, 3] * 3)
