"""What a client makes of its arguments and its environment."""

from __future__ import annotations

import pickle
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from paramd import TLS
from paramd.errors import (
    FileFailedError,
    FileFormatError,
    FileMissingError,
    UnauthenticatedError,
)
from paramd.session import connect
from paramd.transport.credentials import Credentials, Secrets, is_loopback, resolve_credentials
from paramd.transport.handshake import Examiner
from paramd.v1 import session_service_pb2 as pb
from tests.support.fake_server import FakeServer, fail_with
from tests.support.security import Keys, make_keys
from tests.support.waiting import wait_until

TOKEN = "a-secret-that-nobody-may-see"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.mark.parametrize(
    ("tls", "environment", "expected"),
    [
        (None, {}, None),
        (False, {"PARAMD_TLS_CA": "ca.pem"}, None),
        (True, {}, TLS()),
        ("ca.pem", {}, TLS("ca.pem")),
        (Path("ca.pem"), {"PARAMD_TLS_CA": "other.pem"}, TLS(Path("ca.pem"))),
        (TLS("ca.pem", "c.pem", "c.key", "name"), {}, TLS("ca.pem", "c.pem", "c.key", "name")),
        (None, {"PARAMD_TLS_CA": "ca.pem"}, TLS("ca.pem")),
        (None, {"PARAMD_TLS_CA": "system"}, TLS()),
        (
            None,
            {"PARAMD_TLS_CERT": "c.pem", "PARAMD_TLS_KEY": "c.key"},
            TLS(None, "c.pem", "c.key"),
        ),
        (
            None,
            {"PARAMD_TLS_CA": "ca.pem", "PARAMD_TLS_SERVER_NAME": "name"},
            TLS("ca.pem", server_name="name"),
        ),
    ],
)
def test_tls_comes_from_the_argument_then_the_environment(
    tls: Any, environment: dict[str, str], expected: TLS | None
) -> None:
    assert resolve_credentials(tls, environment=environment).tls == expected


@pytest.mark.parametrize(
    ("token", "environment", "expected"),
    [
        (None, {}, ("", "")),
        ("x", {"PARAMD_TOKEN": "y"}, ("x", "")),
        (Path("f"), {"PARAMD_TOKEN": "y"}, ("", "f")),
        ("", {"PARAMD_TOKEN": "y"}, ("", "")),
        (None, {"PARAMD_TOKEN": " y\n"}, ("y", "")),
        (None, {"PARAMD_TOKEN": "y", "PARAMD_TOKEN_FILE": "f"}, ("y", "")),
        (None, {"PARAMD_TOKEN_FILE": "f"}, ("", "f")),
    ],
)
def test_the_token_comes_from_the_argument_then_the_environment(
    token: Any, environment: dict[str, str], expected: tuple[str, str]
) -> None:
    found = resolve_credentials(token=token, environment=environment)
    assert (found.token, found.token_file) == expected


def test_arguments_of_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="tls is True, False, the path"):
        resolve_credentials(tls=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="token is text, or the Path"):
        resolve_credentials(token=b"x")  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [{"cert": "c.pem"}, {"key": "c.key"}])
def test_certificate_and_key_belong_together(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"tls: (cert|key) is given without (cert|key)"):
        TLS(**given)


@pytest.mark.parametrize("token", ["two words", "a\nb", "ü", "x" * 5000, "tab\t"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match="visible ASCII") as caught:
        Credentials(token=token)
    assert token not in str(caught.value)


def test_nothing_shows_a_token_or_a_key() -> None:
    credentials = Credentials(token=TOKEN)
    secrets = Secrets(tls=True, key=TOKEN.encode(), token=TOKEN)
    assert TOKEN not in f"{credentials!r} {credentials} {secrets!r} {secrets}"


@pytest.mark.parametrize("target", ["10.0.0.1:1", "server:1", "[2001:db8::1]:1"])
def test_a_token_goes_beyond_this_machine_only_over_tls(target: str) -> None:
    for credentials in (Credentials(token="x"), Credentials(token_file="f")):
        with pytest.raises(ValueError, match="could read the token"):
            credentials.over(target)
    assert Credentials(token="x", tls=TLS()).over(target).tls == TLS()
    assert Credentials(token="x", insecure=True).over(target).token == "x"
    assert Credentials().over(target) == Credentials()


def test_connect_refuses_to_send_a_token_readable_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="insecure=True"):
        connect("192.0.2.1:1", token="x", timeout=0.1)
    monkeypatch.setenv("PARAMD_TOKEN", "x")
    with pytest.raises(ValueError, match="insecure=True"):
        connect("192.0.2.1:1", timeout=0.1)


def test_unix_sockets_have_no_tls() -> None:
    found = Credentials(tls=TLS("ca.pem"), token="x").over("unix:/run/s")
    assert (found.tls, found.token) == (None, "x")
    for target in ("unix:/run/s", "local"):
        with pytest.raises(ValueError, match="only TCP addresses have TLS"):
            connect(target, tls=True, timeout=0.1)


@pytest.mark.parametrize(
    "target", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:x", "127.9.9.9:1"]
)
def test_what_only_this_machine_reaches(target: str) -> None:
    assert is_loopback(target)
    assert Credentials(token="x").over(target).token == "x"


def test_files_are_read_and_checked(keys: Keys, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    tls = keys.tls("client")
    secrets = Credentials(tls=tls, token_file=str(token)).load()
    assert secrets.token == TOKEN
    assert secrets.ca == keys.cert("ca").read_bytes()
    assert secrets.chain == keys.cert("client").read_bytes()
    assert secrets.key == keys.key("client").read_bytes()
    assert secrets == Credentials(tls=tls, token_file=str(token)).load()


def test_files_that_are_wrong_are_named(keys: Keys, tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    for tls in (TLS(missing), TLS(None, missing, missing)):
        with pytest.raises(FileMissingError, match="nowhere"):
            Credentials(tls=tls).load()
    with pytest.raises(FileMissingError, match=r"token file.*nowhere"):
        Credentials(token_file=missing).load()
    with pytest.raises(FileFailedError, match="tls ca: cannot read"):
        Credentials(tls=TLS(tmp_path)).load()
    with pytest.raises(FileFormatError, match=r"tls ca: .*holds no certificates"):
        Credentials(tls=TLS(keys.key("ca"))).load()
    with pytest.raises(FileFormatError, match="do not belong together"):
        Credentials(tls=TLS(None, keys.cert("client"), keys.key("server"))).load()


@pytest.mark.parametrize(
    "text", ["", "\n", "secret-1 secret-2", "secret-1\nsecret-2\n", "x" * 5000]
)
def test_a_token_file_holds_one_token(text: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(FileFormatError, match="does not hold one token") as caught:
        Credentials(token_file=str(path)).load()
    assert not text.strip() or text.split()[0] not in str(caught.value)


def test_an_encrypted_key_is_refused_and_nobody_is_asked(keys: Keys, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(keys.key("client").read_bytes(), None)
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(FileFormatError, match="not encrypted"):
        Credentials(tls=TLS(None, keys.cert("client"), encrypted)).load()


def test_paths_may_be_pickled() -> None:
    credentials = Credentials(tls=TLS("ca.pem", Path("c.pem"), "c.key"), token_file="f")
    assert pickle.loads(pickle.dumps(credentials)) == credentials


# Looking for what is wrong


@contextmanager
def listening(answer: bytes) -> Iterator[tuple[str, list[int]]]:
    """Something that sends the same to everybody and then waits; how often it was asked."""
    asked: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                asked.append(1)
                with connection:
                    connection.sendall(answer)
                    connection.settimeout(5)
                    try:
                        while connection.recv(4096):
                            pass
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", asked
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_a_silent_peer_is_no_matter_of_security() -> None:
    with listening(b"") as (target, _):
        begin = time.monotonic()
        assert Examiner(target).trouble(Secrets(), 0.2) is None
        assert Examiner(target).trouble(Secrets(tls=True), 0.2) is None
        assert time.monotonic() - begin < 4


def test_peers_are_not_asked_again_and_again() -> None:
    with listening(b"\0\0\0\4\0\0\0\0\0") as (target, asked):
        examiner = Examiner(target)
        found = [examiner.trouble(Secrets(tls=True), 1.0) for _ in range(20)]
        assert {str(each) for each in found} == {
            f"{target} speaks no TLS, and tls= (or PARAMD_TLS_CA) asks for it"
        }
        assert len(asked) == 1
        assert examiner.trouble(Secrets(), 1.0) is None
        assert len(asked) == 2


def test_a_port_where_nobody_is_has_no_trouble() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = f"127.0.0.1:{server.getsockname()[1]}"
    assert Examiner(target).trouble(Secrets(tls=True), 1.0) is None
    assert Examiner("unix:/nowhere").trouble(Secrets(), 1.0) is None


def test_a_name_that_nobody_finds_has_no_trouble() -> None:
    for name in ("nowhere.invalid", f"{'x' * 70}.invalid"):
        assert Examiner(f"{name}:1").trouble(Secrets(), 1.0) is None


def test_looking_up_a_name_takes_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    found = threading.Event()

    def look_up(*_arguments: object) -> socket.socket:
        found.wait(30)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", look_up)
    begin = time.monotonic()
    assert Examiner("a.example.org:1").trouble(Secrets(), 0.1) is None
    assert time.monotonic() - begin < 10
    found.set()


# Heartbeats


def test_heartbeats_go_on_after_one_was_refused(caplog: pytest.LogCaptureFixture) -> None:
    server = FakeServer()
    beats: list[int] = []

    def heartbeat(_request: bytes, context: grpc.ServicerContext) -> bytes:
        beats.append(1)
        if len(beats) < 3:
            fail_with(context, UnauthenticatedError("the server does not know this token"))
        return pb.HeartbeatResponse(num_workers=1).SerializeToString()

    server.on("Join", lambda *_: pb.JoinResponse(num_workers=1).SerializeToString())
    server.on("Leave", lambda *_: b"")
    server.on("Heartbeat", heartbeat)
    with connect(server.target, lease=0.6) as session:
        session.join()
        wait_until(lambda: len(beats) > 3, "later heartbeats")
    server.stop()
    assert "no heartbeat: the server does not know this token" in caplog.text
