"""`.npz` files: NumPy's archives of `.npy` members.

What NumPy's format cannot say is in the member `__paramd__.npy`, as the UTF-8 bytes of the sidecar:
row_sparse tensors are two members, bfloat16 elements are stored as uint16 of the same bits, and
names that would be dangerous or ambiguous in an archive get a member of another name.
Source: numpy.lib.format, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import ast
import math
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paramd.files.contents import Contents, Extent, Layout
from paramd.files.limits import MAX_HEADER_BYTES, MAX_TENSORS
from paramd.files.sidecar import StoredArray, assemble, assign_keys, encode, in_key_order
from paramd.files.source import BoolPart, ComputedPart, Cursor, InputFile, Part, SwappedPart
from paramd.files.tensors import TensorInfo, shape_problem
from paramd.files.zip_archive import (
    DATA_OFFSET_OF_CRC,
    Member,
    MemberStream,
    NewMember,
    central_directory,
    local_header,
    read_directory,
)
from paramd.wire.dtypes import BFLOAT16

__all__ = ["lay_out", "scan"]

_SIDECAR: Final = "__paramd__"
_SUFFIX: Final = ".npy"
_MAGIC: Final = b"\x93NUMPY"
_MAX_KEY_BYTES: Final = 4096
# As NumPy: a longer header is an attack on the parser.
_MAX_NPY_HEADER_BYTES: Final = 10_000
_ALIGNMENT: Final = 64

_DESCRIPTIONS: Final = {
    dtype.str: dtype
    for dtype in map(np.dtype, ("<f4", "<f8", "<f2", "u1", "i1", "<i4", "<i8", "?", "<u2"))
}
_SWAPPED: Final = {">" + text[1:]: dtype for text, dtype in _DESCRIPTIONS.items() if text[0] == "<"}


@dataclass(frozen=True, slots=True)
class _MemberPart:
    member: Member
    header_bytes: int

    @property
    def size_bytes(self) -> int:
        return self.member.size_bytes - self.header_bytes

    def open(self, file: InputFile) -> Cursor:
        stream = MemberStream(file, self.member)
        stream.read(self.header_bytes)
        return stream


def scan(file: InputFile) -> Contents:
    """Finds the tensors of a `.npz` file.

    Raises:
        FileFormatError: where the file is malformed.
    """
    arrays, sidecar, place = [], None, "archive"
    for member in read_directory(file, 2 * MAX_TENSORS + 1):
        if not member.name.endswith(_SUFFIX):
            raise file.fail(member.place, f"it is no array: its name does not end in {_SUFFIX}")
        array = _read_header(file, member)
        if array.key != _SIDECAR:
            arrays.append(array)
            continue
        if array.dtype != np.uint8 or not 0 < array.part.size_bytes <= MAX_HEADER_BYTES:
            raise file.fail(member.place, "the metadata are bytes, but this array has none")
        buffer = bytearray(array.part.size_bytes)
        array.part.open(file).fill(memoryview(buffer))
        sidecar, place = bytes(buffer), member.place
    return assemble(arrays, sidecar, file, place)


def _read_header(file: InputFile, member: Member) -> StoredArray:
    stream = MemberStream(file, member)
    magic, major, _minor = struct.unpack("<6s2B", stream.read(8))
    if magic != _MAGIC or major not in (1, 2, 3):
        raise file.fail(member.place, f"it is no .npy array of version 1 to 3: {magic!r}, {major}")
    length = "<H" if major == 1 else "<I"
    prefix = 8 + struct.calcsize(length)
    (size,) = struct.unpack(length, stream.read(struct.calcsize(length)))
    if size > _MAX_NPY_HEADER_BYTES:
        raise file.fail(
            member.place, f"the header has {size} bytes, more than {_MAX_NPY_HEADER_BYTES}"
        )
    text = stream.read(size).decode("utf-8" if major == 3 else "latin-1", errors="replace")
    description, fortran, shape = _parse_header(text, file, member.place)
    dtype = _DESCRIPTIONS.get(description) or _SWAPPED.get(description)
    if dtype is None:
        known = ", ".join(_DESCRIPTIONS)
        detail = "pickled objects are never read" if description[1:] == "O" else f"one of {known}"
        raise file.fail(member.place, f"dtype {description[:80]!r} cannot be read: {detail}")
    problem = shape_problem(shape, dtype.itemsize)
    if problem is not None:
        raise file.fail(member.place, f"it {problem}")
    part: Part = _MemberPart(member, prefix + size)
    expected = math.prod(shape) * dtype.itemsize
    if part.size_bytes != expected:
        raise file.fail(
            member.place,
            f"shape {shape} of {dtype} takes {expected} bytes, but {part.size_bytes} are there",
        )
    if description in _SWAPPED:
        part = SwappedPart(part, dtype.itemsize)
    if fortran:
        part = ComputedPart(expected, _FortranArray(part, shape, dtype).load)
    if dtype.kind == "b":
        part = BoolPart(part, member.place)
    return StoredArray(member.name.removesuffix(_SUFFIX), shape, dtype, part, member.place)


def _parse_header(text: str, file: InputFile, place: str) -> tuple[str, bool, tuple[int, ...]]:
    try:
        header: Any = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as err:
        raise file.fail(place, f"malformed header: {text[:80]!r}") from err
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise file.fail(place, f"malformed header: {text[:80]!r}")
    description, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    if not isinstance(description, str) or not isinstance(fortran, bool):
        raise file.fail(place, f"only arrays of plain numbers can be read: {text[:80]!r}")
    if not isinstance(shape, tuple) or any(type(size) is not int for size in shape):
        raise file.fail(place, f"the shape is no tuple of whole numbers: {text[:80]!r}")
    return description, fortran, shape


@dataclass(frozen=True, slots=True)
class _FortranArray:
    """An array whose elements are in Fortran order in the file."""

    part: Part
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def load(self, file: InputFile) -> npt.NDArray[Any]:
        payload = np.empty(self.part.size_bytes, np.uint8)
        self.part.open(file).fill(payload.data)
        return payload.view(self.dtype).reshape(self.shape, order="F")


def lay_out(infos: Sequence[TensorInfo], named: bool) -> Layout:
    """Where everything goes in a `.npz` file."""
    keys = assign_keys(infos, _is_key)
    sidecar = encode(infos, keys, named=named, has_bfloat16=False)
    pieces: list[tuple[int, bytes]] = []
    members: list[NewMember] = []
    extents: list[Extent] = []
    fixed_checksums: list[int] = []
    position = 0
    if sidecar is not None:
        data = sidecar.encode()
        content = _header((len(data),), np.dtype("u1")) + data
        members.append(NewMember(_SIDECAR + _SUFFIX, len(content), 0))
        fixed_checksums.append(zlib.crc32(content))
        pieces.append((0, local_header(members[0], fixed_checksums[0]) + content))
        position = len(pieces[0][1])
    for array in in_key_order(infos, keys):
        dtype = np.dtype("<u2") if array.dtype == BFLOAT16 else array.dtype
        header, size = _header(array.shape, dtype), array.size_bytes
        member = NewMember(array.key + _SUFFIX, len(header) + size, position)
        head = local_header(member) + header
        members.append(member)
        pieces.append((position, head))
        extents.append(
            Extent(position + len(head), size, zlib.crc32(header), id_limit=array.id_limit)
        )
        position += len(head) + size

    def finish(checksums: Sequence[int]) -> list[tuple[int, bytes]]:
        late = members[len(fixed_checksums) :]
        patches = [
            (member.begin + DATA_OFFSET_OF_CRC, struct.pack("<I", checksum))
            for member, checksum in zip(late, checksums, strict=True)
        ]
        directory = central_directory(members, [*fixed_checksums, *checksums], position)
        return [*patches, (position, directory)]

    return Layout(pieces, extents, finish)


def _is_key(name: str) -> bool:
    """Whether a member can safely be named so, and is found again by NumPy under that name."""
    # Programs that extract an archive must not write outside of their folder.
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or re.match("[A-Za-z]:", name):
        return False
    if "\0" in name or "\\" in name or len(name.encode()) > _MAX_KEY_BYTES:
        return False
    # NumPy drops the suffix of a key, so 'a.npy' would stand for 'a' too.
    return name != _SIDECAR and not name.endswith(_SUFFIX)


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    unpadded = len(_MAGIC) + 4 + len(text) + 1
    text += " " * (-unpadded % _ALIGNMENT) + "\n"
    return _MAGIC + struct.pack("<2BH", 1, 0, len(text)) + text.encode()
