from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paramd.errors import FileFormatError
from paramd.files import (
    FORMATS,
    MAX_NAME_BYTES,
    RowSparseRows,
    format_of,
    load_arrays,
    open_reader,
    save_arrays,
)
from tests.unit.files.samples import DTYPES, Value, array, assert_same, assert_same_all, model, rows

ODD_NAMES = [
    "",
    "a",
    "a.npy",
    "a/b",
    "..",
    "../../escape",
    "/etc/passwd",
    "C:\\x",
    "C:x",
    "back\\slash",
    "nul\0",
    "a//b",
    "slash/",
    "__paramd__",
    "__paramd__.npy",
    "__metadata__",
    "paramd",
    "tensor0",
    "tensor1_",
    "é✓/中🙂",
    "arg:fc.weight",
    "line\nbreak",
    '"quoted"',
    "x" * 5000,
]


@pytest.mark.parametrize("suffix", FORMATS)
class TestEveryFormat:
    @pytest.fixture
    def path(self, suffix: str, tmp_path: pathlib.Path) -> pathlib.Path:
        return tmp_path / f"x.{suffix}"

    def test_keeps_every_dtype(self, path: pathlib.Path) -> None:
        arrays = {str(dtype): array((3, 4), dtype) for dtype in DTYPES}
        save_arrays(path, arrays)
        assert_same_all(load_arrays(path), arrays)

    @pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0, 2), (1,), (2, 1, 3, 1, 2)], ids=str)
    def test_keeps_every_shape(self, path: pathlib.Path, shape: tuple[int, ...]) -> None:
        arrays = {"before": array((2,)), "x": array(shape), "after": array((2,), np.int8)}
        save_arrays(path, arrays)
        assert_same_all(load_arrays(path), arrays)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_keeps_row_sparse_of_every_dtype(self, path: pathlib.Path, dtype: Any) -> None:
        arrays: dict[str, Value] = {
            "table": rows([0, 3, 4], (6, 2), dtype),
            "empty": rows([], (6, 2), dtype),
            "flat": rows([2], (4,), dtype),
            "none": rows([], (0, 2), dtype),
            "dense": array((2,), dtype),
        }
        save_arrays(path, arrays)
        assert_same_all(load_arrays(path), arrays)

    def test_keeps_odd_names(self, path: pathlib.Path) -> None:
        arrays = {name: array((2,), seed=index) for index, name in enumerate(ODD_NAMES)}
        save_arrays(path, arrays)
        assert_same_all(load_arrays(path), arrays)
        assert sorted(path.parent.iterdir()) == [path]

    def test_keeps_row_sparse_beside_dense_ones_of_its_keys(self, path: pathlib.Path) -> None:
        names = ["t", "t.ids", "t.rows", "t.ids_", "t.rows_", "tensor0.ids"]
        arrays: dict[str, Any] = {name: array((2,), seed=i) for i, name in enumerate(names[1:])}
        arrays |= {"t": rows([1], (3, 2)), "..": rows([2], (3, 2)), "__metadata__": rows([0], (1,))}
        save_arrays(path, arrays)
        assert_same_all(load_arrays(path), arrays)

    def test_keeps_nothing_at_all(self, path: pathlib.Path) -> None:
        save_arrays(path, {})
        assert load_arrays(path) == {}

    def test_keeps_a_plain_list(self, path: pathlib.Path) -> None:
        arrays: dict[str, Value] = {"0": array((2,)), "1": rows([1], (2, 2))}
        save_arrays(path, arrays, named=False)
        with open_reader(path) as reader:
            assert not reader.named
        assert_same_all(load_arrays(path), arrays)
        save_arrays(path, arrays)
        with open_reader(path) as reader:
            assert reader.named

    def test_keeps_values_of_any_memory_layout(self, path: pathlib.Path) -> None:
        base = array((4, 6), np.float64)
        arrays = {
            "fortran": np.asfortranarray(base),
            "strided": base[::2, ::-1],
            "transposed": base.T,
            "big_endian": base.astype(">f8"),
            "big_endian_int": array((3,), np.int32).astype(">i4"),
            "broadcast": np.broadcast_to(base[0], (3, 6)),
        }
        save_arrays(path, arrays)
        assert_same_all(load_arrays(path), arrays)

    def test_keeps_special_values(self, path: pathlib.Path) -> None:
        values = np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324, 1.7e308])
        save_arrays(path, {"x": values})
        loaded = load_arrays(path)["x"]
        assert isinstance(loaded, np.ndarray)
        assert loaded.tobytes() == values.tobytes()

    def test_spells_bfloat16_as_mxnet_too(self, path: pathlib.Path) -> None:
        bfloat16 = array((3,), DTYPES[-1])
        save_arrays(path, {"x": bfloat16.view(np.dtype([("bfloat16", np.uint16)]))})
        assert_same(load_arrays(path)["x"], bfloat16)

    def test_is_deterministic(self, path: pathlib.Path) -> None:
        save_arrays(path, model())
        first = path.read_bytes()
        save_arrays(path, model())
        assert path.read_bytes() == first

    @pytest.mark.parametrize("dtype", ["uint16", "uint32", "complex64", "U3", "O", "M8[s]"])
    def test_refuses_dtypes_of_no_parameter(self, path: pathlib.Path, dtype: str) -> None:
        with pytest.raises(TypeError, match="'odd'"):
            save_arrays(path, {"odd": np.zeros(2, dtype)})
        assert not path.exists()

    @pytest.mark.parametrize("name", ["\ud800", "x" * (MAX_NAME_BYTES + 1)], ids=ascii)
    def test_refuses_names_that_it_could_not_read(self, path: pathlib.Path, name: str) -> None:
        with pytest.raises(FileFormatError, match="name"):
            save_arrays(path, {name: array((2,))})
        assert not path.exists()

    @settings(
        max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(names=st.lists(st.text(max_size=12), unique=True, max_size=8), sparse=st.booleans())
    def test_keeps_any_names(self, path: pathlib.Path, names: list[str], sparse: bool) -> None:
        arrays: dict[str, Any] = {
            name: rows([i], (9, 2)) if sparse and i % 2 else array((2,), seed=i)
            for i, name in enumerate(names)
        }
        save_arrays(path, arrays)
        assert_same_all(load_arrays(path), arrays)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.params", "params"),
        ("a.b/net-0001.params", "params"),
        ("x.SafeTensors", "safetensors"),
        ("x.tar.npz", "npz"),
    ],
)
def test_the_suffix_selects_the_format(path: str, expected: str) -> None:
    assert format_of(path) == expected


@pytest.mark.parametrize("path", ["x", "x.npy", "x.params.bak", ".params", "a.npz/x"])
def test_other_suffixes_are_refused(path: str) -> None:
    with pytest.raises(FileFormatError, match=r"\.params, \.safetensors, \.npz"):
        format_of(path)


def test_the_format_may_be_given_apart_from_the_suffix(tmp_path: pathlib.Path) -> None:
    save_arrays(tmp_path / "x.bin", {"x": array((2,))}, format="npz")
    assert_same_all(load_arrays(tmp_path / "x.bin", format="npz"), {"x": array((2,))})
    with pytest.raises(FileFormatError, match="'pickle'"):
        load_arrays(tmp_path / "x.bin", format="pickle")


@pytest.mark.parametrize(
    ("ids", "shape"), [([1, 1], (3, 2)), ([2, 1], (3, 2)), ([-1, 0], (3, 2)), ([0, 3], (3, 2))]
)
def test_row_sparse_rows_refuse_bad_ids(ids: list[int], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="sorted, unique"):
        RowSparseRows(np.array(ids), np.zeros((2, 2)), shape)


def test_row_sparse_rows_become_dense() -> None:
    values = RowSparseRows(np.array([0, 2]), np.array([[1.0, 2], [3, 4]]), (3, 2))
    np.testing.assert_array_equal(values.todense(), [[1, 2], [0, 0], [3, 4]])
