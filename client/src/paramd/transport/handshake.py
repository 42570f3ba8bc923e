"""Why a connection cannot be secured. gRPC says no more than that a server is unavailable.

After a failure one handshake is made with Python's own TLS, which tells a server that is not there
from a certificate that has expired. It happens on the way of failures alone.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from typing import Final

from paramd.errors import TLSError
from paramd.transport.credentials import Secrets, host_of

__all__ = ["Examiner"]

_MAX_SECONDS: Final = 3.0
_EVERY_SECONDS: Final = 5.0
_GRACE_SECONDS: Final = 0.2
_HTTP2: Final = "h2"
# A server that ends a connection in silence may be about to stop: it is asked again after these.
_PAUSES: Final = (0.0, 0.1, 0.3)

# The beginning of every HTTP/2 connection, and an empty SETTINGS frame (RFC 9113, 3.4 and 6.5): a
# server that takes the client's certificate answers it with its own.
_HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))

# OpenSSL's reasons for an answer that is no TLS.
_NO_TLS: Final = frozenset(
    ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST",
     "UNKNOWN_PROTOCOL", "UNEXPECTED_MESSAGE", "BAD_RECORD_TYPE")
)  # fmt: skip

# What a server thinks of the client's certificate: alerts of RFC 8446, 6.2, in OpenSSL's names.
_ALERTS: Final = {
    "CERTIFICATE_REQUIRED": "it asks for a client certificate: give tls=paramd.TLS(cert=, key=)",
    "UNKNOWN_CA": "it does not trust the authority of the client's certificate",
    "CERTIFICATE_EXPIRED": "the client's certificate has expired",
    "CERTIFICATE_REVOKED": "the client's certificate has been revoked",
    "BAD_CERTIFICATE": "it does not accept the client's certificate",
    "CERTIFICATE_UNKNOWN": "it does not accept the client's certificate",
    "UNSUPPORTED_CERTIFICATE": "the client's certificate is not made for clients",
    "HANDSHAKE_FAILURE": "the two have no version or cipher in common, or it asks for a client "
    "certificate",
}


class Examiner:
    """Finds out what is wrong with the security of the connection to one server.

    Thread-safe. Looks at most every few seconds; callers in between get what was found.

    Args:
        target: 'host:port' or 'unix:PATH'.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._found = ""  # guarded by _lock
        self._looked_at = float("-inf")  # guarded by _lock
        self._looked_with: Secrets | None = None  # guarded by _lock

    def trouble(self, secrets: Secrets, seconds: float) -> TLSError | None:
        """What is wrong; None where it is nothing, or the server cannot be reached.

        Args:
            secrets: of the connection that failed.
            seconds: that it may take at most.
        """
        if self._target.startswith("unix:"):
            return None
        with self._lock:
            if time.monotonic() > self._looked_at + _EVERY_SECONDS or self._looked_with != secrets:
                self._found = _within(min(seconds, _MAX_SECONDS), self._target, secrets)
                self._looked_at = time.monotonic()
                self._looked_with = secrets
            return TLSError(self._found) if self._found else None


def _within(seconds: float, target: str, secrets: Secrets) -> str:
    """`_examine` in a thread of its own: looking up a name cannot be told how long it may take."""
    found: list[str] = []

    def examine() -> None:
        found.append(_examine(target, secrets, seconds))

    thread = threading.Thread(target=examine, name="paramd-handshake", daemon=True)
    thread.start()
    thread.join(seconds + _GRACE_SECONDS)
    return found[0] if found else ""


def _examine(target: str, secrets: Secrets, seconds: float) -> str:
    """What is wrong, as text, or ''."""
    address = (host_of(target), int(target.rpartition(":")[2]))
    end = time.monotonic() + seconds
    examine = _examine_tls if secrets.tls else _examine_plaintext
    try:
        for pause in _PAUSES:
            time.sleep(min(pause, max(0.0, end - time.monotonic())))
            left = max(end - time.monotonic(), 0.05)
            with socket.create_connection(address, left) as connection:
                connection.settimeout(left)
                outcome = examine(connection, target, secrets)
            if outcome is not None:
                return outcome
    except (OSError, UnicodeError):
        # Nobody is there, or goes away, or has such a name: that is no matter of security.
        return ""
    return _closed_after_handshake(target, secrets)


def _examine_plaintext(connection: socket.socket, target: str, _secrets: Secrets) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        context.wrap_socket(connection, server_hostname=host_of(target)).close()
    except ssl.SSLError as err:
        if "ALERT" not in (err.reason or ""):
            return ""
    return f"{target} speaks TLS, and this client does not: give tls= (or set PARAMD_TLS_CA)"


def _examine_tls(connection: socket.socket, target: str, secrets: Secrets) -> str | None:
    """What is wrong, '' for nothing; None where the server ends the connection in silence."""
    name = secrets.server_name or host_of(target)
    try:
        secured = _context(secrets).wrap_socket(connection, server_hostname=name)
    except ssl.SSLCertVerificationError as err:
        why = err.verify_message.rstrip(".")
        return f"the certificate of {target} is not accepted: {why} (for the name {name!r})"
    except ssl.SSLError as err:
        return _words(target, err)
    with secured:
        if secured.selected_alpn_protocol() != _HTTP2:
            return f"{target} speaks TLS, but not HTTP/2: it is no paramd server"
        try:
            secured.sendall(_HELLO)
            return "" if secured.recv(1) else None
        except ssl.SSLError as err:
            return _words(target, err)
        except ConnectionError:
            return None


def _closed_after_handshake(target: str, secrets: Secrets) -> str:
    """Words for a server that ends each connection when it has seen the client's certificate.

    With TLS 1.3 the client's part of the handshake is complete by then (RFC 8446, 2), and gRPC's
    servers send no alert.
    """
    if secrets.chain is None:
        return f"{target} ends the connection: {_ALERTS['CERTIFICATE_REQUIRED']}"
    assert secrets.source is not None
    assert secrets.source.cert is not None
    why = _own_trouble(secrets) or "it seems not to trust the authority that the certificate is of"
    return f"{target} does not accept the client certificate {str(secrets.source.cert)!r}: {why}"


def _own_trouble(secrets: Secrets) -> str:
    """What is wrong with the client's certificate whoever looks at it, such as its dates; or ''.

    Asks a server of this process, which trusts just this certificate.
    """
    assert secrets.chain is not None
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    server.load_verify_locations(cadata=secrets.chain.decode("ascii", "ignore"))
    _show(server, secrets)
    _show(client, secrets)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True))
    for _round in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as err:
                return err.verify_message
            except ssl.SSLError as err:
                return str(err.reason)
    return ""


def _words(target: str, err: ssl.SSLError) -> str:
    reason = err.reason or ""
    if isinstance(err, ssl.SSLEOFError | ssl.SSLZeroReturnError) or "EOF" in reason:
        return ""
    if reason in _NO_TLS:
        return f"{target} speaks no TLS, and tls= (or PARAMD_TLS_CA) asks for it"
    for alert, words in _ALERTS.items():
        if reason.endswith(f"ALERT_{alert}"):
            return f"{target} refuses the connection: {words}"
    return f"the connection to {target} cannot be secured: {reason.replace('_', ' ').lower()}"


def _context(secrets: Secrets) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([_HTTP2])
    if secrets.ca is None:
        context.load_default_certs()
    else:
        # Beside the certificates there may be comments in any language.
        context.load_verify_locations(cadata=secrets.ca.decode("ascii", "ignore"))
    _show(context, secrets)
    return context


def _show(context: ssl.SSLContext, secrets: Secrets) -> None:
    if secrets.source is not None and secrets.source.cert is not None:
        context.load_cert_chain(secrets.source.cert, secrets.source.key, password="")
