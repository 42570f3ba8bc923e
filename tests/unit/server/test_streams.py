"""Streams that wait for the client are cut off; those in which the server works are not."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from paramd_server.rpc import streams
from paramd_server.rpc.streams import OpenStreams


class Call:
    """Counts how often it was cancelled."""

    def __init__(self) -> None:
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(streams, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def context(call: Call) -> grpc.ServicerContext:
    return cast(Any, call)  # type: ignore[no-any-return]


def test_a_reader_that_stalls_is_cut_off_once(now: list[float]) -> None:
    open_streams, call = OpenStreams(stall_s=10), Call()
    with open_streams.open(context(call)) as stream:
        sent = stream.sent([b"1", b"2"])
        next(sent)
        now[0] += 9
        open_streams.cut_stalled()
        assert call.cancelled == 0
        now[0] += 2
        open_streams.cut_stalled()
        open_streams.cut_stalled()
        assert call.cancelled == 1
    assert len(open_streams) == 0


def test_movement_counts(now: list[float]) -> None:
    open_streams, call = OpenStreams(stall_s=10), Call()
    with open_streams.open(context(call)) as stream:
        for _ in stream.sent([b"1", b"2", b"3"]):
            now[0] += 9
            open_streams.cut_stalled()
    assert call.cancelled == 0


def test_an_uploader_that_stalls_is_cut_off(now: list[float]) -> None:
    open_streams, call = OpenStreams(stall_s=10), Call()

    def pausing() -> Iterator[bytes]:
        yield b"1"
        now[0] += 11
        open_streams.cut_stalled()
        yield b"2"

    with open_streams.open(context(call)) as stream:
        assert list(stream.received(pausing())) == [b"1", b"2"]
    assert call.cancelled == 1


def test_time_that_the_server_takes_does_not_count(now: list[float]) -> None:
    open_streams, call = OpenStreams(stall_s=10), Call()

    def answers() -> Iterator[bytes]:
        for answer in (b"1", b"2"):
            now[0] += 1000
            open_streams.cut_stalled()
            yield answer

    with open_streams.open(context(call)) as stream:
        for _ in stream.received([b"request"]):
            now[0] += 1000
            open_streams.cut_stalled()
        assert list(stream.sent(answers())) == [b"1", b"2"]
        now[0] += 1000
        open_streams.cut_stalled()
    assert call.cancelled == 0
