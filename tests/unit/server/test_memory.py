"""The account of memory and the spare buffers."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from paramd.errors import MemoryLimitError
from paramd_server.arrays import memory
from paramd_server.arrays.memory import MemoryAccount, SpareBuffers, format_bytes

MIB = 1 << 20


def test_nothing_is_taken_where_there_is_no_room() -> None:
    account = MemoryAccount(100)
    account.reserve(60)
    with pytest.raises(MemoryLimitError, match="60 bytes in use"):
        account.reserve(41)
    account.reserve(40)
    account.release(100)
    assert account.used_bytes == 0


def test_threads_never_exceed_the_limit() -> None:
    account = MemoryAccount(1000)
    refused, most = [], []

    def turns() -> None:
        for _ in range(500):
            try:
                account.reserve(300)
            except MemoryLimitError:
                refused.append(1)
                continue
            most.append(account.used_bytes)
            account.release(300)

    threads = [threading.Thread(target=turns) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) <= 1000
    assert account.used_bytes == 0
    assert len(most) + len(refused) == 4000


def test_a_spare_is_used_once_for_its_own_size() -> None:
    spares = SpareBuffers()
    flat = np.zeros(MIB, np.uint8)
    spares.give(flat)
    assert spares.held_bytes == MIB
    assert spares.take(MIB - 1) is not flat
    assert spares.take(MIB) is flat
    assert spares.take(MIB) is not flat
    assert spares.held_bytes == 0


def test_small_buffers_are_not_kept() -> None:
    spares = SpareBuffers()
    spares.give(np.zeros(MIB - 1, np.uint8))
    assert spares.held_bytes == 0


def test_idle_spares_go(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: now[0]))
    spares = SpareBuffers(idle_s=2)
    spares.give(np.zeros(MIB, np.uint8))
    now[0] = 1.5
    spares.give(np.zeros(2 * MIB, np.uint8))
    spares.trim()
    assert spares.held_bytes == 3 * MIB
    now[0] = 3.0
    spares.trim()
    assert spares.held_bytes == 2 * MIB
    spares.drop()
    assert spares.held_bytes == 0


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 << 40, "3 TiB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_bytes(size) == text
