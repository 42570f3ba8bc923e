"""The command `paramd-certificates`: certificates and tokens for development and for tests.

One authority of one's own, and two pairs that it has signed: for servers (which are each other's
clients, too) and for clients. Production has better places to keep an authority's key than a
directory beside them.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from paramd_server import __version__
from paramd_server.security import Right

__all__ = ["Authority", "KeyPair", "main", "make_tokens", "token_line"]

_LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
_CLOCKS_DIFFER: Final = datetime.timedelta(hours=1)
_PUBLIC: Final = 0o644
_PRIVATE: Final = 0o600
_BOTH: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_TOKENS_HEAD: Final = "# NAME RIGHT sha256:DIGEST; the tokens themselves are in NAME.token\n"


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key, both in PEM.

    Attributes:
        certificate: the certificate.
        key: PKCS#8, not encrypted.
    """

    certificate: bytes
    key: bytes


class Authority:
    """Signs certificates.

    Args:
        pair: its own certificate and key.

    Raises:
        ValueError: where they are none.
    """

    def __init__(self, pair: KeyPair) -> None:
        self.pair = pair
        self._certificate = x509.load_pem_x509_certificate(pair.certificate)
        key = serialization.load_pem_private_key(pair.key, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"the authority's key is a {type(key).__name__}, not an EC key")
        self._key = key

    @classmethod
    def make(cls, days: float = 3650) -> Authority:
        """A new one, with a certificate that it has signed itself."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("paramd development CA")
        builder = _builder(name, name, key.public_key(), _now() - _CLOCKS_DIFFER, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        return cls(_pair(builder.sign(key, hashes.SHA256()), key))

    def issue(
        self,
        name: str,
        hosts: Sequence[str] = (),
        *,
        usages: Iterable[x509.ObjectIdentifier] = _BOTH,
        days: float = 365,
        begin: datetime.datetime | None = None,
    ) -> KeyPair:
        """A certificate and its new key.

        Args:
            name: the common name: who it is, for people.
            hosts: DNS names (also '*.example.org') and IP addresses that it is valid for.
            usages: what it may be used for: by default by servers and by clients.
            days: that it is valid.
            begin: from when on; by default an hour ago, since clocks differ.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        begin = _now() - _CLOCKS_DIFFER if begin is None else begin
        builder = _builder(self._certificate.subject, _name(name), key.public_key(), begin, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        if hosts:
            names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        return _pair(builder.sign(self._key, hashes.SHA256()), key)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    issuer: x509.Name,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    begin: datetime.datetime,
    days: float,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def token_line(name: str, right: Right, token: str) -> str:
    """A line of a token file."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    return f"{name} {right.word} sha256:{digest}\n"


def make_tokens() -> dict[str, bytes]:
    """A token for each right, and the table of them: contents by file name."""
    made = {right: secrets.token_urlsafe(32) for right in Right}
    table = "".join(token_line(right.word, right, token) for right, token in made.items())
    files = {f"{right.word}.token": f"{token}\n".encode() for right, token in made.items()}
    return {"tokens": f"{_TOKENS_HEAD}{table}".encode(), **files}


@click.command(context_settings={"show_default": True})
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A DNS name (also *.NAME) or an IP address under which clients reach a server, beside "
    "localhost. Repeatable.",
)
@click.option(
    "--days", type=click.FloatRange(min=0, min_open=True), default=365.0, help="Of validity."
)
@click.option(
    "--renew",
    is_flag=True,
    help="Replace the certificates of servers and clients in DIRECTORY by new ones of the same "
    "authority, for the same hosts where none are given; the tokens stay.",
)
@click.version_option(__version__)
def main(*, directory: Path, hosts: tuple[str, ...], days: float, renew: bool) -> None:
    """Make certificates and tokens for development in DIRECTORY.

    \b
    ca.pem, ca.key          an authority
    server.pem, server.key  for servers
    client.pem, client.key  for clients
    tokens                  for --token-file of servers: digests alone
    admin.token, train.token, read.token
                            the tokens, for PARAMD_TOKEN_FILE of clients

    Nothing that exists is overwritten.
    """  # noqa: D301
    try:
        if renew:
            authority = Authority(
                KeyPair((directory / "ca.pem").read_bytes(), (directory / "ca.key").read_bytes())
            )
            hosts = hosts or _hosts_of((directory / "server.pem").read_bytes())
            written = _replace(directory, _leaves(authority, hosts, days))
        else:
            authority = Authority.make(max(days, 3650))
            files = {"ca.pem": authority.pair.certificate, "ca.key": authority.pair.key}
            written = _create(
                directory, {**files, **_leaves(authority, hosts, days), **make_tokens()}
            )
    except (OSError, ValueError) as err:
        raise click.ClickException(str(err)) from err
    click.echo(f"{directory}: {', '.join(written)}")


def _hosts_of(certificate: bytes) -> tuple[str, ...]:
    """The names and addresses that a certificate is valid for."""
    found = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    addresses = found.value.get_values_for_type(x509.IPAddress)
    return (*found.value.get_values_for_type(x509.DNSName), *map(str, addresses))


def _leaves(authority: Authority, hosts: Sequence[str], days: float) -> dict[str, bytes]:
    names = tuple(dict.fromkeys((*_LOCAL_HOSTS, *hosts)))
    server = authority.issue("paramd server", names, days=days)
    client = authority.issue("paramd client", usages=_BOTH[1:], days=days)
    return {
        "server.pem": server.certificate,
        "server.key": server.key,
        "client.pem": client.certificate,
        "client.key": client.key,
    }


def _create(directory: Path, files: Mapping[str, bytes]) -> list[str]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in files:
        if (directory / name).exists():
            raise FileExistsError(f"{directory / name} exists, and nothing is overwritten")
    for name, data in files.items():
        _write(directory / name, data)
    return list(files)


def _replace(directory: Path, files: Mapping[str, bytes]) -> list[str]:
    for name, data in files.items():
        temporary = directory / f"{name}.new"
        _write(temporary, data)
        temporary.replace(directory / name)
    return list(files)


def _write(path: Path, data: bytes) -> None:
    mode = _PUBLIC if path.name.removesuffix(".new").endswith(".pem") else _PRIVATE
    # Never readable for others, not for a moment, and never through a link that is there.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


if __name__ == "__main__":
    main()
