"""TLS and tokens between real servers and clients: what works, and what says why it does not."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import paramd
from paramd.cli import main
from paramd.errors import ServerUnavailable, TLSError, UnauthenticatedError
from paramd_server.certificates import Authority
from paramd_server.security import Right
from tests.support.security import HOSTS, TOKENS, Keys, make_keys, write_pair, write_tokens
from tests.support.server_process import ServerProcess, run_server, serve, server_environment
from tests.support.waiting import wait_until

# What "prompt" means: a wrong certificate must not be retried until the session's timeout.
PROMPT_S = 20.0
CHILD_S = 30


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def servers(
    keys: Keys, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, ServerProcess]]:
    """One server of each kind."""
    directory = tmp_path_factory.mktemp("servers")
    with (
        serve(directory, *keys.serving()) as tls,
        serve(directory, *keys.serving(client_ca="ca")) as mutual,
        serve(directory, *keys.serving("expired")) as expired,
        serve(directory, *keys.serving("elsewhere")) as elsewhere,
        serve(directory) as plain,
    ):
        yield {
            "tls": tls,
            "mutual": mutual,
            "expired": expired,
            "elsewhere": elsewhere,
            "plain": plain,
        }


def refused(target: str, words: str, **options: Any) -> None:
    """Connecting fails with a reason, and long before the session's timeout."""
    begin = time.monotonic()
    with pytest.raises(TLSError, match=words):
        paramd.connect(target, timeout=60, **options)
    assert time.monotonic() - begin < PROMPT_S


def test_values_travel_over_tls(servers: dict[str, ServerProcess], keys: Keys) -> None:
    with paramd.connect(servers["tls"].address, tls=keys.cert("ca")) as session:
        value = np.arange(500_000, dtype="f4").reshape(1000, 500)
        weight = paramd.Parameter("weight", shape=value.shape, init="zeros", session=session)
        weight.initialize()
        weight.set_data(value)
        weight.grad()[:] = value
        assert np.array_equal(weight.data().asnumpy(), value)
        assert np.array_equal(weight.grad().asnumpy(), value)


def test_a_client_certificate_opens_a_server_that_asks(
    servers: dict[str, ServerProcess], keys: Keys
) -> None:
    for target in (servers["mutual"].address, servers["tls"].address):
        with paramd.connect(target, tls=keys.tls("client")) as session:
            assert session.status().num_gpus >= 0


@pytest.mark.parametrize(
    ("server", "client", "ca", "words"),
    [
        ("tls", "", "stranger", "is not accepted: unable to get local issuer certificate"),
        ("expired", "", "ca", "is not accepted: certificate has expired"),
        ("elsewhere", "", "ca", r"is not accepted: IP address mismatch.*'127\.0\.0\.1'"),
        ("mutual", "", "ca", r"asks for a client certificate: give tls=paramd\.TLS\(cert=, key=\)"),
        ("mutual", "stranger_client", "ca", "stranger_client.pem.*not to trust the authority"),
        ("mutual", "expired", "ca", "expired.pem.*certificate has expired"),
        ("mutual", "servers_only", "ca", "servers_only.pem.*certificate purpose"),
        ("mutual", "client", "stranger", "is not accepted: unable to get local issuer"),
        ("plain", "", "ca", "speaks no TLS, and tls= .* asks for it"),
        ("plain", "client", "ca", "speaks no TLS"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_said_at_once(
    servers: dict[str, ServerProcess], keys: Keys, server: str, client: str, ca: str, words: str
) -> None:
    refused(servers[server].address, words, tls=keys.tls(client, ca=ca))


@pytest.mark.parametrize("server", ["tls", "mutual"])
def test_a_plaintext_client_learns_that_the_server_speaks_tls(
    servers: dict[str, ServerProcess], server: str
) -> None:
    refused(servers[server].address, "speaks TLS, and this client does not: give tls=")


def test_the_authorities_of_the_system_do_not_know_ours(
    servers: dict[str, ServerProcess], keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(servers["tls"].address, "is not accepted", tls=True)
    # OpenSSL's own variable for them.
    monkeypatch.setenv("SSL_CERT_FILE", str(keys.cert("ca")))
    paramd.connect(servers["tls"].address, tls=True).close()


def test_another_name_can_be_expected(servers: dict[str, ServerProcess], keys: Keys) -> None:
    target = servers["elsewhere"].address
    paramd.connect(target, tls=keys.tls(server_name="elsewhere.example.org")).close()
    refused(target, "Hostname mismatch", tls=keys.tls(server_name="other.example.org"))


def test_a_server_that_is_not_there_is_unavailable_and_not_insecure(keys: Keys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(ServerUnavailable, match=target):
        paramd.connect(target, timeout=0.5, tls=keys.tls())


def test_the_environment_says_how(
    servers: dict[str, ServerProcess], keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARAMD_TARGET", servers["mutual"].address)
    monkeypatch.setenv("PARAMD_TLS_CA", str(keys.cert("ca")))
    with pytest.raises(TLSError, match="asks for a client certificate"):
        paramd.connect()
    monkeypatch.setenv("PARAMD_TLS_CERT", str(keys.cert("client")))
    monkeypatch.setenv("PARAMD_TLS_KEY", str(keys.key("client")))
    with paramd.connect() as session, pickle.loads(pickle.dumps(session)) as other:
        assert other.status().num_gpus >= 0
    with paramd.connect(servers["plain"].address, tls=False) as session:
        assert session.status().num_gpus >= 0
    # A server of one's own has no use for any of it.
    monkeypatch.setenv("PARAMD_TOKEN", "x")
    with paramd.connect("local") as session:
        assert session.status().num_parameters == 0


def test_sessions_over_tls_survive_a_restart_of_the_server(tmp_path: Path, keys: Keys) -> None:
    options = [*keys.serving(client_ca="ca"), "--snapshot-dir", str(tmp_path / "snapshots")]
    options += ["--token-file", str(write_tokens(tmp_path / "tokens"))]
    with serve(tmp_path, *options) as first:
        target = first.address
        token = TOKENS[Right.TRAIN]
        session = paramd.connect(target, tls=keys.tls("client"), token=token)
        weight = paramd.Parameter("weight", shape=(4,), init="ones", session=session)
        weight.initialize()
    with session, serve(tmp_path, *options, listen=(target,)):
        assert weight.data().asnumpy().tolist() == [1, 1, 1, 1]
        weight.set_data(np.zeros(4, "f4"))


def test_a_server_that_comes_back_without_tls_gets_no_token(tmp_path: Path, keys: Keys) -> None:
    with serve(tmp_path, *keys.serving()) as first:
        target = first.address
        session = paramd.connect(target, timeout=60, tls=keys.tls(), token="x")
    with session, serve(tmp_path, listen=(target,)) as second:
        with pytest.raises(TLSError, match="speaks no TLS"):
            session.status()
        assert "x" not in second.log.split()


def test_forked_children_connect_over_tls(tmp_path: Path, keys: Keys) -> None:
    options = [*keys.serving(client_ca="ca")]
    options += ["--token-file", str(write_tokens(tmp_path / "tokens"))]
    with (
        serve(tmp_path, *options) as server,
        paramd.connect(
            server.address, tls=keys.tls("client"), token=TOKENS[Right.TRAIN]
        ) as session,
    ):
        weight = paramd.Parameter("weight", shape=(100,), init="ones", session=session)
        weight.initialize()
        for _ in range(3):
            child = os.fork()
            if not child:
                status = 1
                try:
                    signal.alarm(CHILD_S)
                    status = int(weight.data().asnumpy().sum() != 100)
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert weight.data().asnumpy().sum() == 100


def test_shards_show_each_other_certificates_and_tokens(tmp_path: Path, keys: Keys) -> None:
    admin = tmp_path / "admin.token"
    admin.write_text(TOKENS[Right.ADMIN])
    options = [*keys.serving(client_ca="ca"), "--shards", "2", "--split-elements", "10"]
    options += ["--token-file", str(write_tokens(tmp_path / "tokens"))]
    with serve(tmp_path, *options, "--peer-token-file", str(admin)) as server:
        target = ",".join(server.addresses)
        tls, token = keys.tls("client"), TOKENS[Right.TRAIN]
        with paramd.connect(target, tls=tls, token=token) as session:
            weight = paramd.Parameter("weight", shape=(40, 5), init="ones", session=session)
            weight.initialize()
            trainer = paramd.Trainer(
                [weight], "sgd", {"learning_rate": 1.0}, kvstore="dist_sync", num_workers=1
            )
            trainer.step(1, grads={"weight": np.ones((40, 5), "f4")})
            assert np.array_equal(weight.data().asnumpy(), np.zeros((40, 5)))
        with pytest.raises(UnauthenticatedError):
            paramd.connect(target, tls=tls)
        refused(target, "client certificate", tls=keys.tls(), token=token)


# Tokens


def test_tokens_given_as_text_are_not_pickled(tmp_path: Path) -> None:
    token = TOKENS[Right.READ]
    file = tmp_path / "read.token"
    file.write_text(f"{token}\n")
    with serve(tmp_path, "--token-file", str(write_tokens(tmp_path / "tokens"))) as server:
        with (
            paramd.connect(server.address, token=token) as session,
            pytest.raises(pickle.PicklingError, match="PARAMD_TOKEN_FILE"),
        ):
            pickle.dumps(session)
        with paramd.connect(server.address, token=file) as session:
            data = pickle.dumps(session)
        assert token.encode() not in data
        with pickle.loads(data) as session:
            assert session.status().num_parameters == 0


def test_a_pickle_takes_the_token_of_where_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(tmp_path, "--token-file", str(write_tokens(tmp_path / "tokens"))) as server:
        monkeypatch.setenv("PARAMD_TOKEN", TOKENS[Right.READ])
        with paramd.connect(server.address) as session:
            data = pickle.dumps(session)
        assert TOKENS[Right.READ].encode() not in data
        monkeypatch.delenv("PARAMD_TOKEN")
        with pytest.raises(UnauthenticatedError):
            pickle.loads(data)
        file = tmp_path / "read.token"
        file.write_text(TOKENS[Right.READ])
        monkeypatch.setenv("PARAMD_TOKEN_FILE", str(file))
        pickle.loads(data).close()


def test_tokens_are_replaced_while_server_and_session_go_on(tmp_path: Path) -> None:
    table = write_tokens(tmp_path / "tokens")
    file = tmp_path / "mine.token"
    file.write_text(TOKENS[Right.TRAIN])
    with (
        serve(tmp_path, "--token-file", str(table)) as server,
        paramd.connect(server.address, token=file) as session,
        paramd.connect(server.address, token=TOKENS[Right.TRAIN]) as other,
    ):
        assert session.status().num_parameters == 0
        write_tokens(table, {Right.TRAIN: "a-new-token"})
        wait_until(lambda: "which has changed" in server.log, "the table is read again")
        with pytest.raises(UnauthenticatedError):
            session.status()
        file.write_text("a-new-token")
        assert session.status().num_parameters == 0
        with pytest.raises(UnauthenticatedError):
            other.status()
        # What is wrong changes nothing.
        table.write_text("nonsense a-new-token\n")
        wait_until(lambda: "stay as they were" in server.log, "the wrong table is refused")
        assert session.status().num_parameters == 0
        assert "a-new-token" not in server.log


def test_certificates_are_replaced_while_server_and_session_go_on(tmp_path: Path) -> None:
    keys = make_keys(tmp_path)
    with (
        serve(
            tmp_path, *keys.serving(client_ca="ca"), listen=("127.0.0.1:0", "127.0.0.1:0")
        ) as server,
        paramd.connect(server.address, timeout=60, tls=keys.tls("client")) as session,
    ):
        shutil.copy(keys.key("stranger_server"), keys.key("server"))
        wait_until(lambda: "stay as they were" in server.log, "a key alone is refused")
        paramd.connect(server.address, tls=keys.tls("client")).close()
        authority = Authority.make()
        write_pair(keys, "server", authority.issue("server", HOSTS))
        shutil.copy(keys.cert("ca"), keys.cert("before"))
        old = keys.tls("client", ca="before")
        keys.cert("ca").write_bytes(authority.pair.certificate)
        wait_until(lambda: "new connections get it" in server.log, "the new ones are taken")
        # On every port.
        for address in server.addresses:
            refused(address, "is not accepted", tls=old)
        # The connection that was there stays.
        assert session.status().num_parameters == 0
        write_pair(keys, "client", authority.issue("client"))
        for address in server.addresses:
            paramd.connect(address, tls=keys.tls("client")).close()


def test_a_session_takes_up_certificates_that_have_been_replaced(tmp_path: Path) -> None:
    keys = make_keys(tmp_path)
    with serve(tmp_path, *keys.serving(client_ca="ca")) as first:
        target = first.address
        session = paramd.connect(target, timeout=60, tls=keys.tls("client"))
    authority = Authority.make()
    keys.cert("ca").write_bytes(authority.pair.certificate)
    for name in ("server", "client"):
        write_pair(keys, name, authority.issue(name, HOSTS))
    with session, serve(tmp_path, *keys.serving(client_ca="ca"), listen=(target,)):
        assert session.status().num_parameters == 0


# The command line


def test_the_command_line_takes_the_same(tmp_path: Path, keys: Keys) -> None:
    file = tmp_path / "read.token"
    file.write_text(TOKENS[Right.READ])
    table = write_tokens(tmp_path / "tokens")
    with serve(tmp_path, *keys.serving(client_ca="ca"), "--token-file", str(table)) as server:
        tls = ["--tls-ca", str(keys.cert("ca")), "--tls-cert", str(keys.cert("client"))]
        tls += ["--tls-key", str(keys.key("client"))]

        def run(*arguments: str, **environment: str) -> Result:
            return CliRunner().invoke(
                main, [*arguments, "--target", server.address], env=environment
            )

        assert run("ls", *tls, "--token-file", str(file)).exit_code == 0
        assert run("ls", *tls, PARAMD_TOKEN=TOKENS[Right.READ]).exit_code == 0
        assert run("ls", *tls, PARAMD_TOKEN_FILE=str(file)).exit_code == 0
        found = run("ls", *tls)
        assert (found.exit_code, "asks for a token" in found.stderr) == (1, True)
        found = run("ls", "--token-file", str(file))
        assert (found.exit_code, "speaks TLS" in found.stderr) == (1, True)
        found = run("ls", *tls[:-2])
        assert (found.exit_code, "cert is given without key" in found.stderr) == (1, True)
        # A probe needs no token, but still the certificate.
        found = run("health", "--probe", *tls)
        assert (found.exit_code, found.stdout) == (0, f"{server.address} serves\n")
        assert run("health", "--probe").exit_code == 1
        assert json.loads(run("health", "--probe", "--json", *tls).stdout)["status"] == "serving"
    assert run("health", "--probe", *tls, "--timeout", "1").exit_code == 3


# What a server is started with


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tls-cert", "nowhere.pem", "--tls-key", "{key}"], "--tls-cert: there is no file"),
        (["--tls-cert", "{cert}", "--tls-key", "{other}"], "do not belong together"),
        (["--tls-cert", "{key}", "--tls-key", "{key}"], "PEM format"),
        (["--tls-cert", "{cert}", "--tls-key", "{key}", "--client-ca", "{key}"], "--client-ca"),
        (["--token-file", "nowhere"], "nowhere"),
        (["--token-file", "{cert}"], "line 1: expected NAME RIGHT sha256:DIGEST"),
    ],
)
def test_a_server_refuses_what_cannot_be_secure(keys: Keys, options: list[str], words: str) -> None:
    names = {
        "cert": keys.cert("server"),
        "key": keys.key("server"),
        "other": keys.key("client"),
    }
    ended = run_server("--listen", "127.0.0.1:0", *(each.format(**names) for each in options))
    assert ended.returncode == 1
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_with_tls_an_address_beyond_loopback_needs_no_permission(
    tmp_path: Path, keys: Keys
) -> None:
    with serve(tmp_path, *keys.serving(), listen=("0.0.0.0:0",)) as server:
        port = server.address.rpartition(":")[2]
        paramd.connect(f"127.0.0.1:{port}", tls=keys.tls()).close()


def test_options_come_from_the_environment(tmp_path: Path, keys: Keys) -> None:
    environment = {
        "PARAMD_TLS_CERT": str(keys.cert("server")),
        "PARAMD_TLS_KEY": str(keys.key("server")),
        "PARAMD_CLIENT_CA": str(keys.cert("ca")),
        "PARAMD_TOKEN_FILE": str(write_tokens(tmp_path / "tokens")),
    }
    with serve(tmp_path, environment=environment) as server:
        with pytest.raises(UnauthenticatedError):
            paramd.connect(server.address, tls=keys.tls("client"))
        refused(server.address, "client certificate", tls=keys.tls())


def test_development_certificates_serve_and_connect(tmp_path: Path) -> None:
    directory = tmp_path / "certificates"
    command = [sys.executable, "-m", "paramd_server.certificates", str(directory)]
    subprocess.run(command, check=True, env=server_environment(), timeout=60)
    options = ["--tls-cert", f"{directory}/server.pem", "--tls-key", f"{directory}/server.key"]
    options += ["--client-ca", f"{directory}/ca.pem", "--token-file", f"{directory}/tokens"]
    tls = paramd.TLS(directory / "ca.pem", directory / "client.pem", directory / "client.key")
    with serve(tmp_path, *options, listen=("localhost:0",)) as server:
        for right in Right:
            token = directory / f"{right.word}.token"
            paramd.connect(server.address, tls=tls, token=token).close()
        assert "everybody may read" not in server.log
