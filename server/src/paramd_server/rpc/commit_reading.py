"""The values that go back with a step."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType

from paramd.context import Context
from paramd.errors import ParamdError
from paramd.spec import Selector
from paramd.trainer_spec import TrainerSpec
from paramd_server.core.reading import Reading, open_values
from paramd_server.core.registry import Registry

__all__ = ["CommitReading"]


class CommitReading:
    """Reads what a worker gets back with its step.

    In a bounded trainer other workers step meanwhile, so that shards would be read after different
    steps: there the values are opened in the moment of the commit, which is one place of the log.
    Elsewhere they are read when they are sent: nobody steps in between, or nothing is promised.

    Args:
        registry: the parameters.
        spec: of the trainer.
        selectors: the values.
        current: the worker's current context.
    """

    def __init__(
        self,
        registry: Registry,
        spec: TrainerSpec,
        selectors: Sequence[Selector],
        current: Context,
    ) -> None:
        self._registry = registry
        self._selectors = selectors
        self._current = current
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._ended = False  # guarded by _lock
        self._readings: list[Reading] | None = None  # guarded by _lock
        bounded = spec.distributed and bool(spec.staleness)
        self.on_commit = self._open_now if bounded and selectors else None

    def __enter__(self) -> CommitReading:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._ended = True
        self._stack.close()

    def _open_now(self) -> None:
        with self._lock:
            if self._ended or self._readings is not None:
                return
            try:
                self._readings = self._stack.enter_context(
                    open_values(self._registry, self._selectors, self._current)
                )
            except ParamdError:
                # Told to the worker when it is sent to it: the step itself is committed.
                self._readings = None

    @contextmanager
    def open(self) -> Iterator[list[Reading]]:
        """The values, for as long as the block runs. Raises what stands at GetData."""
        with self._lock:
            readings = self._readings
        if readings is not None:
            yield readings
            return
        with open_values(self._registry, self._selectors, self._current) as opened:
            yield opened
