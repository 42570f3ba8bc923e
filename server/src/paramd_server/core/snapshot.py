"""What a server saves of itself, section by section, and takes up again.

A section is something that has state: the parameters, the window of operations, the claims. It
gives a JSON document and arrays, and takes both back when the server starts again. Where they are
kept meanwhile is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from paramd.errors import FileFormatError, ParamdError
from paramd.spec import Shape
from paramd_server.arrays.backend import HostArray

if TYPE_CHECKING:
    from paramd_server.core.held_buffers import BufferHolds

__all__ = [
    "ArraysReader",
    "ArraysSource",
    "SavedArray",
    "SavedSection",
    "Section",
    "SnapshotError",
    "SnapshotInfo",
    "SnapshotName",
    "SnapshotOrigin",
    "load_array",
    "restore_sections",
    "whole_array",
]


class SnapshotError(RuntimeError):
    """A snapshot that cannot be written, or not be taken up. The message says where and why."""


@dataclass(frozen=True)
class SnapshotName:
    """Which snapshot.

    Attributes:
        number: from 1, higher than all before.
        directory: as the user named it, below the snapshot directory; '' for a numbered one, which
            goes when newer ones have come.
    """

    number: int
    directory: str = ""

    def __str__(self) -> str:
        return f"{self.number} ({self.directory!r})" if self.directory else str(self.number)


@dataclass(frozen=True)
class SnapshotOrigin:
    """Whose state a snapshot is, and of which moment.

    Attributes:
        cluster_id: of the cluster; '' where it has none.
        generation: of the cluster then; 0 where that is not known.
        position: in the cluster's log: everything up to there is in it.
    """

    cluster_id: str = ""
    generation: int = 0
    position: int = 0


@dataclass(frozen=True)
class SnapshotInfo:
    """A snapshot that is whole.

    Attributes:
        name: which.
        size_bytes: of the files of all parts.
        created: seconds since 1970.
        num_shards: how many parts it has.
    """

    name: SnapshotName
    size_bytes: int
    created: float
    num_shards: int


@dataclass(frozen=True)
class SavedArray:
    """One array of a section.

    Attributes:
        key: its name in the section, unique there.
        shape: dimensions.
        dtype: one that parameters can have.
        blocks: gives the elements in C order, as C-contiguous arrays one after the other, each
            valid until the next one is asked for. It is called once or not at all.
    """

    key: str
    shape: Shape
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterable[HostArray]]


@dataclass(frozen=True)
class SavedSection:
    """The state of a section at one moment.

    Attributes:
        document: plain JSON values; texts, whole numbers and floats come back exactly.
        arrays: what is too large for that.
        blank: whether nothing would be lost if it were not kept. A server whose sections are all
            blank writes no snapshot, unless it has taken one up.
    """

    document: Mapping[str, Any]
    arrays: Sequence[SavedArray] = ()
    blank: bool = False


class ArraysReader(Protocol):
    """The arrays of a section that is taken up."""

    def describe(self, key: str) -> tuple[Shape, np.dtype[Any]]:
        """The shape and dtype of an array. Raises SnapshotError where there is none."""

    def read(self, key: str, target: HostArray) -> None:
        """Fills an array, C-contiguous and of exactly that shape and dtype.

        Raises:
            SnapshotError: where the array is another one, or damaged.
        """


class ArraysSource(Protocol):
    """A snapshot that is open for reading."""

    @property
    def documents(self) -> Mapping[str, Mapping[str, Any]]:
        """The documents of the sections by name."""

    def arrays(self, section: str) -> ArraysReader:
        """The arrays of a section."""

    def unread(self) -> Sequence[str]:
        """The arrays, as 'section/key', that nobody has read so far."""


class Section(Protocol):
    """Something whose state is saved and taken up."""

    @property
    def name(self) -> str:
        """Unique on a server, and the same for ever, such as 'parameters'."""

    def capture(self, holds: BufferHolds) -> Callable[[], SavedSection]:
        """Takes references to the state.

        It is called while nothing can change, and everything waits for it.

        Args:
            holds: keeps the content of buffers.

        Returns:
            What gives the state of that moment: called later or not at all, once, without any lock.
        """

    def restore(self, document: Mapping[str, Any], arrays: ArraysReader) -> None:
        """Takes a state up, on a server that is empty and does not serve yet.

        Every array must be read. Sections that refer to others come after them.

        Raises:
            SnapshotError, ParamdError, ValueError, TypeError, KeyError: naming what is wrong. The
                server does not start then, so that what was taken up so far does not matter.
        """


def whole_array(key: str, array: HostArray) -> SavedArray:
    """An array that lies in host memory, as a whole."""
    return SavedArray(key, array.shape, array.dtype, lambda: (np.ascontiguousarray(array),))


def load_array(arrays: ArraysReader, key: str) -> HostArray:
    """Reads a small array into memory of its own, which nobody counts."""
    shape, dtype = arrays.describe(key)
    array = np.empty(shape, dtype)
    arrays.read(key, array)
    return array


def restore_sections(sections: Sequence[Section], source: ArraysSource) -> None:
    """Gives the sections their states back, in the order of the sections.

    A section that the snapshot lacks stays empty.

    Raises:
        SnapshotError: where a state does not fit, is damaged, or belongs to no section here.
    """
    documents = source.documents
    unknown = sorted(documents.keys() - {section.name for section in sections})
    if unknown:
        raise SnapshotError(f"section {unknown[0]!r} is unknown here: a later version wrote it")
    for section in sections:
        if section.name in documents:
            with _failures(section.name):
                section.restore(documents[section.name], source.arrays(section.name))
    left = source.unread()
    if left:
        raise SnapshotError(f"array {left[0]!r} belongs to nothing that was taken up")


@contextmanager
def _failures(name: str) -> Iterator[None]:
    try:
        yield
    except SnapshotError:
        raise
    except FileFormatError as err:
        raise SnapshotError(str(err)) from err
    except KeyError as err:
        what = str(err) if isinstance(err, ParamdError) else f"there is no {err}"
        raise SnapshotError(f"section {name!r}: {what}") from err
    except (ParamdError, ValueError, TypeError) as err:
        raise SnapshotError(f"section {name!r}: {err}") from err
