"""Sessions: what `connect` returns."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any

from paramd.errors import NoSessionError, ParameterNotFoundError, SessionClosedError
from paramd.trainer_spec import TrainerInfo
from paramd.transport import fork_support as fork_support
from paramd.transport.calls import DeviceStatus, SessionStatus, WorkerStatus
from paramd.transport.cluster.handshakes import addresses_of
from paramd.transport.connection import ConnectionOptions
from paramd.transport.coordination import claim, meet
from paramd.transport.credentials import TLS, Credentials, resolve_credentials
from paramd.transport.embedded import EmbeddedServer
from paramd.transport.local.access import TRANSPORTS
from paramd.transport.membership import Membership
from paramd.transport.opening import Servers
from paramd.transport.snapshots import Snapshot
from paramd.transport.whereabouts import Resolve

if TYPE_CHECKING:
    from paramd.parameter_dict import ParameterDict

__all__ = [
    "DeviceStatus",
    "Session",
    "SessionStatus",
    "Snapshot",
    "WorkerStatus",
    "connect",
    "current_session",
]

LOCAL = "local"
_DEFAULT_BARRIER = "default"

# The sessions whose `with` blocks the running code is in, the innermost last. A context variable:
# each thread and each asynchronous task has its own.
_entered: ContextVar[tuple[Session, ...]] = ContextVar("paramd_sessions", default=())
# Every session that has not been closed.
_open: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    """A connection to a server, or to the shards of a cluster, as `connect` makes it.

    Thread-safe. In a forked child it connects anew, with an identity of its own. Pickled, it
    carries its target and options, and connects where it is unpickled. `with session:` makes it
    the current session of the block, and closes it at the end of the outermost such block.

    Attributes:
        target: the target as it was given: 'host:port', 'unix:PATH', a list of all shards' with
            commas between them, or 'local'.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = 30.0,
        stall_timeout: float = 60.0,
        transport: str | None = None,
        worker: str = "",
        num_workers: int | None = None,
        lease: float = 10.0,
        memory_limit: str | int | None = None,
        gpu_memory_limit: str | int | None = None,
        snapshot_dir: str | os.PathLike[str] | None = None,
        tls: TLS | bool | str | os.PathLike[str] | None = None,
        token: str | os.PathLike[str] | None = None,
        insecure: bool | None = None,
        num_shards: int | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        self.target = target
        self._options: dict[str, Any] = {
            "timeout": _seconds("timeout", timeout),
            "stall_timeout": _seconds("stall_timeout", stall_timeout),
            "transport": _check_transport(transport),
            "num_workers": None if num_workers is None else _check_workers(num_workers),
            "lease": _seconds("lease", lease),
            "tls": _check_tls(target, tls),
            "insecure": insecure,
            "resolve": _check_resolve(target, resolve),
        }
        # A token that was given as text goes nowhere else; the path of a file may be pickled.
        self._holds_token = isinstance(token, str) and token != ""
        if not self._holds_token:
            self._options["token"] = token
        self._credentials = (
            Credentials() if target == LOCAL else resolve_credentials(tls, token, insecure)
        )
        self._closing = threading.Lock()
        self._closed = False
        self._depth = 0  # guarded by _closing
        self._embedded: EmbeddedServer | None = None
        server_options = _server_options(
            target,
            {
                "--memory-limit": memory_limit,
                "--gpu-memory-limit": gpu_memory_limit,
                "--snapshot-dir": None if snapshot_dir is None else os.path.abspath(snapshot_dir),
            },
            num_shards,
        )
        if target == LOCAL:
            self._embedded = EmbeddedServer(
                server_options, timeout=timeout, num_shards=num_shards or 1
            )
        try:
            self._servers = self._connect(worker)
            self._connection = self._servers.coordinator
            self.calls = self._servers.calls
            self._membership = Membership(self._connection, worker, self._options["lease"])
            try:
                self._servers.hello()
            except BaseException:
                # Else gRPC goes on trying to connect for as long as somebody keeps the exception.
                self._servers.close()
                raise
        except BaseException:
            if self._embedded is not None:
                self._embedded.close()
            raise
        _open.add(self)

    def _connect(self, worker: str) -> Servers:
        options = ConnectionOptions(
            timeout=self._options["timeout"],
            stall_timeout=self._options["stall_timeout"],
            worker=worker,
            client_version=_version(),
            credentials=self._credentials,
            transport=self._options["transport"],
        )
        if self._embedded is None:
            return Servers(addresses_of(self.target), options, resolve=self._options["resolve"])
        return Servers(self._embedded.targets, options, end_of_server=self._embedded.end_of_server)

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._closed

    @property
    def identity(self) -> bytes:
        """16 random bytes: this session in this process."""
        return self._connection.operations.identity

    def __repr__(self) -> str:
        return f"<paramd.Session {self.target!r} {'closed' if self._closed else 'open'}>"

    def close(self) -> None:
        """Ends the session: calls under way raise SessionClosedError, and so do later ones.

        An embedded server ends with it. Closing twice is the same.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
        _open.discard(self)
        self._servers.begin_closing()
        self._membership.close()
        self._servers.close()
        if self._embedded is not None:
            self._embedded.close()

    def __enter__(self) -> Session:
        with self._closing:
            if self._closed:
                raise SessionClosedError(f"the session with {self.target} was closed")
            self._depth += 1
        _entered.set((*_entered.get(), self))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stack = list(_entered.get())
        if self in stack:
            # The innermost of its own: blocks of generators may end in another order.
            del stack[len(stack) - 1 - stack[::-1].index(self)]
            _entered.set(tuple(stack))
        with self._closing:
            self._depth -= 1
            last = self._depth == 0
        if last:
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.target == LOCAL:
            raise pickle.PicklingError(
                "a session with an embedded server ('local') cannot be pickled: the server ends "
                "with this process. Start `paramd-server` and connect to its address"
            )
        if self._holds_token:
            raise pickle.PicklingError(
                "a session whose token was given as text cannot be pickled, lest the token end up "
                "where nobody guards it: give token=Path(...), or set PARAMD_TOKEN or "
                "PARAMD_TOKEN_FILE where it is made and where it is unpickled"
            )
        return (_reconnect, (self.target, self._options))

    def parameters(self, prefix: str = "") -> ParameterDict:
        """The parameters that the server holds, those whose name begins with `prefix`."""
        # Here, because that module imports this one.
        from paramd.parameter_dict import ParameterDict

        return ParameterDict._from_infos(self, prefix, self.calls.list_parameters(prefix))

    def exists(self, name: str) -> bool:
        """Whether the server holds a parameter of that name."""
        try:
            self.calls.describe([name])
        except ParameterNotFoundError:
            return False
        return True

    def delete(self, names: str | Sequence[str]) -> None:
        """Removes parameters, all or, where one is unknown, none.

        Raises:
            ParameterNotFoundError: for an unknown name.
        """
        self.calls.delete([names] if isinstance(names, str) else list(names))

    def once(self, name: str, *, lease: float = 30.0) -> AbstractContextManager[bool]:
        """Does a block of work once on the cluster.

        The first session gets True and does the work; the others wait until it has finished, and
        get False. If it fails (an exception leaves the block) or dies, the next one gets True.

            with session.once("load") as first:
                if first:
                    params.load("start.params")

        Args:
            name: of the work, 1 to 1024 bytes. It is remembered as long as the server runs.
            lease: seconds after which a holder that has died loses its claim; it is renewed by
                itself while the block runs.

        Raises:
            ClaimLostError: at the end of the block, where the server could not be reached for
                so long that the claim has passed to another.
        """
        return claim(self._connection, name, _seconds("lease", lease))

    def barrier(
        self, name: str = "", *, num_workers: int | None = None, timeout: float | None = None
    ) -> int:
        """Waits until all workers are here.

        Args:
            name: of the barrier; '' is 'default'. It can be used again and again.
            num_workers: how many meet; else that of `connect`, else `PARAMD_NUM_WORKERS`, else as
                many as have joined and hold their leases, where this session is one of them.
            timeout: seconds, or None to wait without end.

        Returns:
            The place in the order of arrival, from 0.

        Raises:
            BarrierTimeoutError: where not all came in time. This one has left then.
            BarrierMismatchError: where the others expect another number of workers.
            ValueError: where the number of workers is not known.
        """
        count = self.expected_workers(num_workers)
        if not count and not self.joined:
            raise ValueError(
                "the number of workers is not known: give num_workers= to barrier() or connect(), "
                "set PARAMD_NUM_WORKERS, or join() the workers"
            )
        return meet(self._connection, name or _DEFAULT_BARRIER, count, timeout)

    def expected_workers(self, num_workers: int | None = None) -> int:
        """How many workers there are to be; 0 where that is not known.

        Args:
            num_workers: the number itself; else that of `connect`, else `PARAMD_NUM_WORKERS`.
        """
        if num_workers is not None:
            return _check_workers(num_workers)
        declared: int | None = self._options["num_workers"]
        if declared is not None:
            return declared
        text = os.environ.get("PARAMD_NUM_WORKERS", "")
        if not text:
            return 0
        if not text.isascii() or not text.isdigit():
            raise ValueError(f"PARAMD_NUM_WORKERS is a whole number, but is {text!r}")
        return _check_workers(int(text))

    # Workers

    def join(self) -> int:
        """Makes this session one of the cluster's workers. The first step of a trainer does so.

        The worker holds a lease, which heartbeats renew; when it ends, nobody waits for this
        worker any more. A worker that has a name (`connect(worker=)`) gets the same rank when it
        comes back, and takes the place of its former self at once.

        Returns:
            The rank: a number from 0, of this worker alone.
        """
        return self._membership.join()

    def leave(self) -> None:
        """Leaves the workers, so that nobody waits for this one. `close` does so, too."""
        self._membership.leave()

    @property
    def joined(self) -> bool:
        """Whether this session is one of the workers; in a forked child it is not yet."""
        return self._membership.joined

    @property
    def rank(self) -> int:
        """This worker's number, from 0. Joins where it has not yet."""
        return self._membership.rank if self.joined else self.join()

    @property
    def num_workers(self) -> int:
        """How many workers have joined and hold their leases now. Joins where it has not yet."""
        if not self.joined:
            self.join()
        return self._membership.num_workers()

    def trainers(self) -> list[TrainerInfo]:
        """The trainers that the server holds, in order of creation."""
        return self.calls.training.describe()

    def delete_trainer(self, name: str) -> None:
        """Removes a trainer with its optimizer states; its parameters stay.

        Raises:
            TrainerNotFoundError: for an unknown name.
        """
        self.calls.training.delete(name)

    def save_snapshot(self, directory: str = "", *, timeout: float | None = None) -> Snapshot:
        """Saves the whole state of the server, or of all shards: it can be started again from it.

        What this session has done before is in it: values, gradients, optimizer states, clocks and
        what makes a repeated call safe. Pushes go on meanwhile. It returns when the snapshot is
        whole on the disk.

        Args:
            directory: a name for it, below the server's `--snapshot-dir`, under which it is kept
                until somebody removes it. '' for the next number, which is kept until newer ones
                take its place.
            timeout: seconds to wait for it; None to wait without end.

        Raises:
            SnapshotFailedError: where it could not be saved (no `--snapshot-dir`, the name is
                taken, a full disk): the ones of before are as they were.
            PathNotAllowedError: where the name leads out of the snapshot directory.
            DeadlineExceededError: where it is not whole in time; the server goes on with it.
        """
        return self.calls.snapshots.save(directory, timeout=timeout)

    def snapshots(self) -> list[Snapshot]:
        """The snapshots that are whole, from the oldest."""
        return self.calls.snapshots.list()

    def status(self) -> SessionStatus:
        """What the server holds, and who works with it."""
        return self.calls.status()

    def workers(self) -> tuple[WorkerStatus, ...]:
        """The sessions that the server knows, with what each has pushed."""
        return self.calls.status().workers

    def num_gpus(self) -> int:
        """The number of the server's GPU contexts."""
        return self.calls.status().num_gpus


def connect(
    target: str | None = None,
    *,
    timeout: float = 30.0,
    stall_timeout: float = 60.0,
    transport: str | None = None,
    worker: str = "",
    num_workers: int | None = None,
    lease: float = 10.0,
    memory_limit: str | int | None = None,
    gpu_memory_limit: str | int | None = None,
    snapshot_dir: str | os.PathLike[str] | None = None,
    tls: TLS | bool | str | os.PathLike[str] | None = None,
    token: str | os.PathLike[str] | None = None,
    insecure: bool | None = None,
    num_shards: int | None = None,
    resolve: Resolve | None = None,
) -> Session:
    """Opens a session with a server, or with all shards of a cluster.

    Args:
        target: 'host:port', '[IPv6]:port' or 'unix:PATH'; of a cluster those of all its shards, in
            their order, with commas between them; or 'local' for a server of its own in a child
            process. None: the environment's `PARAMD_TARGET`.
        timeout: seconds for a call with all its retries; a server that starts late or again is
            waited for that long. For a stream, seconds of retrying without getting further.
        stall_timeout: seconds in which something must move in a stream of values.
        transport: how values are read. 'auto': in shared memory where the server is on this host
            and of this user, else over gRPC. 'tcp': over gRPC. 'shm': as 'auto', but an error where
            the server shares no memory with this process. None: the environment's
            `PARAMD_TRANSPORT`, else 'auto'.
        worker: this worker's name, 256 bytes at most, under which the server counts its pushes;
            one that is started again under the same name gets its rank back.
        num_workers: how many workers meet at `barrier()`, and how many the first step of a
            distributed trainer waits for.
        lease: seconds of silence after which a worker that has joined counts as gone.
        memory_limit: of an embedded server, such as '8GiB' or a number of bytes.
        gpu_memory_limit: of an embedded server, likewise, on each GPU.
        snapshot_dir: of an embedded server: where it keeps files, and its whole state when it is
            closed, which the next one with this directory takes up.
        tls: how TCP connections are secured: True with the certificate authorities that the system
            trusts, a path with those in a PEM file, a `TLS` for a certificate of one's own and
            more, False not at all. None: as `PARAMD_TLS_CA` (a file, or 'system'),
            `PARAMD_TLS_CERT`, `PARAMD_TLS_KEY` and `PARAMD_TLS_SERVER_NAME` say; without them, not
            at all.
        token: what the server asks for with `--token-file`: the token itself, or the `Path` of a
            file that holds it. None: `PARAMD_TOKEN`, else the file `PARAMD_TOKEN_FILE`.
        insecure: whether the token may be sent without TLS beyond this machine. None:
            `PARAMD_INSECURE`, else no.
        num_shards: of an embedded server: so many processes that share the parameters; None is 1.
        resolve: called when a server cannot be reached, to learn whether it has moved: gives the
            addresses of all servers in their order, '' for one that is nowhere at the moment.
            None: addresses stay what they are (host names are looked up anew in any case).

    Raises:
        ValueError: where no target is given, or an argument is wrong.
        ServerUnavailable: where the server cannot be reached within `timeout`.
        ProtocolMismatchError: where it speaks another protocol.
        ClusterMismatchError: where the servers are not all the shards of one cluster, each once and
            in their order.
        TLSError: where the connection cannot be secured as asked, such as by a certificate that has
            expired.
        UnauthenticatedError, PermissionDeniedError: where the server does not know the token, or it
            does not have the right `read`.
        TransportUnavailableError: where the transport is 'shm', and no memory is shared.
    """
    chosen = target if target is not None else os.environ.get("PARAMD_TARGET", "")
    if not chosen:
        raise ValueError(
            "no server is named: give connect() a target, or set PARAMD_TARGET, such as "
            "'127.0.0.1:50051'; connect('local') runs a server of its own"
        )
    return Session(
        chosen,
        timeout=timeout,
        stall_timeout=stall_timeout,
        transport=transport,
        worker=worker,
        num_workers=num_workers,
        lease=lease,
        memory_limit=memory_limit,
        gpu_memory_limit=gpu_memory_limit,
        snapshot_dir=snapshot_dir,
        tls=tls,
        token=token,
        insecure=insecure,
        num_shards=num_shards,
        resolve=resolve,
    )


def current_session() -> Session:
    """The session that serves objects built without one.

    That of the innermost `with session:` of this thread (or asynchronous task); where there is
    none, the only open session of the process, which so also serves threads started inside a
    `with` block.

    Raises:
        NoSessionError: where none is open, or several are.
    """
    stack = _entered.get()
    if stack:
        return stack[-1]
    candidates = [session for session in list(_open) if not session.closed]
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise NoSessionError("no session is open: call paramd.connect(...) first")
    raise NoSessionError(
        f"{len(candidates)} sessions are open and none is the current one: work inside "
        "`with session:`, or give session= to what you build"
    )


def _reconnect(target: str, options: Mapping[str, Any]) -> Session:
    return connect(target, **options)


def _version() -> str:
    try:
        return importlib.metadata.version("paramd")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _seconds(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is a positive number of seconds, but got {value!r}")
    return float(value)


def _check_transport(transport: str | None) -> str:
    if transport is None:
        transport = os.environ.get("PARAMD_TRANSPORT") or "auto"
    if transport not in TRANSPORTS:
        raise ValueError(f"transport is 'auto', 'tcp' or 'shm', but got {transport!r}")
    return transport


def _check_tls(
    target: str, tls: TLS | bool | str | os.PathLike[str] | None
) -> TLS | bool | str | os.PathLike[str] | None:
    if tls and (target == LOCAL or target.startswith("unix:")):
        raise ValueError(f"tls: only TCP addresses have TLS; target is {target!r}")
    return tls


def _check_resolve(target: str, resolve: Resolve | None) -> Resolve | None:
    if resolve is not None and target == LOCAL:
        raise ValueError("resolve: an embedded server ('local') does not move")
    return resolve


def _check_workers(num_workers: int) -> int:
    if num_workers < 1:
        raise ValueError(f"num_workers is 1 or more, but got {num_workers!r}")
    return num_workers


def _server_options(
    target: str, given: Mapping[str, str | int | None], num_shards: int | None
) -> dict[str, str]:
    if num_shards is not None and target != LOCAL:
        raise ValueError(
            "num_shards: for the embedded servers of connect('local') only; a target says itself "
            f"how many servers it names: {target!r}"
        )
    options = {option: str(value) for option, value in given.items() if value is not None}
    if options and target != LOCAL:
        names = " and ".join(option.removeprefix("--").replace("-", "_") for option in options)
        raise ValueError(
            f"{names}: for the embedded server of connect('local') only; target is {target!r}"
        )
    return options
