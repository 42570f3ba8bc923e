"""Reading a file of any format, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from paramd.files.contents import Contents, StoredTensor
from paramd.files.limits import MAX_EXPANSION_BYTES, MAX_NAME_BYTES
from paramd.files.source import InputFile, byte_view
from paramd.files.tensors import RowSparseRows, TensorInfo, first_bad_row

__all__ = ["FileReader"]

_BLOCK_BYTES = 1 << 20
_MIN_CHUNK_BYTES = 8


class FileReader:
    """A file whose structure has been checked, open for reading. Made by `open_reader`.

    Leaving the `with` block, or `close`, closes the file. Several threads may read different
    tensors, or the same one, at the same time.

    Attributes:
        infos: descriptions of the tensors, in the file's order.
        named: False for a plain list, whose tensors get the names '0', '1', ...
    """

    def __init__(self, file: InputFile, contents: Contents) -> None:
        self._file = file
        self._tensors = contents.tensors
        self.named = contents.named
        self.infos: tuple[TensorInfo, ...] = tuple(tensor.info for tensor in contents.tensors)
        self._check_names()
        self._check_expansion()
        for tensor in self._tensors:
            if tensor.info.stype == "row_sparse":
                self._check_ids(tensor)

    def __enter__(self) -> FileReader:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file. Idempotent."""
        self._file.close()

    def chunks(self, index: int, chunk_bytes: int) -> Iterator[memoryview]:
        """The payload of a tensor, piece by piece.

        Args:
            index: of the tensor in `infos`.
            chunk_bytes: most bytes of a piece, at least 8. Pieces hold whole elements, and ids and
                rows are never in one piece. Each has memory of its own.

        Raises:
            FileFormatError: where the file is damaged in a way that only shows now: a wrong
                checksum, bad compressed data, a bool that is neither 0 nor 1.
            OSError: where reading fails.
        """
        if chunk_bytes < _MIN_CHUNK_BYTES:
            raise ValueError(f"chunk_bytes is at least {_MIN_CHUNK_BYTES}, but got {chunk_bytes}")
        chunk_bytes -= chunk_bytes % _MIN_CHUNK_BYTES
        for part in self._tensors[index].parts:
            cursor = part.open(self._file)
            for begin in range(0, part.size_bytes, chunk_bytes):
                chunk = memoryview(bytearray(min(chunk_bytes, part.size_bytes - begin)))
                cursor.fill(chunk)
                yield chunk

    def read_into(self, index: int, buffer: Any) -> None:
        """Reads the payload of a tensor into a buffer.

        Args:
            index: of the tensor in `infos`.
            buffer: a buffer or array, writable and contiguous in C order, of
                `infos[index].size_bytes` bytes.

        Raises:
            FileFormatError, OSError: as in `chunks`.
            ValueError: where the buffer has another size.
        """
        view = byte_view(buffer)
        size = self.infos[index].size_bytes
        if view.nbytes != size:
            raise ValueError(f"the buffer has {size} bytes, but got one of {view.nbytes}")
        for part in self._tensors[index].parts:
            cursor = part.open(self._file)
            # In blocks, so that what is checked or summed on the way stays in the cache.
            for begin in range(0, part.size_bytes, _BLOCK_BYTES):
                end = min(begin + _BLOCK_BYTES, part.size_bytes)
                cursor.fill(view[begin:end])
            view = view[part.size_bytes :]

    def read(self, index: int) -> npt.NDArray[Any] | RowSparseRows:
        """A tensor as an array of its own, or as the rows that are stored.

        Args:
            index: of the tensor in `infos`.

        Raises:
            FileFormatError, OSError: as in `chunks`.
        """
        info = self.infos[index]
        payload = np.empty(info.size_bytes, np.uint8)
        self.read_into(index, payload)
        data = payload[info.ids_bytes :].view(info.dtype).reshape(info.data_shape)
        if info.stype == "default":
            return data
        return RowSparseRows(payload[: info.ids_bytes].view(np.int64), data, info.shape)

    def _check_names(self) -> None:
        seen: set[str] = set()
        for tensor in self._tensors:
            name = tensor.info.name
            if name in seen:
                raise self._file.fail(tensor.place, f"there are two tensors of the name {name!r}")
            seen.add(name)
            try:
                size = len(name.encode())
            except UnicodeEncodeError as err:
                raise self._file.fail(
                    tensor.place, f"the name {name!r} has no UTF-8 encoding"
                ) from err
            if size > MAX_NAME_BYTES:
                raise self._file.fail(
                    tensor.place, f"the name has {size} bytes, more than {MAX_NAME_BYTES}"
                )

    def _check_expansion(self) -> None:
        size = sum(info.size_bytes for info in self.infos)
        limit = self._file.size_bytes + MAX_EXPANSION_BYTES
        if size > limit:
            raise self._file.fail(
                f"byte {self._file.size_bytes} (the end)",
                f"the tensors take {size} bytes, more than the file's own size and "
                f"{MAX_EXPANSION_BYTES} bytes for what is compressed or csr in it; "
                "save it uncompressed and dense",
            )

    def _check_ids(self, tensor: StoredTensor) -> None:
        part = tensor.parts[0]
        cursor = part.open(self._file)
        last = -1
        for begin in range(0, part.size_bytes, _BLOCK_BYTES):
            ids = np.empty(min(_BLOCK_BYTES, part.size_bytes - begin) // 8, np.int64)
            cursor.fill(ids.view(np.uint8).data)
            bad = first_bad_row(ids, last, tensor.info.shape[0])
            if bad is not None:
                raise self._file.fail(
                    tensor.place,
                    f"row ids are sorted, unique and below {tensor.info.shape[0]}, but id "
                    f"{begin // 8 + bad} is {ids[bad]} after {ids[bad - 1] if bad else last}",
                )
            last = int(ids[-1])
