"""What buffers held at one moment, while they are written in place."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramd.context import cpu
from paramd_server.arrays.backend import host_array
from paramd_server.arrays.devices import Devices
from paramd_server.arrays.memory import MemoryAccount
from paramd_server.core import held_buffers
from paramd_server.core.capture import no_scratch
from paramd_server.core.held_buffers import BufferHolds
from paramd_server.core.snapshot import SnapshotError
from paramd_server.storage.snapshot_files import ScratchFile

LIMIT = 64 << 20
# Narrow and wide rows, one of several units, no rows, no elements, no dimensions.
SHAPES = ((40, 3), (700,), (5, 40_000), (3, 16_385), (7, 512), (0, 4), (4, 0), ())


def hold(array: np.ndarray[Any, Any], scratch: Any, limit: int = LIMIT) -> tuple[Any, Any, Any]:
    """A held buffer with a content: the holds, the buffer and its memory."""
    devices = Devices(MemoryAccount(limit))
    buffer = devices.backend(cpu()).zeros(array.shape, array.dtype, cpu())
    host = host_array(devices.backend(cpu()), buffer)
    host[...] = array
    holds = BufferHolds(devices, scratch)
    holds.add(buffer)
    return holds, buffer, host


def joined(pieces: Any, like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    data = b"".join(piece.tobytes() for piece in pieces)
    return np.frombuffer(data, like.dtype).reshape(like.shape)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_content_is_as_it_was_whatever_is_written_between_the_pieces(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = data.draw(st.sampled_from(SHAPES))
    dtype = np.dtype(data.draw(st.sampled_from(["f4", "f8", "?", "i1", ml_dtypes.bfloat16])))
    by_rows = data.draw(st.booleans())
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    before = random.integers(0, 100, shape).astype(dtype)
    folder = tmp_path_factory.mktemp("scratch")
    holds, buffer, host = hold(before, lambda: ScratchFile(folder))
    held = holds.find(buffer, by_rows=by_rows)

    def write() -> None:
        kind = data.draw(st.sampled_from(["nothing", "some", "some", "all"]))
        rows = None
        if kind == "some" and host.ndim and len(host):
            rows = np.unique(random.integers(0, len(host), data.draw(st.integers(0, len(host)))))
        if kind != "nothing":
            buffer.hold and buffer.hold.keep(buffer, rows, by_rows=by_rows)
            host[... if rows is None else rows] = random.integers(0, 100)

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        stack.callback(holds.release)
        patch.setattr(held_buffers, "_PIECE_BYTES", data.draw(st.sampled_from([1, 1000, 1 << 20])))
        # All in the scratch file, a part of it, nothing.
        patch.setattr(held_buffers, "_SPARE_SHARE", data.draw(st.sampled_from([0.0, 1e-4, 0.5])))
        for way in (held.peek, held.read):
            write()
            pieces = []
            for piece in way(nullcontext()):
                pieces.append(piece.copy())
                write()
            assert joined(pieces, before).tobytes() == before.tobytes()
    assert buffer.hold is None, "it is not held any more once it has been read"


def test_memory_is_given_back_and_the_scratch_file_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_buffers, "_SPARE_SHARE", 0.0)
    made: list[ScratchFile] = []

    def scratch() -> ScratchFile:
        made.append(ScratchFile(tmp_path))
        return made[-1]

    holds, buffer, _ = hold(np.ones((1000, 200), "f4"), scratch)
    used = holds._devices.account.used_bytes
    holds.keep(buffer, np.array([3, 4]), by_rows=True)
    holds.keep(buffer, np.array([3, 900]), by_rows=True)
    assert used < holds._devices.account.used_bytes < used * 1.02
    assert len(made) == 1
    assert made[0]._size == 3 * 800, "each row is set aside once"
    assert list(tmp_path.iterdir()) == [], "nobody else sees it"
    holds.release()
    holds.release()
    assert holds._devices.account.used_bytes == used
    assert buffer.hold is None
    assert made[0]._file.closed


def test_what_is_set_aside_is_counted_and_leaves_room() -> None:
    array = np.ones((1000, 200), "f4")
    limit = array.nbytes * 2
    holds, buffer, _ = hold(array, no_scratch, limit)
    account = holds._devices.account
    used = account.used_bytes
    holds.keep(buffer, np.arange(100), by_rows=True)
    assert account.used_bytes == used + 100 * 800 + 1000 * 8
    account.reserve(limit - account.used_bytes - 100_000)
    assert holds.active
    holds.keep(buffer, np.arange(200), by_rows=True)
    assert not holds.active, "it asked for the scratch file, and has left what was free"
    assert limit - account.used_bytes == 100_000
    holds.release()
    assert limit - account.used_bytes == 100_000 + 100 * 800 + 1000 * 8


@pytest.mark.parametrize("reason", ["disk", "memory"])
def test_what_cannot_be_set_aside_fails_the_snapshot_and_not_the_write(
    tmp_path: Path, reason: str
) -> None:
    def full() -> ScratchFile:
        raise OSError(28, "No space left on device")

    array = np.ones((1000, 200), "f4")
    # Room for a list of what was set aside, and no more.
    limit = array.nbytes + (0 if reason == "memory" else 8000)
    holds, buffer, _ = hold(array, full, limit)
    held = holds.find(buffer, by_rows=True)
    holds.keep(buffer, np.array([3]), by_rows=True)
    assert not holds.active
    with pytest.raises(SnapshotError, match=r"No space left|memory limit"):
        list(held.read(nullcontext()))
    holds.release()


def test_reading_fails_soon_when_it_is_given_up() -> None:
    holds, buffer, _ = hold(np.ones((4, 1 << 19), "f4"), lambda: pytest.fail("nothing is written"))
    pieces = holds.find(buffer, by_rows=False).read(threading.RLock())
    next(pieces)
    holds.fail(SnapshotError("given up"))
    holds.fail(SnapshotError("another reason"))
    with pytest.raises(SnapshotError, match="given up"):
        next(pieces)
    holds.release()


def test_who_reads_rests_for_its_share_and_not_when_it_has_failed() -> None:
    holds, _, _ = hold(np.ones((4, 4), "f4"), lambda: pytest.fail("nothing is written"))
    for share, failed in ((0.25, False), (1.0, False), (0.001, True)):
        holds.set_pace(share)
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        if failed:
            holds.fail(SnapshotError("given up"))
        begin = time.monotonic()
        holds.rest()
        took = time.monotonic() - begin
        # Three times the 20 ms that it worked; a machine may be slow, and not fast.
        assert (took >= 0.059) == (share == 0.25) or took > 0.5
        assert took < 10
    holds.release()
