"""What one server keeps of a snapshot: its documents, and its arrays in files beside them.

`part-0-of-1.json` holds the sections' documents and a list of every array with its file, shape,
dtype and CRC-32. The arrays are in `part-0-of-1.000.safetensors` and so on: several files where one
header would become too large. An array has the name 'section/key'.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from paramd.errors import FileFormatError
from paramd.files import FileReader, TensorInfo, open_reader, open_writer
from paramd.files.source import byte_view
from paramd.spec import Shape
from paramd.wire.dtypes import dtype_of
from paramd_server.core.snapshot import ArraysReader, SavedArray, SavedSection, SnapshotError
from paramd_server.storage.snapshot_files import checksum, write_atomically

__all__ = ["PartReader", "write_part"]

_FORMAT: Final = 1
_BLOCK_BYTES: Final = 1 << 20
_NUM_SUMMING_THREADS: Final = 2
# A header of at most about 8 MiB: the reader refuses one of 32 MiB.
_MAX_ARRAYS: Final = 1 << 14
_MAX_KEY_BYTES: Final = 4 << 20


def write_part(directory: Path, part: str, sections: Mapping[str, SavedSection]) -> dict[str, Any]:
    """Writes a part, each file synced to disk. The arrays stream through; none is copied whole.

    Args:
        directory: where to.
        part: such as 'part-0-of-1'.
        sections: by name.

    Returns:
        The part's entry in the manifest: JSON values.

    Raises:
        OSError: from the system.
        FileFormatError, ValueError: where an array is not what its section says.
    """
    files: list[str] = []
    listed: list[dict[str, Any]] = []
    for number, group in enumerate(_groups(sections)):
        file = f"{part}.{number:03d}.safetensors"
        infos = [TensorInfo(name, array.shape, array.dtype) for name, array in group]
        with open_writer(directory / file, infos) as writer:
            for info, (name, array) in zip(infos, group, strict=True):
                size, crc32 = 0, 0
                for block in array.blocks():
                    view = byte_view(block)
                    for begin in range(0, view.nbytes, _BLOCK_BYTES):
                        piece = view[begin : begin + _BLOCK_BYTES]
                        crc32 = zlib.crc32(piece, crc32)
                        size += piece.nbytes
                        writer.write(piece)
                if size != info.size_bytes:
                    raise ValueError(f"array {name!r} has {info.size_bytes} bytes, but {size} came")
                listed.append(
                    {
                        "name": name,
                        "file": file,
                        "shape": list(info.shape),
                        "dtype": str(info.dtype),
                        "crc32": crc32,
                    }
                )
        files.append(file)
    documents = {name: section.document for name, section in sections.items()}
    content = {"format": _FORMAT, "sections": documents, "arrays": listed}
    text = json.dumps(content).encode()
    # Last: a part that has it is whole.
    write_atomically(directory / f"{part}.json", text, writer=part)
    names = [f"{part}.json", *files]
    return {
        "name": part,
        # Those of the arrays are summed array by array, in the part's list.
        "crc32": checksum(text),
        "files": {name: (directory / name).stat().st_size for name in names},
    }


def _groups(sections: Mapping[str, SavedSection]) -> Iterator[list[tuple[str, SavedArray]]]:
    group: list[tuple[str, SavedArray]] = []
    key_bytes = 0
    for section, saved in sections.items():
        for array in saved.arrays:
            name = f"{section}/{array.key}"
            key_bytes += len(name.encode())
            if group and (len(group) == _MAX_ARRAYS or key_bytes > _MAX_KEY_BYTES):
                yield group
                group, key_bytes = [], len(name.encode())
            group.append((name, array))
    if group:
        yield group


@dataclass(frozen=True)
class _Stored:
    reader: FileReader
    path: Path
    index: int
    shape: Shape
    dtype: np.dtype[Any]
    checksum: int


class PartReader:
    """A part that is open for reading: see ArraysSource. Every array is checked as it is read.

    Args:
        directory: where it is.
        part: such as 'part-0-of-1'.
        content: of its JSON file, whose checksum has been checked.

    Raises:
        SnapshotError: where files and list do not agree.
        FileFormatError, OSError: where a file is damaged or missing.
    """

    def __init__(self, directory: Path, part: str, content: bytes) -> None:
        self._place = directory / f"{part}.json"
        self._stack = ExitStack()
        self._stored: dict[str, _Stored] = {}
        self._read: set[str] = set()
        self._checks: list[Future[None]] = []
        # Reading the next array and summing up this one take about the same time.
        self._summing = ThreadPoolExecutor(_NUM_SUMMING_THREADS, "summing")
        self._stack.callback(self._summing.shutdown, cancel_futures=True)
        try:
            parsed = json.loads(content)
            if parsed["format"] != _FORMAT:
                raise SnapshotError(
                    f"{self._place}: the format is {_FORMAT}, but got {parsed['format']!r}"
                )
            self.documents: Mapping[str, Mapping[str, Any]] = dict(parsed["sections"])
            self._open(directory, parsed["arrays"])
        except FileFormatError:
            self.close()
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            self.close()
            raise SnapshotError(f"{self._place}: {type(err).__name__}: {err}") from err
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PartReader:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files. Idempotent."""
        self._stack.close()

    def arrays(self, section: str) -> ArraysReader:
        """The arrays of a section."""
        return _SectionArrays(self, section)

    def unread(self) -> Sequence[str]:
        """The arrays, as 'section/key', that nobody has read so far."""
        return [name for name in self._stored if name not in self._read]

    def check(self) -> None:
        """Reads everything and keeps nothing.

        Raises:
            SnapshotError, FileFormatError, OSError: where something is damaged.
        """
        for name, stored in self._stored.items():
            checksum = 0
            for chunk in stored.reader.chunks(stored.index, _BLOCK_BYTES):
                checksum = zlib.crc32(chunk, checksum)
            _compare(name, stored, checksum)

    def find(self, name: str) -> _Stored:
        """An array by 'section/key'. Raises SnapshotError."""
        stored = self._stored.get(name)
        if stored is None:
            raise SnapshotError(f"{self._place}: there is no array {name!r}")
        return stored

    def read(self, name: str, target: np.ndarray[Any, Any]) -> None:
        """Fills an array of the shape and dtype that are stored.

        A large one is compared with its checksum meanwhile: see `finish`. It stays as it is until
        then.
        """
        stored = self.find(name)
        if (target.shape, target.dtype) != (stored.shape, stored.dtype):
            raise SnapshotError(
                f"{stored.path}: array {name!r} has shape {stored.shape} of {stored.dtype}, but "
                f"{target.shape} of {target.dtype} is expected"
            )
        stored.reader.read_into(stored.index, target)
        view = byte_view(target)
        if view.nbytes < _BLOCK_BYTES:
            _compare(name, stored, zlib.crc32(view))
        else:
            self._checks.append(self._summing.submit(_check_content, name, stored, view))
        self._read.add(name)

    def describe(self, name: str) -> tuple[Shape, np.dtype[Any]]:
        """The shape and dtype of an array by 'section/key'. Raises SnapshotError."""
        stored = self.find(name)
        return stored.shape, stored.dtype

    def rows(self, name: str) -> Iterator[np.ndarray[Any, Any]]:
        """The rows of an array as matrices, one after the other, in bounded memory.

        Raises:
            SnapshotError, FileFormatError, OSError: where it is damaged.
        """
        stored = self.find(name)
        size = math.prod(stored.shape[1:])
        row_bytes = size * stored.dtype.itemsize
        if not math.prod(stored.shape) * row_bytes:
            return
        # Chunks have a multiple of 8 bytes.
        chunk_bytes = 8 * row_bytes * max(1, _BLOCK_BYTES // (8 * row_bytes))
        checksum = 0
        for chunk in stored.reader.chunks(stored.index, chunk_bytes):
            checksum = zlib.crc32(chunk, checksum)
            yield np.frombuffer(chunk, stored.dtype).reshape(-1, size)
        _compare(name, stored, checksum)
        self._read.add(name)

    def finish(self) -> None:
        """Waits until everything that was read has been compared with its checksum.

        Raises:
            SnapshotError: where something is damaged.
        """
        for check in self._checks:
            check.result()

    def _open(self, directory: Path, listed: Sequence[Mapping[str, Any]]) -> None:
        readers: dict[str, tuple[FileReader, dict[str, int]]] = {}
        for each in listed:
            name, file = each["name"], each["file"]
            if file not in readers:
                reader = self._stack.enter_context(open_reader(directory / file))
                indices = {info.name: index for index, info in enumerate(reader.infos)}
                readers[file] = (reader, indices)
            reader, indices = readers[file]
            shape, dtype = tuple(each["shape"]), dtype_of(each["dtype"])
            index = indices.get(name)
            found = None if index is None else reader.infos[index]
            if index is None or found is None or (found.shape, found.dtype) != (shape, dtype):
                has = "none" if found is None else f"shape {found.shape} of {found.dtype}"
                raise SnapshotError(
                    f"{directory / file}: array {name!r} is to have shape {shape} of {dtype}, but "
                    f"there is {has}"
                )
            self._stored[name] = _Stored(
                reader, directory / file, index, shape, dtype, int(each["crc32"])
            )


class _SectionArrays:
    def __init__(self, part: PartReader, section: str) -> None:
        self._part = part
        self._section = section

    def describe(self, key: str) -> tuple[Shape, np.dtype[Any]]:
        """See ArraysReader."""
        stored = self._part.find(f"{self._section}/{key}")
        return stored.shape, stored.dtype

    def read(self, key: str, target: np.ndarray[Any, Any]) -> None:
        """See ArraysReader."""
        self._part.read(f"{self._section}/{key}", target)


def _check_content(name: str, stored: _Stored, view: memoryview) -> None:
    checksum = 0
    for begin in range(0, view.nbytes, _BLOCK_BYTES):
        checksum = zlib.crc32(view[begin : begin + _BLOCK_BYTES], checksum)
    _compare(name, stored, checksum)


def _compare(name: str, stored: _Stored, checksum: int) -> None:
    if checksum != stored.checksum:
        size = math.prod(stored.shape) * stored.dtype.itemsize
        raise SnapshotError(
            f"{stored.path}: array {name!r} ({size} bytes) is damaged: its CRC-32 is to be "
            f"{stored.checksum:08x}, but it is {checksum:08x}"
        )
