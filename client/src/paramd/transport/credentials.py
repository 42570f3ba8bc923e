"""What a client shows to a server, and what it demands of one: TLS and the bearer token.

`Credentials` says where things are (paths, names): it can be pickled and compared, and its `repr`
shows no token. `Secrets` is what has been read from there, at the moment a channel is opened; it is
read again when a server refuses it, so that certificates and tokens can be replaced in place.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from paramd.errors import FileFailedError, FileFormatError, FileMissingError

__all__ = ["TLS", "Credentials", "Secrets", "host_of", "is_loopback", "resolve_credentials"]

FilePath = str | os.PathLike[str]

# The value of PARAMD_TLS_CA for the certificate authorities that the system trusts.
_SYSTEM: Final = "system"
_MAX_TOKEN_CHARS: Final = 4096
_MAX_FILE_BYTES: Final = 1 << 20
_LABELS: Final = ("tls ca", "tls cert", "tls key")


@dataclass(frozen=True)
class TLS:
    """How a connection is secured.

    Attributes:
        ca: PEM file with the certificates of the authorities that a server's may come from; None:
            those that the system trusts.
        cert: PEM file with this client's own certificate, and those between it and its authority,
            for servers that ask for one (`--client-ca`).
        key: PEM file with its private key, not encrypted.
        server_name: the name that the server's certificate has, where the target says another.

    Raises:
        ValueError: where only one of `cert` and `key` is given.
    """

    ca: FilePath | None = None
    cert: FilePath | None = None
    key: FilePath | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            given, missing = ("key", "cert") if self.cert is None else ("cert", "key")
            raise ValueError(f"tls: {given} is given without {missing}; both belong together")


@dataclass(frozen=True)
class Secrets:
    """What has been read: bytes of PEM files, and the token.

    Attributes:
        tls: whether the connection is secured.
        ca: certificates of the authorities; None for those that gRPC brings along.
        chain: the client's own certificate, and those between.
        key: its private key.
        server_name: the name that the server's certificate has; '' for that of the target.
        token: the bearer token, or ''.
        source: the files that it was read from; None without TLS.
    """

    tls: bool = False
    ca: bytes | None = field(default=None, repr=False)
    chain: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    server_name: str = ""
    token: str = field(default="", repr=False)
    source: TLS | None = None


@dataclass(frozen=True)
class Credentials:
    """Where a client's secrets are.

    Attributes:
        tls: how TCP connections are secured; None for plaintext. Unix sockets never are.
        token: the bearer token itself, or ''.
        token_file: the file that holds it, or ''.
        insecure: whether the token may also be sent without TLS beyond this machine.

    Raises:
        ValueError: for a token that cannot be sent, or one given twice.
    """

    tls: TLS | None = None
    token: str = field(default="", repr=False)
    token_file: str = ""
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.token and self.token_file:
            raise ValueError("a token and a file with a token are given: give one of them")
        if self.token and not _can_be_sent(self.token):
            raise ValueError(
                f"token: expected 1 to {_MAX_TOKEN_CHARS} visible ASCII characters (it is not "
                "shown here)"
            )

    def over(self, target: str) -> Credentials:
        """The credentials as they are for one server: a Unix socket has no TLS.

        Args:
            target: 'host:port' or 'unix:PATH'.

        Raises:
            ValueError: where a token would travel readable for others.
        """
        if target.startswith("unix:"):
            return replace(self, tls=None)
        has_token = bool(self.token or self.token_file)
        if has_token and self.tls is None and not self.insecure and not is_loopback(target):
            raise ValueError(
                f"target {target!r} is beyond this machine, and without TLS everybody between "
                "could read the token: give tls=, or insecure=True to send it all the same"
            )
        return self

    def load(self) -> Secrets:
        """Reads and checks the files.

        Raises:
            FileMissingError, FileFailedError, FileFormatError: naming the file.
        """
        token = self.token or (_read_token(self.token_file) if self.token_file else "")
        if self.tls is None:
            return Secrets(token=token)
        tls = self.tls
        check_pem(ca=tls.ca, cert=tls.cert, key=tls.key)
        return Secrets(
            tls=True,
            ca=_system_roots() if tls.ca is None else read_file(tls.ca, "tls ca"),
            chain=None if tls.cert is None else read_file(tls.cert, "tls cert"),
            key=None if tls.key is None else read_file(tls.key, "tls key"),
            server_name=tls.server_name,
            token=token,
            source=tls,
        )


def resolve_credentials(
    tls: TLS | bool | FilePath | None = None,
    token: str | os.PathLike[str] | None = None,
    insecure: bool | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
) -> Credentials:
    """The credentials that arguments and environment say; arguments go first.

    Args:
        tls: True for the authorities that the system trusts, a path for those in a file, a `TLS`
            for more, False for plaintext. None: `PARAMD_TLS_CA` (a file, or 'system'),
            `PARAMD_TLS_CERT`, `PARAMD_TLS_KEY`, `PARAMD_TLS_SERVER_NAME`; plaintext without them.
        token: the token as text, or the path (a `Path`) of the file that holds it. None:
            `PARAMD_TOKEN`, else `PARAMD_TOKEN_FILE`. '' for no token.
        insecure: see `Credentials`. None: `PARAMD_INSECURE`.
        environment: for the tests.

    Raises:
        ValueError, TypeError: for an argument that is none of these.
    """
    if token is None:
        token = environment.get("PARAMD_TOKEN", "").strip()
        token_file = "" if token else environment.get("PARAMD_TOKEN_FILE", "")
    elif isinstance(token, str):
        token_file = ""
    elif isinstance(token, os.PathLike):
        token, token_file = "", os.fspath(token)
    else:
        raise TypeError(f"token is text, or the Path of a file, but got {type(token).__name__}")
    if insecure is None:
        insecure = environment.get("PARAMD_INSECURE", "").lower() in ("1", "true", "yes", "on")
    return Credentials(_resolve_tls(tls, environment), token, token_file, insecure)


def _resolve_tls(tls: TLS | bool | FilePath | None, environment: Mapping[str, str]) -> TLS | None:
    if tls is None:
        ca, cert, key, name = (
            environment.get(f"PARAMD_TLS_{what}", "")
            for what in ("CA", "CERT", "KEY", "SERVER_NAME")
        )
        if not (ca or cert or key or name):
            return None
        return TLS(None if ca in ("", _SYSTEM) else ca, cert or None, key or None, name)
    if isinstance(tls, TLS):
        return tls
    if isinstance(tls, bool):
        return TLS() if tls else None
    if isinstance(tls, str | os.PathLike):
        return TLS(ca=tls)
    raise TypeError(
        f"tls is True, False, the path of a CA file or a paramd.TLS, but got {type(tls).__name__}"
    )


def is_loopback(target: str) -> bool:
    """Whether only this machine can reach an address: 'host:port' or 'unix:PATH'."""
    if target.startswith("unix:"):
        return True
    host = host_of(target)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(target: str) -> str:
    """The host of 'host:port', an IPv6 address without its brackets."""
    return target.rpartition(":")[0].strip("[]")


def read_file(path: FilePath, what: str) -> bytes:
    """The bytes of a small file.

    Args:
        path: of the file.
        what: the option that names it, for messages.

    Raises:
        FileMissingError, FileFailedError: where it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError as err:
        raise FileMissingError(f"{what}: there is no file {os.fspath(path)!r}") from err
    except OSError as err:
        raise FileFailedError(f"{what}: cannot read {os.fspath(path)!r}: {err.strerror}") from err
    if len(data) > _MAX_FILE_BYTES:
        raise FileFailedError(f"{what}: {os.fspath(path)!r} has more than {_MAX_FILE_BYTES} bytes")
    return data


def check_pem(
    *,
    ca: FilePath | None,
    cert: FilePath | None,
    key: FilePath | None,
    labels: tuple[str, str, str] = _LABELS,
) -> None:
    """Checks that files hold certificates, and a key that belongs to the first of its own.

    Args:
        ca: PEM file with the certificates of authorities.
        cert: PEM file with a certificate and those between it and its authority.
        key: PEM file with its key.
        labels: how the three are called in messages.

    Raises:
        FileMissingError, FileFailedError, FileFormatError: naming the file.
    """
    for path, label in zip((ca, cert, key), labels, strict=True):
        if path is not None:
            read_file(path, label)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError as err:
            raise FileFormatError(
                f"{labels[0]}: {os.fspath(ca)!r} holds no certificates in the PEM format"
            ) from err
    if cert is not None and key is not None:
        try:
            # With an empty password nobody is asked for one.
            context.load_cert_chain(cert, key, password="")
        except ssl.SSLError as err:
            raise FileFormatError(
                f"{labels[1]} and {labels[2]}: {os.fspath(cert)!r} and {os.fspath(key)!r} are no "
                "certificate in the PEM format and its private key, not encrypted"
                + (": they do not belong together" if "MISMATCH" in str(err.reason) else "")
            ) from err


def _read_token(path: str) -> str:
    token = read_file(path, "token file").decode("utf-8", "replace").strip()
    if not _can_be_sent(token):
        raise FileFormatError(
            f"token file: {path!r} does not hold one token, 1 to {_MAX_TOKEN_CHARS} visible ASCII "
            "characters on one line"
        )
    return token


def _can_be_sent(token: str) -> bool:
    return 0 < len(token) <= _MAX_TOKEN_CHARS and all("!" <= char <= "~" for char in token)


def _system_roots() -> bytes | None:
    # The same for gRPC, which brings certificates of its own, as for everything else in Python.
    path: str | None = ssl.get_default_verify_paths().cafile
    return None if path is None else Path(path).read_bytes()
