"""Files that are damaged or lie: a FileFormatError that names file and place, in bounded memory."""

from __future__ import annotations

import io
import json
import pathlib
import struct
import tracemalloc
import zipfile
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paramd.errors import FileFormatError
from paramd.files import FORMATS, MAX_EXPANSION_BYTES, load_arrays, save_arrays
from tests.unit.files.samples import FIXTURES, Value, array, model, rows

V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA


def valid(suffix: str, folder: pathlib.Path) -> bytes:
    path = folder / f"valid.{suffix}"
    save_arrays(path, model())
    return path.read_bytes()


def load(data: bytes, suffix: str, folder: pathlib.Path) -> dict[str, Value]:
    path = folder / f"hostile.{suffix}"
    path.write_bytes(data)
    return load_arrays(path)


def refused(data: bytes, suffix: str, folder: pathlib.Path, match: str) -> None:
    """The file is refused with a message that names it, and without much memory."""
    path = folder / f"hostile.{suffix}"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=match) as caught:
            load_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data) + (2 << 20)
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_cut_at_any_byte_is_refused(suffix: str, tmp_path: pathlib.Path) -> None:
    data = valid(suffix, tmp_path)
    for size in range(len(data)):
        with pytest.raises(FileFormatError, match=r"hostile\."):
            load(data[:size], suffix, tmp_path)


@pytest.mark.parametrize("name", ["v1", "before_v1", "np_shape", "csr", "plain_list"])
def test_a_file_of_mxnet_cut_at_any_byte_is_refused(name: str, tmp_path: pathlib.Path) -> None:
    data = (FIXTURES / f"{name}.params").read_bytes()
    for size in range(len(data)):
        with pytest.raises(FileFormatError, match=r"hostile\."):
            load(data[:size], "params", tmp_path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_bytes_after_the_end_are_refused(suffix: str, tmp_path: pathlib.Path) -> None:
    refused(valid(suffix, tmp_path) + b"\0", suffix, tmp_path, "bytes follow|end here|no dir")


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_of_other_formats_are_refused(suffix: str, tmp_path: pathlib.Path) -> None:
    others = [valid(other, tmp_path) for other in FORMATS if other != suffix]
    for data in (*others, b"\x80\x04\x95pickle", b"\x93NUMPY\x01\0", b"\xff" * 100, bytes(100)):
        refused(data, suffix, tmp_path, "byte|header")


def corpus(suffix: str) -> list[bytes]:
    """Valid files to be damaged."""
    if suffix == "params":
        names = ("v1", "before_v1", "np_shape", "csr", "mixed", "plain_list", "names", "dense_all")
        return [(FIXTURES / f"{name}.params").read_bytes() for name in names]
    if suffix == "npz":
        compressed = io.BytesIO()
        np.savez_compressed(
            compressed, a=array((40,)), b=np.asfortranarray(array((3, 4)).astype(">f4"))
        )
        return [compressed.getvalue()]
    return []


@pytest.mark.parametrize("suffix", FORMATS)
@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_damage_gives_an_answer_or_a_format_error(
    suffix: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = bytearray(data.draw(st.sampled_from([valid(suffix, folder), *corpus(suffix)])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        kind = data.draw(st.sampled_from(["set", "cut", "insert", "remove", "word", "copy"]))
        if kind == "set":
            content[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(max_size=9))
        elif kind == "remove":
            del content[at : at + data.draw(st.integers(1, 9))]
        elif kind == "word":
            word = data.draw(st.sampled_from([-1, 0, 1, 7, 1 << 31, 1 << 40, -(1 << 63), 1 << 62]))
            content[at : at + 8] = struct.pack("<q", word)
        else:
            begin = data.draw(st.integers(0, max(0, len(content) - 1)))
            content[at : at + 8] = content[begin : begin + 8]
    message = ""
    try:
        load(bytes(content), suffix, folder)
    except FileFormatError as err:
        message = str(err)
    assert not message or f"hostile.{suffix}: " in message


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300))
def test_arbitrary_bytes_give_a_format_error(
    suffix: str, tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    if suffix == "params":
        content = struct.pack("<3Q", 0x112, 0, 2) + content
    with pytest.raises(FileFormatError):
        load(content, suffix, tmp_path_factory.getbasetemp())


def shape(*sizes: int) -> bytes:
    return struct.pack(f"<i{len(sizes)}q", len(sizes), *sizes)


def one(head: bytes, data: bytes = b"", names: tuple[bytes, ...] = (b"x",)) -> bytes:
    """A `.params` file of one array, by default on cpu(0) and float32."""
    tail = struct.pack("<Q", len(names))
    tail += b"".join(struct.pack("<Q", len(name)) + name for name in names)
    return struct.pack("<3Q", 0x112, 0, 1) + head + data + tail


def dense(*sizes: int, device: tuple[int, int] = (1, 0), flag: int = 0, magic: int = V2) -> bytes:
    return struct.pack("<Ii", magic, 0) + shape(*sizes) + struct.pack("<3i", *device, flag)


def row_sparse(
    ids: list[int],
    stored: tuple[int, ...],
    logical: tuple[int, ...],
    flag: int = 6,
    num_ids: int | None = None,
) -> bytes:
    return (
        struct.pack("<Ii", V2, 1)
        + shape(*stored)
        + shape(*logical)
        + struct.pack("<3i", 1, 0, 0)
        + struct.pack("<i", flag)
        + shape(len(ids) if num_ids is None else num_ids)
        + bytes(4 * max(0, int(np.prod(stored))) if max(stored, default=0) < 100 else 0)
        + np.array(ids, "<i8").tobytes()
    )


def csr(offsets: list[int], columns: list[int], logical: tuple[int, ...]) -> bytes:
    return (
        struct.pack("<Ii", V2, 2)
        + shape(len(columns))
        + shape(*logical)
        + struct.pack("<4i", 1, 0, 0, 6)
        + shape(len(offsets))
        + struct.pack("<i", 6)
        + shape(len(columns))
        + bytes(4 * len(columns))
        + np.array(offsets + columns, "<i8").tobytes()
    )


HUGE = 1 << 62
PARAMS = {
    "list magic": (b"\x13" + one(dense(1), bytes(4))[1:], "byte 0: .*0x112"),
    "reserved word": (struct.pack("<3Q", 0x112, 5, 0) + bytes(8), "byte 8: "),
    "count of arrays": (struct.pack("<3Q", 0x112, 0, HUGE), "byte 16: .*number of arrays"),
    "count without arrays": (struct.pack("<3Q", 0x112, 0, 9), "byte 24: "),
    "array magic": (one(struct.pack("<I", 0xDEADBEEF)), "0xdeadbeef"),
    "rank as magic": (one(struct.pack("<I", 33)), "0x21"),
    "storage type": (one(struct.pack("<Ii", V2, 3) + bytes(40)), "storage type 3"),
    "negative storage type": (one(struct.pack("<Ii", V2, -1) + bytes(40)), "storage type -1"),
    "sparse V3": (one(struct.pack("<Ii", V3, 1) + bytes(40)), "storage type 1"),
    "rank": (one(struct.pack("<Iii", V2, 0, 1 << 30)), "1073741824 dimensions"),
    "negative rank": (one(struct.pack("<Iii", V2, 0, -1)), "-1 dimensions"),
    "negative dimension": (one(dense(2, -3)), "negative dimension -3"),
    "negative dimensions": (one(dense(-2, -3), bytes(24)), "negative dimension -2"),
    "huge dimension": (one(dense(HUGE)), "array 0"),
    "large dimension": (one(dense(1 << 40)), "takes 4398046511104 bytes"),
    "overflowing dimensions": (one(dense(1 << 32, 1 << 32)), "no array can have"),
    "overflow beside zero": (one(dense(0, 1 << 40, 1 << 40)), "no array can have"),
    "device type": (one(dense(1, device=(4, 0)), bytes(4)), "no device of type 4"),
    "device id": (one(dense(1, device=(1, -1)), bytes(4)), "id -1"),
    "type flag": (one(dense(1, flag=8), bytes(4)), "type flag 8"),
    "negative type flag": (one(dense(1, flag=-1), bytes(4)), "type flag -1"),
    "bool": (one(dense(2, flag=7), b"\1\2"), "bool is 0 or 1"),
    "number of names": (one(dense(1), bytes(4), (b"x", b"y")), "1 arrays, but 2 names"),
    "huge number of names": (one(dense(1), bytes(4))[:-17] + b"\xff" * 8, "number of names"),
    "length of a name": (one(dense(1), bytes(4))[:-9] + b"\xff" * 8, "name has"),
    "name": (one(dense(1), bytes(4), (b"\xff\xfe",)), "not UTF-8"),
    "two of a name": (
        struct.pack("<3Q", 0x112, 0, 2)
        + (dense(1) + bytes(4)) * 2
        + struct.pack("<Q", 2)
        + struct.pack("<Qc", 1, b"x") * 2,
        "two tensors of the name 'x'",
    ),
    "unsorted ids": (one(row_sparse([3, 1], (2, 2), (5, 2))), "id 1 is 1 after 3"),
    "repeated ids": (one(row_sparse([3, 3], (2, 2), (5, 2))), "id 1 is 3 after 3"),
    "id out of range": (one(row_sparse([1, 5], (2, 2), (5, 2))), "id 1 is 5"),
    "negative id": (one(row_sparse([-1, 2], (2, 2), (5, 2))), "id 0 is -1"),
    "dtype of ids": (one(row_sparse([1], (1, 2), (5, 2), flag=4)), "type flag 4"),
    "more rows than ids": (one(row_sparse([1], (2, 2), (5, 2))), "do not fit"),
    "rows of another width": (one(row_sparse([1], (1, 3), (5, 2))), "do not fit"),
    "more rows than there are": (one(row_sparse([0, 1, 2], (3, 2), (2, 2))), "do not fit"),
    "sparse scalar": (one(row_sparse([], (0,), ())), "do not fit"),
    "huge number of rows": (
        one(row_sparse([], (1 << 40, 2), (1 << 50, 2), num_ids=1 << 40)),
        "takes 8796093022208 bytes",
    ),
    "csr that is too large": (one(csr([0] * 9, [], (8, 1 << 40))), "read as dense"),
    "csr offsets that fall": (one(csr([0, 2, 1], [0, 1], (2, 3))), "do not rise"),
    "csr offsets beyond the end": (one(csr([0, 1, 3], [0, 1], (2, 3))), "do not rise"),
    "csr column": (one(csr([0, 1, 2], [0, 3], (2, 3))), "column"),
    "negative csr column": (one(csr([0, 1, 2], [0, -1], (2, 3))), "column"),
    "csr columns": (one(csr([0, 2, 2], [1, 1], (2, 3))), "sorted and unique"),
    "csr of three dimensions": (one(csr([0, 0], [], (1, 2, 3))), "do not fit"),
}


@pytest.mark.parametrize("case", PARAMS)
def test_lies_in_params_are_refused(case: str, tmp_path: pathlib.Path) -> None:
    data, match = PARAMS[case]
    refused(data, "params", tmp_path, match)


def tensor(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def sidecar(**entries: Any) -> dict[str, str]:
    return {"paramd": json.dumps({"version": 1, "named": True, "tensors": [], **entries})}


SPARSE = {"name": "t", "data": "r", "stype": "row_sparse", "shape": [5, 2], "ids": "i"}
ROWS, IDS = tensor(shape=[2, 2], offsets=[16, 32]), tensor("I64", [2], [0, 16])


def sparse_file(row_ids: list[int], /, **changes: Any) -> bytes:
    header = {"__metadata__": sidecar(tensors=[{**SPARSE, **changes}]), "i": IDS, "r": ROWS}
    return with_header(header, np.array(row_ids, "<i8").tobytes() + bytes(16))


SAFETENSORS = {
    "header length": (struct.pack("<Q", HUGE) + b"{}", "header has"),
    "header beyond the end": (struct.pack("<Q", 1 << 20) + b"{}", "byte 8: "),
    "JSON": (with_header(b'{"x": '), "malformed JSON"),
    "not UTF-8": (with_header(b'{"\xff": 1}'), "malformed JSON"),
    "deep JSON": (with_header(b"[" * 100_000), "malformed JSON"),
    "long number": (with_header(b'{"x":' + b"9" * 10_000 + b"}"), "malformed JSON"),
    "no object": (with_header([]), "JSON object"),
    "two entries": (with_header(b'{"x":{},"x":{}}'), "two entries of the name 'x'"),
    "entry": (with_header({"x": 1}), "'x'"),
    "deep entry": (with_header(b'{"x":' + b"[" * 900 + b"]" * 900 + b"}"), "a list of 1 values"),
    "endless offset": (
        with_header(b'{"x":{"dtype":"U8","shape":[0],"data_offsets":[9%s,9%s]}}'
                    % (b"9" * 4290, b"9" * 4290)), "whole numbers"
    ),
    "endless shape": (
        with_header(b'{"x":{"dtype":"U8","shape":[9%s],"data_offsets":[0,0]}}' % (b"9" * 4290)),
        "whole numbers",
    ),
    "dtype": (with_header({"x": tensor("F8_E5M2")}, bytes(8)), "F8_E5M2"),
    "dtype type": (with_header({"x": tensor(["F32"])}, bytes(8)), "dtype is one of"),
    "shape": (with_header({"x": tensor(shape=[2.0])}, bytes(8)), "whole numbers"),
    "bool in shape": (with_header({"x": tensor(shape=[True], offsets=[0, 4])}, bytes(4)), "whole"),
    "no shape": (with_header({"x": {"dtype": "F32"}}), "whole numbers"),
    "negative shape": (with_header({"x": tensor(shape=[-2, -1])}, bytes(8)), "negative"),
    "huge shape": (with_header({"x": tensor(shape=[HUGE, 4])}, bytes(8)), "no array can have"),
    "rank": (with_header({"x": tensor(shape=[1] * 40)}, bytes(8)), "40 dimensions"),
    "three offsets": (with_header({"x": tensor(offsets=[0, 8, 9])}, bytes(8)), "data_offsets"),
    "size": (with_header({"x": tensor(offsets=[0, 9])}, bytes(9)), "takes 8 bytes"),
    "falling offsets": (with_header({"x": tensor(offsets=[8, 0])}, bytes(8)), "takes 8 bytes"),
    "negative offset": (with_header({"x": tensor(offsets=[-8, 0])}, bytes(8)), "data_offsets"),
    "beyond the end": (with_header({"x": tensor()}, bytes(7)), "the file ends at byte"),
    "overlap": (with_header({"x": tensor(), "y": tensor(offsets=[4, 12])}, bytes(12)), "begins"),
    "same place": (with_header({"x": tensor(), "y": tensor()}, bytes(8)), "begins at 0"),
    "hole": (with_header({"x": tensor(offsets=[4, 12])}, bytes(12)), "begins at 4"),
    "rest": (with_header({"x": tensor()}, bytes(9)), "the tensors end here"),
    "lone surrogate": (with_header(b'{"\\ud800":' + json.dumps(tensor()).encode() + b"}", bytes(8)),
                       "no UTF-8"),
    "metadata": (with_header({"__metadata__": {"a": 1}}), "object of texts"),
    "metadata type": (with_header({"__metadata__": "a"}), "object of texts"),
    "sidecar": (with_header({"__metadata__": {"paramd": "{"}}), "malformed JSON"),
    "sidecar surrogate": (with_header({"__metadata__": {"paramd": "\ud800"}}), "no UTF-8"),
    "sidecar version": (with_header({"__metadata__": sidecar(version=2)}), "version"),
    "sidecar list": (with_header({"__metadata__": sidecar(tensors={})}), "lacks"),
    "sidecar named": (with_header({"__metadata__": sidecar(named=1)}), "lacks"),
    "list with names": (
        with_header({"__metadata__": sidecar(named=False), "x": tensor()}, bytes(8)), "plain list"
    ),
    "no such array": (sparse_file([1, 2], data="q"), "no array 'q'"),
    "no such ids": (sparse_file([1, 2], ids="q"), "no array 'q'"),
    "ids are rows": (sparse_file([1, 2], ids="r"), "twice"),
    "ids and rows exchanged": (sparse_file([1, 2], ids="r", data="i"), "row ids are int64"),
    "stype": (sparse_file([1, 2], stype="csr"), "malformed entry"),
    "name type": (sparse_file([1, 2], name=1), "malformed entry"),
    "unknown field": (sparse_file([1, 2], more="x"), "malformed entry"),
    "sparse shape": (sparse_file([1, 2], shape=[5.0, 2]), "malformed entry"),
    "negative sparse shape": (sparse_file([1, 2], shape=[-5, 2]), "negative"),
    "width": (sparse_file([1, 2], shape=[5, 3]), "do not fit"),
    "too few rows": (sparse_file([1, 2], shape=[1, 2]), "do not fit"),
    "sparse scalar": (sparse_file([1, 2], shape=[]), "do not fit"),
    "bfloat16 as float32": (sparse_file([1, 2], dtype="bfloat16"), "float32 cannot"),
    "unsorted ids": (sparse_file([2, 1]), "id 1 is 1 after 2"),
    "id out of range": (sparse_file([2, 5]), "id 1 is 5"),
    "taken name": (
        with_header({"__metadata__": sidecar(tensors=[{"name": "y", "data": "x"}]),
                     "x": tensor(), "y": tensor(offsets=[8, 16])}, bytes(16)),
        "two tensors of the name 'y'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAFETENSORS)
def test_lies_in_safetensors_are_refused(case: str, tmp_path: pathlib.Path) -> None:
    data, match = SAFETENSORS[case]
    refused(data, "safetensors", tmp_path, match)


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    return b"\x93NUMPY" + struct.pack("<2BH", version, 0, len(header)) + header.encode() + data


def described(descr: str = "'<f4'", fortran: str = "False", shape: str = "(2,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}"


def archive(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


GOOD = npy(described(), bytes(8))


def patched(offset: int, layout: str, value: int, data: bytes | None = None) -> bytes:
    """An archive of one good member with a field of its directory replaced."""
    content = bytearray(archive(("x.npy", GOOD)) if data is None else data)
    at = content.index(b"PK\x01\x02") + offset
    struct.pack_into(layout, content, at, value)
    return bytes(content)


def member_twice() -> bytes:
    """Two members of the directory with the bytes of one."""
    content = archive(("x.npy", GOOD))
    begin, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    entry = content[begin:end]
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2, 2, 2 * len(entry), begin, 0)
    return content[:begin] + entry * 2 + tail


NPZ = {
    "no archive": (b"PK\x05\x06", "no directory"),
    "count": (archive(("x.npy", GOOD))[:-14] + struct.pack("<2H2IH", 9, 9, 60, 1, 0), "directory"),
    "magic": (archive(("x.npy", b"x" * 100)), r"'x\.npy'.*no \.npy array"),
    "version": (archive(("x.npy", npy(described(), bytes(8), version=4))), "version 1 to 3"),
    "empty member": (archive(("x.npy", b"")), "only 0 are left"),
    "no array": (archive(("readme.txt", b"hello")), "no array"),
    "short header": (archive(("x.npy", GOOD[:20])), "are left"),
    "header length": (archive(("x.npy", b"\x93NUMPY\2\0\xff\xff\xff\xff")), "header has"),
    "header": (archive(("x.npy", npy("{'descr': "))), "malformed header"),
    "deep header": (archive(("x.npy", npy("(" * 9000))), "malformed header"),
    "code in header": (archive(("x.npy", npy("__import__('os').getcwd()"))), "malformed header"),
    "header without shape": (archive(("x.npy", npy("{'descr': '<f4'}"))), "malformed header"),
    "structured": (archive(("x.npy", npy(described("[('a', '<f4')]"), bytes(8)))), "plain"),
    "objects": (archive(("x.npy", npy(described("'|O'"), bytes(8)))), "pickled"),
    "dtype": (archive(("x.npy", npy(described("'<c8'"), bytes(16)))), "'<c8'"),
    "uint16": (archive(("x.npy", npy(described("'<u2'"), bytes(4)))), "uint16"),
    "order": (archive(("x.npy", npy(described(fortran="1"), bytes(8)))), "plain"),
    "shape": (archive(("x.npy", npy(described(shape="[2]"), bytes(8)))), "whole numbers"),
    "float shape": (archive(("x.npy", npy(described(shape="(2.0,)"), bytes(8)))), "whole"),
    "negative shape": (archive(("x.npy", npy(described(shape="(-2,)"), bytes(8)))), "negative"),
    "huge shape": (archive(("x.npy", npy(described(shape=f"({HUGE}, 9)")))), "no array can have"),
    "endless shape": (
        archive(("x.npy", npy(described(shape=f"(0x{'f' * 8000},)")))), "more than 64 bits"
    ),
    "large shape": (archive(("x.npy", npy(described(shape=f"({1 << 40},)")))), "takes"),
    "too many bytes": (archive(("x.npy", npy(described(), bytes(9)))), "takes 8 bytes, but 9"),
    "bool": (archive(("x.npy", npy(described("'|b1'"), b"\1\2"))), "bool is 0 or 1"),
    "encrypted": (patched(8, "<H", 1), "encrypted"),
    "method": (patched(10, "<H", 14), "method 14"),
    "checksum": (patched(16, "<I", 1), "checksum"),
    "stored size": (patched(20, "<I", 1), "stored"),
    "size": (patched(24, "<I", 1 << 30), "stored"),
    "ZIP64": (patched(24, "<I", 0xFFFFFFFF), "ZIP64"),
    "offset": (patched(42, "<I", 1 << 30), "ends at byte"),
    "offset of no member": (patched(42, "<I", 1), "no member begins"),
    "other name": (archive(("x.npy", GOOD)).replace(b"x.npy", b"y.npy", 1), "another name"),
    "name": (patched(8, "<H", 0x800, archive(("x.npy", GOOD)).replace(b"x.npy", b"\xff.npy")),
             "not UTF-8"),
    "two of a name": (member_twice(), "two members of this name"),
    "overlap": (member_twice().replace(b"x.npy", b"y.npy", 0), "two members"),
    "bomb": (
        patched(
            24, "<I", MAX_EXPANSION_BYTES * 2 + len(npy(described(shape=f"({1 << 27},)"))),
            archive(("x.npy", npy(described(shape=f"({1 << 27},)"), bytes(100))),
                    compression=zipfile.ZIP_DEFLATED),
        ),
        "more than the file's own size",
    ),
    "compressed size too small": (
        patched(24, "<I", len(GOOD), archive(("x.npy", GOOD + bytes(999)),
                                             compression=zipfile.ZIP_DEFLATED)), "holds more than",
    ),
    "compressed size too large": (
        patched(24, "<I", len(npy(described(shape="(99,)"))) + 396,
                archive(("x.npy", npy(described(shape="(99,)"))),
                        compression=zipfile.ZIP_DEFLATED)), "end early",
    ),
    "metadata": (archive(("__paramd__.npy", GOOD)), "metadata are bytes"),
    "metadata JSON": (
        archive(("__paramd__.npy", npy(described("'|u1'"), b"{]"))), "malformed JSON"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NPZ)
def test_lies_in_npz_are_refused(case: str, tmp_path: pathlib.Path) -> None:
    data, match = NPZ[case]
    refused(data, "npz", tmp_path, match)


def test_overlapping_members_are_refused(tmp_path: pathlib.Path) -> None:
    # The bytes of the first member are a whole second one.
    inner = archive(("y.npy", GOOD))
    inner = inner[: inner.index(b"PK\x01\x02")]
    content = archive(("x.npy", npy(described("'|u1'", shape=f"({len(inner)},)"), inner)))
    begin, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    second = bytearray(content[begin:end].replace(b"x.npy", b"y.npy"))
    struct.pack_into("<3I", second, 16, zlib.crc32(GOOD), len(GOOD), len(GOOD))
    struct.pack_into("<I", second, 42, content.index(inner))
    size = end - begin + len(second)
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2, 2, size, begin, 0)
    data = content[:end] + bytes(second) + tail
    refused(data, "npz", tmp_path, "inside of another")


def test_damaged_compressed_data_are_refused(tmp_path: pathlib.Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.random.default_rng(0).random(1000))
    content = bytearray(buffer.getvalue())
    content[2000] ^= 0xFF
    refused(bytes(content), "npz", tmp_path, "damaged|malformed compressed|holds more|end early")


def test_damage_in_stored_data_of_npz_is_found(tmp_path: pathlib.Path) -> None:
    save_arrays(tmp_path / "x.npz", {"x": array((1000,)), "t": rows([1], (3, 2))})
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[2000] ^= 1
    refused(bytes(content), "npz", tmp_path, "the checksum is")


def test_many_tiny_arrays_are_refused_before_they_cost_memory(tmp_path: pathlib.Path) -> None:
    count = 1 << 20
    data = struct.pack("<3Q", 0x112, 0, count) + struct.pack("<I", 1) * count
    refused(data, "params", tmp_path, "number of arrays is 1048576")
