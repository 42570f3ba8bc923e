"""A snapshot of some number of shards, read as if another number had written it.

Documents are put together from those of all parts, for the shard that reads; arrays are gathered
row by row while the parts stream through. What is bound to sessions (the window of operations,
members and their clocks) is left out: a session knows the number of its shards, and does not
outlive it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from paramd.placement import Layout, home_shard, layout_of
from paramd.spec import Shape, shape_is_known
from paramd.wire.dtypes import dtype_of
from paramd_server.arrays.backend import HostArray
from paramd_server.core.snapshot import ArraysReader, SnapshotError

__all__ = ["OldPart", "Resharded"]

# States that are copies of the weight, which zeros cannot stand for.
_COPIES: Final = frozenset({"master", "previous"})

Document = dict[str, Any]


class OldPart(Protocol):
    """What one shard wrote."""

    @property
    def documents(self) -> Mapping[str, Mapping[str, Any]]:
        """The documents of its sections by name."""

    def describe(self, name: str) -> tuple[Shape, np.dtype[Any]]:
        """The shape and dtype of an array 'section/key'. Raises SnapshotError."""

    def rows(self, name: str) -> Iterator[HostArray]:
        """The rows of an array as matrices, one after the other. Raises SnapshotError."""


@dataclass(frozen=True)
class _Rows:
    """Which rows of a whole parameter some array has: begin, begin + step, ..."""

    begin: int
    count: int
    step: int

    def places(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
        """Of numbers of rows of the whole, which are here, and where."""
        offsets = rows - self.begin
        here = (offsets >= 0) & (offsets % self.step == 0) & (offsets < self.count * self.step)
        return here, offsets[here] // self.step


@dataclass(frozen=True)
class _Piece:
    """What an old part has of an array. `name` None: zeros; `ids`: of which rows it has values."""

    part: int
    name: str | None
    rows: _Rows
    ids: np.ndarray[Any, np.dtype[np.int64]] | None = None


@dataclass(frozen=True)
class _Gathering:
    """An array of the new part. `ids`: of the whole, where only some rows are there."""

    shape: Shape
    dtype: np.dtype[Any]
    rows: _Rows
    pieces: tuple[_Piece, ...]
    ids: np.ndarray[Any, np.dtype[np.int64]] | None = None


@dataclass(frozen=True)
class _Known:
    """A parameter in the old parts that have something of it, and where it will be."""

    home: Document
    parts: Mapping[int, tuple[str, Document]]
    layout: Layout
    whole: Shape | None

    def rows_of(self, part: int) -> _Rows:
        """The rows that an old part has."""
        spec = self.parts[part][1]["current"]
        return _rows_of(spec.get("part"), spec["shape"])


class Resharded:
    """The parts of a snapshot for one shard of another number: see ArraysSource.

    Args:
        parts: of all old shards, in their order.
        shard: that reads.
        num_shards: how many there are now.
        split_elements: dense parameters of more elements are split over them.

    Raises:
        SnapshotError: where the parts do not fit one another.
    """

    def __init__(
        self, parts: Sequence[OldPart], *, shard: int, num_shards: int, split_elements: int
    ) -> None:
        self._parts = parts
        self._shard = shard
        self._num_shards = num_shards
        self._split_elements = split_elements
        self._gathered: dict[str, _Gathering | HostArray] = {}
        self._known = self._find_parameters()
        self.documents: dict[str, Mapping[str, Any]] = {
            "parameters": {"parameters": self._parameters()},
            "trainers": {"trainers": self._trainers()},
        }
        if shard == 0:
            first = parts[0].documents
            for section in ("claims", "workers"):
                if section in first:
                    self.documents[section] = first[section]
            if "members" in first:
                self.documents["members"] = {"members": [], "ranks": first["members"]["ranks"]}

    def arrays(self, section: str) -> ArraysReader:
        """The arrays of a section."""
        return _SectionArrays(self, section)

    def unread(self) -> Sequence[str]:
        """Nothing: what is for other shards is not read here."""
        return ()

    def describe(self, name: str) -> tuple[Shape, np.dtype[Any]]:
        """See ArraysReader."""
        found = self._gathered[name]
        return found.shape, found.dtype

    def read(self, name: str, target: HostArray) -> None:
        """See ArraysReader."""
        found = self._gathered[name]
        if isinstance(found, _Gathering):
            self._gather(found, target)
        else:
            target[...] = found

    # Documents

    def _find_parameters(self) -> dict[str, _Known]:
        found: dict[str, dict[int, tuple[str, Document]]] = {}
        for part, each in enumerate(self._parts):
            documents = each.documents.get("parameters", {}).get("parameters", ())
            for index, document in enumerate(documents):
                name = document["declared"]["name"]
                found.setdefault(name, {})[part] = (f"parameters/{index}", document)
        known = {}
        for name, parts in found.items():
            home = home_shard(name, len(self._parts))
            if home not in parts:
                # What a client left that died while it declared or deleted it.
                continue
            document = parts[home][1]
            spec = document["current"]
            whole = (spec.get("part") or spec)["shape"]
            shape = None if whole is None else tuple(int(each) for each in whole)
            layout = layout_of(name, shape, spec["stype"], self._num_shards, self._split_elements)
            if not spec.get("part"):
                parts = {home: parts[home]}
            known[name] = _Known(document, parts, layout, shape)
            self._check_parts(name, known[name])
        return known

    def _check_parts(self, name: str, known: _Known) -> None:
        if not known.home["copies"] or known.whole is None:
            return
        held = 0
        for part, (_, document) in known.parts.items():
            if not document["copies"]:
                raise SnapshotError(f"parameter {name!r} has no value in part {part}")
            held += known.rows_of(part).count
        if held != (known.whole[0] if known.whole else 1):
            raise SnapshotError(f"parameter {name!r}: rows are missing, or come twice")

    def _here(self, known: _Known) -> bool:
        return self._shard in known.layout.shards

    def _new_rows(self, known: _Known) -> tuple[_Rows, Shape]:
        """The rows of a parameter that this shard gets, and its shape here."""
        whole = known.whole or ()
        part = known.layout.parts.get(self._shard)
        if part is None:
            return _rows_of(None, whole), whole
        return _Rows(part.begin, part.count, part.step), part.local_shape

    def _parameters(self) -> list[Document]:
        return [
            self._parameter(name, known) for name, known in self._known.items() if self._here(known)
        ]

    def _parameter(self, name: str, known: _Known) -> Document:
        document = copy.deepcopy(known.home)
        documents = [each for _, each in known.parts.values()]
        self._place(document["current"], known)
        declared = document["declared"]
        if shape_is_known((declared.get("part") or declared)["shape"]):
            self._place(declared, known)
        elif self._shard != known.layout.home:
            document["declared"] = {**declared, **_placing(document["current"])}
        for counter in ("counter", "gradient_counter"):
            document[counter] = max(each[counter] for each in documents)
        fresh = set.intersection(*(set(each["fresh_gradients"]) for each in documents))
        document["fresh_gradients"] = sorted(fresh)
        if not document["copies"]:
            return document
        dtype = dtype_of(document["current"]["dtype"])
        rows, shape = self._new_rows(known)
        for kind, key in (("copies", "value"), ("gradients", "gradient")):
            entries = {part: each[kind] for part, (_, each) in known.parts.items()}
            document[kind] = self._buffers(
                f"parameters/{name}/{key}", "parameters", entries, known, rows, shape, dtype
            )
        document["sparse_gradients"] = [
            self._sparse(f"parameters/{name}/rows/{number}", known, number, rows, shape, dtype)
            for number in range(len(document["sparse_gradients"]))
        ]
        return document

    def _place(self, spec: Document, known: _Known) -> None:
        """Makes a spec that of what is here."""
        part = known.layout.parts.get(self._shard)
        spec["shape"] = None if known.whole is None else list(known.whole)
        spec["part"] = None
        if part is not None:
            spec["shape"] = list(part.local_shape)
            spec["part"] = {
                "shape": list(part.shape),
                "begin": part.begin,
                "count": part.count,
                "step": part.step,
            }

    def _buffers(
        self,
        place: str,
        section: str,
        entries: Mapping[int, Sequence[Mapping[str, Any]]],
        known: _Known,
        rows: _Rows,
        shape: Shape,
        dtype: np.dtype[Any],
    ) -> list[Document]:
        """The entries of buffers by context, whose arrays are gathered from those of old parts."""
        first = next(iter(entries.values()))
        made: dict[tuple[tuple[int, str | None], ...], str] = {}
        buffers = []
        for entry in first:
            names: list[tuple[int, str | None]] = []
            for part, theirs in entries.items():
                array = next(
                    (each["array"] for each in theirs if each["context"] == entry["context"]), None
                )
                names.append((part, None if array is None else f"{section}/{array}"))
            key: str | None = None
            if any(name is not None for _, name in names):
                key = made.setdefault(tuple(names), f"{place}/{len(made)}")
                pieces = tuple(_Piece(part, name, known.rows_of(part)) for part, name in names)
                self._gathered[key] = _Gathering(shape, dtype, rows, pieces)
            buffers.append({"context": entry["context"], "array": _without_section(key)})
        return buffers

    def _sparse(
        self,
        place: str,
        known: _Known,
        number: int,
        rows: _Rows,
        shape: Shape,
        dtype: np.dtype[Any],
    ) -> Document:
        """A row_sparse gradient: the ids that are here, and the rows of them."""
        pieces = []
        for part, (_, document) in known.parts.items():
            gradient = document["sparse_gradients"][number]
            local = self._load(part, f"parameters/{gradient['ids']}")
            theirs = known.rows_of(part)
            (buffer,) = gradient["rows"]
            name = None if buffer["array"] is None else f"parameters/{buffer['array']}"
            pieces.append(_Piece(part, name, theirs, theirs.begin + local * theirs.step))
            context = buffer["context"]
        every = np.sort(np.concatenate([each.ids for each in pieces if each.ids is not None]))
        here, places = rows.places(every)
        ids = every[here]
        self._gathered[f"{place}/ids"] = places
        key: str | None = None
        if any(each.name is not None for each in pieces):
            key = f"{place}/0"
            self._gathered[key] = _Gathering(
                (len(ids), *shape[1:]), dtype, rows, tuple(pieces), ids
            )
        array = {"context": context, "array": _without_section(key)}
        return {"ids": _without_section(f"{place}/ids"), "rows": [array]}

    def _trainers(self) -> list[Document]:
        made = []
        for leading in self._parts[0].documents.get("trainers", {}).get("trainers", ()):
            name = leading["spec"]["name"]
            trainers = {
                part: document
                for part, each in enumerate(self._parts)
                for document in each.documents.get("trainers", {}).get("trainers", ())
                if document["spec"]["name"] == name
            }
            made.append(self._trainer(leading, trainers))
        return made

    def _trainer(self, leading: Document, trainers: Mapping[int, Document]) -> Document:
        names = [each for each in leading["spec"]["parameters"] if each in self._known]
        here = [each for each in names if self._here(self._known[each])]
        shards = {shard for each in names for shard in self._known[each].layout.shards}
        counts = dict(leading["progress"].get("counts_elsewhere", {}))
        for document in trainers.values():
            for name, entry in document["parameters"].items():
                counts[name] = max(counts.get(name, 0), entry["count"])
        old = leading["progress"]
        progress: Document = {
            "learning_rate": None,
            "clock": old["clock"],
            "tally": old["tally"],
            "placement": {
                "elsewhere": sorted(set(names) - set(here)),
                "shards": sorted(shards - {self._shard}),
            },
        }
        if self._shard == 0:
            progress["learning_rate"] = old["learning_rate"]
            progress["participants"] = {**old["participants"], "clocks": {}}
            progress["counts_elsewhere"] = {
                name: count for name, count in counts.items() if name not in here
            }
        place = f"trainers/{leading['spec']['name']}"
        return {
            "spec": leading["spec"],
            "progress": progress,
            "num_update": max(each["num_update"] for each in trainers.values()),
            "parameters": {
                name: self._states(f"{place}/{name}", name, trainers, counts[name])
                for name in here
                if any(name in each["parameters"] for each in trainers.values())
            },
            "residuals": self._residuals(f"{place}/residual", here, trainers),
        }

    def _states(
        self, place: str, name: str, trainers: Mapping[int, Document], count: int
    ) -> Document:
        known = self._known[name]
        entries = {
            part: trainers[part]["parameters"][name]
            for part in known.parts
            if name in trainers.get(part, {}).get("parameters", {})
        }
        if not entries:
            raise SnapshotError(f"parameter {name!r}: the states are in a part without its value")
        some = next(iter(entries.values()))
        if len(entries) < len(known.parts) and _COPIES & some["states"].keys():
            raise SnapshotError(f"parameter {name!r} was stepped on some of its shards only")
        rows, shape = self._new_rows(known)
        states = {}
        for state, each in some["states"].items():
            # Where a part was never stepped there are zeros.
            buffers = {
                part: entries[part]["states"][state]["buffers"] if part in entries else ()
                for part in (*entries, *(known.parts.keys() - entries.keys()))
            }
            states[state] = {
                "shape": list(shape),
                "dtype": each["dtype"],
                "buffers": self._buffers(
                    f"{place}/{state}",
                    "trainers",
                    buffers,
                    known,
                    rows,
                    shape,
                    dtype_of(each["dtype"]),
                ),
            }
        written = any(
            entry["counter"] != known.parts[part][1]["counter"] for part, entry in entries.items()
        )
        counter = max(document["counter"] for _, document in known.parts.values())
        return {**some, "count": count, "counter": -1 if written else counter, "states": states}

    def _residuals(
        self, place: str, here: Sequence[str], trainers: Mapping[int, Document]
    ) -> list[Document]:
        made = []
        for part, document in trainers.items():
            for number, each in enumerate(document["residuals"]):
                name = each["parameter"]
                if name not in here:
                    continue
                known = self._known[name]
                rows, shape = self._new_rows(known)
                buffers = {part: each["buffers"]}
                if len(known.parts) > 1 or known.layout.is_spread:
                    raise SnapshotError(
                        f"parameter {name!r}: what 2-bit compression left over cannot be spread"
                    )
                dtype = dtype_of(each["dtype"])
                key = f"{place}/{part}/{number}"
                entries = self._buffers(key, "trainers", buffers, known, rows, shape, dtype)
                made.append({**each, "buffers": entries})
        return made

    # Arrays

    def _load(self, part: int, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        rows = [each.copy() for each in self._parts[part].rows(name)]
        return np.concatenate([np.empty((0, 1), np.int64), *rows]).reshape(-1)

    def _gather(self, wanted: _Gathering, target: HostArray) -> None:
        if not target.size:
            return
        flat = target.reshape(len(target) if target.ndim else 1, -1)
        for piece in wanted.pieces:
            if piece.name is None:
                self._put(wanted, piece, flat, None, 0, _count_of(piece))
                continue
            begin = 0
            for rows in self._parts[piece.part].rows(piece.name):
                self._put(wanted, piece, flat, rows, begin, len(rows))
                begin += len(rows)

    def _put(
        self,
        wanted: _Gathering,
        piece: _Piece,
        flat: HostArray,
        values: HostArray | None,
        begin: int,
        count: int,
    ) -> None:
        """Puts some rows of a piece, from its row `begin` on, to where they belong."""
        if piece.ids is None:
            numbers = piece.rows.begin + np.arange(begin, begin + count) * piece.rows.step
        else:
            numbers = piece.ids[begin : begin + count]
        here, places = wanted.rows.places(numbers)
        if wanted.ids is not None:
            places = np.searchsorted(wanted.ids, numbers[here])
        flat[places] = 0 if values is None else values[here]


class _SectionArrays:
    def __init__(self, source: Resharded, section: str) -> None:
        self._source = source
        self._section = section

    def describe(self, key: str) -> tuple[Shape, np.dtype[Any]]:
        """See ArraysReader."""
        return self._source.describe(f"{self._section}/{key}")

    def read(self, key: str, target: HostArray) -> None:
        """See ArraysReader."""
        self._source.read(f"{self._section}/{key}", target)


def _rows_of(part: Mapping[str, Any] | None, shape: Sequence[int]) -> _Rows:
    if part is not None:
        return _Rows(int(part["begin"]), int(part["count"]), int(part["step"]))
    return _Rows(0, int(shape[0]) if len(shape) else 1, 1)


def _count_of(piece: _Piece) -> int:
    return piece.rows.count if piece.ids is None else len(piece.ids)


def _placing(spec: Mapping[str, Any]) -> Document:
    return {"shape": spec["shape"], "part": spec["part"]}


def _without_section(key: str | None) -> str | None:
    return None if key is None else key.partition("/")[2]
