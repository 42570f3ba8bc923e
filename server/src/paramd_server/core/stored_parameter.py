"""One parameter as the server holds it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from paramd.context import Context
from paramd.errors import (
    ContextWithoutCopyError,
    DeferredInitializationError,
    MemoryLimitError,
    NoGradientError,
    NotInitializedError,
    ParamdError,
    ParameterNotFoundError,
)
from paramd.spec import FirstValue, ParameterSpec, Shape, StoredInfo, Version, shape_is_known
from paramd_server.arrays.backend import ArrayBackend, Buffer, HostArray
from paramd_server.arrays.devices import Devices
from paramd_server.core.parts import shown_shape
from paramd_server.core.row_sparse import RowSparseGradient
from paramd_server.core.shared_copies import SharedCopies

__all__ = ["StoredParameter"]


class StoredParameter:
    """A parameter's spec, copies, gradient buffers and version.

    Every field is guarded by `lock`. Methods are called with the lock held, and leave everything
    as it was when they raise. No lock is held while a stream is sent or received: a read takes a
    reference to a buffer (`readers`), and a write that finds one writes elsewhere. A snapshot that
    is being written does likewise (`hold`), apart from tables of rows: see `held_buffers`.

    Args:
        spec: as declared first.
        devices: where buffers come from.
        epoch: of the server.
    """

    def __init__(self, spec: ParameterSpec, devices: Devices, epoch: int) -> None:
        self.lock = threading.RLock()
        self.name = spec.name
        self.declared = spec
        self.current = spec
        self.deleted = False
        # An initialization that waits for the shape, or for a value that a client computes.
        self.deferred: FirstValue | None = None
        # Of a parameter with copies: what this server computed its first value from; None where a
        # client or a file gave it. What is written later does not take it away: a shard that has
        # not got its part of the initialization is then as one that was initialized together
        # with this one, and that no write has reached since.
        self.first_value: FirstValue | None = None
        self.copies: dict[Context, Buffer] = {}
        # None of either kind where grad_req is 'null' or there is no value.
        self.gradients: dict[Context, Buffer] = {}
        self.sparse_gradients: dict[Context, RowSparseGradient] = {}
        self.counter = 0
        self.gradient_counter = 0
        # The contexts whose gradients have been written since the last step of a trainer.
        self.fresh_gradients: set[Context] = set()
        # Which step of which trainer the values are of, where that is one on several shards.
        self.step: tuple[int, int] | None = None
        # Where processes of the same host find the copies; None where no such process has asked.
        self.shared: SharedCopies | None = None
        self.devices = devices
        self._epoch = epoch

    @property
    def state(self) -> str:
        """'declared', 'deferred' or 'initialized'."""
        if self.copies:
            return "initialized"
        return "declared" if self.deferred is None else "deferred"

    @property
    def shape(self) -> Shape:
        """The shape of a parameter that has copies."""
        assert self.current.shape is not None
        return self.current.shape

    @property
    def shown_shape(self) -> str:
        """The shape, for messages; of a part, that of the whole parameter too."""
        return shown_shape(self.current)

    @property
    def contexts(self) -> tuple[Context, ...]:
        """Where the copies are or will be, in order of creation."""
        if self.copies:
            return tuple(self.copies)
        return () if self.deferred is None else self.deferred.contexts

    @property
    def version(self) -> Version:
        """Of the last committed write of the values."""
        return Version(self._epoch, self.counter)

    @property
    def gradient_version(self) -> Version:
        """Of the last committed write of the gradients."""
        return Version(self._epoch, self.gradient_counter)

    @property
    def has_gradient(self) -> bool:
        """Whether there are gradient buffers."""
        return bool(self.copies) and self.current.grad_req != "null"

    @property
    def awaits_client_value(self) -> bool:
        """Whether only a client that holds the initializer can go on."""
        deferred = self.deferred
        return (
            deferred is not None
            and deferred.init.client_side
            and shape_is_known(self.current.shape)
        )

    def info(self) -> StoredInfo:
        """The parameter, described."""
        sparse = sum(gradient.nbytes for gradient in self.sparse_gradients.values())
        return StoredInfo(
            declared=self.declared,
            current=self.current,
            state=self.state,
            contexts=self.contexts,
            version=self.version,
            awaits_client_value=self.awaits_client_value,
            value_bytes=sum(buffer.nbytes for buffer in self.copies.values()),
            gradient_bytes=sum(buffer.nbytes for buffer in self.gradients.values()) + sparse,
            first_value=self.first_value if self.deferred is None else self.deferred,
        )

    def backend(self, context: Context) -> ArrayBackend:
        """The backend of a context. Raises ContextNotAvailableError."""
        return self.devices.backend(context)

    def stage(self, shape: Shape, dtype: np.dtype[np.generic]) -> Buffer:
        """A host buffer to be filled and then given to `spread`. Raises MemoryLimitError."""
        return self.devices.stage(shape, dtype)

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Counts that many bytes as used while the block runs. Raises MemoryLimitError."""
        self.devices.account.reserve(size)
        try:
            yield
        finally:
            self.devices.account.release(size)

    def staged_array(self, staged: Buffer) -> HostArray:
        """The memory of a staged buffer."""
        return self.devices.staged_array(staged)

    def check_not_deleted(self) -> None:
        """Raises ParameterNotFoundError where a delete came between look-up and lock."""
        if self.deleted:
            raise ParameterNotFoundError(
                f"parameter {self.name!r} has been deleted", parameter=self.name
            )

    def check_initialized(self) -> None:
        """Raises NotInitializedError or DeferredInitializationError where there is no value."""
        if self.copies:
            return
        raise self.not_initialized_error()

    def not_initialized_error(self) -> ParamdError:
        """What a caller gets that needs a value where there is none."""
        if self.deferred is None:
            return NotInitializedError(
                f"Parameter '{self.name}' has not been initialized: call initialize() first",
                parameter=self.name,
            )
        if self.awaits_client_value:
            why = "its initializer is a client's own and that client has not sent the value yet"
        else:
            why = f"its shape {self.current.shape} is not known yet"
        return DeferredInitializationError(
            f"Parameter '{self.name}' has not been initialized yet because initialization was "
            f"deferred: {why}",
            parameter=self.name,
        )

    def resolve(self, context: Context | None, current: Context) -> Context:
        """The context of the copy that a caller means.

        Args:
            context: the one asked for; None for the only copy, or the one on `current`.
            current: the caller's current context.

        Raises:
            ContextWithoutCopyError: where there is no copy.
        """
        self.check_initialized()
        if context is None:
            if len(self.copies) == 1:
                return next(iter(self.copies))
            context = current
        if context not in self.copies:
            raise ContextWithoutCopyError(
                f"Parameter '{self.name}' was not initialized on context {context}. It was only "
                f"initialized on {list(self.copies)}",
                parameter=self.name,
            )
        return context

    def check_gradient(self) -> None:
        """Raises NoGradientError, or what check_initialized raises, where there is no gradient."""
        self.check_initialized()
        if self.current.grad_req == "null":
            raise NoGradientError(
                f"Cannot get gradient array for Parameter '{self.name}' because grad_req='null'",
                parameter=self.name,
            )

    def prepare(
        self,
        copies: dict[Context, Buffer],
        spec: ParameterSpec | None = None,
        *,
        first_value: FirstValue | None = None,
    ) -> Callable[[], None]:
        """Makes ready to publish new copies, with zeroed gradients beside them.

        Args:
            copies: at least one; their shape and dtype become the parameter's.
            spec: what the spec becomes; by default it stays.
            first_value: what the value was computed from; None where it is a client's or a file's.

        Returns:
            What publishes them as one committed write, and cannot fail.

        Raises:
            MemoryLimitError: where the gradients do not fit.
        """
        first = next(iter(copies.values()))
        after = replace(spec or self.current, shape=first.shape, dtype=first.dtype)
        dense, sparse = self.zero_gradients(after, copies)

        def publish() -> None:
            self.current = after
            self.copies = copies
            self.gradients, self.sparse_gradients = dense, sparse
            self.fresh_gradients = set()
            self.deferred = None
            self.first_value = first_value
            self.counter += 1
            self.gradient_counter += 1

        return publish

    def zero_gradients(
        self, spec: ParameterSpec, contexts: Iterable[Context]
    ) -> tuple[dict[Context, Buffer], dict[Context, RowSparseGradient]]:
        """New gradients of zero for a spec, not yet published. Raises MemoryLimitError."""
        if spec.grad_req == "null":
            return {}, {}
        assert spec.shape is not None
        shape, dtype = spec.shape, spec.dtype
        if spec.grad_stype != "default":
            return {}, {
                context: RowSparseGradient.empty(shape, dtype, context, self.devices)
                for context in contexts
            }
        return {
            context: self.backend(context).zeros(shape, dtype, context) for context in contexts
        }, {}

    def spread(self, staged: Buffer, contexts: Iterable[Context]) -> dict[Context, Buffer]:
        """Copies of one staged value for several contexts; the first takes the buffer itself.

        Args:
            staged: of the parameter's dtype; the caller gives it up.
            contexts: at least one, all available.

        Raises:
            MemoryLimitError: where the further copies do not fit.
        """
        contexts = list(contexts)
        host = self.devices.staged_array(staged)
        copies: dict[Context, Buffer] = {}
        for context in contexts[1:]:
            backend = self.backend(context)
            copies[context] = backend.empty(staged.shape, staged.dtype, context)
            backend.write(copies[context], host, mode="assign")
        first = self.backend(contexts[0]).adopt(staged, contexts[0])
        return {contexts[0]: first, **{context: copies[context] for context in contexts[1:]}}

    def writable(
        self,
        buffers: dict[Context, Buffer],
        context: Context,
        *,
        keep: bool,
        rows: HostArray | None = None,
        told: bool = False,
    ) -> Buffer:
        """The buffer to write to: the published one where nobody reads it, else a new one.

        Args:
            buffers: `copies` or `gradients`.
            context: which of them.
            keep: whether the content is needed, because not all of it is overwritten.
            rows: the rows that will be overwritten; None for all.
            told: whether the caller calls `before_write` when it knows which rows.

        Returns:
            A buffer that the caller puts into `buffers` when it is written.

        Raises:
            MemoryLimitError: where a new one does not fit.
        """
        return self.unread(buffers[context], keep=keep, rows=rows, told=told)

    def unread(
        self, buffer: Buffer, *, keep: bool, rows: HostArray | None = None, told: bool = False
    ) -> Buffer:
        """The buffer itself where nobody reads it, else a new one; see `writable`."""
        hold, by_rows = buffer.hold, self.current.stype == "row_sparse"
        if buffer.readers == 0 and (hold is None or not hold.active):
            return buffer
        if buffer.readers == 0 and by_rows:
            # A snapshot needs it as it is, but a table is not copied for some rows.
            if not told:
                self.before_write([buffer], rows)
            return buffer
        backend = self.backend(buffer.context)
        try:
            fresh = self.devices.another(buffer)
        except MemoryLimitError:
            if buffer.readers or hold is None:
                raise
            # No write fails for the sake of a snapshot.
            hold.keep(buffer, None, by_rows=by_rows)
            return buffer
        if keep:
            backend.copy(buffer, fresh)
        return fresh

    def before_write(self, buffers: Iterable[Buffer], rows: HostArray | None) -> None:
        """Lets a snapshot that is being written set aside what is about to be overwritten.

        Args:
            buffers: of this parameter.
            rows: which rows of them; None for all.
        """
        for buffer in buffers:
            if buffer.hold is not None:
                buffer.hold.keep(buffer, rows, by_rows=self.current.stype == "row_sparse")

    def as_dtype(self, staged: Buffer, dtype: np.dtype[np.generic]) -> Buffer:
        """A staged host buffer cast to a dtype; itself if it has it. Raises MemoryLimitError."""
        return self.devices.as_dtype(staged, dtype)
