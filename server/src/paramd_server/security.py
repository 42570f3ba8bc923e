"""Who may call a server: its certificates, the tokens that it knows, and what each may do.

Files are looked at again now and then, so that certificates and tokens can be replaced while the
server runs. Where the new ones are wrong, an error is logged and those of before stay.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import logging
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from paramd.transport.credentials import (
    TLS,
    Credentials,
    check_pem,
    is_loopback,
    read_file,
)
from paramd_server.config import ServerConfig

__all__ = ["Certificates", "Right", "Security", "Token", "TokenFile", "Tokens", "peer_credentials"]

_log = logging.getLogger(__name__)

_LINE: Final = re.compile(r"([A-Za-z0-9._-]{1,64})\s+(\S+)\s+sha256:([0-9a-fA-F]{64})")
_MAX_TOKENS: Final = 1000
# How the options are called that name an authority, a certificate and its key.
_LABELS: Final = ("--client-ca", "--tls-cert", "--tls-key")


class Right(enum.IntEnum):
    """What a token allows; each right includes those before it."""

    READ = 1
    TRAIN = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """As it is written in a token file."""
        return self.name.lower()


@dataclass(frozen=True)
class Token:
    """What is known of a token: not the token.

    Attributes:
        name: for logs and messages.
        right: what it allows.
        digest: its SHA-256.
    """

    name: str
    right: Right
    digest: bytes = field(repr=False)


class Tokens:
    """The tokens that a server knows.

    Args:
        tokens: of different names and digests.
    """

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = tuple(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def find(self, token: str) -> Token | None:
        """The one that somebody shows, or None. Takes as long whichever it is."""
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        found = None
        for each in self._tokens:
            if hmac.compare_digest(each.digest, digest):
                found = each
        return found


class TokenFile:
    """The tokens of a file: in each line NAME RIGHT sha256:DIGEST, '#' begins a comment.

    Args:
        path: of the file.

    Raises:
        ValueError: naming the file and the line; never with what the line says.
        OSError: where it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self.tokens = _read_tokens(path)
        _log.info("%d tokens from %s", len(self.tokens), path)

    def refresh(self) -> None:
        """Reads the file again if it has changed."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.tokens = _read_tokens(self._path)
        except (OSError, ValueError) as err:
            _log.error("the tokens stay as they were: %s", err)
        else:
            _log.info("%d tokens from %s, which has changed", len(self.tokens), self._path)


def _read_tokens(path: Path) -> Tokens:
    _check_mode(path, "--token-file")
    found: list[Token] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        where = f"--token-file {path}, line {number}"
        match = _LINE.fullmatch(line)
        if match is None:
            # Not what it says: somebody may have written the token itself.
            raise ValueError(f"{where}: expected NAME RIGHT sha256:DIGEST with 64 hex digits")
        name, word, digits = match.groups()
        right = next((right for right in Right if right.word == word), None)
        if right is None:
            raise ValueError(f"{where}: the right is read, train or admin")
        token = Token(name, right, bytes.fromhex(digits))
        if any(token.name == each.name or token.digest == each.digest for each in found):
            raise ValueError(f"{where}: the name or the token is there already")
        found.append(token)
    if not 0 < len(found) <= _MAX_TOKENS:
        raise ValueError(f"--token-file {path}: expected 1 to {_MAX_TOKENS} tokens")
    return Tokens(found)


class Certificates:
    """A server's certificate and key, and the authority of its clients' where they show one.

    Args:
        cert: PEM file.
        key: PEM file.
        client_ca: PEM file, or None where clients need no certificate.

    Raises:
        ValueError, OSError: naming the file.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        self._cert = cert
        self._key = key
        self._client_ca = client_ca
        self._stamps = self._look()
        self._current = self._load()

    def credentials(self) -> grpc.ServerCredentials:
        """For one port of a server; new certificates count from the next connection on."""
        first = known = self._current

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            # gRPC asks before each handshake, of each port by itself.
            nonlocal known
            if known is self._current:
                return None
            known = self._current
            return known

        return grpc.dynamic_ssl_server_credentials(
            first,
            # None keeps what there is, which the types do not say.
            renewed,  # type: ignore[arg-type]
            require_client_authentication=self._client_ca is not None,
        )

    def refresh(self) -> None:
        """Reads the files again if one has changed."""
        stamps = self._look()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self._current = self._load()
        except (OSError, ValueError) as err:
            _log.error("the certificates stay as they were: %s", err)
            return
        _log.info("%s or what belongs to it has changed: new connections get it", self._cert)

    def _look(self) -> tuple[object, ...]:
        return tuple(_stamp(path) for path in self._paths())

    def _paths(self) -> list[Path]:
        return [path for path in (self._cert, self._key, self._client_ca) if path is not None]

    def _load(self) -> grpc.ServerCertificateConfiguration:
        _check_mode(self._key, "--tls-key")
        check_pem(ca=self._client_ca, cert=self._cert, key=self._key, labels=_LABELS)
        pair = (read_file(self._key, "--tls-key"), read_file(self._cert, "--tls-cert"))
        ca = None if self._client_ca is None else read_file(self._client_ca, "--client-ca")
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=ca)


class Security:
    """What a server's configuration says of who may call it.

    Attributes:
        certificates: None where TCP addresses have no TLS.
        token_file: None where no tokens are asked for.

    Args:
        config: the server's settings.

    Raises:
        ValueError, OSError: naming the file that is wrong.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.certificates: Certificates | None = None
        self.token_file: TokenFile | None = None
        if config.tls_cert is not None and config.tls_key is not None:
            self.certificates = Certificates(config.tls_cert, config.tls_key, config.client_ca)
        if config.token_file is not None:
            self.token_file = TokenFile(config.token_file)
            if self.certificates is None and not all(map(is_loopback, config.listen)):
                _log.warning("without TLS everybody between a client and this server reads tokens")

    def add_port(self, server: grpc.Server, address: str) -> int:
        """Lets a server listen; TCP addresses with TLS where there are certificates."""
        if self.certificates is None or address.startswith("unix:"):
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self.certificates.credentials())

    def refresh(self) -> None:
        """Reads again what has changed."""
        for each in (self.certificates, self.token_file):
            if each is not None:
                each.refresh()


def peer_credentials(config: ServerConfig) -> Credentials:
    """What a shard shows to the coordinator, and demands of it.

    What is not given for this purpose is what the server has for its own clients: its certificate,
    and as the authority of the coordinator's certificate that of its clients'.

    Raises:
        ValueError: where the token would travel readable for others.
    """
    tls = None
    if config.tls_cert is not None or config.peer_ca is not None or config.peer_cert is not None:
        own = config.peer_cert is None
        tls = TLS(
            ca=config.peer_ca or config.client_ca,
            cert=config.tls_cert if own else config.peer_cert,
            key=config.tls_key if own else config.peer_key,
        )
    token_file = "" if config.peer_token_file is None else str(config.peer_token_file)
    credentials = Credentials(tls=tls, token_file=token_file, insecure=config.insecure)
    return credentials.over(config.coordinator) if config.coordinator else credentials


def _stamp(path: Path) -> tuple[int, ...]:
    """What is different when a file has changed; () where it cannot be seen."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _check_mode(path: Path, option: str) -> None:
    """Refuses a file that anybody could change; warns of one that anybody can read."""
    mode = os.stat(path).st_mode
    if mode & stat.S_IWOTH:
        raise ValueError(f"{option} {path}: everybody may write to it (mode {mode & 0o777:o})")
    if mode & stat.S_IROTH:
        _log.warning("%s %s: everybody may read it (mode %o)", option, path, mode & 0o777)
