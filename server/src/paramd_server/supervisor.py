"""Several shards on one host: a process each, started again when it dies."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from paramd_server.port_file import read_port_file, write_port_file
from paramd_server.shard_options import address_to_reach, newest_snapshot, shard_addresses

__all__ = ["RestartLimits", "ShardsConfig", "Supervisor"]

_log = logging.getLogger(__name__)

_COMMAND: Final = (sys.executable, "-m", "paramd_server")
# How often a port file is looked for while its shard starts.
_POLL_S: Final = 0.02
# Between looks at processes that have been killed.
_KILL_S: Final = 10.0


@dataclass(frozen=True)
class ShardsConfig:
    """What the shards of one host are started with.

    Attributes:
        num_shards: how many there are.
        listen: addresses, from which those of each shard are made (`shard_addresses`).
        memory_limit: bytes, for all of them together.
        options: further options of the command line, the same for each.
        environment: of each.
        gpu_memory_limit: bytes on each GPU, for all of them together; 0 for what each takes itself.
        coordinator: how the others reach shard 0; '' for its first address.
        snapshot_dir: that of all; None for none.
        restore: the snapshot to start from, as `--restore` takes it.
        snapshot_every_s: seconds from one snapshot to the next; 0 for none but the last.
        port_file: written once all serve, with an address of each in their order.
        stop_s: how long they may take to end; then they are killed.
    """

    num_shards: int
    listen: tuple[str, ...]
    memory_limit: int
    options: tuple[str, ...]
    environment: Mapping[str, str]
    gpu_memory_limit: int = 0
    coordinator: str = ""
    snapshot_dir: Path | None = None
    restore: str = "latest"
    snapshot_every_s: float = 0.0
    port_file: Path | None = None
    stop_s: float = 660.0

    def __post_init__(self) -> None:
        """Checks what belongs together.

        Raises:
            ValueError: naming the setting.
        """
        shard_addresses(self.listen, self.num_shards)
        for option, limit in (
            ("--memory-limit", self.memory_limit),
            ("--gpu-memory-limit", self.gpu_memory_limit or self.num_shards),
        ):
            if limit < self.num_shards:
                raise ValueError(
                    f"{option} {limit} is less than a byte for each of {self.num_shards} shards"
                )


@dataclass(frozen=True)
class RestartLimits:
    """How often a shard that dies is started again.

    Attributes:
        max_deaths: with so many deaths in a row, all shards are ended.
        first_pause_s: before the first restart; doubled for each further death in a row.
        longest_pause_s: the pauses grow no longer.
        steady_s: a shard that has served so long begins a new row.
    """

    max_deaths: int = 8
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0
    steady_s: float = 60.0

    def pause_s(self, deaths: int) -> float:
        """How long to wait after that many deaths in a row."""
        return min(self.longest_pause_s, self.first_pause_s * 2.0 ** (deaths - 1))


class Supervisor:
    """Runs the shards of a host.

    Shard 0 is started first, and when it serves, the others with its address. A shard that dies
    comes back at the same addresses. A process that executes itself anew stays the shard's
    process.

    Args:
        config: what they are started with.
        limits: how often.
        command: what is started; the options follow.
    """

    def __init__(
        self,
        config: ShardsConfig,
        *,
        limits: RestartLimits | None = None,
        command: tuple[str, ...] = _COMMAND,
    ) -> None:
        self._config = config
        self._limits = limits or RestartLimits()
        self._command = command
        self._shards = tuple(
            _Shard(index, addresses)
            for index, addresses in enumerate(shard_addresses(config.listen, config.num_shards))
        )
        # Snapshots of before are taken up as `restore` says, later ones in any case.
        self._newest_before = newest_snapshot(config.snapshot_dir)
        self._all_serve = False

    def run(self, ended: int) -> int:
        """Starts the shards, and keeps them running until it is told to end.

        Args:
            ended: a file descriptor that can be read when it is time to end.

        Returns:
            The exit status: 0, or that of the first shard that failed.
        """
        with (
            tempfile.TemporaryDirectory(prefix="paramd-shards-") as directory,
            selectors.DefaultSelector() as selector,
        ):
            self._directory, self._selector = Path(directory), selector
            selector.register(ended, selectors.EVENT_READ)
            status = 0
            try:
                self._start(self._shards[0])
                while not self._turn(ended):
                    pass
            except _ShardFailed as err:
                _log.error("%s", err)
                status = err.status
            except OSError as err:
                _log.error("the shards cannot be kept running: %s", err)
                status = 1
            finally:
                selector.unregister(ended)
                failed = self._end_all()
            return status or failed

    def _turn(self, ended: int) -> bool:
        """Waits for something to happen and sees to it. Gives whether it is time to end."""
        ready = {key.fd for key, _ in self._selector.select(self._patience_s())}
        if ended in ready:
            _log.info("ending %d shards", len(self._shards))
            return True
        for shard in self._shards:
            if shard.descriptor in ready:
                self._note_death(shard)
            elif shard.is_starting:
                self._look_whether_it_serves(shard)
            elif shard.start_at is not None and time.monotonic() >= shard.start_at:
                self._start(shard)
        return False

    def _patience_s(self) -> float | None:
        if any(shard.is_starting for shard in self._shards):
            return _POLL_S
        times = [shard.start_at for shard in self._shards if shard.start_at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _start(self, shard: _Shard) -> None:
        self._port_file_of(shard).unlink(missing_ok=True)
        shard.process = subprocess.Popen(
            self._command_of(shard),
            stdin=subprocess.DEVNULL,
            env=dict(self._config.environment),
            # Ctrl-C is for the supervisor, which ends the shards.
            start_new_session=True,
        )
        shard.descriptor = os.pidfd_open(shard.process.pid)
        shard.start_at = shard.served_at = None
        self._selector.register(shard.descriptor, selectors.EVENT_READ)
        _log.info("%s: started as process %d", self._name(shard), shard.process.pid)

    def _command_of(self, shard: _Shard) -> list[str]:
        config = self._config
        command = [*self._command, *config.options]
        command += ["--shard", f"{shard.index}/{config.num_shards}"]
        for address in shard.listen:
            command += ["--listen", address]
        command += ["--memory-limit", str(config.memory_limit // config.num_shards)]
        if config.gpu_memory_limit:
            limit = config.gpu_memory_limit // config.num_shards
            command += ["--gpu-memory-limit", str(limit)]
        command += ["--parent-pid", str(os.getpid())]
        command += ["--port-file", str(self._port_file_of(shard))]
        command += ["--restore", self._restore_of(shard)]
        if shard.index:
            home = config.coordinator or address_to_reach(self._shards[0].listen[0])
            command += ["--coordinator", home]
        elif config.snapshot_every_s:
            command += ["--snapshot-every", str(config.snapshot_every_s)]
        return command

    def _restore_of(self, shard: _Shard) -> str:
        directory = self._config.snapshot_dir
        if shard.has_stopped or (
            shard.has_served and newest_snapshot(directory) > self._newest_before
        ):
            return "latest"
        return self._config.restore

    def _port_file_of(self, shard: _Shard) -> Path:
        return self._directory / f"{shard.index}.json"

    def _name(self, shard: _Shard) -> str:
        return f"shard {shard.index}/{self._config.num_shards}"

    def _look_whether_it_serves(self, shard: _Shard) -> None:
        addresses = read_port_file(self._port_file_of(shard))
        if addresses is None:
            return
        first, shard.has_served = not shard.has_served, True
        shard.served_at = time.monotonic()
        shard.listen = addresses
        _log.debug("%s: serves", self._name(shard))
        if first and shard.index == 0:
            for other in self._shards[1:]:
                self._start(other)
        if not self._all_serve and all(each.has_served for each in self._shards):
            self._all_serve = True
            _log.info("%d shards serve", len(self._shards))
            if self._config.port_file is not None:
                write_port_file(self._config.port_file, [each.listen[0] for each in self._shards])

    def _note_death(self, shard: _Shard) -> None:
        steady_s = 0.0 if shard.served_at is None else time.monotonic() - shard.served_at
        status = self._reap(shard)
        how = f"{self._name(shard)}: {_how_it_ended(status)}"
        if not shard.has_served and status >= 0:
            raise _ShardFailed(f"{how} before it served: it has said why", status or 1)
        shard.has_stopped = status == 0
        shard.deaths = 1 if steady_s >= self._limits.steady_s else shard.deaths + 1
        if shard.deaths >= self._limits.max_deaths:
            raise _ShardFailed(
                f"{how}: {shard.deaths} deaths in a row, none after "
                f"{self._limits.steady_s:g} s of serving",
                1,
            )
        pause_s = self._limits.pause_s(shard.deaths)
        _log.warning("%s: it is started again in %g s", how, pause_s)
        shard.start_at = time.monotonic() + pause_s

    def _reap(self, shard: _Shard) -> int:
        """Forgets the process of a shard, and gives how it ended."""
        assert shard.process is not None
        self._selector.unregister(shard.descriptor)
        os.close(shard.descriptor)
        status = shard.process.wait()
        shard.process, shard.descriptor, shard.served_at = None, -1, None
        return status

    def _end_all(self) -> int:
        """Ends the shards, all at the same time, and gives the status of the first that failed."""
        living = [shard for shard in self._shards if shard.process is not None]
        for shard in living:
            if shard.process is not None:
                shard.process.terminate()
        failed, patience_s = 0, self._config.stop_s
        give_up_at = time.monotonic() + patience_s
        while living:
            ready = {key.fd for key, _ in self._selector.select(patience_s)}
            patience_s = max(0.0, give_up_at - time.monotonic())
            if not ready and not patience_s:
                _log.error("%d shards have not ended and are killed", len(living))
                for shard in living:
                    if shard.process is not None:
                        shard.process.kill()
                # Nothing outlives this signal.
                give_up_at, patience_s = time.monotonic() + _KILL_S, _KILL_S
            for shard in [shard for shard in living if shard.descriptor in ready]:
                living.remove(shard)
                # Of each, whatever the others did: its process is reaped there.
                status = self._status_of_end(shard)
                failed = failed or status
        if self._config.port_file is not None:
            self._config.port_file.unlink(missing_ok=True)
        return failed

    def _status_of_end(self, shard: _Shard) -> int:
        status = self._reap(shard)
        # One that was just starting may not have come to take the signal as it should.
        if status in (0, -signal.SIGTERM):
            return 0
        _log.error("%s: %s", self._name(shard), _how_it_ended(status))
        return status if status > 0 else 1


class _ShardFailed(Exception):
    """A shard that there is no use in starting again."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class _Shard:
    """One shard and its present process.

    Attributes:
        index: which one it is.
        listen: its addresses; with ports that are free until it has served.
        process: None where it has died and waits to be started again, or was never started.
        descriptor: of that process (man 2 pidfd_open); -1 without one.
        has_served: whether it ever did.
        has_stopped: whether its last process ended of itself, and has saved what it held.
        served_at: since when this process does; None where it does not yet.
        start_at: when it is started again.
        deaths: in a row.
    """

    index: int
    listen: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    descriptor: int = -1
    has_served: bool = False
    has_stopped: bool = False
    served_at: float | None = None
    start_at: float | None = None
    deaths: int = 0

    @property
    def is_starting(self) -> bool:
        """Whether it has a process that does not serve yet."""
        return self.process is not None and self.served_at is None


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"was ended by signal {-status}"
