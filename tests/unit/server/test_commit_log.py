"""The coordinator's log: positions, forgetting, waiting."""

from __future__ import annotations

import threading

import pytest

from paramd_server.core.cluster import log as log_module
from paramd_server.core.cluster.log import CommitLog
from paramd_server.core.training.records import SnapshotRecord


def _record(number: int) -> SnapshotRecord:
    return SnapshotRecord(number, "")


def _filled(count: int, position: int = 0) -> CommitLog:
    log = CommitLog(position)
    for number in range(count):
        log.append(_record(number))
    return log


def test_positions_count_from_where_it_begins() -> None:
    log = CommitLog(7)
    assert log.head == 7
    assert [log.append(_record(n)) for n in range(3)] == [8, 9, 10]
    assert [position for position, _ in log.after(7, 9)] == [8, 9, 10]
    assert log.after(8, 1) == [(9, _record(1))]
    assert log.after(10, 9) == []


@pytest.mark.parametrize(("position", "there"), [(3, False), (4, True), (9, True), (10, False)])
def test_a_position_is_reached_where_all_after_it_is_kept(position: int, there: bool) -> None:
    log = _filled(5, position=4)
    assert log.reaches(position) is there


def test_what_everybody_has_is_forgotten() -> None:
    log = _filled(5)
    log.forget(3)
    assert not log.reaches(2)
    assert log.reaches(3)
    assert log.after(3, 9) == [(4, _record(3)), (5, _record(4))]
    log.forget(99)
    assert log.head == 5
    assert log.reaches(5)
    assert log.append(_record(6)) == 6


def test_it_begins_anew_at_another_position() -> None:
    log = _filled(5)
    log.begin(2)
    assert (log.head, log.after(2, 9)) == (2, [])
    assert not log.reaches(3)


def test_it_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "_MAX_RECORDS", 3)
    log = _filled(5)
    assert log.head == 5
    assert not log.reaches(1)
    assert log.after(2, 9) == [(3, _record(2)), (4, _record(3)), (5, _record(4))]


@pytest.mark.parametrize("how", ["append", "wake", "begin"])
def test_who_waits_is_woken(how: str) -> None:
    log = _filled(1)
    ended = threading.Event()

    def wait() -> None:
        log.wait(log.head, 60.0)
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    while not ended.is_set():
        # Again and again: it may not wait yet.
        if how == "append":
            log.append(_record(1))
        elif how == "wake":
            log.wake()
        else:
            log.begin(log.head + 1)
        ended.wait(0.01)
    thread.join(20)


def test_waiting_ends() -> None:
    log = _filled(1)
    log.wait(1, 0.01)
    log.wait(0, 60.0)
    assert log.head == 1
