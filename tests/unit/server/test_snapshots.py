"""Snapshots in a directory: numbers, commits, crashes, damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from paramd_server.core.snapshot import SavedArray, SavedSection, SnapshotError, whole_array
from paramd_server.storage import snapshot_part, snapshots
from paramd_server.storage.snapshots import SnapshotStore


def content(number: int, count: int = 3) -> dict[str, SavedSection]:
    arrays = [whole_array(f"key/{i}", np.full(i + 1, number, "f4")) for i in range(count)]
    return {
        "one": SavedSection({"number": number}, arrays),
        "two": SavedSection({"text": "μ\ud800"}, [whole_array("key/0", np.arange(4) + number)]),
    }


def read(store: SnapshotStore, number: int) -> tuple[Any, dict[str, bytes]]:
    """Everything of a snapshot."""
    with store.taking_up(number) as reader:
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
    number = store.save({"__metadata__": saved, "blank": SavedSection({})})
    documents, found = read(store, number)
    assert documents == {"__metadata__": {"a": [1, 0.1, None, True, "\0"]}, "blank": {}}
    assert found == {f"__metadata__/{key}": array.tobytes() for key, array in arrays.items()}


def test_many_arrays_go_into_several_files(
    store: SnapshotStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_part, "_MAX_ARRAYS", 4)
    number = store.save(content(1, 11))
    assert len(list(tmp_path.glob("snapshots/*/*.safetensors"))) == 3
    assert len(read(store, number)[1]) == 12
    monkeypatch.setattr(snapshot_part, "_MAX_ARRAYS", 100)
    monkeypatch.setattr(snapshot_part, "_MAX_KEY_BYTES", 30)
    assert read(store, store.save(content(1, 11))) == read(store, number)


def test_array_of_another_size_than_it_says(store: SnapshotStore) -> None:
    for wrong in (np.zeros(3, "f4"), np.zeros(5, "f4")):
        saved = whole_array("a", wrong)
        array = SavedArray("a", (4,), saved.dtype, saved.blocks)
        with pytest.raises(SnapshotError, match="16 bytes"):
            store.save({"one": SavedSection({}, [array])})
    assert store.committed() == []


def test_the_newest_are_kept_and_the_one_taken_up(store: SnapshotStore, tmp_path: Path) -> None:
    for number in range(1, 4):
        assert store.save(content(number)) == number
    assert store.committed() == [2, 3]
    with store.taking_up(2):
        pass
    for number in (4, 5, 6):
        store.save(content(number))
    assert store.committed() == [2, 5, 6]
    assert SnapshotStore(tmp_path).save(content(7)) == 7
    assert store.committed() == [6, 7]


class Crash(BaseException):
    """The end of the process."""


def test_a_crash_at_any_point_leaves_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step that writes to the disk is the last one, once."""
    root = tmp_path / "state"
    root.mkdir()
    steps = [
        (snapshots, "_sync"),
        (snapshots, "_write_synced"),
        (snapshots, "write_part"),
        (shutil, "rmtree"),
        (Path, "replace"),
        (Path, "unlink"),
        (Path, "mkdir"),
    ]
    left = 0
    for owner, name in steps:
        original = getattr(owner, name)

        def step(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, step)
    value, last = 0, 0
    for after in range(60):
        store = SnapshotStore(root)
        value, left = value + 1, after
        try:
            store.save(content(value))
            finished = True
        except Crash:
            finished = False
        left = 10**9
        newest = store.choose("latest")
        if newest is None:
            assert last == 0
            continue
        documents, found = read(store, newest)
        got = documents["one"]["number"]
        assert got == value if finished else got in (last, value), (after, got, last, value)
        assert set(np.frombuffer(found["one/key/2"], "f4")) == {got}
        last = got
    assert finished, "the last rounds have steps enough"
    assert len(store.committed()) == 2


def test_every_byte_counts(store: SnapshotStore, tmp_path: Path) -> None:
    store.save(content(1))
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


def test_failure_says_which_older_one_is_whole(store: SnapshotStore, tmp_path: Path) -> None:
    for number in (1, 2):
        store.save(content(number))
    with pytest.raises(SnapshotError, match=r"one/x.*--restore 1 "), store.taking_up(2) as reader:
        reader.arrays("one").describe("x")
    with pytest.raises(SnapshotError, match="no older one"), store.taking_up(1) as reader:
        reader.arrays("one").read("key/0", np.empty(2, "f4"))
    assert store.taken_up is None


@pytest.mark.parametrize("change", [{"format": 2}, {"num_shards": 3}, {"parts": []}])
def test_manifest_of_another_kind(
    store: SnapshotStore, tmp_path: Path, change: dict[str, Any]
) -> None:
    store.save(content(1))
    path = tmp_path / "snapshots" / "00000001" / "manifest.json"
    changed = json.dumps({**json.loads(path.read_text()), **change}).encode()
    path.write_bytes(changed)
    marker = {"size_bytes": len(changed), "crc32": snapshots._checksum(changed)}
    (path.parent / "COMMITTED").write_text(json.dumps(marker))
    with pytest.raises(SnapshotError, match=r"manifest\.json"):
        read(store, 1)


def test_other_things_in_the_folder_are_left_alone(store: SnapshotStore, tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    for name in ("mine", "7", "0000001x", ".00000009"):
        (folder / name).mkdir(parents=True)
    (folder / "00000008").write_text("a file")
    assert store.save(content(1)) == 1
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
