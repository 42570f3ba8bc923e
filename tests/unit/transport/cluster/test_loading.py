"""Tensors that are read once and sent to several shards at their own speeds."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from paramd.placement import layout_of
from paramd.transport.cluster import loading
from paramd.transport.cluster.loading import _Distribution
from paramd.transport.cluster.placed import Placed
from paramd.transport.records import TensorWrite

NAMES = [f"w{number}" for number in range(20)]
SHAPE = (6, 5)


class Source:
    """Counts how often each tensor is read."""

    def __init__(self, fails_at: int = -1) -> None:
        self.read: list[str] = []
        self.begun = 0
        self._fails_at = fails_at

    def __call__(self) -> Iterator[TensorWrite]:
        self.begun += 1
        for number, name in enumerate(NAMES):
            if number == self._fails_at:
                raise OSError("the file is gone")
            self.read.append(name)
            yield TensorWrite(name, np.full(SHAPE, number, np.float32))


def _distribution(source: Source) -> _Distribution:
    placed = {
        name: Placed(name, layout_of(name, SHAPE, "default", 3, 4), SHAPE, "default", "default")
        for name in NAMES
    }
    return _Distribution(source, placed, [0, 1, 2])


def _consume(distribution: _Distribution, shard: int, found: dict[int, list[str]]) -> None:
    for write in distribution.pieces(shard):
        assert isinstance(write.value, np.ndarray)
        assert write.value.shape == (2, 5)
        found.setdefault(shard, []).append(write.name)
    distribution.leave(shard)


@pytest.mark.parametrize("limit", [1, 1000, 1 << 30])
def test_every_shard_gets_all_its_pieces_and_each_tensor_is_read_once(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_WAITING_BYTES", limit)
    source, found = Source(), dict[int, list[str]]()
    distribution = _distribution(source)
    threads = [
        threading.Thread(target=_consume, args=(distribution, shard, found)) for shard in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == dict.fromkeys(range(3), NAMES)
    assert source.read == NAMES


def test_shard_that_begins_anew_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_WAITING_BYTES", 1)
    source, found = Source(), dict[int, list[str]]()
    distribution = _distribution(source)
    first = distribution.pieces(0)
    assert next(first).name == "w0"
    # Shard 0 stops here; the others wait for room, until it begins anew.
    threads = [
        threading.Thread(target=_consume, args=(distribution, shard, found)) for shard in (1, 2)
    ]
    for thread in threads:
        thread.start()
    assert [write.name for write in distribution.pieces(0)] == NAMES
    for thread in threads:
        thread.join(20)
    assert found == {1: NAMES, 2: NAMES}
    assert source.begun == 2


def test_shard_that_gives_up_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_WAITING_BYTES", 1)
    found: dict[int, list[str]] = {}
    distribution = _distribution(Source())
    next(distribution.pieces(0))
    distribution.leave(0)
    threads = [
        threading.Thread(target=_consume, args=(distribution, shard, found)) for shard in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {1: NAMES, 2: NAMES}


def test_file_that_fails_fails_every_shard() -> None:
    distribution = _distribution(Source(fails_at=3))
    for shard in range(3):
        with pytest.raises(OSError, match="gone"):
            list(distribution.pieces(shard))
