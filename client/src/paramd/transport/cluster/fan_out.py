"""Calls to several shards at the same time, and what becomes of their errors."""

from __future__ import annotations

import contextvars
import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, NoReturn, TypeVar

from paramd.transport.attempts import CALL_GROUP, CallCancelledError, CallGroup

__all__ = ["FanOut"]

T = TypeVar("T")

# A thread that has had nothing to do for so long goes away.
_IDLE_SECONDS: Final = 5.0


class _Task(Generic[T]):
    """One shard's part of a call, and what came of it."""

    def __init__(self, call: Callable[[], T], group: CallGroup) -> None:
        self._call: Callable[[], T] | None = call
        self._group = group
        self._context = contextvars.copy_context()
        self._done = threading.Event()
        self.results: list[T] = []
        self.error: BaseException | None = None

    def compute(self) -> None:
        """Makes the call; whatever it raises is kept."""
        assert self._call is not None
        call, self._call = self._call, None
        try:
            self.results.append(self._context.run(_grouped, self._group, call))
        except BaseException as err:
            self.error = err

    def finish(self) -> None:
        """Tells who waits."""
        self._done.set()

    def wait(self) -> None:
        """Waits until it is done."""
        self._done.wait()


def _grouped(group: CallGroup, call: Callable[[], T]) -> T:
    CALL_GROUP.set(group)
    return call()


class _Threads:
    """Threads that grow with what there is to do, in one process."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[queue.SimpleQueue[_Task[Any]]] = []  # guarded by _lock

    def start(self, task: _Task[Any]) -> None:
        """Has a task carried out; never waits for another one."""
        with self._lock:
            tasks = self._idle.pop() if self._idle else None
        if tasks is None:
            tasks = queue.SimpleQueue()
            threading.Thread(
                target=self._work, args=(tasks,), name="paramd-shard", daemon=True
            ).start()
        tasks.put(task)

    def _work(self, tasks: queue.SimpleQueue[_Task[Any]]) -> None:
        while True:
            try:
                task = tasks.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if tasks in self._idle:
                        self._idle.remove(tasks)
                        return
                continue  # It has just been chosen.
            task.compute()
            with self._lock:
                # Before its caller goes on, whose next call then finds it.
                self._idle.append(tasks)
            task.finish()
            del task


class FanOut:
    """Makes calls to several shards at the same time. Thread-safe; goes on in a forked child.

    Args:
        addresses: of the shards, for the notes of errors.
    """

    def __init__(self, addresses: tuple[str, ...]) -> None:
        self._addresses = addresses
        self._threads = _Threads()

    def run(self, calls: Mapping[int, Callable[[], T]]) -> dict[int, T]:
        """Makes one call for each of some shards, and waits for all of them.

        The first one runs in the caller's thread, so a call to one shard costs nothing more. An
        interrupt of the caller ends the others.

        Args:
            calls: by shard.

        Returns:
            What each gave, in the order of the shards.

        Raises:
            Exception: what the first shard raised that raised something, with notes of the others.
        """
        shards = sorted(calls)
        if len(shards) == 1:
            return {shards[0]: calls[shards[0]]()}
        if not shards:
            return {}
        if self._threads.process != os.getpid():
            self._threads = _Threads()
        group = CallGroup()
        tasks = {shard: _Task(calls[shard], group) for shard in shards}
        for shard in shards[1:]:
            self._threads.start(tasks[shard])
        try:
            tasks[shards[0]].compute()
            interrupt = tasks[shards[0]].error
            if interrupt is not None and not isinstance(interrupt, Exception):
                raise interrupt
            for shard in shards[1:]:
                tasks[shard].wait()
        except BaseException:
            group.cancel()
            for shard in shards[1:]:
                tasks[shard].wait()
            raise
        errors = {shard: task.error for shard, task in tasks.items() if task.error is not None}
        if errors:
            self._raise(errors)
        return {shard: task.results[0] for shard, task in tasks.items()}

    def run_beside(self, own: Callable[[], None], calls: Mapping[int, Callable[[], None]]) -> None:
        """Makes calls to some shards while the caller's thread takes what they bring.

        Args:
            own: what the caller's thread does. Where it fails, the calls have to end by it.
            calls: by shard.

        Raises:
            Exception: what a call raised, as in `run`; else what `own` raised.
        """
        if self._threads.process != os.getpid():
            self._threads = _Threads()
        group = CallGroup()
        tasks = {shard: _Task(calls[shard], group) for shard in sorted(calls)}
        for task in tasks.values():
            self._threads.start(task)
        try:
            own()
        except BaseException as err:
            failed = [task.error for task in tasks.values() if task.error is not None]
            group.cancel()
            for task in tasks.values():
                task.wait()
            if failed and isinstance(err, Exception):
                raise failed[0] from err
            raise
        for task in tasks.values():
            task.wait()
        errors = {shard: task.error for shard, task in tasks.items() if task.error is not None}
        if errors:
            self._raise(errors)

    def _raise(self, errors: Mapping[int, BaseException]) -> NoReturn:
        real = {
            shard: err for shard, err in errors.items() if not isinstance(err, CallCancelledError)
        }
        (shard, first), *others = (real or errors).items()
        # The same exception may come from several shards: a reader of a file that both share.
        first.add_note(f"at shard {shard}, {self._addresses[shard]}")
        for other, err in others:
            if err is not first:
                first.add_note(
                    f"shard {other}, {self._addresses[other]}, failed too: "
                    f"{type(err).__name__}: {err}"
                )
        raise first
