"""Certificates and tokens for tests, right ones and wrong ones."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.x509.oid import ExtendedKeyUsageOID

from paramd import TLS
from paramd_server.certificates import Authority, KeyPair, token_line
from paramd_server.security import Right

HOSTS: Final = ("localhost", "127.0.0.1")
TOKENS: Final = {right: f"the-secret-of-{right.word}-0123456789" for right in Right}


@dataclass(frozen=True)
class Keys:
    """A folder with certificates.

    Of `ca`: server, client, and the wrong ones expired (both uses), elsewhere (another host),
    servers_only (not for clients). Of `stranger`, another authority: stranger_server and
    stranger_client.
    """

    directory: Path

    def cert(self, name: str) -> Path:
        return self.directory / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    def serving(self, name: str = "server", *, client_ca: str = "") -> list[str]:
        """Options of a server."""
        options = ["--tls-cert", str(self.cert(name)), "--tls-key", str(self.key(name))]
        return [*options, "--client-ca", str(self.cert(client_ca))] if client_ca else options

    def tls(self, client: str = "", *, ca: str = "ca", server_name: str = "") -> TLS:
        """How a client connects."""
        if not client:
            return TLS(ca=self.cert(ca), server_name=server_name)
        return TLS(self.cert(ca), self.cert(client), self.key(client), server_name)


def make_keys(directory: Path) -> Keys:
    """Writes the certificates."""
    keys = Keys(directory)
    ours, theirs = Authority.make(), Authority.make()
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=3)
    for name, pair in {
        "ca": ours.pair,
        "stranger": theirs.pair,
        "server": ours.issue("server", HOSTS),
        "client": ours.issue("client", usages=[ExtendedKeyUsageOID.CLIENT_AUTH]),
        "expired": ours.issue("expired", HOSTS, begin=past, days=1),
        "elsewhere": ours.issue("elsewhere", ["elsewhere.example.org"]),
        "servers_only": ours.issue("server", HOSTS, usages=[ExtendedKeyUsageOID.SERVER_AUTH]),
        "stranger_server": theirs.issue("server", HOSTS),
        "stranger_client": theirs.issue("client"),
    }.items():
        write_pair(keys, name, pair)
    return keys


def write_pair(keys: Keys, name: str, pair: KeyPair) -> None:
    """Writes a certificate and its key."""
    keys.cert(name).write_bytes(pair.certificate)
    keys.key(name).touch(mode=0o600)
    keys.key(name).write_bytes(pair.key)


def write_tokens(path: Path, tokens: dict[Right, str] | None = None) -> Path:
    """Writes a token file, with one token for each right."""
    path.touch(mode=0o600)
    text = "".join(
        token_line(right.word, right, token) for right, token in (tokens or TOKENS).items()
    )
    # Whole at once: the server may look at any moment.
    new = path.with_name(f"{path.name}.new")
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(path)
    return path
