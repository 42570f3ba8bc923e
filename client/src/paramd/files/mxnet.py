"""MXNet's `.params` files: lists of NDArrays as MXNet 1.9.1 writes them, and the older layouts.

Everything is little-endian. A file is u64 0x112, u64 0, u64 count, the arrays, u64 count, the names
(u64 length, bytes); a plain list has no names. A shape is i32 rank and i64 dimensions. An array is

    u32 magic, i32 stype, [storage shape], shape, i32 device type, i32 device id, i32 type flag,
    [i32 type flag, shape: of each auxiliary array], elements, [auxiliary arrays]

where what is in brackets is there for sparse arrays only. V1 has no stype; before V1 the magic is
the rank and the dimensions are u32. V3 is V2 under NumPy's shape semantics, and dense.
Source: MXNet 1.9.1, src/ndarray/ndarray.cc, and the files that it wrote (tests/fixtures/mxnet).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paramd.context import Context
from paramd.files.contents import Contents, Extent, Layout, StoredTensor
from paramd.files.limits import MAX_EXPANSION_BYTES, MAX_NAME_BYTES, MAX_RANK, MAX_TENSORS
from paramd.files.source import BoolPart, ComputedPart, Fields, InputFile, Part, RawPart
from paramd.files.tensors import TensorInfo, shape_problem
from paramd.wire.dtypes import BFLOAT16

__all__ = ["lay_out", "scan"]

_LIST_MAGIC: Final = 0x112
_V1: Final = 0xF993FAC8
_V2: Final = 0xF993FAC9
_V3: Final = 0xF993FACA
_DENSE: Final = 0
_ROW_SPARSE: Final = 1
_CSR: Final = 2
_INT64: Final = 6

_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    0: np.dtype("<f4"),
    1: np.dtype("<f8"),
    2: np.dtype("<f2"),
    3: np.dtype("u1"),
    4: np.dtype("<i4"),
    5: np.dtype("i1"),
    _INT64: np.dtype("<i8"),
    7: np.dtype("?"),
    12: BFLOAT16,
}
_TYPE_FLAGS: Final = {dtype: flag for flag, dtype in _DTYPES.items()}


def scan(file: InputFile) -> Contents:
    """Finds the tensors of a `.params` file.

    Raises:
        FileFormatError: where the file is malformed.
    """
    fields = Fields(file)
    (magic,) = fields.unpack("Q", "the list's magic")
    if magic != _LIST_MAGIC:
        raise file.fail("byte 0", f"a list of NDArrays begins with 0x112, but got {magic:#x}")
    (reserved,) = fields.unpack("Q", "the reserved word")
    if reserved != 0:
        raise file.fail("byte 8", f"the reserved word is 0, but got {reserved:#x}")
    count = _count(fields, "the number of arrays")
    arrays = [_ArrayScan(fields, index).run() for index in range(count)]
    names_at = fields.position
    num_names = _count(fields, "the number of names")
    if num_names not in (0, count):
        raise file.fail(f"byte {names_at}", f"there are {count} arrays, but {num_names} names")
    names = [_name(fields, index) for index in range(num_names)] or map(str, range(count))
    if fields.position != file.size_bytes:
        raise file.fail(f"byte {fields.position}", "bytes follow the last name")
    tensors = tuple(array.named(name) for array, name in zip(arrays, names, strict=True))
    return Contents(tensors, named=num_names > 0)


def _count(fields: Fields, what: str) -> int:
    at = fields.position
    (count,) = fields.unpack("Q", what)
    if count > MAX_TENSORS:
        raise fields.file.fail(f"byte {at}", f"{what} is {count}, more than {MAX_TENSORS}")
    return count


def _name(fields: Fields, index: int) -> str:
    place = f"byte {fields.position} (name {index})"
    (size,) = fields.unpack("Q", f"the length of name {index}")
    if size > MAX_NAME_BYTES:
        raise fields.file.fail(place, f"the name has {size} bytes, more than {MAX_NAME_BYTES}")
    data = fields.take(size, f"name {index}")
    try:
        return data.decode()
    except UnicodeDecodeError as err:
        raise fields.file.fail(place, f"the name is not UTF-8: {data[:40]!r}") from err


@dataclass(frozen=True, slots=True)
class _Array:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    context: Context
    num_rows: int | None
    parts: tuple[Part, ...]
    place: str

    def named(self, name: str) -> StoredTensor:
        info = TensorInfo(
            name,
            self.shape,
            self.dtype,
            "default" if self.num_rows is None else "row_sparse",
            self.num_rows,
            self.context,
        )
        return StoredTensor(info, self.parts, f"{self.place[:-1]}, {name[:80]!r})")


class _ArrayScan:
    """Reads the header of one array, field by field, and goes past its elements."""

    def __init__(self, fields: Fields, index: int) -> None:
        self._fields = fields
        self._file = fields.file
        self._what = f"array {index}"
        self._place = f"byte {fields.position} ({self._what})"

    def run(self) -> _Array:
        (magic,) = self._fields.unpack("I", self._what)
        stype = _DENSE
        stored: tuple[int, ...] = ()
        if magic in (_V2, _V3):
            (stype,) = self._fields.unpack("i", self._what)
            if stype not in ((_DENSE, _ROW_SPARSE, _CSR) if magic == _V2 else (_DENSE,)):
                raise self._fail(f"storage type {stype} is unknown")
            if stype != _DENSE:
                stored = self._shape()
            shape = self._shape()
        elif magic == _V1:
            shape = self._shape()
        elif magic <= MAX_RANK:
            shape = self._fields.unpack(f"{magic}I", self._what)
        else:
            raise self._fail(f"an array does not begin with {magic:#x}")
        context = self._context()
        dtype = self._dtype()
        problem = shape_problem(shape, dtype.itemsize) or shape_problem(stored, dtype.itemsize)
        if problem is not None:
            raise self._fail(f"it {problem}")
        if stype == _ROW_SPARSE:
            return self._row_sparse(stored, shape, context, dtype)
        if stype == _CSR:
            return self._csr(stored, shape, context, dtype)
        elements = self._elements(self._array(shape, dtype), dtype)
        return _Array(shape, dtype, context, None, (elements,), self._place)

    def _row_sparse(
        self,
        stored: tuple[int, ...],
        shape: tuple[int, ...],
        context: Context,
        dtype: np.dtype[Any],
    ) -> _Array:
        (num_rows,) = self._auxiliary_shapes(1)
        if not shape or stored != (num_rows, *shape[1:]) or num_rows > shape[0]:
            raise self._fail(
                f"{num_rows} row ids and rows of the shape {stored} do not fit "
                f"the logical shape {shape}"
            )
        rows = self._elements(self._array(stored, dtype), dtype)
        ids = self._array((num_rows,), _DTYPES[_INT64])
        return _Array(shape, dtype, context, num_rows, (ids, rows), self._place)

    def _csr(
        self,
        stored: tuple[int, ...],
        shape: tuple[int, ...],
        context: Context,
        dtype: np.dtype[Any],
    ) -> _Array:
        num_offsets, num_columns = self._auxiliary_shapes(2)
        if len(shape) != 2 or stored != (num_columns,) or num_offsets != shape[0] + 1:
            raise self._fail(
                f"{stored} elements, {num_offsets} row offsets and {num_columns} column numbers "
                f"do not fit a csr array of the shape {shape}"
            )
        size = math.prod(shape) * dtype.itemsize
        if size > self._file.size_bytes + MAX_EXPANSION_BYTES:
            raise self._fail(
                f"csr arrays are read as dense, which takes {size} bytes here; more than the "
                f"file's size and {MAX_EXPANSION_BYTES} bytes are refused"
            )
        data = self._array(stored, dtype)
        offsets = self._array((num_offsets,), _DTYPES[_INT64])
        columns = self._array((num_columns,), _DTYPES[_INT64])
        csr = _Csr(shape, dtype, data, offsets, columns, self._place)
        csr.check(self._file)
        elements = self._elements(ComputedPart(size, csr.dense), dtype)
        return _Array(shape, dtype, context, None, (elements,), self._place)

    def _shape(self) -> tuple[int, ...]:
        (rank,) = self._fields.unpack("i", self._what)
        if not 0 <= rank <= MAX_RANK:
            raise self._fail(f"it has {rank} dimensions; 0 to {MAX_RANK} can be read")
        return self._fields.unpack(f"{rank}q", self._what)

    def _context(self) -> Context:
        device_type, device_id = self._fields.unpack("2i", self._what)
        if device_type not in Context.devtype2str or device_id < 0:
            raise self._fail(f"there is no device of type {device_type} and id {device_id}")
        return Context(Context.devtype2str[device_type], device_id)

    def _dtype(self) -> np.dtype[Any]:
        (flag,) = self._fields.unpack("i", self._what)
        if flag not in _DTYPES:
            known = ", ".join(f"{flag} ({dtype})" for flag, dtype in _DTYPES.items())
            raise self._fail(f"type flag {flag} is none of {known}")
        return _DTYPES[flag]

    def _auxiliary_shapes(self, count: int) -> list[int]:
        sizes = []
        for _ in range(count):
            (flag,) = self._fields.unpack("i", self._what)
            shape = self._shape()
            if flag != _INT64 or len(shape) != 1 or not 0 <= shape[0] < 1 << 60:
                raise self._fail(
                    f"an auxiliary array is int64 (type flag {_INT64}) of one dimension, "
                    f"but got type flag {flag} and the shape {shape}"
                )
            sizes.append(shape[0])
        return sizes

    def _array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> RawPart:
        size = math.prod(shape) * dtype.itemsize
        what = f"{self._what} of the shape {shape} and dtype {dtype}"
        return RawPart(self._fields.skip(size, what), size)

    def _elements(self, part: Part, dtype: np.dtype[Any]) -> Part:
        return BoolPart(part, self._place) if dtype.kind == "b" else part

    def _fail(self, message: str) -> Exception:
        return self._file.fail(self._place, message)


@dataclass(frozen=True, slots=True)
class _Csr:
    """A compressed-sparse-row array in a file.

    `offsets[i]` to `offsets[i + 1]` are the elements of row i, `columns` their columns.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    data: RawPart
    offsets: RawPart
    columns: RawPart
    place: str

    def check(self, file: InputFile) -> None:
        """Raises FileFormatError where offsets or columns are not what csr demands."""
        offsets, columns = self._load(file, self.offsets), self._load(file, self.columns)
        if offsets[0] != 0 or offsets[-1] != len(columns) or (offsets[1:] < offsets[:-1]).any():
            raise file.fail(self.place, "the row offsets do not rise from 0 to the element count")
        if ((columns < 0) | (columns >= self.shape[1])).any():
            raise file.fail(self.place, f"a column is not in 0 to {self.shape[1] - 1}")
        falls = columns[1:] <= columns[:-1]
        # Columns rise within a row; where a row begins they may fall.
        begins = offsets[(offsets > 0) & (offsets < len(columns))]
        falls[begins - 1] = False
        if falls.any():
            raise file.fail(self.place, "the columns of a row are not sorted and unique")

    def dense(self, file: InputFile) -> npt.NDArray[Any]:
        offsets, columns = self._load(file, self.offsets), self._load(file, self.columns)
        elements = np.empty(len(columns), self.dtype)
        file.fill_at(self.data.offset, elements.view(np.uint8).data)
        dense = np.zeros(self.shape, self.dtype)
        dense[np.repeat(np.arange(self.shape[0]), np.diff(offsets)), columns] = elements
        return dense

    @staticmethod
    def _load(file: InputFile, part: RawPart) -> npt.NDArray[np.int64]:
        values = np.empty(part.size_bytes // 8, np.int64)
        file.fill_at(part.offset, values.view(np.uint8).data)
        return values


def lay_out(infos: Sequence[TensorInfo], named: bool) -> Layout:
    """Where everything goes in a `.params` file.

    Dense tensors are written as V2, which MXNet reads by default. One of rank 0 makes all dense
    ones V3: MXNet writes such lists so, and reads them under `np_shape` only.
    """
    magic = _V3 if any(info.stype == "default" and not info.shape for info in infos) else _V2
    pieces = [(0, struct.pack("<3Q", _LIST_MAGIC, 0, len(infos)))]
    position = len(pieces[0][1])
    extents: list[Extent] = []
    for info in infos:
        header = _header(info, magic)
        pieces.append((position, header))
        position += len(header)
        rows = Extent(position, info.data_bytes)
        if info.stype == "row_sparse":
            # The rows come first in the file, and the ids first in the payload.
            extents.append(
                Extent(position + info.data_bytes, info.ids_bytes, id_limit=info.shape[0])
            )
        extents.append(rows)
        position += info.size_bytes
    names = [info.name.encode() for info in infos] if named else []
    tail = [struct.pack("<Q", len(names))]
    tail += [struct.pack("<Q", len(name)) + name for name in names]
    pieces.append((position, b"".join(tail)))
    return Layout(pieces, extents)


def _header(info: TensorInfo, magic: int) -> bytes:
    sparse = info.stype == "row_sparse"
    context = struct.pack("<2i", info.context.device_typeid, info.context.device_id)
    return b"".join(
        (
            struct.pack("<I", _V2 if sparse else magic),
            struct.pack("<i", _ROW_SPARSE if sparse else _DENSE),
            _pack_shape(info.data_shape) if sparse else b"",
            _pack_shape(info.shape),
            context,
            struct.pack("<i", _TYPE_FLAGS[info.dtype]),
            struct.pack("<i", _INT64) + _pack_shape(info.data_shape[:1]) if sparse else b"",
        )
    )


def _pack_shape(shape: tuple[int, ...]) -> bytes:
    return struct.pack(f"<i{len(shape)}q", len(shape), *shape)
