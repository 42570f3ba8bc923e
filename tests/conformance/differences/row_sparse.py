"""Differences in row_sparse parameters."""

from __future__ import annotations

from typing import Any

from tests.conformance.differences.entry import OnPurpose, Raises, ones
from tests.conformance.program import Program, Ref, cpu, dense, file, numpy, row_sparse

__all__ = ["ENTRIES"]

_ALL = slice(None)


def _deferred_rows(p: Program) -> Ref:
    w = p.make("Parameter", "w", shape=(0, 1), stype="row_sparse", allow_deferred_init=True)
    p.call(w, "initialize", init="ones")
    p.call(w, "set_data", dense([[1], [2]]))
    rows = p.call(w, "row_sparse_data", dense([1], "int64"))
    p.get(rows, "stype")
    return rows


def _sparse_value_for_dense(p: Program) -> Ref:
    w = ones(p, shape=(3, 1))
    written = p.call(w, "set_data", row_sparse([[5]], [1], (3, 1)))
    p.call(w, "data")
    return written


def _rows(p: Program, ids: Any, **kwargs: Any) -> None:
    w = ones(p, shape=(4, 1), stype="row_sparse", **kwargs)
    p.call(w, "row_sparse_data", ids)


def _no_trainer(p: Program) -> None:
    _rows(p, dense([1], "int64"))


def _rows_of_float64(p: Program) -> Ref:
    w = ones(p, shape=(3, 1), stype="row_sparse", dtype="float64")
    p.call(w, "reset_ctx", cpu(1))
    rows = p.call(w, "row_sparse_data", dense([1], "int64", cpu(1)))
    p.get(rows, "dtype")
    return rows


def _no_rows_at_all(p: Program) -> Ref:
    w = ones(p, shape=(3, 1), stype="row_sparse")
    p.call(w, "set_data", dense([[0], [0], [0]]))
    rows = p.call(w, "row_sparse_data", dense([1], "int64"))
    p.get(rows, "indices")
    return rows


def _rows_in_files(p: Program) -> Ref:
    params = p.make("ParameterDict", "p_")
    p.call(params, "get", "w", shape=(4, 1), stype="row_sparse")
    p.call(params, "load_dict", {"p_w": row_sparse([[1], [3]], [1, 3], (4, 1))})
    p.call(params, "save", file("w.params"))
    loaded = p.make("nd.load", file("w.params"))
    p.get(p.item(loaded, "p_w"), "indices")
    return loaded


def _results_are_kept(p: Program) -> None:
    w = ones(p, shape=(4, 1), stype="row_sparse")
    p.make("train", w)
    result = p.call(w, "row_sparse_data", dense([1], "int64"))
    p.call(w, "row_sparse_data", dense([2], "int64"))
    p.call(result, "asnumpy")


def _row_out_of_range(p: Program) -> None:
    _rows(p, dense([1, 4], "int64"))


def _negative_row(p: Program) -> None:
    _rows(p, dense([-1], "int64"))


def _fractional_row(p: Program) -> None:
    _rows(p, dense([1.5]))


def _numpy_ids(p: Program) -> None:
    _rows(p, numpy([1, 2], "int64"))


def _sparse_set_data_casts(p: Program) -> None:
    w = ones(p, shape=(2, 1), stype="row_sparse", dtype="float64")
    p.call(w, "set_data", dense([[1], [2]]))


def _duplicate_rows(p: Program) -> None:
    w = ones(p, shape=(4, 1), stype="row_sparse", grad_stype="row_sparse")
    g = p.call(w, "grad")
    p.put(g, _ALL, row_sparse([[1], [2]], [3, 3], (4, 1)))
    p.call(g, "asnumpy")


ENTRIES: tuple[OnPurpose, ...] = (
    OnPurpose(
        "set_data of a deferred parameter keeps the storage type",
        ("row_sparse.5a",),
        "takes over the array's, and then cannot read rows",
        "keeps the parameter's",
        "an accident of MXNet",
        _deferred_rows,
        "row_sparse",
    ),
    OnPurpose(
        "set_data of a dense parameter takes row_sparse values",
        ("row_sparse.5a",),
        "TypeError",
        "taken",
        "both storage types have the same logical value",
        _sparse_value_for_dense,
        [[0], [5], [0]],
    ),
    OnPurpose(
        "rows without a Trainer",
        ("row_sparse.3a",),
        "RuntimeError",
        "gives the rows",
        "the server owns the rows, not a key-value store",
        _no_trainer,
        [[0], [1], [0], [0]],
        as_is=True,
    ),
    OnPurpose(
        "rows of other dtypes",
        (),
        "become float32 in reset_ctx and save",
        "keep their dtype",
        "an accident of MXNet",
        _rows_of_float64,
        "float64",
    ),
    OnPurpose(
        "rows of a value without any",
        (),
        "are left out",
        "are zeros, like every row that is not stored",
        "the result holds the rows that were asked for",
        _no_rows_at_all,
        [1],
    ),
    OnPurpose(
        "rows in saved files",
        (),
        "only those that the last value held",
        "all of them, zeros too",
        "a table holds every row; the file's value is the same",
        _rows_in_files,
        [0, 1, 2, 3],
    ),
    OnPurpose(
        "rows that were fetched before",
        ("row_sparse.3b",),
        "change with the next fetch",
        "stay",
        "the result is the caller's own",
        _results_are_kept,
        [[0], [1], [0], [0]],
        as_is=True,
    ),
    OnPurpose(
        "row ids beyond the last",
        ("row_sparse.2e",),
        "garbage",
        "IndexError",
        "an accident of MXNet",
        _row_out_of_range,
        Raises("IndexError"),
    ),
    OnPurpose(
        "negative row ids",
        ("row_sparse.2e",),
        "garbage",
        "IndexError",
        "an accident of MXNet",
        _negative_row,
        Raises("IndexError"),
    ),
    OnPurpose(
        "row ids that are not whole",
        ("row_sparse.2c",),
        "truncated",
        "refused",
        "a wrong id must not fetch another row",
        _fractional_row,
        Raises("IndexError"),
    ),
    OnPurpose(
        "NumPy row ids",
        ("row_sparse.4b",),
        "AttributeError",
        "taken",
        "workers compute ids with NumPy",
        _numpy_ids,
        [[0], [1], [1], [0]],
    ),
    OnPurpose(
        "set_data of a row_sparse parameter casts",
        ("values.2b",),
        "fails in the engine",
        "casts as always",
        "an accident of MXNet",
        _sparse_set_data_casts,
        None,
    ),
    OnPurpose(
        "duplicate ids in a gradient",
        ("row_sparse.5c",),
        "the last one counts",
        "they add up",
        "a batch may touch a row twice",
        _duplicate_rows,
        [[0], [0], [0], [3]],
    ),
)
