"""Reads of whole parameters: asked of every shard that has a part, received in one array."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from paramd.errors import InvalidArgumentError, InvalidStreamError
from paramd.files import RowSparseRows
from paramd.spec import Part, Region, Selector, Shape, TensorHead, check_region
from paramd.transport.cluster.catalogue import StalePlacementError
from paramd.transport.cluster.placed import Placed
from paramd.transport.cluster.slicing import (
    Slice,
    cut,
    local_ids,
    merged_rows,
)
from paramd.transport.protocols import Received
from paramd.transport.receiving import Out, OutArray, Place, payload_of
from paramd.transport.records import TensorValue
from paramd.v1 import parameter_service_pb2 as pb
from paramd.wire.envelope import Payload
from paramd.wire.tensors import byte_view, head_from_wire

__all__ = ["ReadPlan", "RowsPlan", "plan_reads"]

Array = np.ndarray[Any, Any]
Ids = np.ndarray[Any, np.dtype[np.int64]]


class WholeArray:
    """The array that several shards' parts are received into. Thread-safe.

    It is made when the first part begins to come, for only then its dtype is known.

    Args:
        name: of the parameter.
        shape: of the array.
        out: the caller's array, or None.
    """

    def __init__(self, name: str, shape: Shape, out: Out) -> None:
        self.name = name
        self._shape = shape
        self._out = OutArray(name, out)
        self._lock = threading.Lock()
        self._array: Array | None = None  # guarded by _lock

    def of(self, dtype: np.dtype[Any]) -> Array:
        """The array, for parts of that dtype.

        Raises:
            ShapeMismatchError, DTypeMismatchError: where the caller's array does not fit.
            StalePlacementError: where the parts have different dtypes: it was cast in between.
        """
        with self._lock:
            if self._array is None:
                self._out.open(self._shape, dtype)
                self._array = self._out.target
            if self._array.dtype != dtype:
                raise StalePlacementError(
                    f"Parameter '{self.name}' came as {self._array.dtype} and as {dtype}"
                )
            return self._array

    def complete(self) -> Array:
        """The array with everything that was received."""
        return self._out.complete()


class _PartPlace:
    """Where one shard's part is received to: in place where its rows are one after the other.

    Args:
        whole: the array.
        where: which of its rows.
        shape: of the part, as it should come.
    """

    def __init__(self, whole: WholeArray, where: slice, shape: Shape) -> None:
        self._whole = whole
        self._where = where
        self._shape = shape
        self._target = np.empty(0)
        self._goal = np.empty(0)

    def open(self, shape: Shape, dtype: np.dtype[Any]) -> memoryview:
        """See `Place`."""
        if shape != self._shape:
            raise StalePlacementError(
                f"Parameter '{self._whole.name}': a part of shape {self._shape} came as {shape}"
            )
        self._goal = self._whole.of(dtype)[self._where]
        in_place = self._goal.flags.c_contiguous
        self._target = self._goal if in_place else np.empty(shape, dtype)
        return byte_view(self._target)

    def complete(self) -> Array:
        """See `Place`."""
        if self._target is not self._goal:
            self._goal[...] = self._target
        return self._goal


@dataclass(frozen=True)
class _Piece:
    """What one shard sends of one array."""

    selector: Selector
    out: Out | Place


@dataclass
class _Read:
    """One array, and what becomes of it."""

    placed: Placed
    selector: Selector
    whole: WholeArray | None
    pieces: Mapping[int, _Piece]


@dataclass
class ReadPlan:
    """Reads of arrays, as each shard is asked for them.

    Attributes:
        selectors: by shard, in the order of the call.
        outs: for each of them where it is received to.
    """

    selectors: dict[int, list[Selector]]
    outs: dict[int, list[Out | Place]]
    reads: list[_Read]

    def merge(self, received: Mapping[int, Received]) -> Received:
        """The arrays, in the order of the call.

        Args:
            received: what each shard sent.

        Raises:
            StalePlacementError: where it is not what was thought to be there.
        """
        iterators = {shard: iter(each) for shard, each in received.items()}
        return [
            _merge(read, {shard: next(iterators[shard]) for shard in read.pieces})
            for read in self.reads
        ]


def plan_reads(
    placed: Mapping[str, Placed],
    selectors: Sequence[Selector],
    out: Sequence[Out] | None,
    *,
    gradient: bool,
) -> ReadPlan:
    """Takes reads of arrays apart.

    Args:
        placed: where the parameters are.
        selectors: the arrays.
        out: for each an array to receive into, or None.
        gradient: whether gradient buffers are read.

    Raises:
        InvalidRegionError, ShapeMismatchError, InvalidArgumentError: with whole shapes.
    """
    if out is not None and len(out) != len(selectors):
        raise InvalidArgumentError(f"{len(out)} arrays for {len(selectors)} values in out=")
    plan = ReadPlan({}, {}, [])
    for index, selector in enumerate(selectors):
        array = None if out is None else out[index]
        read = _plan_read(placed[selector.name], selector, array, gradient=gradient)
        plan.reads.append(read)
        for shard, piece in read.pieces.items():
            plan.selectors.setdefault(shard, []).append(piece.selector)
            plan.outs.setdefault(shard, []).append(piece.out)
    return plan


def _plan_read(placed: Placed, selector: Selector, out: Out, *, gradient: bool) -> _Read:
    sparse = placed.grad_stype == "row_sparse" and gradient
    if not placed.is_spread or (placed.stype != "default" and not gradient):
        # The values of a table are not read as a whole: its home shard says so.
        return _Read(placed, selector, None, {placed.home: _Piece(selector, out)})
    if sparse:
        # With a region or out=, any shard says what is wrong.
        sparse_pieces = {
            shard: _Piece(replace(selector, part=part), out) for shard, part in placed.parts.items()
        }
        return _Read(placed, selector, None, sparse_pieces)
    shape, region = placed.whole, selector.region
    target = shape if region is None else check_region(placed.name, region, shape)
    whole = WholeArray(placed.name, target, out)
    pieces: dict[int, _Piece] = {}
    for shard, part in placed.parts.items():
        there = cut((0, shape[0], 1) if region is None else region[0], part)
        if there is not None:
            mine = replace(selector, part=part)
            pieces[shard] = _piece(whole, mine, region, there, (*part.local_shape,), target)
    if not pieces:
        nothing = tuple((0, 0, 1) for _ in shape)
        place = _PartPlace(whole, slice(0, 0), (0,) * len(shape))
        mine = replace(selector, region=nothing, part=placed.parts[placed.home])
        pieces[placed.home] = _Piece(mine, place)
        if 0 not in target[:1]:
            raise InvalidStreamError(f"no shard has the rows of Parameter '{placed.name}'")
    return _Read(placed, selector, whole, pieces)


def _piece(
    whole: WholeArray,
    selector: Selector,
    region: Region | None,
    there: Slice,
    local_shape: Shape,
    target: Shape,
) -> _Piece:
    if region is None:
        return _Piece(selector, _PartPlace(whole, there.where, local_shape))
    local: Region = (there.local, *region[1:])
    shape = (there.local[1], *target[1:])
    return _Piece(replace(selector, region=local), _PartPlace(whole, there.where, shape))


def _merge(
    read: _Read, received: Mapping[int, tuple[TensorHead, TensorValue]]
) -> tuple[TensorHead, TensorValue]:
    placed = read.placed
    home = placed.home if placed.home in received else next(iter(received))
    head, value = received[home]
    if not placed.is_spread:
        if read.selector.region is None and head.shape != placed.shape and placed.shape:
            raise StalePlacementError(
                f"Parameter '{placed.name}': a value of shape {placed.shape} came as {head.shape}"
            )
        return head, value
    if read.whole is not None:
        array = read.whole.complete()
        return replace(head, shape=array.shape), array
    pieces: dict[int, RowSparseRows] = {}
    for shard, (_, piece) in received.items():
        part = placed.parts[shard]
        if not isinstance(piece, RowSparseRows) or piece.shape != part.local_shape:
            raise StalePlacementError(
                f"Parameter '{placed.name}': the gradient of a part of shape {part.local_shape} "
                f"came as {type(piece).__name__} of shape {piece.shape}"
            )
        if piece.rows.dtype != head.dtype:
            raise StalePlacementError(
                f"Parameter '{placed.name}' came as {head.dtype} and as {piece.rows.dtype}"
            )
        pieces[shard] = piece
    rows = merged_rows(placed, pieces)
    return replace(head, shape=placed.whole, num_rows=len(rows.ids)), rows


class RowsPlan:
    """A pull of rows from several shards into one array, in the order of the ids.

    Args:
        placed: the parameter, which is spread.
        ids: of its rows: sorted and unique, in range.
        out: array of shape (number of ids, *shape[1:]) to receive into, or None.

    Attributes:
        ids: by shard, the rows that it is asked for, by its own numbers.
    """

    def __init__(self, placed: Placed, ids: Ids, out: Out) -> None:
        self._placed = placed
        self._whole = WholeArray(placed.name, (len(ids), *placed.whole[1:]), out)
        self._where: dict[int, Ids | slice] = {}
        self.ids: dict[int, Ids] = {}
        for shard, (mine, where) in local_ids(ids, placed.parts).items():
            if len(mine):
                self.ids[shard], self._where[shard] = mine, where
        if not self.ids:
            self.ids[placed.home], self._where[placed.home] = ids[:0], slice(0, 0)

    def receiver(self, shard: int) -> _RowsOfShard:
        """What takes the rows of one shard, for one attempt."""
        return _RowsOfShard(
            self._placed.parts[shard], self._whole, self._where[shard], len(self.ids[shard])
        )

    def merge(self, heads: Mapping[int, TensorHead]) -> tuple[TensorHead, Array]:
        """The header of the whole, and its rows."""
        home = self._placed.home
        head = heads[home] if home in heads else next(iter(heads.values()))
        return replace(head, shape=self._placed.whole), self._whole.complete()


class _RowsOfShard:
    """Receives the rows of one shard, and puts each where it belongs."""

    def __init__(self, part: Part, whole: WholeArray, where: Ids | slice, num_rows: int) -> None:
        self._part = part
        self._whole = whole
        self._where = where
        self._num_rows = num_rows
        self._head: TensorHead | None = None
        self._array: Array = np.empty(0)
        self._row_bytes = 0
        self._done = 0
        self._rest = b""

    def feed(self, message: Payload) -> None:
        """Takes the header, then rows."""
        payload, parsed = payload_of(message, pb.PullRowSparseResponse)
        if payload is None:
            self._open(parsed)
            return
        if self._head is None:
            raise self._wrong(f"{len(payload)} bytes came before the header")
        if self._rest:
            payload = memoryview(self._rest + bytes(payload))
        count = len(payload) // self._row_bytes
        if self._done + count > self._num_rows:
            raise self._wrong(f"more than {self._num_rows} rows came")
        size = count * self._row_bytes
        if count:
            rows = np.frombuffer(payload[:size], self._head.dtype)
            self._put(rows.reshape(count, *self._part.local_shape[1:]))
        self._rest = bytes(payload[size:])

    def _put(self, rows: Array) -> None:
        begin, self._done = self._done, self._done + len(rows)
        if isinstance(self._where, slice):
            first = self._where.start + begin
            self._array[first : first + len(rows)] = rows
        else:
            self._array[self._where[begin : self._done]] = rows

    def _open(self, parsed: pb.PullRowSparseResponse) -> None:
        if parsed.WhichOneof("part") != "header" or self._head is not None:
            raise self._wrong("an unexpected message came between the rows")
        head = head_from_wire(parsed.header)
        if head.name != self._whole.name:
            raise self._wrong(f"the server sent parameter {head.name!r}")
        if head.shape != self._part.local_shape:
            raise StalePlacementError(
                f"Parameter '{head.name}': a part of shape {self._part.local_shape} came as "
                f"{head.shape}"
            )
        self._head = head
        self._array = self._whole.of(head.dtype)
        row = int(np.prod(head.shape[1:], dtype=np.int64))
        self._row_bytes = row * head.dtype.itemsize

    def finish(self) -> TensorHead:
        """The header, once all rows have come."""
        if self._head is None:
            raise self._wrong("the stream ended before the header")
        if self._done != self._num_rows or self._rest:
            raise self._wrong(f"{self._done} rows came, of {self._num_rows} expected")
        return self._head

    def _wrong(self, what: str) -> InvalidStreamError:
        return InvalidStreamError(
            f"parameter {self._whole.name!r}: {what}", parameter=self._whole.name
        )
