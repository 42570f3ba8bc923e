"""A snapshot of one number of shards, taken up by another number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paramd
from tests.support.server_process import serve

Array = np.ndarray[Any, Any]
ROWS = np.arange(11)


def grads(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {
        "n_w": rng.standard_normal((10, 3)).astype("f4"),
        "n_b": rng.standard_normal(3).astype("f4"),
        "n_t": ([1, 2, 9], rng.standard_normal((3, 2)).astype("f4")),
    }


def step(session: paramd.Session, kvstore: str, numbers: range) -> dict[str, Array]:
    """Makes steps with the trainer that is there or not, and gives the values after them."""
    params = session.parameters("n_")
    trainer = paramd.Trainer(params, "adam", {"learning_rate": 0.1}, kvstore=kvstore)
    for number in numbers:
        trainer.step(1, grads=grads(number))
    assert trainer.info().num_steps == numbers.stop
    return {
        "n_w": params["n_w"].data().asnumpy(),
        "n_b": params["n_b"].data().asnumpy(),
        "n_t": params["n_t"].row_sparse_data(ROWS).asnumpy(),
    }


def shards(number: int, *arguments: str) -> tuple[str, ...]:
    several = ("--shards", str(number)) if number > 1 else ()
    return (*several, "--split-elements", "4", *arguments)


@contextmanager
def running(directory: Path, *arguments: str) -> Iterator[paramd.Session]:
    """A session with servers that have ended when the block ends."""
    with (
        serve(directory, *arguments) as server,
        paramd.connect(",".join(server.addresses), worker="w0") as session,
    ):
        yield session


@pytest.mark.parametrize(
    ("kvstore", "before", "after"),
    [
        ("dist_sync", 2, 3),
        ("dist_sync", 3, 5),
        ("dist_sync", 2, 1),
        ("dist_async", 1, 2),
        ("dist_async", 3, 2),
    ],
)
def test_training_goes_on_with_another_number_of_shards(
    tmp_path: Path, before: int, after: int, kvstore: str
) -> None:
    """Bit for bit: values, optimizer states, counts and clocks."""
    saved = ("--snapshot-dir", str(tmp_path / "saved"))
    with running(tmp_path, *shards(before, *saved)) as session:
        params = paramd.ParameterDict("n_")
        params.get("w", shape=(10, 3))
        params.get("b", shape=(3,))
        params.get("t", shape=(11, 2), stype="row_sparse", grad_stype="row_sparse")
        params.initialize("normal")
        step(session, kvstore, range(3))
        snapshot = session.save_snapshot("then")
        assert (snapshot.directory, snapshot.num_shards) == ("then", before)
        expected = step(session, kvstore, range(3, 6))
    with running(tmp_path, *shards(after, *saved, "--restore", "then")) as session:
        found = step(session, kvstore, range(3, 6))
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("number", [1, 3])
def test_state_of_another_number_of_shards_is_not_passed_over(tmp_path: Path, number: int) -> None:
    """What two shards had when they stopped is newer than any snapshot."""
    saved = ("--snapshot-dir", str(tmp_path / "saved"))
    with running(tmp_path, *shards(2, *saved)) as session:
        paramd.Parameter("w", shape=(10, 3), init="ones", session=session).initialize()
        session.save_snapshot()
    with (
        pytest.raises(AssertionError, match="stopped-0-of-2 is the state in which a shard"),
        running(tmp_path, *shards(number, *saved)),
    ):
        pytest.fail("it serves")
    with running(tmp_path, *shards(number, *saved, "--restore", "1")) as session:
        assert session.parameters().pull()["w"].sum() == 30
    assert not list((tmp_path / "saved" / "snapshots").glob("stopped-*-of-2"))
