"""Orders for snapshots: queued, put together from the parts of all shards, failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from paramd.errors import PathNotAllowedError, SnapshotFailedError
from paramd_server.core.snapshot import (
    SavedSection,
    SnapshotError,
    SnapshotName,
    SnapshotOrigin,
)
from paramd_server.core.snapshotting import Snapshots
from paramd_server.storage.snapshots import SnapshotStore

WAIT_S = 30.0
ORIGIN = SnapshotOrigin("cluster", 5, 6)


class Shards:
    """Two shards on one directory, which do what they are told when the test says so."""

    def __init__(self, root: Path) -> None:
        self.stores = [SnapshotStore(root, shard=each, num_shards=2) for each in range(2)]
        self.begun: list[SnapshotName] = []
        self.discarded: list[SnapshotName] = []
        self.failure = ""

    def begin(self, name: SnapshotName, snapshots: Snapshots) -> SnapshotOrigin:
        self.begun.append(name)
        if self.failure:
            raise SnapshotError(self.failure)
        return ORIGIN

    def finish(self, name: SnapshotName, manifest: bytes, kept: Sequence[int]) -> None:
        for store in self.stores:
            store.commit(name, manifest)
            store.prune(kept)

    def discard(self, name: SnapshotName) -> None:
        self.discarded.append(name)
        for store in self.stores:
            store.discard(name)

    def write(self, snapshots: Snapshots, name: SnapshotName, shard: int) -> None:
        entry = self.stores[shard].write_part(name, {"one": SavedSection({"shard": shard})})
        snapshots.report(name.number, shard, entry)


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    made = Shards(tmp_path)
    (tmp_path / "snapshots").mkdir()
    return made


@pytest.fixture
def snapshots(shards: Shards) -> Iterator[Snapshots]:
    made = Snapshots(shards.stores[0], shards, num_shards=2)
    made.start()
    yield made
    made.close()


def await_true(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up_at
        threading.Event().wait(0.001)


def test_it_is_whole_when_every_shard_has_reported(shards: Shards, snapshots: Snapshots) -> None:
    number = snapshots.request("kept")
    await_true(lambda: len(shards.begun) == 1)
    name = SnapshotName(number, "kept")
    shards.write(snapshots, name, 1)
    shards.write(snapshots, name, 1)
    assert snapshots.wait(number, 0.0) is None
    shards.write(snapshots, name, 0)
    info = snapshots.wait(number, WAIT_S)
    assert info is not None
    assert (info.name, info.num_shards) == (name, 2)
    manifest = shards.stores[1].manifest_of(name)
    assert manifest.origin == ORIGIN
    assert [part["name"] for part in manifest.parts] == ["part-0-of-2", "part-1-of-2"]
    assert snapshots.all() == [info]
    counts = snapshots.counts()
    assert (counts.num_saved, counts.num_failed, counts.last) == (1, 0, info)


def test_one_after_the_other(shards: Shards, snapshots: Snapshots) -> None:
    numbers = [snapshots.request() for _ in range(3)]
    for index, number in enumerate(numbers):
        await_true(lambda index=index: len(shards.begun) == index + 1)  # type: ignore[misc]
        for shard in range(2):
            assert len(shards.begun) == index + 1
            shards.write(snapshots, SnapshotName(number), shard)
        assert snapshots.wait(number, WAIT_S) is not None
    assert [each.name.number for each in snapshots.all()] == numbers[1:]
    assert snapshots.wait(numbers[0], 0.0) is not None, "what was told once stays told"


@pytest.mark.parametrize("way", ["begin", "report", "abandon", "close"])
def test_failure_of_one_shard_fails_it_and_removes_what_was_written(
    shards: Shards, snapshots: Snapshots, tmp_path: Path, way: str
) -> None:
    shards.failure = "no disk" if way == "begin" else ""
    number = snapshots.request()
    name = SnapshotName(number)
    await_true(lambda: len(shards.begun) == 1)
    if way != "begin":
        shards.write(snapshots, name, 0)
    if way == "report":
        snapshots.report(number, 1, None, "no disk")
        snapshots.report(number, 1, None, "no disk")
    elif way == "abandon":
        snapshots.abandon("no disk: the shard has gone")
    elif way == "close":
        snapshots.close()
    with pytest.raises(SnapshotFailedError, match=r"no disk|the server stops"):
        snapshots.wait(number, WAIT_S)
    assert snapshots.counts().num_failed == 1
    assert snapshots.all() == []
    # Late words change nothing.
    snapshots.report(number, 1, None, "late")
    if way == "close":
        with pytest.raises(SnapshotFailedError, match="stops"):
            snapshots.request()
        return
    assert shards.discarded == [name]
    assert list((tmp_path / "snapshots").iterdir()) == []
    shards.failure = ""
    second = snapshots.request()
    await_true(lambda: len(shards.begun) == 2)
    for shard in range(2):
        shards.write(snapshots, SnapshotName(second), shard)
    assert snapshots.wait(second, WAIT_S) is not None


def test_orders_that_cannot_be_taken(shards: Shards, snapshots: Snapshots, tmp_path: Path) -> None:
    with pytest.raises(PathNotAllowedError):
        snapshots.request("../x")
    (tmp_path / "there").mkdir()
    with pytest.raises(SnapshotFailedError, match="exists already"):
        snapshots.request("there")
    snapshots.request()
    await_true(lambda: len(shards.begun) == 1)
    for _ in range(16):
        snapshots.request()
    with pytest.raises(SnapshotFailedError, match="ordered already"):
        snapshots.request()
    with pytest.raises(SnapshotFailedError, match="no snapshot 77"):
        snapshots.wait(77, 0.0)
    with pytest.raises(SnapshotFailedError, match="--snapshot-dir"):
        Snapshots(None, shards).request()
