"""Snapshots in a directory: numbers, commits, crashes, damage."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from paramd.errors import PathNotAllowedError
from paramd_server.core.snapshot import (
    SavedArray,
    SavedSection,
    SnapshotError,
    SnapshotName,
    SnapshotOrigin,
    whole_array,
)
from paramd_server.storage import snapshot_part
from paramd_server.storage.snapshot_files import checksum
from paramd_server.storage.snapshots import SnapshotStore


def content(number: int, count: int = 3) -> dict[str, SavedSection]:
    arrays = [whole_array(f"key/{i}", np.full(i + 1, number, "f4")) for i in range(count)]
    return {
        "one": SavedSection({"number": number}, arrays),
        "two": SavedSection({"text": "μ\ud800"}, [whole_array("key/0", np.arange(4) + number)]),
    }


def save(store: SnapshotStore, sections: dict[str, SavedSection], directory: str = "") -> int:
    """Saves a snapshot of one part, as a server alone does."""
    name = SnapshotName(store.next_number(), directory)
    kept = store.kept(name)
    entry = store.write_part(name, sections)
    store.commit(name, store.manifest(name, [entry], SnapshotOrigin("c", 2**63 + 1, 7)))
    store.prune(kept)
    return name.number


def read(store: SnapshotStore, number: int) -> tuple[Any, dict[str, bytes]]:
    """Everything of a snapshot."""
    with store.taking_up(store.find(number)) as reader:
        found = {}
        for name in list(reader.unread()):
            section, _, key = name.partition("/")
            arrays = reader.arrays(section)
            target = np.empty(*arrays.describe(key))
            arrays.read(key, target)
            found[name] = target.tobytes()
        assert not reader.unread()
        return reader.documents, found


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path, wait_s=0.0)


def test_what_is_saved_is_read(store: SnapshotStore) -> None:
    dtypes = ("f4", "f8", "f2", "u1", "i1", "<i4", "<i8", "?", ml_dtypes.bfloat16)
    arrays = {
        f'a/μ\n"{{}}__metadata__ {name} {shape}': np.ones(shape, name)
        for name in dtypes
        for shape in ((), (0,), (3, 2), (2, 0, 3))
    }
    saved = SavedSection(
        {"a": [1, 0.1, None, True, "\0"]}, [whole_array(*i) for i in arrays.items()]
    )
    number = save(store, {"__metadata__": saved, "blank": SavedSection({})})
    documents, found = read(store, number)
    assert documents == {"__metadata__": {"a": [1, 0.1, None, True, "\0"]}, "blank": {}}
    assert found == {f"__metadata__/{key}": array.tobytes() for key, array in arrays.items()}


def test_many_arrays_go_into_several_files(
    store: SnapshotStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_part, "_MAX_ARRAYS", 4)
    number = save(store, content(1, 11))
    assert len(list(tmp_path.glob("snapshots/*/*.safetensors"))) == 3
    assert len(read(store, number)[1]) == 12
    monkeypatch.setattr(snapshot_part, "_MAX_ARRAYS", 100)
    monkeypatch.setattr(snapshot_part, "_MAX_KEY_BYTES", 30)
    assert read(store, save(store, content(1, 11))) == read(store, number)


def test_array_of_another_size_than_it_says(store: SnapshotStore) -> None:
    for wrong in (np.zeros(3, "f4"), np.zeros(5, "f4")):
        saved = whole_array("a", wrong)
        array = SavedArray("a", (4,), saved.dtype, saved.blocks)
        with pytest.raises(SnapshotError, match="16 bytes"):
            save(store, {"one": SavedSection({}, [array])})
    assert store.committed() == []


def test_the_newest_are_kept_and_the_one_taken_up(store: SnapshotStore, tmp_path: Path) -> None:
    for number in range(1, 4):
        assert save(store, content(number)) == number
    assert store.committed() == [2, 3]
    with store.taking_up(store.find(2)):
        pass
    for number in (4, 5, 6):
        save(store, content(number))
    assert store.committed() == [2, 5, 6]
    assert save(SnapshotStore(tmp_path), content(7)) == 7
    assert store.committed() == [6, 7]


class Crash(BaseException):
    """The end of the process."""


_STEPS = ("fsync", "pwrite", "replace", "rename", "mkdir", "unlink", "rmdir")


class Faults:
    """Lets a number of system calls that change files through, and fails the next one, or all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 10**9
        self.failure: BaseException = Crash()
        self.for_good = False
        for name in _STEPS:
            monkeypatch.setattr(os, name, self._step(getattr(os, name)))

    def _step(self, original: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                if not self.for_good:
                    self.left = 10**9
                raise self.failure
            self.left -= 1
            return original(*args, **kwargs)

        return step


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


@pytest.mark.parametrize("named", [False, True])
def test_a_crash_at_any_point_leaves_the_last_good_one(
    tmp_path: Path, faults: Faults, named: bool
) -> None:
    """Every step that writes to the disk is the last one, once."""
    value, last, finished, after = 0, 0, 0, 0
    while finished < 3:
        store = SnapshotStore(tmp_path, wait_s=0.0)
        store.lock()
        value, faults.left, faults.for_good = value + 1, after, True
        try:
            save(store, content(value), f"name/{value}" if named else "")
            finished += 1
        except Crash:
            finished = 0
        faults.left = 10**9
        store.unlock()
        store = SnapshotStore(tmp_path, wait_s=0.0)
        store.lock()
        newest = store.choose("latest")
        if newest is not None:
            documents, found = read(store, newest.number)
            got = documents["one"]["number"]
            assert got == value if finished else got in (last, value), (after, got, last, value)
            assert set(np.frombuffer(found["one/key/2"], "f4")) == {got}
            last = got
            if named:
                assert newest.directory == f"name/{got}", "a later start gives it its name"
        else:
            assert last == 0
        store.unlock()
        after += 1
    assert after > 15, "there are that many steps"
    # What the crashes left is gone, but for the snapshots themselves.
    folders = [each for each in (tmp_path / "snapshots").iterdir() if each.is_dir()]
    assert len(folders) == (0 if named else 2)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("named", [False, True])
def test_a_full_disk_at_any_point_leaves_the_others_as_they_were(
    tmp_path: Path, faults: Faults, named: bool
) -> None:
    store = SnapshotStore(tmp_path, wait_s=0.0)
    faults.failure = OSError(errno.ENOSPC, "No space left on device")
    first = save(store, content(1))
    good = read(store, first)
    failed, after, finished = 0, 0, 0
    while finished < 3:
        faults.left = after
        directory = f"name/{after}" if named else ""
        before = store.committed()
        try:
            number = save(store, content(7), directory)
            finished += 1
        except SnapshotError as err:
            message = str(err)
            failed, finished = failed + 1, 0
            assert "No space left" in message
            assert store.committed() == before, after
            assert not directory or not (tmp_path / directory).exists()
        else:
            assert read(store, number)[0]["one"]["number"] == 7
        faults.left = 10**9
        if first in store.committed():
            assert read(store, first) == good
        after += 1
    assert failed > 8
    assert not list(tmp_path.rglob("*.tmp"))


# Several shards


def pair(one: Path, other: Path) -> tuple[SnapshotStore, SnapshotStore]:
    """The stores of two shards."""
    return (
        SnapshotStore(one, shard=0, num_shards=2, wait_s=0.0),
        SnapshotStore(other, shard=1, num_shards=2, wait_s=0.0),
    )


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("directory", ["", "kept/before"])
def test_each_shard_writes_its_part_and_all_the_same_manifest(
    tmp_path: Path, shared: bool, directory: str
) -> None:
    stores = pair(tmp_path / "a", tmp_path / ("a" if shared else "b"))
    for store in stores:
        store.lock()
    name = SnapshotName(3, directory)
    parts = [store.write_part(name, content(shard)) for shard, store in enumerate(stores)]
    assert [store.committed() for store in stores] == [[], []]
    manifest = stores[0].manifest(name, parts, SnapshotOrigin("cluster", 2**64 - 1, 12))
    for store in stores:
        store.commit(name, manifest)
        # What is whole is left alone.
        store.discard(name)
    for shard, store in enumerate(stores):
        assert store.committed() == [3]
        assert read(store, 3)[0]["one"]["number"] == shard
        found = store.manifest_of(name)
        assert found.origin == SnapshotOrigin("cluster", 2**64 - 1, 12)
        assert (found.name, found.num_shards) == (name, 2)
        (info,) = store.all()
        assert (info.name, info.num_shards) == (name, 2)
        assert info.size_bytes == sum(sum(part["files"].values()) for part in parts)
        assert store.choose(directory or "3") == name
    for store in stores:
        store.prune([])
    assert stores[0].committed() == ([3] if directory else [])
    assert not list(tmp_path.rglob("*.tmp"))
    for store in stores:
        store.unlock()


@pytest.mark.parametrize("directory", ["", "kept"])
def test_shards_commit_in_one_directory_at_the_same_time(tmp_path: Path, directory: str) -> None:
    count = 4
    stores = [
        SnapshotStore(tmp_path, shard=shard, num_shards=count, wait_s=0.0) for shard in range(count)
    ]
    for number in range(1, 21):
        name = SnapshotName(number, f"{directory}/{number}" if directory else "")
        parts = [store.write_part(name, content(number)) for store in stores]
        manifest = stores[0].manifest(name, parts, SnapshotOrigin())
        kept = stores[0].kept(name)
        barrier = threading.Barrier(count)
        failures: list[BaseException] = []

        def finish(store: SnapshotStore, *more: Any, failures: Any = failures) -> None:
            name, manifest, kept, barrier = more
            barrier.wait()
            try:
                store.commit(name, manifest)
                store.prune(kept)
            except BaseException as err:
                failures.append(err)

        threads = [
            threading.Thread(target=finish, args=(store, name, manifest, kept, barrier))
            for store in stores
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        for store in stores:
            assert read(store, number)[0]["one"]["number"] == number
    assert len(stores[0].committed()) == (20 if directory else 2)
    assert not list(tmp_path.rglob("*.tmp"))


def test_one_shard_gives_up_without_harm_to_the_part_of_another(tmp_path: Path) -> None:
    one, other = pair(tmp_path, tmp_path)
    name = SnapshotName(1)
    parts = [store.write_part(name, content(1)) for store in (one, other)]
    one.discard(name)
    assert sorted(each.name for each in (tmp_path / "snapshots/00000001").iterdir()) == sorted(
        parts[1]["files"]
    )
    other.discard(name)
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_parts_of_another_number_of_shards_are_read_where_all_are_there(tmp_path: Path) -> None:
    one, other = pair(tmp_path, tmp_path)
    name = SnapshotName(1)
    claims = SavedSection({"done": [["work", "00" * 16, 1]]})
    parts = [store.write_part(name, {"claims": claims}) for store in (one, other)]
    one.commit(name, one.manifest(name, parts, SnapshotOrigin()))
    for shard in range(3):
        store = SnapshotStore(tmp_path, shard=shard, num_shards=3, wait_s=0.0)
        with store.taking_up(store.find(1)) as reader:
            assert ("claims" in reader.documents) == (shard == 0)
        assert store.taken_up == name
    (tmp_path / "snapshots/00000001/part-1-of-2.json").unlink()
    with pytest.raises(SnapshotError, match=r"part-1-of-2\.json"), store.taking_up(name):
        pass


# Names


def test_named_snapshot_is_never_pruned_and_never_overwritten(
    store: SnapshotStore, tmp_path: Path
) -> None:
    named = save(store, content(1), "before finetuning")
    for number in range(2, 6):
        save(store, content(number))
    assert store.committed() == [named, 4, 5]
    assert store.choose("latest") == SnapshotName(5)
    assert store.choose("before finetuning") == SnapshotName(named, "before finetuning")
    assert read(store, named)[0]["one"]["number"] == 1
    with pytest.raises(SnapshotError, match="exists already"):
        save(store, content(9), "before finetuning")
    assert read(store, named)[0]["one"]["number"] == 1
    assert SnapshotStore(tmp_path).next_number() > 5


@pytest.mark.parametrize("directory", ["..", "/", "../x", "snapshots", "snapshots/00000001", "\0"])
def test_names_that_are_not_below_the_directory(store: SnapshotStore, directory: str) -> None:
    with pytest.raises(PathNotAllowedError):
        store.check_directory(directory)
    save(store, content(1))
    with pytest.raises(SnapshotError):
        store.choose(directory)


@pytest.mark.parametrize("directory", ["x" * 300, "one/inside", "file/inside", "file"])
def test_names_that_cannot_be_given(store: SnapshotStore, tmp_path: Path, directory: str) -> None:
    save(store, content(1), "one")
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(SnapshotError):
        store.check_directory(directory)


def test_name_that_is_no_snapshot_or_a_damaged_one(store: SnapshotStore, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SnapshotError, match="empty"):
        store.choose("empty")
    save(store, content(1), "named")
    path = tmp_path / "named" / "manifest.json"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(SnapshotError, match=r"named/manifest\.json"):
        store.choose("named")
    assert store.committed() == []


def test_manifest_of_the_first_format_is_read(store: SnapshotStore, tmp_path: Path) -> None:
    save(store, content(1))
    path = tmp_path / "snapshots" / "00000001" / "manifest.json"
    document = json.loads(path.read_text())
    for key in ("directory", "cluster_id", "generation", "position"):
        del document[key]
    rewrite(path, {**document, "format": 1})
    assert read(store, 1)[0]["one"]["number"] == 1
    assert store.manifest_of(SnapshotName(1)).origin == SnapshotOrigin()


def rewrite(path: Path, document: dict[str, Any]) -> None:
    """Another manifest, with a marker that fits."""
    changed = json.dumps(document).encode()
    path.write_bytes(changed)
    marker = {"size_bytes": len(changed), "crc32": checksum(changed)}
    (path.parent / "COMMITTED").write_text(json.dumps(marker))


def test_every_byte_counts(store: SnapshotStore, tmp_path: Path) -> None:
    save(store, content(1))
    good = read(store, 1)
    for path in sorted(tmp_path.glob("snapshots/00000001/*")):
        whole = path.read_bytes()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 0x10
            path.write_bytes(damaged)
            message = ""
            try:
                found = read(store, 1)
            except SnapshotError as err:
                message, found = str(err), good
            assert found == good, (path.name, position)
            assert not message or str(path.parent) in message, (path.name, position)
        path.write_bytes(whole)
    assert read(store, 1) == good


def test_damage_of_a_large_array_shows_before_the_end(store: SnapshotStore, tmp_path: Path) -> None:
    large = whole_array("large", np.ones(1 << 20, "f4"))
    save(store, {"one": SavedSection({}, [large])})
    path = tmp_path / "snapshots" / "00000001" / "part-0-of-1.000.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(SnapshotError, match=r"000\.safetensors: array 'one/large' .* is damaged"):
        read(store, 1)
    assert store.taken_up is None


def test_failure_says_which_older_one_is_whole(store: SnapshotStore, tmp_path: Path) -> None:
    for number in (1, 2):
        save(store, content(number))
    with (
        pytest.raises(SnapshotError, match=r"one/x.*--restore 1 "),
        store.taking_up(store.find(2)) as reader,
    ):
        reader.arrays("one").describe("x")
    with (
        pytest.raises(SnapshotError, match="no older one"),
        store.taking_up(store.find(1)) as reader,
    ):
        reader.arrays("one").read("key/0", np.empty(2, "f4"))
    assert store.taken_up is None


@pytest.mark.parametrize("change", [{"format": 3}, {"num_shards": 3}, {"parts": []}])
def test_manifest_of_another_kind(
    store: SnapshotStore, tmp_path: Path, change: dict[str, Any]
) -> None:
    save(store, content(1))
    path = tmp_path / "snapshots" / "00000001" / "manifest.json"
    rewrite(path, {**json.loads(path.read_text()), **change})
    with pytest.raises(SnapshotError, match=r"manifest\.json"):
        read(store, 1)


def test_other_things_in_the_folder_are_left_alone(store: SnapshotStore, tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    for name in ("mine", "7", "0000001x", ".00000009"):
        (folder / name).mkdir(parents=True)
    (folder / "00000008").write_text("a file")
    assert save(store, content(1)) == 1
    assert store.committed() == [1]
    assert len(list(folder.iterdir())) == 6


def test_lock_keeps_others_out_until_it_is_given_back(tmp_path: Path) -> None:
    one, other = SnapshotStore(tmp_path, wait_s=0.0), SnapshotStore(tmp_path, wait_s=0.0)
    one.lock()
    with pytest.raises(SnapshotError, match="in use"):
        other.lock()
    one.unlock()
    one.unlock()
    other.lock()
    other.unlock()
