"""Other programs read what paramd writes, and paramd what they write."""

from __future__ import annotations

import json
import pathlib
import zipfile
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from paramd.errors import FileFormatError
from paramd.files import load_arrays, save_arrays
from tests.unit.files.samples import DTYPES, array, assert_same_all, rows

PLAIN = [dtype for dtype in DTYPES if dtype.name != "bfloat16"]


def test_safetensors_reads_dense_tensors(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    arrays = {dtype.name: array((2, 3), dtype) for dtype in PLAIN}
    arrays |= {"scalar": array(()), "empty": array((0, 2)), "é🙂": array((1,))}
    save_arrays(path, arrays)
    loaded = safetensors.numpy.load_file(path)
    assert loaded.keys() == arrays.keys()
    for name, value in arrays.items():
        assert loaded[name].dtype == value.dtype
        np.testing.assert_array_equal(loaded[name], value)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() is None


def test_safetensors_reads_row_sparse_as_two_tensors(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    table = rows([1, 4], (6, 2))
    save_arrays(path, {"table": table, "table.ids": array((3,))})
    with safetensors.safe_open(path, "numpy") as file:
        (entry,) = json.loads(file.metadata()["paramd"])["tensors"]
        assert entry["name"] == "table"
        assert entry["stype"] == "row_sparse"
        assert entry["shape"] == [6, 2]
        np.testing.assert_array_equal(file.get_tensor(entry["ids"]), table.ids)
        np.testing.assert_array_equal(file.get_tensor(entry["data"]), table.rows)
        np.testing.assert_array_equal(file.get_tensor("table.ids"), array((3,)))


def test_safetensors_elements_are_aligned(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    save_arrays(path, {dtype.name: array((3,), dtype) for dtype in reversed(DTYPES)})
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert size % 8 == 0
    for name, entry in json.loads(data[8 : 8 + size]).items():
        item_size = 2 if name == "bfloat16" else np.dtype(name).itemsize
        assert entry["data_offsets"][0] % item_size == 0


def test_reads_what_safetensors_writes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    arrays = {dtype.name: array((2, 3), dtype) for dtype in DTYPES} | {"scalar": array(())}
    safetensors.numpy.save_file(arrays, path, metadata={"format": "np"})
    loaded = load_arrays(path)
    assert_same_all({name: loaded[name] for name in arrays}, dict(arrays))


def test_numpy_reads_npz(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.npz"
    arrays = {dtype.name: array((2, 3), dtype) for dtype in PLAIN}
    arrays |= {
        "scalar": array(()),
        "empty": array((0, 2)),
        "a/é🙂": array((1,)),
        "arg:b": array((2,)),
    }
    save_arrays(path, arrays)
    with np.load(path, allow_pickle=False) as loaded:
        assert list(loaded) == list(arrays)
        for name, value in arrays.items():
            assert loaded[name].dtype == value.dtype
            np.testing.assert_array_equal(loaded[name], value)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_numpy_reads_the_metadata_of_npz(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.npz"
    half, table = array((3,), DTYPES[-1]), rows([1, 4], (6, 2))
    save_arrays(path, {"half": half, "table": table, "..": array((1,)), "__paramd__": array((2,))})
    with np.load(path, allow_pickle=False) as loaded:
        entries = json.loads(loaded["__paramd__"].tobytes())["tensors"]
        keys = {entry["name"]: entry for entry in entries}
        np.testing.assert_array_equal(loaded["half"], half.view(np.uint16))
        np.testing.assert_array_equal(loaded[keys["table"]["data"]], table.rows)
        np.testing.assert_array_equal(loaded[keys["table"]["ids"]], table.ids)
        np.testing.assert_array_equal(loaded[keys[".."]["data"]], array((1,)))
    with zipfile.ZipFile(path) as archive:
        assert not any(name.startswith("..") for name in archive.namelist())


def test_extracting_npz_stays_in_its_folder(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "inside" / "deep"
    folder.mkdir(parents=True)
    save_arrays(tmp_path / "x.npz", {"../../out": array((1,)), "/out": array((1,))})
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert all(".." not in name and name[0] != "/" for name in archive.namelist())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(save: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.npz"
    arrays = {dtype.name: array((2, 3), dtype) for dtype in PLAIN}
    arrays |= {
        "scalar": array(()),
        "empty": array((0, 2)),
        "fortran": np.asfortranarray(array((3, 4, 2), np.float64)),
        "fortran_bool": np.asfortranarray(array((3, 4), np.bool_)),
        "swapped": array((3, 2), np.int32).astype(">i4"),
        "swapped_fortran": np.asfortranarray(array((3, 2)).astype(">f4")),
        "é/🙂": array((1,)),
        "large": array((300_000,), np.float32),
    }
    save(path, **arrays)
    assert_same_all(load_arrays(path), dict(arrays))


def test_never_unpickles(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.array([{"a": 1}], object))
    with pytest.raises(FileFormatError, match=r"'x\.npy'.*pickled"):
        load_arrays(path)
