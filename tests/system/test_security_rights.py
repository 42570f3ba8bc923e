"""Each right against each RPC, through a real server."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc

import paramd
from paramd.cli import main
from paramd.errors import PermissionDeniedError, UnauthenticatedError
from paramd.files import save_arrays
from paramd.v1 import (
    cluster_service_pb2,
    parameter_pb2,
    parameter_service_pb2,
    session_service_pb2,
    snapshot_service_pb2,
    training_service_pb2,
)
from paramd.v1 import parameter_service_pb2 as pb
from paramd_server.rpc.authorization import RIGHTS
from paramd_server.security import Right
from tests.support.raw_calls import Refusal, refusal_of
from tests.support.security import TOKENS, write_tokens
from tests.support.server_process import ServerProcess, serve

METHODS: Final[dict[str, MethodDescriptor]] = {
    f"/{service.full_name}/{method.name}": method
    for module in (
        cluster_service_pb2,
        parameter_service_pb2,
        session_service_pb2,
        snapshot_service_pb2,
        training_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
REFUSED: Final = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
DEADLINE_S: Final = 20.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory: Path = tmp_path_factory.mktemp("rights")
    tokens = write_tokens(directory / "tokens")
    options = ["--token-file", str(tokens), "--snapshot-dir", str(directory / "snapshots")]
    with serve(directory, *options, "--log-level", "debug") as started:
        yield started


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.address, options=options) as opened:
        yield opened
    assert server.trouble() == []


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def outcome(
    channel: grpc.Channel, path: str, metadata: Any = (), request: bytes = b""
) -> Refusal | None:
    """How a call with one message, or a stream of none, ends; None where it succeeds."""
    method = METHODS.get(path)
    up = method.client_streaming if method else True
    down = method.server_streaming if method else True
    sent: Any = iter(()) if up else request
    kind: Any = getattr(channel, f"{_word(up)}_{_word(down)}")(path)
    try:
        if down:
            list(kind(sent, timeout=DEADLINE_S, metadata=metadata))
        else:
            kind(sent, timeout=DEADLINE_S, metadata=metadata)
    except grpc.RpcError as err:
        return refusal_of(err)
    return None


def _word(streams: bool) -> str:
    return "stream" if streams else "unary"


@pytest.mark.parametrize("right", Right, ids=lambda right: right.word)
@pytest.mark.parametrize("path", RIGHTS, ids=lambda path: path.rpartition("/")[2])
def test_a_right_opens_what_it_is_for_and_nothing_else(
    channel: grpc.Channel, path: str, right: Right
) -> None:
    found = outcome(channel, path, bearer(TOKENS[right]))
    if right >= RIGHTS[path]:
        assert found is None or found.code not in REFUSED, found
        return
    assert found is not None
    assert found.code is grpc.StatusCode.PERMISSION_DENIED
    assert found.reason == "PERMISSION_DENIED"
    assert path.rpartition("/")[2] in found.message
    assert repr(RIGHTS[path].word) in found.message
    assert repr(right.word) in found.message


@pytest.mark.parametrize("path", RIGHTS, ids=lambda path: path.rpartition("/")[2])
@pytest.mark.parametrize(
    "metadata",
    [
        (),
        bearer("of-nobody"),
        bearer(TOKENS[Right.ADMIN][:-1]),
        bearer(TOKENS[Right.ADMIN] + "0"),
        bearer(""),
        (("authorization", TOKENS[Right.ADMIN]),),
        (("authorization", f"Basic {TOKENS[Right.ADMIN]}"),),
        (*bearer(TOKENS[Right.ADMIN]), *bearer(TOKENS[Right.ADMIN])),
        (("authorization-bin", TOKENS[Right.ADMIN].encode()),),
        (("token", TOKENS[Right.ADMIN]),),
    ],
    ids=["none", "unknown", "shorter", "longer", "empty", "bare", "basic", "two", "bin", "key"],
)
def test_without_a_token_that_is_known_nothing_opens(
    channel: grpc.Channel, path: str, metadata: Any
) -> None:
    found = outcome(channel, path, metadata)
    assert found is not None
    assert found.code is grpc.StatusCode.UNAUTHENTICATED
    assert found.reason == "UNAUTHENTICATED"
    assert TOKENS[Right.ADMIN][:-1] not in found.message


def test_methods_that_do_not_exist_take_the_highest_right(channel: grpc.Channel) -> None:
    path = "/paramd.v1.ParameterService/DropEverything"
    for right in (Right.READ, Right.TRAIN):
        found = outcome(channel, path, bearer(TOKENS[right]))
        assert found is not None
        assert found.code is grpc.StatusCode.PERMISSION_DENIED
    found = outcome(channel, path, bearer(TOKENS[Right.ADMIN]))
    assert found is not None
    assert found.code is grpc.StatusCode.UNIMPLEMENTED


def test_probes_need_no_token(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S).status == 1
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
    assert next(watch).status == 1
    watch.cancel()


@pytest.mark.parametrize("path", ["Delete", "GetData"])
def test_a_call_is_refused_before_its_message_is_read(channel: grpc.Channel, path: str) -> None:
    # The message never comes: a handler that took it would wait for it.
    never = threading.Event()

    def messages() -> Iterator[bytes]:
        never.wait(DEADLINE_S)
        yield b""

    kind: Any = channel.stream_stream(f"/paramd.v1.ParameterService/{path}")
    call = kind(messages(), timeout=DEADLINE_S)
    try:
        assert call.code() is grpc.StatusCode.UNAUTHENTICATED
    finally:
        never.set()


def test_a_large_upload_is_refused_at_once(channel: grpc.Channel) -> None:
    taken = 0

    def messages() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(10_000):
            taken += 1
            yield bytes(1 << 20)

    kind: Any = channel.stream_unary("/paramd.v1.ParameterService/SetData")
    with pytest.raises(grpc.RpcError) as caught:
        kind(messages(), timeout=DEADLINE_S, metadata=bearer(TOKENS[Right.READ]))
    assert refusal_of(caught.value).reason == "PERMISSION_DENIED"
    assert taken < 100


def test_malformed_messages_of_strangers_are_not_looked_at(channel: grpc.Channel) -> None:
    path = "/paramd.v1.SessionService/Hello"
    found = outcome(channel, path, request=b"\xff\xff")
    assert found is not None
    assert found.reason == "UNAUTHENTICATED"
    found = outcome(channel, path, bearer(TOKENS[Right.READ]), request=b"\xff\xff")
    assert found is not None
    assert found.reason == "INVALID_MESSAGE"


@pytest.mark.parametrize("right", Right, ids=lambda right: right.word)
def test_files_of_the_server_take_the_highest_right(channel: grpc.Channel, right: Right) -> None:
    metadata = bearer(TOKENS[right])
    operation = parameter_pb2.Operation(identity=os.urandom(16), sequence=1, acknowledged_below=1)
    save = pb.SaveRequest(path="x.npz").SerializeToString()
    load = pb.LoadRequest(open=pb.LoadOpen(operation=operation, path="x.npz"))
    save_call: Any = channel.unary_stream("/paramd.v1.ParameterService/Save")
    load_call: Any = channel.stream_unary("/paramd.v1.ParameterService/Load")
    end = pb.LoadRequest(end={})
    messages = [load.SerializeToString(), end.SerializeToString()]

    def both() -> None:
        list(save_call(save, timeout=DEADLINE_S, metadata=metadata))
        load_call(iter(messages), timeout=DEADLINE_S, metadata=metadata)

    if right is Right.ADMIN:
        both()
        return
    with pytest.raises(grpc.RpcError) as caught:
        both()
    assert refusal_of(caught.value).reason == "PERMISSION_DENIED"
    with pytest.raises(grpc.RpcError) as caught:
        load_call(iter(messages), timeout=DEADLINE_S, metadata=metadata)
    assert refusal_of(caught.value).reason == "PERMISSION_DENIED"


def test_a_training_job_needs_the_right_to_train(server: ServerProcess) -> None:
    with paramd.connect(server.address, token=TOKENS[Right.TRAIN]) as session:
        weight = paramd.Parameter("trained", shape=(3,), init="ones", session=session)
        weight.initialize()
        trainer = paramd.Trainer(
            [weight], "sgd", {"learning_rate": 1.0}, kvstore="dist_sync", num_workers=1
        )
        trainer.step(1, grads={"trained": np.ones(3, "f4")})
        session.barrier(num_workers=1)
        with session.once("work") as first:
            assert first
        with pytest.raises(PermissionDeniedError, match="Delete takes the right 'admin'"):
            session.delete("trained")
        with pytest.raises(PermissionDeniedError, match="files of the server"):
            session.parameters().save("server:trained.npz")
    with paramd.connect(server.address, token=TOKENS[Right.READ]) as session:
        assert session.parameters().pull()["trained"].tolist() == [0, 0, 0]
        with pytest.raises(PermissionDeniedError, match="takes the right 'train'"):
            session.parameters().set_data({"trained": np.ones(3, "f4")})
    with paramd.connect(server.address, token=TOKENS[Right.ADMIN]) as session:
        session.parameters().save("server:trained.npz")
        session.delete("trained")


def test_a_failed_load_says_why_and_what_stays(server: ServerProcess, tmp_path: Path) -> None:
    """What it made for the file it may not remove again."""
    save_arrays(tmp_path / "x.npz", {"mine": np.zeros(3, "f4"), "new": np.zeros(2, "f4")})
    arguments = ["load", str(tmp_path / "x.npz"), "--create", "--target", server.address]
    with paramd.connect(server.address, token=TOKENS[Right.ADMIN]) as session:
        paramd.Parameter("mine", shape=(2,), session=session).initialize()
        for right, stays in ((Right.TRAIN, True), (Right.ADMIN, False)):
            (tmp_path / "token").write_text(TOKENS[right])
            result = CliRunner().invoke(main, [*arguments, "--token-file", str(tmp_path / "token")])
            assert result.exit_code == 1
            first, *notes = result.stderr.splitlines()
            assert first.startswith("Error: ")
            assert "'mine'" in first
            assert [("1 parameter" in each, "admin" in each) for each in notes] == (
                [(True, True)] if stays else []
            )
            assert ("new" in session.parameters()) == stays
            session.delete([name for name in session.parameters() if name == "new"])
        session.delete("mine")


def test_a_client_without_a_token_is_told_how_to_give_one(server: ServerProcess) -> None:
    with pytest.raises(UnauthenticatedError, match="PARAMD_TOKEN_FILE"):
        paramd.connect(server.address)
    with pytest.raises(UnauthenticatedError, match="does not know this token"):
        paramd.connect(server.address, token="wrong")


def test_tokens_are_asked_for_on_unix_sockets_too(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens")
    with serve(tmp_path, "--token-file", str(tokens), listen=(f"unix:{tmp_path}/s",)) as server:
        with pytest.raises(UnauthenticatedError):
            paramd.connect(server.address)
        with paramd.connect(server.address, token=TOKENS[Right.READ]) as session:
            assert session.status().num_parameters == 0


def test_no_token_is_ever_logged(server: ServerProcess) -> None:
    shown = [*TOKENS.values(), "a-token-of-nobody"]
    for token in TOKENS.values():
        paramd.connect(server.address, token=token).close()
    with pytest.raises(UnauthenticatedError) as caught:
        paramd.connect(server.address, token=shown[-1])
    assert shown[-1] not in str(caught.value)
    assert "refused" in server.log
    assert not [token for token in shown if token in server.log]
