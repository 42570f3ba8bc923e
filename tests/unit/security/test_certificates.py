"""The command `paramd-certificates`, and what shards show to each other."""

from __future__ import annotations

import datetime
import hashlib
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from paramd import TLS
from paramd_server.certificates import main
from paramd_server.config import ServerConfig
from paramd_server.security import Right, TokenFile, peer_credentials

SECRET = {"ca.key", "server.key", "client.key", "tokens"} | {f"{r.word}.token" for r in Right}
PUBLIC = {"ca.pem", "server.pem", "client.pem"}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def hosts(path: Path) -> set[str]:
    names = certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return {*names.get_values_for_type(x509.DNSName), *addresses}


def test_files_and_their_modes(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "folder"
    result = run(str(directory))
    assert result.exit_code == 0, result.output
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == dict.fromkeys(SECRET, 0o600) | dict.fromkeys(PUBLIC, 0o644)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for right in Right:
        assert (directory / f"{right.word}.token").read_text().strip() not in result.output


def test_certificates_are_for_what_they_are_for(tmp_path: Path) -> None:
    result = run(str(tmp_path), "--host", "a.example.org", "--host", "*.pods", "--host", "10.1.2.3",
                 "--host", "[::2]", "--days", "30")  # fmt: skip
    assert result.exit_code == 0, result.output
    server, client = certificate(tmp_path / "server.pem"), certificate(tmp_path / "client.pem")
    assert hosts(tmp_path / "server.pem") == {
        *("localhost", "127.0.0.1", "::1"),
        *("a.example.org", "*.pods", "10.1.2.3", "::2"),
    }
    both = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    for found, usages in ((server, both), (client, both - {ExtendedKeyUsageOID.SERVER_AUTH})):
        usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert set(usage) == usages
        lasts = found.not_valid_after_utc - found.not_valid_before_utc
        assert lasts == datetime.timedelta(days=30)
        assert found.not_valid_before_utc < datetime.datetime.now(datetime.UTC)
        found.verify_directly_issued_by(certificate(tmp_path / "ca.pem"))


def test_the_table_knows_the_tokens(tmp_path: Path) -> None:
    run(str(tmp_path))
    tokens = TokenFile(tmp_path / "tokens").tokens
    for right in Right:
        token = (tmp_path / f"{right.word}.token").read_text().strip()
        assert len(token) >= 43
        found = tokens.find(token)
        assert found is not None
        assert (found.name, found.right) == (right.word, right)
        assert token not in (tmp_path / "tokens").read_text()
        assert hashlib.sha256(token.encode()).hexdigest() in (tmp_path / "tokens").read_text()


@pytest.mark.parametrize("name", ["ca.pem", "server.key", "read.token"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    result = run(str(tmp_path))
    assert result.exit_code == 1
    assert f"{tmp_path / name} exists" in result.output
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_links_are_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    directory = tmp_path / "certificates"
    directory.mkdir()
    (directory / "client.key").symlink_to(elsewhere)
    assert run(str(directory)).exit_code == 1
    assert not elsewhere.exists()


def test_renewal_keeps_authority_hosts_and_tokens(tmp_path: Path) -> None:
    run(str(tmp_path), "--host", "a.example.org")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = run(str(tmp_path), "--renew")
    assert result.exit_code == 0, result.output
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"server.pem", "server.key", "client.pem", "client.key"}
    assert set(after) == set(before)
    assert hosts(tmp_path / "server.pem") >= {"a.example.org", "localhost"}
    assert stat.S_IMODE((tmp_path / "server.key").stat().st_mode) == 0o600
    certificate(tmp_path / "server.pem").verify_directly_issued_by(certificate(tmp_path / "ca.pem"))


def test_renewal_without_an_authority_says_so(tmp_path: Path) -> None:
    result = run(str(tmp_path), "--renew")
    assert result.exit_code == 1
    assert "ca.pem" in result.output


@pytest.mark.parametrize("arguments", [("--days", "0"), ("--host", "ü.example"), ()])
def test_wrong_use(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    given = [str(tmp_path / "x"), *arguments] if arguments else []
    result = run(*given)
    assert result.exit_code in (1, 2)
    assert "Error" in result.output
    assert not (tmp_path / "x").exists() or not any((tmp_path / "x").iterdir())


# What a shard shows to the coordinator

CERT, KEY, CA = Path("server.pem"), Path("server.key"), Path("ca.pem")


def test_without_tls_shards_speak_plainly() -> None:
    config = ServerConfig(shard=1, num_shards=2, coordinator="127.0.0.1:1")
    found = peer_credentials(config)
    assert (found.tls, found.token_file) == (None, "")


def test_a_shard_shows_its_own_certificate() -> None:
    config = ServerConfig(
        shard=1, num_shards=2, coordinator="a:1", tls_cert=CERT, tls_key=KEY, client_ca=CA,
        peer_token_file=Path("admin.token"),
    )  # fmt: skip
    found = peer_credentials(config)
    assert found.tls == TLS(CA, CERT, KEY)
    assert found.token_file == "admin.token"


def test_what_is_for_the_coordinator_goes_first() -> None:
    config = ServerConfig(
        shard=1, num_shards=2, coordinator="a:1", tls_cert=CERT, tls_key=KEY, client_ca=CA,
        peer_ca=Path("p.pem"), peer_cert=Path("q.pem"), peer_key=Path("q.key"),
    )  # fmt: skip
    assert peer_credentials(config).tls == TLS(Path("p.pem"), Path("q.pem"), Path("q.key"))


def test_a_token_for_the_coordinator_is_not_sent_readable_for_all() -> None:
    config = ServerConfig(
        shard=1, num_shards=2, coordinator="a:1", peer_token_file=Path("admin.token")
    )
    with pytest.raises(ValueError, match="could read the token"):
        peer_credentials(config)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tls_cert": CERT}, "--tls-cert and --tls-key"),
        ({"tls_key": KEY}, "--tls-cert and --tls-key"),
        ({"peer_cert": CERT}, "--peer-cert and --peer-key"),
        ({"client_ca": CA}, "--client-ca needs --tls-cert"),
        ({"listen": ("0.0.0.0:1",), "client_ca": CA}, "--tls-cert and --tls-key"),
    ],
)
def test_settings_that_do_not_belong_together(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ServerConfig(**options)  # type: ignore[arg-type]
