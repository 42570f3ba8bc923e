"""Servers and clients that come, go, move and fork while memory is shared; and who shares none."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

import pytest

import paramd
from paramd.errors import ServerUnavailable, SessionClosedError, TransportUnavailableError
from paramd.session import Session
from tests.support.local_door import mapped_segments, num_descriptors, num_threads
from tests.support.processes import forked, status_of
from tests.support.raw_calls import RawClient
from tests.support.security import make_keys
from tests.support.server_process import ServerProcess, serve, server_environment
from tests.support.waiting import wait_until
from tests.system.local.conftest import get, make, reads_in_place

pytestmark = pytest.mark.real_devices

# Of a segment of its own.
SIZE: Final = 1 << 19
NOBODY: Final = 65534
NEW_NETWORK: Final = 0x40000000


# Clients


def test_a_killed_client_leaves_nothing_behind(server: ServerProcess) -> None:
    code = """
import sys, paramd
session = paramd.connect(sys.argv[1], transport='shm')
with session:
    print(float(session.parameters()['kept'].data().asnumpy()[0]), flush=True)
    sys.stdin.read()
"""
    with paramd.connect(server.address) as session:
        make(session, "kept", 3, SIZE)

    def live_and_die() -> None:
        command = [sys.executable, "-c", code, server.address]
        with subprocess.Popen(
            command,
            env=server_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "3.0\n"
            child.kill()

    # What a server makes for its first client it keeps for others.
    live_and_die()
    with RawClient(server.address) as client:
        client.health()
    wait_until(lambda: num_descriptors(server) > 0, "it is there")
    counts = settled(server)
    for _ in range(5):
        live_and_die()
    wait_until(lambda: num_descriptors(server) <= counts[0], "their descriptors are closed")
    wait_until(lambda: num_threads(server) <= counts[1], "their threads have ended")


def settled(server: ServerProcess) -> tuple[int, int]:
    """The server's numbers of descriptors and threads, when they have been the same for a time."""
    last, times = (0, 0), 0

    def same() -> bool:
        nonlocal last, times
        now = (num_descriptors(server), num_threads(server))
        times = times + 1 if now == last else 0
        last = now
        return times > 100

    wait_until(same, "they are the same")
    return last


def test_closed_sessions_read_nothing(server: ServerProcess) -> None:
    with paramd.connect(server.address, transport="shm") as session:
        make(session, "closed", 1, SIZE)
        its_own = mapped_by_reading(session, "closed")
    with pytest.raises(SessionClosedError):
        get(session, "closed")
    wait_until(lambda: not mapped_segments() & its_own, "its memory is not mapped any more")


def test_a_session_that_nobody_closes_leaves_nothing_behind(
    server: ServerProcess, calling: Session
) -> None:
    make(calling, "left", 1, SIZE)
    others = listening_threads()
    session = paramd.connect(server.address, transport="shm")
    its_own = mapped_by_reading(session, "left")
    (its_thread,) = listening_threads() - others
    del session
    gc.collect()
    wait_until(lambda: not its_thread.is_alive(), "its thread has ended")
    wait_until(lambda: not mapped_segments() & its_own, "its memory is not mapped any more")


def mapped_by_reading(session: Session, name: str) -> set[str]:
    """The memory that this process has mapped to read a parameter, whose value is 1."""
    # That of sessions and servers which other tests of this process have left may stay longer.
    others = mapped_segments()
    assert reads_in_place(session, name) == 1
    its_own = mapped_segments() - others
    assert len(its_own) == 1
    return its_own


def listening_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "paramd-local"}


def test_a_forked_child_reads_by_itself(in_place: Session, calling: Session) -> None:
    make(in_place, "forked", 1, SIZE)
    assert reads_in_place(in_place, "forked") == 1

    def read() -> None:
        for _ in range(3):
            assert get(in_place, "forked") == 2
        assert reads_in_place(in_place, "forked") == 2
        in_place.close()

    for _ in range(3):
        make(calling, "forked", 2, SIZE)
        assert status_of(forked(read)) == 0
        assert reads_in_place(in_place, "forked") == 2
        make(calling, "forked", 3, SIZE)
        assert reads_in_place(in_place, "forked") == 3


def test_memory_that_a_server_gives_up_is_unmapped_without_a_read(
    in_place: Session, calling: Session
) -> None:
    make(calling, "given up", 1, SIZE)
    its_own = mapped_by_reading(in_place, "given up")
    calling.calls.delete(["given up"])
    wait_until(lambda: not mapped_segments() & its_own, "its memory is not mapped any more")


# Servers


def test_values_of_a_killed_server_are_never_read_again(
    tmp_path: Path,
) -> None:
    with serve(tmp_path) as first:
        address = first.address
        with paramd.connect(address, transport="shm", timeout=60) as session:
            make(session, "w", 1, SIZE)
            its_own = mapped_by_reading(session, "w")
            first.process.kill()
            first.process.wait()
            # Meanwhile there is nothing to be read.
            local = session._connection.local
            wait_until(lambda: local.values() is None, "it has seen that the server has gone")
            with serve(tmp_path, listen=[address]) as second:
                assert second.address == address
                with paramd.connect(address) as other:
                    make(other, "w", 2, SIZE)
                for _ in range(5):
                    assert get(session, "w") == 2
                assert not mapped_segments() & its_own


def test_a_server_that_is_started_again_is_read_in_place(tmp_path: Path) -> None:
    with (
        serve(tmp_path) as first,
        paramd.connect(first.address, transport="shm", timeout=60) as session,
    ):
        make(session, "w", 1, SIZE)
        assert reads_in_place(session, "w") == 1
        first.process.kill()
        first.process.wait()
        with serve(tmp_path, listen=[first.address]):
            make(session, "w", 2, SIZE)
            assert reads_in_place(session, "w") == 2


def test_a_server_that_stops_is_read_no_more(tmp_path: Path) -> None:
    with (
        serve(tmp_path) as server,
        paramd.connect(server.address, transport="shm", timeout=1) as session,
    ):
        make(session, "w", 1, SIZE)
        assert reads_in_place(session, "w") == 1
        server.terminate()
        server.await_end()
        with pytest.raises(ServerUnavailable):
            get(session, "w")


# Who shares no memory


def falls_back(target: str, caplog: pytest.LogCaptureFixture, why: str, **options: Any) -> None:
    """Values are right, and it is said once why they come over gRPC."""
    caplog.set_level(logging.INFO, "paramd")
    with paramd.connect(target, **options) as session:
        make(session, "w", 5, SIZE)
        for _ in range(3):
            assert get(session, "w") == 5
        assert session._connection.local.values() is None
    said = [record for record in caplog.records if "over gRPC" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.INFO], caplog.text
    assert why in said[0].getMessage()
    with pytest.raises(TransportUnavailableError, match=why) as caught:
        paramd.connect(target, transport="shm", **options)
    assert target in str(caught.value)


def test_a_server_can_be_told_to_share_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(tmp_path, "--no-shared-memory") as server:
        falls_back(server.address, caplog, "the server shares none")


def test_a_server_that_asks_for_certificates_shares_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = make_keys(tmp_path)
    with serve(tmp_path, *keys.serving(client_ca="ca")) as server:
        falls_back(server.address, caplog, "the server shares none", tls=keys.tls("client"))
        assert "no memory is shared" in server.log


def test_tcp_never_looks_for_memory(
    server: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "paramd")
    with paramd.connect(server.address, transport="tcp") as session:
        make(session, "over tcp", 4, SIZE)
        assert get(session, "over tcp") == 4
        assert session._connection.local.values() is None
    assert "over gRPC" not in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_gets_right_values_by_calls(server: ServerProcess) -> None:
    def visit() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with paramd.connect(server.address) as session:
            make(session, "of nobody", 6, SIZE)
            assert get(session, "of nobody") == 6
            assert session._connection.local.values() is None
        with pytest.raises(TransportUnavailableError, match="user"):
            paramd.connect(server.address, transport="shm")

    assert status_of(forked(visit)) == 0


def leave_network() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "no network of its own")


def may_leave_network() -> bool:
    pid = os.fork()
    if not pid:
        os._exit(ctypes.CDLL(None).unshare(NEW_NETWORK) != 0)
    return status_of(pid) == 0


def test_a_server_in_another_network_is_reached_by_calls(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As one in another container, by a Unix socket in a folder that both have."""
    if not may_leave_network():
        pytest.skip("no process may have a network of its own here")
    target = f"unix:{tmp_path}/s"
    with serve(tmp_path, listen=[target], preexec_fn=leave_network):
        falls_back(target, caplog, "no server shares its memory here")


def test_an_unknown_transport_is_refused(server: ServerProcess) -> None:
    with pytest.raises(ValueError, match="'auto', 'tcp' or 'shm', but got 'rdma'"):
        paramd.connect(server.address, transport="rdma")
