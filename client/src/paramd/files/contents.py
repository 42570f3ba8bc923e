"""What the formats give to the reader and to the writer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paramd.files.source import Part
from paramd.files.tensors import TensorInfo

__all__ = ["Contents", "Extent", "Layout", "StoredTensor"]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file, and where its payload is.

    Attributes:
        info: its description.
        parts: the payload: (elements,) or (ids, rows).
        place: where it is in the file, for messages.
    """

    info: TensorInfo
    parts: tuple[Part, ...]
    place: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds.

    Attributes:
        tensors: in the file's order.
        named: whether the file gives names; else they are '0', '1', ...
    """

    tensors: tuple[StoredTensor, ...]
    named: bool


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the next bytes of the payload go.

    Attributes:
        offset: in the file.
        size_bytes: how many bytes.
        checksum: CRC-32 of what precedes them in their member, where the format needs CRCs.
        id_limit: the logical number of rows, where they are row ids.
    """

    offset: int
    size_bytes: int
    checksum: int | None = None
    id_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """A file before its payload is known.

    Attributes:
        pieces: (offset, bytes) of everything that is no payload.
        extents: where the payload goes, in its order.
        finish: further pieces, made from the CRC-32 of each extent (0 where it has no checksum).
    """

    pieces: Sequence[tuple[int, bytes]]
    extents: Sequence[Extent]
    finish: Callable[[Sequence[int]], Sequence[tuple[int, bytes]]] | None = None
