"""Writing a file of any format, atomically, as its payload comes in."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import zlib
from types import TracebackType
from typing import Any

import numpy as np

from paramd.errors import InvalidStreamError
from paramd.files.contents import Layout
from paramd.files.source import byte_view
from paramd.files.tensors import first_bad_row

__all__ = ["FileWriter"]

_ID_BLOCK_BYTES = 1 << 20


class FileWriter:
    """A file that is being written, in a `with` block. Made by `open_writer`.

    The bytes go to a temporary file beside the target. When the block ends without an error and
    with every byte written, the temporary file is synced to disk and takes the target's place in
    one step; a symbolic link is followed, and an existing file passes on its permissions. Otherwise
    it is removed and the target stays as it was.

    Args:
        path: the target.
        layout: what goes where.

    Raises:
        OSError: from the system, as it is (no space, no permission, ...); also where the target
            exists and is no regular file.
        InvalidStreamError: where more or fewer bytes came than the tensors have, or row ids that
            are not sorted, unique and in range.
    """

    def __init__(self, path: str | os.PathLike[str], layout: Layout) -> None:
        self._path = os.fspath(path)
        self._target = os.path.realpath(self._path)
        self._layout = layout
        self._size = sum(extent.size_bytes for extent in layout.extents)
        self._written = 0
        self._index = 0
        self._offset = 0
        self._last_id = -1
        self._partial_id = b""
        self._checksums = [extent.checksum or 0 for extent in layout.extents]
        self._descriptor = -1
        self._temporary = ""

    def __enter__(self) -> FileWriter:
        mode = self._target_mode()
        directory, name = os.path.split(self._target)
        # A long name leaves no room for what makes the temporary one unique.
        self._temporary = os.path.join(directory, f".{name[:40]}.{secrets.token_hex(8)}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._descriptor = os.open(self._temporary, flags, 0o666)
        except OSError as err:
            # Under the name that the caller knows.
            raise OSError(err.errno, err.strerror, self._path) from None
        try:
            if mode is not None:
                os.fchmod(self._descriptor, mode)
            for offset, piece in self._layout.pieces:
                self._put(offset, memoryview(piece))
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, data: Any) -> None:
        """Writes the next bytes of the payload.

        Args:
            data: a buffer or array, contiguous in C order, of any size: the payloads of all
                tensors come one after the other, without regard to where one ends.

        Raises:
            InvalidStreamError: where they are more than the tensors have, or hold bad row ids.
            OSError: where writing fails.
        """
        view = byte_view(data)
        if self._written + view.nbytes > self._size:
            raise InvalidStreamError(
                f"{self._path}: the tensors have {self._size} bytes, but "
                f"{self._written + view.nbytes} came"
            )
        while view.nbytes:
            extent = self._layout.extents[self._index]
            count = min(view.nbytes, extent.size_bytes - self._offset)
            if count and extent.id_limit is not None:
                count = min(count, _ID_BLOCK_BYTES)
                self._check_ids(view[:count], extent.id_limit)
            if count:
                self._put(extent.offset + self._offset, view[:count])
                if extent.checksum is not None:
                    self._checksums[self._index] = zlib.crc32(
                        view[:count], self._checksums[self._index]
                    )
                self._offset += count
                self._written += count
                view = view[count:]
            if self._offset == extent.size_bytes:
                self._index, self._offset, self._last_id = self._index + 1, 0, -1

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc_type is None:
                self._commit()
        finally:
            self._discard()

    def _target_mode(self) -> int | None:
        try:
            mode = os.stat(self._target).st_mode
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(mode):
            # Replacing a FIFO or a device by a file is never what was meant.
            code = errno.EISDIR if stat.S_ISDIR(mode) else errno.ESPIPE
            raise OSError(code, "is not a regular file", self._path)
        return stat.S_IMODE(mode)

    def _check_ids(self, view: memoryview, limit: int) -> None:
        # A file with other ids could not be read again. A chunk may end inside of one.
        data = self._partial_id + view
        whole = len(data) - len(data) % 8
        ids = np.frombuffer(data[:whole], np.dtype("<i8"))
        bad = first_bad_row(ids, self._last_id, limit)
        if bad is not None:
            raise InvalidStreamError(
                f"{self._path}: row ids are sorted, unique and below {limit}, but {ids[bad]} came "
                f"after {ids[bad - 1] if bad else self._last_id}"
            )
        self._partial_id = data[whole:]
        if ids.size:
            self._last_id = int(ids[-1])

    def _put(self, offset: int, view: memoryview) -> None:
        while view.nbytes:
            count = os.pwrite(self._descriptor, view, offset)
            offset += count
            view = view[count:]

    def _commit(self) -> None:
        if self._written != self._size:
            raise InvalidStreamError(
                f"{self._path}: the tensors have {self._size} bytes, but only {self._written} came"
            )
        if self._layout.finish is not None:
            for offset, piece in self._layout.finish(self._checksums):
                self._put(offset, memoryview(piece))
        os.fsync(self._descriptor)
        os.replace(self._temporary, self._target)
        self._temporary = ""
        directory = os.open(os.path.dirname(self._target), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _discard(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)
            self._temporary = ""
