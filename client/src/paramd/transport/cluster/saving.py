"""Files of parameters that are spread: the same bytes as those of one server.

What is small is fetched some at a time, from all shards at once; what is large is streamed: the
parts of a dense value one after the other, the rows of a table from all shards in turns. A dense
value, or its part on one shard, is of one moment; others may be of other moments. What is of one
moment over all shards is a snapshot.
"""

from __future__ import annotations

import math
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any, Final

import numpy as np

from paramd.context import Context
from paramd.errors import InvalidArgumentError, ServerUnavailable
from paramd.spec import Part, Selector, Shape, StoredInfo, TensorHead
from paramd.transport.attempts import CALL_GROUP
from paramd.transport.cluster.catalogue import Catalogue
from paramd.transport.cluster.placed import Placed
from paramd.transport.cluster.shards import Shards
from paramd.transport.receiving import SinkFactory
from paramd.wire.tensors import byte_view

__all__ = ["save"]

Sink = Callable[[memoryview], None]

# What is fetched together, and what is fetched before it is written.
_SMALL_BYTES: Final = 32 << 20
_BLOCK_BYTES: Final = 1 << 20
_BLOCK_IDS: Final = 1 << 17
_ID_BYTES: Final = 8
# Blocks of one shard that wait for those of the others.
_AHEAD: Final = 4
_ATTEMPTS: Final = 5


class _Interrupted(Exception):
    """A stream began again after some was written, or a parameter changed: all begins anew."""


def save(shards: Shards, catalogue: Catalogue, names: Sequence[str], write: SinkFactory) -> None:
    """Reads parameters for a file on the caller's side: see `Calls.save`.

    Args:
        shards: of the cluster.
        catalogue: knows where parameters are.
        names: of the parameters.
        write: called with all headers, gives a context manager of what takes the payload.
    """
    if len(set(names)) != len(names):
        raise InvalidArgumentError("a file holds each parameter once, but a name comes twice")
    saver = _Saver(shards, catalogue)
    for _ in range(_ATTEMPTS):
        heads, placed = saver.heads(names)
        try:
            with write(heads) as sink:
                saver.write(heads, placed, sink)
            return
        except _Interrupted as err:
            cause = err
    raise ServerUnavailable(f"saving began anew {_ATTEMPTS} times; the last reason: {cause}")


class _Saver:
    def __init__(self, shards: Shards, catalogue: Catalogue) -> None:
        self._shards = shards
        self._catalogue = catalogue

    def heads(self, names: Sequence[str]) -> tuple[list[TensorHead], Mapping[str, Placed]]:
        """Describes the tensors of the file; every parameter has a value then.

        Raises:
            NotInitializedError, DeferredInitializationError, ParameterNotFoundError.
        """
        infos = self._catalogue.describe(names)
        self._finish([info for info in infos if info.state != "initialized"])
        infos = self._catalogue.describe(names)
        return [_head(info) for info in infos], self._catalogue.placed(names)

    def _finish(self, infos: Sequence[StoredInfo]) -> None:
        """Has the home shards finish what is deferred, or say what is wrong."""
        for info in infos:
            name, shape = info.current.name, info.current.shape or ()
            context = next(iter(info.contexts), Context("cpu", 0))
            calls = self._shards.calls[self._catalogue.home(name)]
            if info.current.stype == "row_sparse":
                calls.pull_rows(name, np.zeros(0, np.int64), None, context)
            else:
                calls.get_data([Selector(name, None, tuple((0, 0, 1) for _ in shape))], context)

    def write(self, heads: Sequence[TensorHead], placed: Mapping[str, Placed], sink: Sink) -> None:
        """Writes the payloads in their order."""
        small: list[TensorHead] = []
        size = 0
        for head in heads:
            if head.size_bytes > _SMALL_BYTES or size + head.size_bytes > _SMALL_BYTES:
                self._write_small(small, placed, sink)
                small, size = [], 0
            if head.size_bytes > _SMALL_BYTES:
                self._write_large(head, placed[head.name], sink)
            else:
                small.append(head)
                size += head.size_bytes
        self._write_small(small, placed, sink)

    def _write_small(
        self, heads: Sequence[TensorHead], placed: Mapping[str, Placed], sink: Sink
    ) -> None:
        names: dict[int, list[str]] = {}
        for head in heads:
            for shard in placed[head.name].shards:
                names.setdefault(shard, []).append(head.name)
        fetched = self._shards.run(
            {shard: partial(self._fetch, shard, each) for shard, each in names.items()}
        )
        for head in heads:
            where = placed[head.name]
            parts = {shard: fetched[shard][head.name] for shard in where.shards}
            _check(head, where, {shard: part[0] for shard, part in parts.items()})
            payloads = {shard: part[1] for shard, part in parts.items()}
            if head.stype == "row_sparse" and where.is_spread:
                for ids in _all_ids(head):
                    sink(byte_view(ids))
                rows = [_rows_of(payloads[shard], where.parts[shard], head) for shard in payloads]
                sink(byte_view(_interleaved(rows)))
            else:
                for payload in payloads.values():
                    sink(memoryview(payload))

    def _fetch(self, shard: int, names: Sequence[str]) -> dict[str, tuple[TensorHead, bytearray]]:
        """Small tensors of one shard."""
        held: dict[str, tuple[TensorHead, bytearray]] = {}

        @contextmanager
        def collect(heads: Sequence[TensorHead]) -> Iterator[Sink]:
            held.clear()
            held.update({head.name: (head, bytearray()) for head in heads})
            left = [(head.size_bytes, held[head.name][1]) for head in heads]
            place = 0

            def take(payload: memoryview) -> None:
                # A piece belongs to one tensor.
                nonlocal place
                while len(left[place][1]) == left[place][0]:
                    place += 1
                left[place][1].extend(payload)

            yield take

        self._shards.calls[shard].save(names, collect)
        return held

    def _write_large(self, head: TensorHead, where: Placed, sink: Sink) -> None:
        if head.stype == "row_sparse" and where.is_spread:
            self._write_table(head, where, sink)
            return
        for shard in where.shards:
            self._shards.calls[shard].save([head.name], _Once(head, where, shard, sink).open)

    def _write_table(self, head: TensorHead, where: Placed, sink: Sink) -> None:
        for ids in _all_ids(head):
            sink(byte_view(ids))
        row_bytes = math.prod(head.shape[1:]) * head.dtype.itemsize
        step = max(1, _BLOCK_BYTES // max(1, row_bytes))
        blocks = {shard: _Blocks(step * row_bytes) for shard in where.shards}

        def stream(shard: int) -> None:
            ids = where.parts[shard].count * _ID_BYTES
            once = _Once(head, where, shard, blocks[shard].put, skipped=ids)
            try:
                self._shards.calls[shard].save([head.name], once.open)
            except BaseException:
                blocks[shard].end(complete=False)
                raise
            blocks[shard].end(complete=True)

        def interleave() -> None:
            for begin in range(0, max(part.count for part in where.parts.values()), step):
                pieces = {
                    shard: _piece(part, begin, step)
                    for shard, part in where.parts.items()
                    if part.count > begin
                }
                rows = [
                    _rows_of(blocks[shard].take(), part, head) for shard, part in pieces.items()
                ]
                sink(byte_view(_interleaved(rows)))

        self._shards.run_beside(
            partial(_closing, interleave, list(blocks.values())),
            {shard: partial(stream, shard) for shard in where.shards},
        )


def _closing(work: Callable[[], None], blocks: Sequence[_Blocks]) -> None:
    """Does the work; then nothing more is taken of any block."""
    try:
        work()
    finally:
        for each in blocks:
            each.close()


def _piece(part: Part, begin: int, step: int) -> Part:
    """Some rows of a part, as if that were all of it."""
    count = min(step, part.count - begin)
    return Part((count, *part.shape[1:]), 0, count, part.step)


class _Blocks:
    """Rows of one shard, in blocks of one size; bounded."""

    def __init__(self, block_bytes: int) -> None:
        self._size = block_bytes
        self._filling = bytearray()
        self._blocks: queue.Queue[bytearray | None] = queue.Queue(_AHEAD)
        self._closed = False

    def put(self, payload: memoryview) -> None:
        """Takes what came. Waits where the others are behind."""
        while len(payload):
            count = min(len(payload), self._size - len(self._filling))
            self._filling += payload[:count]
            payload = payload[count:]
            if len(self._filling) == self._size:
                self._pass_on()

    def _pass_on(self) -> None:
        block, self._filling = self._filling, bytearray()
        self._send(block)

    def _send(self, block: bytearray | None) -> None:
        while True:
            group = CALL_GROUP.get()
            if self._closed or (group is not None and group.cancelled):
                raise _Interrupted("nobody takes the rows any more")
            try:
                self._blocks.put(block, timeout=0.1)
            except queue.Full:
                continue
            return

    def end(self, *, complete: bool) -> None:
        """Says that nothing more comes: what is incomplete is of no use."""
        if complete and self._filling:
            self._pass_on()
        if not self._closed:
            with suppress(_Interrupted):
                # Nobody waits for it any more.
                self._send(None)

    def take(self) -> bytearray:
        """The next block. Waits for it.

        Raises:
            _Interrupted: where none comes.
        """
        block = self._blocks.get()
        if block is None:
            raise _Interrupted("a stream of rows ended early")
        return block

    def close(self) -> None:
        """Ends the stream that brings blocks."""
        self._closed = True


class _Once:
    """Passes one tensor of one shard on; begins once only, since what is written stays written."""

    def __init__(
        self, head: TensorHead, where: Placed, shard: int, sink: Sink, *, skipped: int = 0
    ) -> None:
        self._head = head
        self._where = where
        self._shard = shard
        self._sink = sink
        self._skipped = skipped
        self._begun = False

    def open(self, heads: Sequence[TensorHead]) -> AbstractContextManager[Sink]:
        """See `SinkFactory`."""
        if self._begun:
            raise _Interrupted(f"the connection to shard {self._shard} was lost")
        _check(self._head, self._where, {self._shard: heads[0]})
        return self._pass_on()

    @contextmanager
    def _pass_on(self) -> Iterator[Sink]:
        left = self._skipped

        def take(payload: memoryview) -> None:
            nonlocal left
            skipped = min(left, len(payload))
            left -= skipped
            if len(payload) > skipped:
                self._begun = True
                self._sink(payload[skipped:])

        yield take


def _head(info: StoredInfo) -> TensorHead:
    spec = info.current
    assert spec.shape is not None
    table = spec.stype == "row_sparse"
    return TensorHead(
        spec.name,
        spec.shape,
        spec.dtype,
        stype="row_sparse" if table else "default",
        num_rows=spec.shape[0] if table else 0,
        version=info.version,
    )


def _check(head: TensorHead, where: Placed, found: Mapping[int, TensorHead]) -> None:
    """Checks that a tensor is still what the file has been told."""
    for shard, each in found.items():
        shape: Shape = where.parts[shard].local_shape if where.is_spread else head.shape
        if each.shape != shape or each.dtype != head.dtype:
            raise _Interrupted(
                f"Parameter '{head.name}' was {head.dtype} of shape {shape} on shard {shard}, and "
                f"came as {each.dtype} of shape {each.shape}"
            )


def _all_ids(head: TensorHead) -> Iterator[np.ndarray[Any, Any]]:
    for begin in range(0, head.num_rows, _BLOCK_IDS):
        yield np.arange(begin, min(begin + _BLOCK_IDS, head.num_rows), dtype="<i8")


def _rows_of(payload: bytearray, part: Part, head: TensorHead) -> np.ndarray[Any, Any]:
    """The rows in a payload, behind ids where there are some."""
    size = part.count * math.prod(head.shape[1:]) * head.dtype.itemsize
    rows = np.frombuffer(payload, np.uint8)[len(payload) - size :]
    return rows.reshape(part.count, -1)


def _interleaved(rows: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Rows of all shards in the order of their ids: the first of each, the second of each, ..."""
    merged = np.empty((sum(len(each) for each in rows), rows[0].shape[1]), np.uint8)
    for place, each in enumerate(rows):
        merged[place :: len(rows)] = each
    return merged
