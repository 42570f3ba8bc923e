"""The namespace `paramd.nd`: making, saving and loading arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramd import nd
from paramd.context import cpu
from paramd.errors import FileFormatError
from paramd.ndarray import RowSparseNDArray


def test_array_copies_its_source() -> None:
    source = np.ones(2, np.float32)
    array = nd.array(source)
    source[:] = 5
    nd.array(array)[:] = 7
    assert array.tolist() == [1, 1]


@pytest.mark.parametrize("make", [nd.zeros, nd.ones, nd.empty])
def test_shapes_and_dtypes_are_checked(make: Any) -> None:
    with pytest.raises(ValueError, match="not negative"):
        make((2, -1))
    with pytest.raises(TypeError):
        make((2.5,))
    with pytest.raises(TypeError):
        make((2,), dtype="int16")
    with pytest.raises(TypeError, match="context"):
        make((2,), "cpu")


def test_empty_has_shape_dtype_and_context() -> None:
    array = nd.empty((2, 3), cpu(1), "float16")
    assert (array.shape, array.context) == ((2, 3), cpu(1))
    assert array.dtype == np.float16
    assert nd.empty((2, 3), stype="row_sparse").stype == "row_sparse"


@pytest.mark.parametrize("stype", ["csr", "x"])
def test_other_storage_types_are_refused(stype: str) -> None:
    with pytest.raises(ValueError, match="'default' or 'row_sparse'"):
        nd.zeros((2, 2), stype=stype)
    with pytest.raises(ValueError, match="'default' or 'row_sparse'"):
        nd.ones((2, 2)).tostype(stype)


def test_joining_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="one array or more"):
        nd.concat()
    with pytest.raises(ValueError, match="one array or more"):
        nd.add_n()


def test_add_n_leaves_its_arguments() -> None:
    one = nd.ones((2,), cpu(1))
    assert nd.add_n(one).context == cpu(1)
    nd.add_n(one)[:] = 5
    assert one.tolist() == [1, 1]


@pytest.mark.parametrize("name", ["x.params", "x", "x.safetensors", "x.npz"])
def test_named_arrays_come_back(name: str, tmp_path: Path) -> None:
    rows = nd.sparse.row_sparse_array(([[1, 2]], [3]), shape=(5, 2))
    saved = {"dense": nd.array([1, 2], cpu(1), "bfloat16")[::-1], "rows": rows}
    nd.save(tmp_path / name, saved)
    loaded = nd.load(str(tmp_path / name))
    assert isinstance(loaded, dict)
    assert set(loaded) == {"dense", "rows"}
    assert loaded["dense"].dtype == saved["dense"].dtype
    assert loaded["dense"].tolist() == [2, 1]
    assert loaded["dense"].context == cpu(0)
    assert isinstance(loaded["rows"], RowSparseNDArray)
    assert loaded["rows"].indices.tolist() == [3]
    loaded["dense"][:] = 0


@pytest.mark.parametrize("arrays", [[nd.ones((2,)), nd.zeros((1,))], [nd.ones((2,))], []])
def test_a_list_comes_back_as_a_list(arrays: list[Any], tmp_path: Path) -> None:
    nd.save(tmp_path / "x.params", arrays)
    loaded = nd.load(tmp_path / "x.params")
    assert isinstance(loaded, list)
    assert [one.tolist() for one in loaded] == [one.tolist() for one in arrays]


def test_one_array_comes_back_in_a_list(tmp_path: Path) -> None:
    nd.save(tmp_path / "x.params", nd.ones((2,)))
    (loaded,) = nd.load(tmp_path / "x.params")
    assert repr(loaded) == repr(nd.ones((2,)))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (3, ValueError),
        ((nd.ones((2,)),), ValueError),
        ({"a": np.ones(2)}, TypeError),
        ([np.ones(2)], TypeError),
        ({1: nd.ones((2,))}, TypeError),
    ],
)
def test_what_is_no_array_is_not_saved(data: Any, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error):
        nd.save(tmp_path / "x.params", data)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nope"):
        nd.load(tmp_path / "nope")
    (tmp_path / "x.params").write_bytes(b"no parameters")
    with pytest.raises(FileFormatError, match=r"x\.params"):
        nd.load(tmp_path / "x.params")
    with pytest.raises(TypeError):
        nd.load(3)  # type: ignore[arg-type]
