"""Optimizer states over the shards of a cluster: gathered into one file, and taken apart again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import IO, Any, Final

import numpy as np

from paramd.spec import Part, TensorHead
from paramd.trainer_spec import StatesManifest
from paramd.transport.cluster.placed import Placed
from paramd.transport.cluster.shards import Shards
from paramd.transport.training import StatesSink
from paramd.wire.tensors import byte_view

__all__ = ["load_states", "save_states"]

_Array = np.ndarray[Any, Any]
# The name of a parameter, and that of the state.
_Place = tuple[str, str]

_BLOCK_BYTES: Final = 1 << 20


class _Spool:
    """What one shard sent: its manifest, and its arrays in a temporary file.

    States are as large as the parameters, and those of several shards come in different orders, so
    they do not wait in memory.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.manifest: StatesManifest | None = None
        self._begins: dict[_Place, int] = {}

    @contextmanager
    def write(self, manifest: StatesManifest) -> Iterator[Callable[[memoryview], None]]:
        """See StatesSink."""
        self._file.seek(0)
        self._file.truncate()
        self.manifest, self._begins = manifest, {}
        begin = 0
        for head, state in manifest.arrays:
            self._begins[head.name, state] = begin
            begin += head.size_bytes

        def put(payload: memoryview) -> None:
            self._file.write(payload)

        yield put
        self._file.flush()

    def array(self, head: TensorHead, state: str) -> _Array:
        """One of the arrays, read when it is touched."""
        begin = self._begins[head.name, state]
        if not head.size_bytes:
            return np.empty(head.shape, head.dtype)
        return np.memmap(self._file, head.dtype, "r", begin, head.shape)


def save_states(
    shards: Shards,
    trainer: str,
    numbers: Sequence[int],
    placed: Mapping[str, Placed],
    write: StatesSink,
) -> None:
    """Reads the states of a trainer from several shards, in the form of those of one server.

    Each shard's are of one moment.

    Args:
        shards: of the cluster.
        trainer: its name.
        numbers: of the shards, the coordinator first, which has the rate.
        placed: where the trainer's parameters are.
        write: takes them.
    """
    with ExitStack() as stack:
        spools = {
            number: _Spool(stack.enter_context(tempfile.TemporaryFile(prefix="paramd-states-")))
            for number in numbers
        }

        def fetch(number: int) -> Callable[[], None]:
            spool = spools[number]
            return lambda: shards.calls[number].training.save_states(trainer, spool.write)

        shards.run({number: fetch(number) for number in numbers})
        manifests = {
            number: spool.manifest for number, spool in spools.items() if spool.manifest is not None
        }
        counts = {
            name: count
            for manifest in manifests.values()
            for name, count in manifest.num_updates.items()
        }
        found: dict[_Place, dict[int, TensorHead]] = {}
        for number, manifest in manifests.items():
            for head, state in manifest.arrays:
                found.setdefault((head.name, state), {})[number] = head
        order = {name: index for index, name in enumerate(placed)}
        places = sorted(found, key=lambda place: order.get(place[0], len(order)))
        heads = [_whole_head(placed[name], found[name, state]) for name, state in places]
        states = [state for _, state in places]
        manifest = replace(
            manifests[numbers[0]],
            num_updates={name: counts[name] for name in placed if name in counts},
            arrays=tuple(zip(heads, states, strict=True)),
        )
        put = stack.enter_context(write(manifest))
        for (name, state), head in zip(places, heads, strict=True):
            pieces = {
                number: spools[number].array(each, state)
                for number, each in found[name, state].items()
            }
            for block in _whole_blocks(placed[name], pieces, head):
                put(byte_view(np.ascontiguousarray(block)))


def _whole_head(placed: Placed, heads: Mapping[int, TensorHead]) -> TensorHead:
    head = next(iter(heads.values()))
    if not placed.is_spread:
        return head
    return replace(head, shape=(placed.whole[0], *head.shape[1:]))


def _whole_blocks(
    placed: Placed, pieces: Mapping[int, _Array], head: TensorHead
) -> Iterator[_Array]:
    """The rows of a state in their order, some at a time."""
    if not placed.is_spread:
        yield from pieces.values()
        return
    parts = placed.parts
    if all(part.step == 1 for part in parts.values()):
        for number in sorted(pieces, key=lambda number: parts[number].begin):
            yield pieces[number]
        return
    row_bytes = max(1, head.size_bytes // max(1, head.shape[0]))
    step = max(1, _BLOCK_BYTES // row_bytes)
    for begin in range(0, head.shape[0], step):
        end = min(begin + step, head.shape[0])
        block = np.empty((end - begin, *head.shape[1:]), head.dtype)
        for number, part in parts.items():
            rows = _rows_within(part, begin, end)
            first = rows.start * part.step + part.begin - begin
            block[first :: part.step] = pieces[number][rows]
        yield block


def _rows_within(part: Part, begin: int, end: int) -> slice:
    """A part's own rows of those from `begin` to `end` of the whole."""
    first = max(0, -((part.begin - begin) // part.step))
    last = max(first, -((part.begin - end) // part.step))
    return slice(first, min(last, part.count))


def load_states(
    shards: Shards,
    trainer: str,
    numbers: Sequence[int],
    placed: Mapping[str, Placed],
    manifest: StatesManifest,
    arrays: Callable[[], Iterable[_Array]],
) -> None:
    """Gives several shards their parts of a trainer's states, one shard after the other.

    Args:
        shards: of the cluster.
        trainer: its name.
        numbers: of the shards, the coordinator first.
        placed: where the trainer's parameters are.
        manifest: describes the states of whole parameters.
        arrays: gives the arrays of the manifest in their order, anew for each attempt.
    """
    offers = {number: _local(manifest, placed, number) for number in numbers}
    for number, (local, _) in offers.items():
        # All are asked before one of them changes anything.
        shards.calls[number].training.load_states(trainer, local, _nothing, only_check=True)
    for number, (local, chosen) in offers.items():

        def values(number: int = number, chosen: Sequence[bool] = chosen) -> Iterator[_Array]:
            for (head, _), wanted, array in zip(manifest.arrays, chosen, arrays(), strict=True):
                if wanted:
                    yield _local_rows(placed.get(head.name), array, number)

        shards.calls[number].training.load_states(trainer, local, values)


def _nothing() -> Iterator[_Array]:
    return iter(())


def _local(
    manifest: StatesManifest, placed: Mapping[str, Placed], number: int
) -> tuple[StatesManifest, list[bool]]:
    """What one shard gets of states, and which of the arrays that is."""
    here = {
        name
        for name in (*manifest.num_updates, *(head.name for head, _ in manifest.arrays))
        # Unknown names are for the server to refuse.
        if name not in placed or number in placed[name].shards
    }
    # The coordinator keeps the counts of all parameters, and the rate.
    counts = {
        name: count for name, count in manifest.num_updates.items() if not number or name in here
    }
    chosen = [head.name in here for head, _ in manifest.arrays]
    heads = tuple(
        (_local_head(placed.get(head.name), head, number), state)
        for (head, state), wanted in zip(manifest.arrays, chosen, strict=True)
        if wanted
    )
    local = replace(
        manifest,
        learning_rate=None if number else manifest.learning_rate,
        num_updates=counts,
        arrays=heads,
    )
    return local, chosen


def _part(placed: Placed | None, shape: Sequence[int], number: int) -> Part | None:
    """A shard's part of a state of a parameter that is spread, if it has as many rows."""
    if placed is None or not placed.is_spread or not shape or shape[0] != placed.whole[0]:
        return None
    return placed.parts[number]


def _local_head(placed: Placed | None, head: TensorHead, number: int) -> TensorHead:
    part = _part(placed, head.shape, number)
    return head if part is None else replace(head, shape=(part.count, *head.shape[1:]))


def _local_rows(placed: Placed | None, array: _Array, number: int) -> _Array:
    part = _part(placed, array.shape, number)
    if part is None:
        return array
    return array[part.begin : part.begin + (part.count - 1) * part.step + 1 : part.step]
