"""Loading a file's tensors into parameters that are spread.

Everything is checked first, in one pass over the tensors; then each shard gets its parts, in one
step on each shard. The tensors are read once for all shards.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np

from paramd.errors import (
    ContextMismatchError,
    DTypeMismatchError,
    InvalidStreamError,
    ParameterMissingError,
    ParameterUnexpectedError,
    ShapeMismatchError,
)
from paramd.spec import LoadOptions, Shape, StoredInfo, shape_is_known
from paramd.transport.cluster.catalogue import Catalogue
from paramd.transport.cluster.first_values import FirstValues, merged
from paramd.transport.cluster.placed import Placed
from paramd.transport.cluster.shards import Shards
from paramd.transport.cluster.slicing import split_write
from paramd.transport.records import TensorWrite
from paramd.wire.dtypes import dtype_of

__all__ = ["load"]

Tensors = Callable[[], Iterable[TensorWrite]]

# Bytes of tensors that wait for a shard which takes them more slowly than the others.
_WAITING_BYTES: Final = 64 << 20


def load(
    shards: Shards,
    catalogue: Catalogue,
    first_values: FirstValues,
    tensors: Tensors,
    options: LoadOptions,
) -> list[str]:
    """Loads parameters from a file's tensors: see `Calls.load`.

    Args:
        shards: of the cluster.
        catalogue: knows where parameters are.
        first_values: gives them shapes.
        tensors: gives a fresh iterator over the tensors.
        options: how.

    Raises:
        ParameterMissingError, ParameterUnexpectedError, ShapeMismatchError, DTypeMismatchError,
        ContextMismatchError: before anything is sent to any shard.
    """
    _check_names(options, options.file_names)
    heads = _heads(tensors, options)
    infos = {info.current.name: info for info in catalogue.describe(list(heads))} if heads else {}
    if options.contexts:
        first_values.check_contexts(options.contexts, set(range(len(shards))))
    for head in heads.values():
        _check(head, infos[head.name], options)
    first = [name for name, info in infos.items() if info.state != "initialized"]
    guard: AbstractContextManager[None] = nullcontext()
    if any(catalogue.would_spread(infos[name].current, heads[name].shape) for name in first):
        # Of what several shards get their first value for, one client's at a time.
        guard = first_values.alone()
    with guard:
        vague = {
            name: heads[name].shape
            for name in heads
            if not shape_is_known(infos[name].current.shape)
        }
        if vague:
            first_values.settle(vague)
        placed = catalogue.placed(heads)
        _send(shards, placed, tensors, options)
    return list(heads)


@dataclass(frozen=True)
class _Head:
    """What a tensor is, without its values."""

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    stype: str


def _heads(tensors: Tensors, options: LoadOptions) -> dict[str, _Head]:
    wanted = frozenset(options.names)
    heads: dict[str, _Head] = {}
    for write in tensors():
        if write.name not in wanted:
            raise InvalidStreamError(
                f"Parameter '{write.name}' is not among those to be loaded", parameter=write.name
            )
        value = write.value
        if write.name in heads:
            raise InvalidStreamError(
                f"Parameter '{write.name}' comes twice in one stream", parameter=write.name
            )
        dense = isinstance(value, np.ndarray)
        dtype = value.dtype if isinstance(value, np.ndarray) else _rows_dtype(value)
        heads[write.name] = _Head(
            write.name, value.shape, dtype_of(dtype), "default" if dense else "row_sparse"
        )
    missing = sorted((set(options.file_names) & wanted) - heads.keys())
    if missing:
        raise InvalidStreamError(
            f"the stream ended before parameter {missing[0]!r}", parameter=missing[0]
        )
    return heads


def _rows_dtype(value: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = value.rows.dtype
    return dtype


def _shown(names: Collection[str], limit: int = 10) -> str:
    some = [f"'{name}'" for name in list(names)[:limit]]
    return ", ".join(some) + (", ..." if len(names) > limit else "")


def _check_names(options: LoadOptions, held: Collection[str]) -> None:
    cut = len(options.restore_prefix)
    held, wanted = set(held), set(options.names)
    for name in () if options.allow_missing else options.names:
        if name not in held:
            raise ParameterMissingError(
                f"Parameter '{name[cut:]}' is missing in {options.source}, which contains "
                f"parameters: {_shown(sorted(held))}. Make sure that source and target have the "
                "same prefix, or set allow_missing",
                parameter=name,
            )
    for name in () if options.ignore_extra else sorted(held - wanted):
        raise ParameterUnexpectedError(
            f"Parameter '{name[cut:]}' loaded from {options.source} is not present in "
            f"ParameterDict, choices are: {_shown(options.names)}. Set ignore_extra to True to "
            "ignore it",
            parameter=name,
        )


def _check(head: _Head, info: StoredInfo, options: LoadOptions) -> None:
    """Checks one tensor against the whole parameter, as a server does."""
    spec = info.current
    if merged(spec.shape, head.shape) is None:
        raise ShapeMismatchError(
            f"Failed loading Parameter '{head.name}' from saved params: shape incompatible "
            f"expected {spec.shape} vs saved {head.shape}",
            parameter=head.name,
        )
    if head.dtype != spec.dtype and not options.cast_dtype:
        raise DTypeMismatchError(
            f"Failed loading Parameter '{head.name}' from saved params: dtype incompatible "
            f"expected {spec.dtype} vs saved {head.dtype}. Set cast_dtype=True to cast the dtype "
            "of saved params.",
            parameter=head.name,
        )
    if info.contexts and options.contexts and set(info.contexts) != set(options.contexts):
        raise ContextMismatchError(
            f"Failed to load Parameter '{head.name}' on {list(options.contexts)} because it was "
            f"previous initialized on {list(info.contexts)}",
            parameter=head.name,
        )


def _send(
    shards: Shards, placed: Mapping[str, Placed], tensors: Tensors, options: LoadOptions
) -> None:
    names: dict[int, list[str]] = {}
    for name, where in placed.items():
        for shard in where.shards:
            names.setdefault(shard, []).append(name)
    source = _Distribution(tensors, placed, list(names))

    def send(shard: int) -> None:
        mine = replace(
            options,
            names=tuple(names[shard]),
            file_names=tuple(names[shard]),
            allow_missing=True,
            ignore_extra=True,
        )
        try:
            shards.calls[shard].load(partial(source.pieces, shard), mine)
        finally:
            source.leave(shard)

    shards.run({shard: partial(send, shard) for shard in names})


def _pieces(write: TensorWrite, placed: Mapping[str, Placed]) -> dict[int, TensorWrite]:
    where = placed[write.name]
    if not where.is_spread:
        return {where.home: write}
    return split_write(where, write, gradient=False)


class _Distribution:
    """Gives each shard its pieces of tensors that are read once. Thread-safe.

    A shard whose stream is sent again reads the tensors by itself.

    Args:
        tensors: gives a fresh iterator over them.
        placed: where the parameters are.
        shards: that get pieces.
    """

    def __init__(
        self, tensors: Tensors, placed: Mapping[str, Placed], shards: Sequence[int]
    ) -> None:
        self._tensors = tensors
        self._placed = placed
        self._changed = threading.Condition()
        self._iterator: Iterator[TensorWrite] | None = None  # guarded by _changed
        self._reading = False  # guarded by _changed
        self._ended = False  # guarded by _changed
        self._failure: BaseException | None = None  # guarded by _changed
        # Of the shards that still take part.
        self._waiting: dict[int, deque[TensorWrite]] = {shard: deque() for shard in shards}
        self._begun: set[int] = set()

    def pieces(self, shard: int) -> Iterator[TensorWrite]:
        """The pieces of one shard, for one attempt."""
        with self._changed:
            again = shard in self._begun
            self._begun.add(shard)
        if again:
            self.leave(shard)
            for write in self._tensors():
                piece = _pieces(write, self._placed).get(shard)
                if piece is not None:
                    yield piece
            return
        while (piece := self._next(shard)) is not None:
            yield piece

    def leave(self, shard: int) -> None:
        """Says that a shard takes nothing any more."""
        with self._changed:
            self._waiting.pop(shard, None)
            self._changed.notify_all()

    def _next(self, shard: int) -> TensorWrite | None:
        while True:
            with self._changed:
                while True:
                    mine = self._waiting.get(shard)
                    if mine is None:
                        return None
                    if mine:
                        piece = mine.popleft()
                        self._changed.notify_all()
                        return piece
                    if self._failure is not None:
                        raise self._failure
                    if self._ended:
                        return None
                    if not self._reading and not self._full():
                        self._reading = True
                        break
                    self._changed.wait()
            self._read()

    def _full(self) -> bool:
        held = {id(piece): _size(piece) for each in self._waiting.values() for piece in each}
        return sum(held.values()) > _WAITING_BYTES

    def _read(self) -> None:
        """Reads one tensor, outside of the lock, and gives every shard its piece."""
        pieces: dict[int, TensorWrite] = {}
        ended, failure = False, None
        try:
            if self._iterator is None:
                self._iterator = iter(self._tensors())
            write = next(self._iterator, None)
            ended = write is None
            pieces = {} if write is None else _pieces(write, self._placed)
        except BaseException as err:
            failure = err
        with self._changed:
            self._reading, self._ended, self._failure = False, ended, failure
            for shard, piece in pieces.items():
                if shard in self._waiting:
                    self._waiting[shard].append(piece)
            self._changed.notify_all()


def _size(write: TensorWrite) -> int:
    value: Any = write.value
    return int(value.nbytes if isinstance(value, np.ndarray) else value.rows.nbytes)
