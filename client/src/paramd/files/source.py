"""A file that is being read: checked access to its bytes, and the parts of a tensor in it."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from paramd.errors import FileFormatError

__all__ = [
    "BoolPart",
    "ComputedPart",
    "Cursor",
    "Fields",
    "InputFile",
    "Part",
    "RawPart",
    "SwappedPart",
    "byte_view",
]

_WINDOW_BYTES = 4096
_MAX_MESSAGE_CHARS = 500


def byte_view(data: Any) -> memoryview:
    """The bytes of a buffer, or of an array of any dtype, without a copy.

    Raises:
        ValueError, TypeError: where they are not contiguous in C order.
    """
    if isinstance(data, np.ndarray):
        if not data.flags.c_contiguous:
            raise ValueError("the array is not contiguous in C order")
        return data.reshape(-1).view(np.uint8).data
    view = memoryview(data)
    # A memoryview with a zero in its shape cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")


class InputFile:
    """A regular file, open for reading.

    Args:
        path: the file.

    Attributes:
        path: the file, as text for messages.
        size_bytes: its size when it was opened; nothing is read beyond.

    Raises:
        OSError: where it cannot be opened, or is no regular file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        # Opening a FIFO without O_NONBLOCK waits for a writer.
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.ESPIPE
            raise OSError(code, "is not a regular file", self.path)
        self.size_bytes = status.st_size

    def fail(self, place: str, message: str) -> FileFormatError:
        """The error for something wrong at a place of this file."""
        # Much of a message may come from a hostile file.
        return FileFormatError(f"{self.path}: {place}: {message[:_MAX_MESSAGE_CHARS]}")

    def read_at(self, offset: int, size: int, what: str) -> bytes:
        """Reads exactly `size` bytes.

        Raises:
            FileFormatError: where the file ends before; nothing is allocated then.
        """
        self.check_range(offset, size, what)
        buffer = bytearray(size)
        self.fill_at(offset, memoryview(buffer))
        return bytes(buffer)

    def check_range(self, offset: int, size: int, what: str) -> None:
        """Raises FileFormatError where the file has no such bytes."""
        if offset < 0 or size < 0 or offset + size > self.size_bytes:
            raise self.fail(
                f"byte {offset}",
                f"{what} takes {size} bytes, but the file ends at byte {self.size_bytes}",
            )

    def fill_at(self, offset: int, view: memoryview) -> None:
        """Fills a buffer with the bytes from `offset` on.

        Raises:
            FileFormatError: where the file has become shorter since it was opened.
        """
        while view.nbytes:
            count = os.preadv(self._descriptor, [view], offset)
            if count == 0:
                raise self.fail(f"byte {offset}", "the file has become shorter while it was read")
            offset += count
            view = view[count:]

    def close(self) -> None:
        """Closes the file. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Fields:
    """Reads the fixed fields of a binary header, one after the other.

    Args:
        file: the file.
        position: where to begin.

    Attributes:
        position: offset of the next field.
    """

    def __init__(self, file: InputFile, position: int = 0) -> None:
        self.file = file
        self.position = position
        self._window = b""
        self._start = 0

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes.

        Raises:
            FileFormatError: where the file ends before.
        """
        begin = self.position - self._start
        if begin < 0 or begin + size > len(self._window):
            self.file.check_range(self.position, size, what)
            available = self.file.size_bytes - self.position
            self._window = self.file.read_at(
                self.position, max(size, min(_WINDOW_BYTES, available)), what
            )
            self._start, begin = self.position, 0
        self.position += size
        return self._window[begin : begin + size]

    def unpack(self, layout: str, what: str) -> tuple[int, ...]:
        """The next fields, of a `struct` layout of integers, little-endian."""
        layout = "<" + layout
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))

    def skip(self, size: int, what: str) -> int:
        """Goes past `size` bytes and returns where they begin.

        Raises:
            FileFormatError: where the file ends before.
        """
        self.file.check_range(self.position, size, what)
        begin = self.position
        self.position += size
        return begin


class Cursor(Protocol):
    """A place in a part that moves on as bytes are taken."""

    def fill(self, view: memoryview) -> None:
        """Fills a buffer of whole elements with the next bytes."""


class Part(Protocol):
    """A run of elements of a tensor's payload."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the payload that it gives."""

    def open(self, file: InputFile) -> Cursor:
        """A new cursor at its begin."""


@dataclass(frozen=True, slots=True)
class RawPart:
    """Bytes that the file holds as they are.

    Attributes:
        offset: where they begin in the file.
        size_bytes: how many.
    """

    offset: int
    size_bytes: int

    def open(self, file: InputFile) -> Cursor:
        """A new cursor at its begin."""
        return _RawCursor(file, self.offset)


class _RawCursor:
    def __init__(self, file: InputFile, offset: int) -> None:
        self._file = file
        self._offset = offset

    def fill(self, view: memoryview) -> None:
        self._file.fill_at(self._offset, view)
        self._offset += view.nbytes


@dataclass(frozen=True, slots=True)
class SwappedPart:
    """Big-endian elements, given as little-endian ones."""

    inner: Part
    item_size: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the payload that it gives."""
        return self.inner.size_bytes

    def open(self, file: InputFile) -> Cursor:
        """A new cursor at its begin."""
        return _SwappedCursor(self.inner.open(file), self.item_size)


class _SwappedCursor:
    def __init__(self, inner: Cursor, item_size: int) -> None:
        self._inner = inner
        self._dtype = np.dtype(f"u{item_size}")

    def fill(self, view: memoryview) -> None:
        self._inner.fill(view)
        np.frombuffer(view, self._dtype).byteswap(inplace=True)


@dataclass(frozen=True, slots=True)
class BoolPart:
    """Booleans, one byte each, checked to be 0 or 1: NumPy's are undefined with other bytes."""

    inner: Part
    place: str

    @property
    def size_bytes(self) -> int:
        """Bytes of the payload that it gives."""
        return self.inner.size_bytes

    def open(self, file: InputFile) -> Cursor:
        """A new cursor at its begin."""
        return _BoolCursor(file, self.inner.open(file), self.place)


class _BoolCursor:
    def __init__(self, file: InputFile, inner: Cursor, place: str) -> None:
        self._file = file
        self._inner = inner
        self._place = place

    def fill(self, view: memoryview) -> None:
        self._inner.fill(view)
        values = np.frombuffer(view, np.uint8)
        if values.size and values.max() > 1:
            raise self._file.fail(self._place, f"a bool is 0 or 1, but one is {values.max()}")


@dataclass(frozen=True, slots=True)
class ComputedPart:
    """Elements that have to be computed as a whole, in as much memory as they take.

    Attributes:
        size_bytes: bytes that it gives.
        compute: makes them, as an array whose bytes in C order are the payload.
    """

    size_bytes: int
    compute: Callable[[InputFile], np.ndarray[Any, Any]]

    def open(self, file: InputFile) -> Cursor:
        """A new cursor at its begin."""
        return _ComputedCursor(file, self.compute)


class _ComputedCursor:
    def __init__(
        self, file: InputFile, compute: Callable[[InputFile], np.ndarray[Any, Any]]
    ) -> None:
        self._file = file
        self._compute = compute
        self._bytes: np.ndarray[Any, Any] | None = None
        self._position = 0

    def fill(self, view: memoryview) -> None:
        if self._bytes is None:
            self._bytes = np.ascontiguousarray(self._compute(self._file)).reshape(-1).view(np.uint8)
        end = self._position + view.nbytes
        np.frombuffer(view, np.uint8)[:] = self._bytes[self._position : end]
        self._position = end
