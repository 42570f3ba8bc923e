"""Asks whether a server serves, as probes do: through `grpc.health.v1`, which takes no token."""

from __future__ import annotations

import grpc

from paramd.errors import ServerUnavailable
from paramd.transport.channel import Channel, grpc_target
from paramd.transport.credentials import Credentials
from paramd.transport.handshake import Examiner
from paramd.transport.retry import error_of

__all__ = ["probe"]

_CHECK = "/grpc.health.v1.Health/Check"
# HealthCheckRequest: all of the server, which lives; and a service (field 1), which takes calls.
_ALIVE = b""
_READY = b"\x0a\x1aparamd.v1.ParameterService"
# HealthCheckResponse with status = SERVING (1), field 1, as protobuf encodes it.
_SERVING = b"\x08\x01"


def probe(target: str, credentials: Credentials, *, timeout: float, ready: bool = False) -> None:
    """Returns where the server serves. Asks once.

    Args:
        target: 'host:port' or 'unix:PATH'.
        credentials: for TLS; no token is sent.
        timeout: seconds.
        ready: whether it has to take clients' calls by now, which a shard does when the cluster has
            formed.

    Raises:
        ServerUnavailable, DeadlineExceededError: where it does not serve, or not in time.
        TLSError: where the connection cannot be secured as asked.
    """
    name = grpc_target(target)
    secrets = Credentials(tls=credentials.tls).over(target).load()
    channel = Channel(name, secrets)
    try:
        answer = channel.ask(_CHECK, _READY if ready else _ALIVE, timeout)
    except grpc.RpcError as err:
        failure = error_of(err, "Check", target)
        trouble = None
        if isinstance(failure, ServerUnavailable):
            trouble = Examiner(name).trouble(secrets, timeout)
        raise trouble or failure from None
    finally:
        channel.close()
    if answer != _SERVING:
        raise ServerUnavailable(
            f"{target} answers, but does not serve{' clients yet' if ready else ''}"
        )
