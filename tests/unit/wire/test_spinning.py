"""A connection is looked at for a moment before its thread sleeps, where that has paid lately."""

from __future__ import annotations

import os
import socket

import pytest

from paramd.wire.local import Incoming, send_message
from paramd.wire.spinning import Spin


class Looks:
    """Whether nobody else is at work, and how often that was asked: once for each look in vain."""

    def __init__(self) -> None:
        self.count = 0
        self.is_alone = True

    def __call__(self) -> bool:
        self.count += 1
        return self.is_alone

    def during(self, spin: Spin) -> int:
        """How many looks in vain one wait takes."""
        before = self.count
        spin.wait()
        return self.count - before


@pytest.fixture(autouse=True)
def _two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})


def test_what_is_there_is_seen_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    looks = Looks()
    spin = Spin(ours, looks, successes=1)
    theirs.sendall(b"there")
    assert [looks.during(spin) for _ in range(100)] == [0] * 100
    assert ours.recv(5) == b"there"
    assert looks.during(spin) > 1


def test_it_waits_asleep_where_others_are_at_work(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    looks = Looks()
    looks.is_alone = False
    spin = Spin(pair[0], looks, successes=1)
    # That says nothing of whether it pays.
    assert [looks.during(spin) for _ in range(100)] == [1] * 100
    looks.is_alone = True
    assert looks.during(spin) > 1


def test_tries_in_vain_are_made_seldom(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    looks = Looks()
    spin = Spin(ours, looks, successes=4)
    tries = [looks.during(spin) > 0 for _ in range(200)]
    # Two are paid for by the start, and each pause is of 63.
    assert [index for index, tried in enumerate(tries) if tried] == [0, 1, 65, 129, 193]

    theirs.sendall(b"there")
    # What is left of the pause, and as many as save for two.
    for _ in range(57 + 8):
        spin.wait()
    ours.recv(5)
    tries = [looks.during(spin) > 0 for _ in range(4)]
    assert tries == [True, True, False, False]


def test_on_one_processor_nobody_looks(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3})
    looks = Looks()
    spin = Spin(pair[0], looks, successes=1)
    assert [looks.during(spin) for _ in range(10)] == [0] * 10


def test_what_has_come_with_another_message_is_not_waited_for(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    looks = Looks()
    incoming = Incoming(ours, max_bytes=100)
    incoming.wait_awake(looks, successes=1)
    theirs.sendall(b"\1\0\0\0a\1\0\0\0b")
    assert [incoming.receive(), incoming.receive()] == [b"a", b"b"]
    assert looks.count == 0
    send_message(theirs, b"c")
    assert incoming.receive(soon=False) == b"c"
    theirs.shutdown(socket.SHUT_WR)
    assert incoming.receive() is None
