"""Local arrays for scripts that come from MXNet: the namespace `paramd.nd`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from paramd.context import cpu
from paramd.files import RowSparseRows, file_errors, open_reader, save_arrays
from paramd.ndarray import LocalNDArray, NDArray, RowSparseNDArray, sparse, wrap
from paramd.ndarray.creation import (
    add_n,
    arange,
    array,
    concat,
    empty,
    full,
    ones,
    ones_like,
    zeros,
    zeros_like,
)

__all__ = [
    # Types
    "NDArray",
    "LocalNDArray",
    "RowSparseNDArray",
    # Making arrays
    "array",
    "arange",
    "empty",
    "full",
    "ones",
    "ones_like",
    "zeros",
    "zeros_like",
    "sparse",
    # Putting them together
    "add_n",
    "concat",
    # Files
    "save",
    "load",
    # Waiting
    "waitall",
]


def save(fname: str | os.PathLike[str], data: NDArray | list[Any] | Mapping[str, Any]) -> None:
    """Writes arrays to a file, atomically. The suffix selects the format, `.params` by default.

    Args:
        fname: the file, which is replaced.
        data: one array, a list of arrays, or arrays by name. The live handles of parameters are
            fetched.

    Raises:
        ValueError: for any other data.
        TypeError: for elements that are no arrays, or names that are no strings.
        FileFailedError: where writing fails; the file is then as it was. It is an OSError.
    """
    if isinstance(data, NDArray):
        data = [data]
    if not isinstance(data, (list, Mapping)):
        raise ValueError(
            "data needs to be an NDArray, a list of NDArrays, or NDArrays by name, "
            f"but got {type(data)}"
        )
    named = isinstance(data, Mapping)
    pairs = data.items() if isinstance(data, Mapping) else enumerate(data)
    values: dict[str, npt.NDArray[Any] | RowSparseRows] = {}
    for name, value in pairs:
        if not isinstance(value, NDArray) or (named and not isinstance(name, str)):
            raise TypeError(f"an NDArray by its name is saved, but got {name!r}: {type(value)}")
        values[str(name)] = _stored(value)
    with file_errors(fname):
        save_arrays(fname, values, format=_format(fname), named=named)


def load(fname: str | os.PathLike[str]) -> list[NDArray] | dict[str, NDArray]:
    """Reads the arrays of a file, onto `cpu(0)`.

    Args:
        fname: the file.

    Returns:
        A list where the file holds a plain list, else a dict by name, in the file's order.

    Raises:
        FileFormatError: where the file is malformed.
        FileFailedError: where it cannot be read. It is an OSError.
        TypeError: where `fname` is no path.
    """
    with file_errors(fname), open_reader(fname, format=_format(fname)) as reader:
        arrays = [_loaded(reader.read(index)) for index in range(len(reader.infos))]
        if not reader.named:
            return arrays
        return {info.name: one for info, one in zip(reader.infos, arrays, strict=True)}


def waitall() -> None:
    """Returns at once: every call has done its work when it returns."""


def _stored(value: NDArray) -> npt.NDArray[Any] | RowSparseRows:
    if value.stype != "row_sparse":
        return value.asnumpy()
    local = value if isinstance(value, RowSparseNDArray) else value.tostype("row_sparse")
    assert isinstance(local, RowSparseNDArray)
    return local.rows


def _loaded(value: npt.NDArray[Any] | RowSparseRows) -> NDArray:
    if isinstance(value, RowSparseRows):
        return RowSparseNDArray(value, cpu())
    return wrap(value, cpu())


def _format(fname: str | os.PathLike[str]) -> str | None:
    # MXNet's own files have any suffix or none.
    return None if os.fspath(fname).endswith((".safetensors", ".npz")) else "params"
