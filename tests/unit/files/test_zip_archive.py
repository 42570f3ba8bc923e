"""Archives beyond 4 GiB, beyond 65,535 members, and odd but valid ones."""

from __future__ import annotations

import os
import pathlib
import zipfile
import zlib

import numpy as np
import pytest

from paramd.files import load_arrays, open_reader, save_arrays
from paramd.files.source import InputFile
from paramd.files.zip_archive import NewMember, central_directory, local_header, read_directory
from tests.unit.files.samples import array, assert_same_all

GIB = 1 << 30


def test_archives_beyond_four_gib_have_zip64_fields(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "large.npz"
    sizes = {"a.npy": 5 * GIB, "b.npy": 10, "é.npy": 4 * GIB - 1, "c.npy": 7}
    checksums = [1, 2, 3, zlib.crc32(bytes(7))]
    members: list[NewMember] = []
    # A file of holes: it takes no room on the disk.
    with path.open("wb") as file:
        for index, (name, size) in enumerate(sizes.items()):
            members.append(NewMember(name, size, file.tell()))
            file.write(local_header(members[-1], checksums[index]))
            file.seek(size, os.SEEK_CUR)
        file.write(central_directory(members, checksums, file.tell()))
    with zipfile.ZipFile(path) as archive:
        assert {info.filename: info.file_size for info in archive.infolist()} == sizes
        assert [info.header_offset for info in archive.infolist()] == [m.begin for m in members]
        with archive.open("c.npy") as member:
            assert member.read(7) == bytes(7)
    source = InputFile(path)
    read = read_directory(source, 4)
    source.close()
    assert {member.name: member.size_bytes for member in read} == sizes
    assert [member.begin for member in read] == [member.begin for member in members]
    assert [member.checksum for member in read] == checksums


def test_archives_hold_more_than_65535_members(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "many.npz"
    count = 66_000
    value = array((0,))
    save_arrays(path, {str(index): value for index in range(count)})
    with open_reader(path) as reader:
        assert len(reader.infos) == count
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) == count


def test_a_comment_and_gaps_are_allowed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=array((2,)))
    with zipfile.ZipFile(path, "a") as archive:
        # A comment that looks like the end of an archive.
        archive.comment = b"PK\x05\x06" + bytes(30)
    assert_same_all(load_arrays(path), {"x": array((2,))})


@pytest.mark.parametrize("name", ["é", "ÿ-ñ"])
def test_names_without_the_unicode_flag_are_code_page_437(
    name: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, xy=array((2,)))
    data = path.read_bytes().replace(b"xy.npy", f"{name[0]}y.npy".encode("cp437"))
    path.write_bytes(data)
    with np.load(path) as loaded:
        (expected,) = loaded
    assert list(load_arrays(path)) == [expected] == [f"{name[0]}y"]
