"""ZIP archives, as far as `.npz` needs them: stored and deflated members, ZIP64.

Reading trusts no size and no offset that it has not compared with the file's real size, and writing
needs no second pass: sizes are known before the payload comes, CRCs are filled in after it.
Source: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from paramd.files.source import Fields, InputFile

__all__ = [
    "DATA_OFFSET_OF_CRC",
    "Member",
    "MemberStream",
    "NewMember",
    "central_directory",
    "local_header",
    "read_directory",
]

DATA_OFFSET_OF_CRC: Final = 14
"""Where the CRC is in a local header."""

_END: Final = struct.Struct("<4s4H2IH")
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_LOCATOR: Final = struct.Struct("<4sIQI")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_END_MAGIC: Final = b"PK\x05\x06"
_END64_MAGIC: Final = b"PK\x06\x06"
_LOCATOR_MAGIC: Final = b"PK\x06\x07"
_CENTRAL_MAGIC: Final = b"PK\x01\x02"
_LOCAL_MAGIC: Final = b"PK\x03\x04"
_MAX16: Final = 0xFFFF
_MAX32: Final = 0xFFFFFFFF
_ENCRYPTED: Final = 0x1
_UTF8: Final = 0x800
_STORED: Final = 0
_DEFLATED: Final = 8
_ZIP64_EXTRA: Final = 1
_BLOCK_BYTES: Final = 1 << 16
# 1980-01-01, the earliest date of the format: the same tensors give the same bytes at any time.
_DATE: Final = 0x21
_UNIX: Final = 3 << 8


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive.

    Attributes:
        name: its name.
        method: 0 stored, 8 deflated.
        checksum: CRC-32 of its bytes.
        stored_bytes: its bytes in the file.
        size_bytes: its bytes when they are inflated, as the archive says.
        begin: where its local header begins.
        data_begin: where its bytes begin.
        place: for messages.
    """

    name: str
    method: int
    checksum: int
    stored_bytes: int
    size_bytes: int
    begin: int
    data_begin: int
    place: str


def read_directory(file: InputFile, max_members: int) -> list[Member]:
    """The members of an archive, in the order of its directory.

    Raises:
        FileFormatError: where it is no archive, or malformed, encrypted, split, or has overlapping
            members, two of one name, or more than `max_members`.
    """
    count, size, begin = _find_directory(file)
    if count > max_members:
        raise file.fail(f"byte {begin}", f"{count} members are more than {max_members}")
    fields = Fields(file, begin)
    members = [_read_member(fields, index) for index in range(count)]
    if fields.position != begin + size:
        raise file.fail(f"byte {fields.position}", f"{count} members do not fill the directory")
    names: set[str] = set()
    for member in members:
        if member.name in names:
            raise file.fail(member.place, "there are two members of this name")
        names.add(member.name)
    end = 0
    for member in sorted(members, key=lambda member: member.begin):
        if member.begin < end:
            raise file.fail(member.place, f"it begins at byte {member.begin}, inside of another")
        end = member.data_begin + member.stored_bytes
    if end > begin:
        raise file.fail(f"byte {begin}", "a member reaches into the directory")
    return members


def _find_directory(file: InputFile) -> tuple[int, int, int]:
    tail_begin = max(0, file.size_bytes - _END.size - _MAX16)
    tail = file.read_at(tail_begin, file.size_bytes - tail_begin, "the end")
    at = tail.rfind(_END_MAGIC)
    # The comment may hold the magic too; the real one has a comment that reaches to the end.
    while at >= 0 and not _is_end(tail, at):
        at = tail.rfind(_END_MAGIC, 0, at)
    if at < 0:
        raise file.fail(f"byte {file.size_bytes} (the end)", "no directory of a ZIP archive")
    end = tail_begin + at
    _, disk, first_disk, here, count, size, begin, _ = _END.unpack_from(tail, at)
    if _MAX16 in (here, count) or _MAX32 in (size, begin):
        end, (disk, first_disk, here, count, size, begin) = _find_directory64(file, end)
    if disk or first_disk or here != count:
        raise file.fail(f"byte {end}", "the archive is split into several files")
    if begin + size != end:
        raise file.fail(
            f"byte {end}", f"the directory takes {size} bytes from byte {begin} on, not up to here"
        )
    return count, size, begin


def _is_end(tail: bytes, at: int) -> bool:
    comment_begin = at + _END.size
    if comment_begin > len(tail):
        return False
    comment_bytes = int.from_bytes(tail[comment_begin - 2 : comment_begin], "little")
    return comment_begin + comment_bytes == len(tail)


def _find_directory64(file: InputFile, end: int) -> tuple[int, tuple[int, ...]]:
    what = "the ZIP64 locator"
    magic, _, at, _ = _LOCATOR.unpack(file.read_at(end - _LOCATOR.size, _LOCATOR.size, what))
    if magic != _LOCATOR_MAGIC:
        raise file.fail(f"byte {end - _LOCATOR.size}", f"expected {what}")
    magic, _, _, _, *values = _END64.unpack(file.read_at(at, _END64.size, "the ZIP64 end"))
    if magic != _END64_MAGIC:
        raise file.fail(f"byte {at}", "expected the ZIP64 end of the directory")
    return at, tuple(values)


def _read_member(fields: Fields, index: int) -> Member:
    file = fields.file
    place = f"byte {fields.position} (member {index})"
    what = f"member {index} of the directory"
    (
        magic, _, _, flags, method, _, _, checksum, stored, size,
        name_size, extra_size, comment_size, _, _, _, begin,
    ) = _CENTRAL.unpack(fields.take(_CENTRAL.size, what))  # fmt: skip
    if magic != _CENTRAL_MAGIC:
        raise file.fail(place, "expected a member of the directory")
    raw_name = fields.take(name_size, what)
    extra = fields.take(extra_size, what)
    fields.take(comment_size, what)
    name = _decode_name(raw_name, flags, file, place)
    place = f"{place[:-1]}, {name[:80]!r})"
    if flags & _ENCRYPTED:
        raise file.fail(place, "it is encrypted")
    if method not in (_STORED, _DEFLATED):
        raise file.fail(place, f"compression method {method} is neither stored nor deflated")
    size, stored, begin = _extended(extra, (size, stored, begin), file, place)
    if method == _STORED and stored != size:
        raise file.fail(place, f"it is stored, but {size} bytes take {stored}")
    data_begin = _check_local(file, begin, raw_name, place)
    file.check_range(data_begin, stored, what)
    return Member(name, method, checksum, stored, size, begin, data_begin, place)


def _decode_name(raw: bytes, flags: int, file: InputFile, place: str) -> str:
    try:
        return raw.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError as err:
        raise file.fail(place, f"the name is not UTF-8: {raw[:40]!r}") from err


def _extended(
    extra: bytes, values: tuple[int, int, int], file: InputFile, place: str
) -> tuple[int, ...]:
    """Replaces the values that are 0xFFFFFFFF by those of the ZIP64 field, in its order."""
    if _MAX32 not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        at += 4
        if kind == _ZIP64_EXTRA:
            wide = iter(struct.unpack_from(f"<{min(size, len(extra) - at) // 8}Q", extra, at))
            try:
                return tuple(next(wide) if value == _MAX32 else value for value in values)
            except (StopIteration, RuntimeError) as err:
                raise file.fail(place, "the ZIP64 sizes are incomplete") from err
        at += size
    raise file.fail(place, "the ZIP64 sizes are missing")


def _check_local(file: InputFile, begin: int, raw_name: bytes, place: str) -> int:
    local = file.read_at(begin, _LOCAL.size, f"the header of {place}")
    magic, *_, name_size, extra_size = _LOCAL.unpack(local)
    if magic != _LOCAL_MAGIC:
        raise file.fail(place, f"no member begins at byte {begin}")
    if name_size != len(raw_name) or raw_name != file.read_at(
        begin + _LOCAL.size, name_size, f"the name of {place}"
    ):
        raise file.fail(place, f"the member at byte {begin} has another name")
    return begin + _LOCAL.size + int(name_size) + int(extra_size)


class MemberStream:
    """The bytes of a member, inflated and checked against size and CRC, in bounded memory."""

    def __init__(self, file: InputFile, member: Member) -> None:
        self._file = file
        self._member = member
        self._position = member.data_begin
        self._end = member.data_begin + member.stored_bytes
        self._left = member.size_bytes
        self._checksum = 0
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._pending = b""

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes.

        Raises:
            FileFormatError: where the member is shorter, or damaged.
        """
        if size > self._left:
            raise self._fail(f"{size} more bytes expected, but only {self._left} are left")
        buffer = bytearray(size)
        self.fill(memoryview(buffer))
        return bytes(buffer)

    def fill(self, view: memoryview) -> None:
        """Fills a buffer with the next bytes.

        Raises:
            FileFormatError: where the member is shorter, or damaged.
        """
        if view.nbytes > self._left:
            raise self._fail(f"{view.nbytes} more bytes expected, but only {self._left} are left")
        if self._member.method == _STORED:
            self._file.fill_at(self._position, view)
            self._position += view.nbytes
        else:
            self._inflate_into(view)
        self._checksum = zlib.crc32(view, self._checksum)
        self._left -= view.nbytes
        if self._left == 0:
            self._finish()

    def _inflate_into(self, view: memoryview) -> None:
        while view.nbytes:
            data = self._inflate(view.nbytes)
            if not data and self._exhausted:
                raise self._fail("the compressed data end early")
            view[: len(data)] = data
            view = view[len(data) :]

    @property
    def _exhausted(self) -> bool:
        return self._inflater.eof or (self._position == self._end and not self._pending)

    def _inflate(self, size: int) -> bytes:
        if not self._pending and self._position < self._end and not self._inflater.eof:
            count = min(_BLOCK_BYTES, self._end - self._position)
            self._pending = self._file.read_at(self._position, count, self._member.place)
            self._position += count
        try:
            data = self._inflater.decompress(self._pending, size)
        except zlib.error as err:
            raise self._fail(f"malformed compressed data: {err}") from err
        self._pending = self._inflater.unconsumed_tail
        return data

    def _finish(self) -> None:
        if self._member.method == _DEFLATED:
            # The mark of the end may come after the last byte.
            while not self._exhausted:
                if self._inflate(1):
                    raise self._fail(f"it holds more than {self._member.size_bytes} bytes")
            if not self._inflater.eof:
                raise self._fail("the compressed data end early")
        if self._checksum != self._member.checksum:
            raise self._fail(
                f"the checksum is {self._checksum:#010x}, but {self._member.checksum:#010x} "
                "is recorded: the data are damaged"
            )

    def _fail(self, message: str) -> Exception:
        return self._file.fail(self._member.place, message)


@dataclass(frozen=True, slots=True)
class NewMember:
    """A stored member that is to be written.

    Attributes:
        name: its name.
        size_bytes: its bytes.
        begin: where its local header begins.
    """

    name: str
    size_bytes: int
    begin: int


def local_header(member: NewMember, checksum: int = 0) -> bytes:
    """What precedes a member's bytes; the CRC at `DATA_OFFSET_OF_CRC` may be filled in later."""
    name = member.name.encode()
    size, extra = member.size_bytes, b""
    if size >= _MAX32:
        extra = struct.pack("<2H2Q", _ZIP64_EXTRA, 16, size, size)
        size = _MAX32
    flags = 0 if member.name.isascii() else _UTF8
    fixed = _LOCAL.pack(
        _LOCAL_MAGIC, 45 if extra else 20, flags, _STORED, 0, _DATE, checksum, size, size,
        len(name), len(extra),
    )  # fmt: skip
    return fixed + name + extra


def central_directory(members: Sequence[NewMember], checksums: Sequence[int], begin: int) -> bytes:
    """What follows the members, from byte `begin` on."""
    pieces = [_central(member, crc) for member, crc in zip(members, checksums, strict=True)]
    size, count = sum(map(len, pieces)), len(members)
    if count >= _MAX16 or size >= _MAX32 or begin >= _MAX32:
        pieces.append(_END64.pack(_END64_MAGIC, 44, 45, 45, 0, 0, count, count, size, begin))
        pieces.append(_LOCATOR.pack(_LOCATOR_MAGIC, 0, begin + size, 1))
    count, size, begin = min(count, _MAX16), min(size, _MAX32), min(begin, _MAX32)
    pieces.append(_END.pack(_END_MAGIC, 0, 0, count, count, size, begin, 0))
    return b"".join(pieces)


def _central(member: NewMember, checksum: int) -> bytes:
    name = member.name.encode()
    size, begin = member.size_bytes, member.begin
    wide = [*([size, size] if size >= _MAX32 else []), *([begin] if begin >= _MAX32 else [])]
    extra = struct.pack(f"<2H{len(wide)}Q", _ZIP64_EXTRA, 8 * len(wide), *wide) if wide else b""
    version = 45 if wide else 20
    flags = 0 if member.name.isascii() else _UTF8
    size, begin = min(size, _MAX32), min(begin, _MAX32)
    # The permission bits that an extracted file gets: rw-r--r--.
    fixed = _CENTRAL.pack(
        _CENTRAL_MAGIC, _UNIX | version, version, flags, _STORED, 0, _DATE, checksum, size, size,
        len(name), len(extra), 0, 0, 0, 0o100644 << 16, begin,
    )  # fmt: skip
    return fixed + name + extra
