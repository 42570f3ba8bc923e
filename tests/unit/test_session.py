from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator

import grpc
import pytest

from paramd.errors import (
    BarrierTimeoutError,
    ClaimLostError,
    NoSessionError,
    ServerUnavailable,
    SessionClosedError,
)
from paramd.session import Session, connect, current_session
from paramd.v1 import session_service_pb2 as pb
from tests.support.fake_server import FakeServer, fail_with


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture
def session(server: FakeServer) -> Iterator[Session]:
    session = connect(server.target, timeout=3, num_workers=2)
    yield session
    session.close()


def test_target_comes_from_the_argument_then_the_environment(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARAMD_TARGET", server.target)
    with connect() as session:
        assert session.target == server.target
    monkeypatch.delenv("PARAMD_TARGET")
    with pytest.raises(ValueError, match=r"connect\(\).*PARAMD_TARGET.*'local'"):
        connect()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("a:1,,b:2", "shard 1 is empty"),
        ("a:1,local", "host:port"),
        ("a:1,b", "host:port"),
        ("host", "host:port"),
        ("host:0", "host:port"),
        ("host:99999", "host:port"),
        ("::1:50051", r"brackets: '\[::1\]:50051'"),
        ("http://host:1", "brackets|host:port"),
        ("unix:", "Unix socket"),
        ("unix:/" + "x" * 120, "107 bytes"),
    ],
)
def test_wrong_targets_are_refused(target: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        connect(target, timeout=0.1)


@pytest.mark.parametrize("transport", ["grpc", "udp", ""])
def test_unknown_transport_is_refused(transport: str) -> None:
    with pytest.raises(ValueError, match="'auto', 'tcp' or 'shm'"):
        connect("127.0.0.1:1", transport=transport)


def test_unknown_transport_of_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAMD_TRANSPORT", "udp")
    with pytest.raises(ValueError, match="'udp'"):
        connect("127.0.0.1:1")


@pytest.mark.parametrize("option", [{"memory_limit": "1G"}, {"snapshot_dir": "x"}])
def test_options_of_an_embedded_server_are_refused_elsewhere(option: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="embedded server"):
        connect("127.0.0.1:1", **option)  # type: ignore[arg-type]


def test_number_of_shards_is_for_embedded_servers() -> None:
    with pytest.raises(ValueError, match="the embedded servers"):
        connect("127.0.0.1:1", num_shards=2)


def test_unreachable_server_is_named() -> None:
    with pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1:1 "):
        connect("127.0.0.1:1", timeout=0.3)


def test_repr_shows_target_and_state(session: Session, server: FakeServer) -> None:
    assert repr(session) == f"<paramd.Session '{server.target}' open>"
    session.close()
    assert repr(session) == f"<paramd.Session '{server.target}' closed>"


def test_closed_session_is_of_no_use(session: Session) -> None:
    with session:
        assert not session.closed
    assert session.closed
    session.close()
    with pytest.raises(SessionClosedError):
        session.exists("w")
    with pytest.raises(SessionClosedError), session:
        pass


def test_nested_blocks_close_at_the_outermost(session: Session) -> None:
    with session:
        with session:
            pass
        assert not session.closed
    assert session.closed


def test_current_session_is_the_innermost_else_the_only_one(server: FakeServer) -> None:
    with pytest.raises(NoSessionError, match="connect"):
        current_session()
    first = connect(server.target)
    assert current_session() is first
    second = connect(server.target)
    with pytest.raises(NoSessionError, match="2 sessions are open"):
        current_session()
    with first:
        assert current_session() is first
        with second:
            assert current_session() is second
        assert current_session() is first


def test_only_session_serves_threads_started_in_its_block(server: FakeServer) -> None:
    found: list[Session] = []
    with connect(server.target) as session:
        thread = threading.Thread(target=lambda: found.append(current_session()))
        thread.start()
        thread.join(10)
    assert found == [session]


def test_pickle_carries_target_and_options_but_no_identity(
    session: Session, server: FakeServer
) -> None:
    with pickle.loads(pickle.dumps(session)) as other:
        assert other.target == session.target
        assert other.identity != session.identity
        assert other._options == session._options
    assert len(set(server.hellos)) == 2


def test_wrong_answer_to_once_raises_claim_lost(session: Session, server: FakeServer) -> None:
    def once(data: bytes, context: grpc.ServicerContext) -> bytes:
        request = pb.OnceRequest.FromString(data)
        if request.action != pb.ONCE_ACTION_CLAIM:
            fail_with(context, ClaimLostError("the claim is another's"))
        return pb.OnceResponse(state=pb.ONCE_STATE_CLAIMED).SerializeToString()

    server.on("Once", once)
    with pytest.raises(ClaimLostError), session.once("load") as first:
        assert first


def test_claim_is_renewed_while_the_block_runs(session: Session, server: FakeServer) -> None:
    actions: list[int] = []
    renewed = threading.Event()

    def once(data: bytes, _context: grpc.ServicerContext) -> bytes:
        request = pb.OnceRequest.FromString(data)
        actions.append(request.action)
        if actions.count(pb.ONCE_ACTION_RENEW) == 2:
            renewed.set()
        return pb.OnceResponse(state=pb.ONCE_STATE_CLAIMED).SerializeToString()

    server.on("Once", once)
    with session.once("load", lease=0.3):
        assert renewed.wait(10)
    assert actions[0] == pb.ONCE_ACTION_CLAIM
    assert actions[-1] == pb.ONCE_ACTION_COMPLETE
    assert len(actions) >= 4


def test_block_that_fails_gives_the_claim_up(session: Session, server: FakeServer) -> None:
    actions: list[int] = []

    def once(data: bytes, _context: grpc.ServicerContext) -> bytes:
        actions.append(pb.OnceRequest.FromString(data).action)
        return pb.OnceResponse(state=pb.ONCE_STATE_CLAIMED).SerializeToString()

    server.on("Once", once)
    with pytest.raises(KeyError, match="broken"), session.once("load"):
        raise KeyError("broken")
    assert actions == [pb.ONCE_ACTION_CLAIM, pb.ONCE_ACTION_ABANDON]


def test_barrier_that_times_out_is_left(session: Session, server: FakeServer) -> None:
    requests: list[pb.BarrierRequest] = []

    def barrier(data: bytes, _context: grpc.ServicerContext) -> bytes:
        requests.append(pb.BarrierRequest.FromString(data))
        return pb.BarrierResponse(open=False, num_arrived=1).SerializeToString()

    server.on("Barrier", barrier)
    with pytest.raises(BarrierTimeoutError, match="1 of 2 workers"):
        session.barrier(timeout=0.2)
    assert requests[-1].leave
    assert {request.operation.sequence for request in requests} == {1}
    assert {request.num_workers for request in requests} == {2}


def test_barrier_that_opens_at_the_last_moment_counts(session: Session, server: FakeServer) -> None:
    left = threading.Event()

    def barrier(data: bytes, _context: grpc.ServicerContext) -> bytes:
        if pb.BarrierRequest.FromString(data).leave:
            left.set()
        answer = pb.BarrierResponse(open=left.is_set(), num_arrived=2, index=1)
        return answer.SerializeToString()

    server.on("Barrier", barrier)
    assert session.barrier(timeout=0.1) == 1


def test_number_of_workers_has_three_sources(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def barrier(data: bytes, _context: grpc.ServicerContext) -> bytes:
        seen.append(pb.BarrierRequest.FromString(data).num_workers)
        return pb.BarrierResponse(open=True).SerializeToString()

    server.on("Barrier", barrier)
    monkeypatch.setenv("PARAMD_NUM_WORKERS", "5")
    with connect(server.target, num_workers=3) as session:
        session.barrier(num_workers=2)
        session.barrier()
    with connect(server.target) as session:
        session.barrier()
        monkeypatch.setenv("PARAMD_NUM_WORKERS", "many")
        with pytest.raises(ValueError, match="PARAMD_NUM_WORKERS"):
            session.barrier()
        monkeypatch.delenv("PARAMD_NUM_WORKERS")
        with pytest.raises(ValueError, match="num_workers="):
            session.barrier()
    assert seen == [2, 3, 5]
