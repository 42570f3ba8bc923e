"""Saving and loading whole files of arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from paramd.files.formats import open_reader, open_writer
from paramd.files.tensors import RowSparseRows, TensorInfo
from paramd.wire.dtypes import dtype_of

__all__ = ["load_arrays", "save_arrays"]

Value = npt.NDArray[Any] | RowSparseRows


def save_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Value],
    *,
    format: str | None = None,
    named: bool = True,
) -> None:
    """Writes arrays to a file, atomically.

    Args:
        path: the file, which is replaced.
        arrays: name to array (any byte order and memory layout) or row-sparse rows.
        format: 'params', 'safetensors' or 'npz'; by the suffix if None.
        named: False for a plain list, whose names are '0', '1', ...

    Raises:
        FileFormatError: where the format cannot hold them.
        TypeError: for a dtype that parameters cannot have.
        OSError: where writing fails; the file is then as it was.
    """
    infos = [_describe(os.fspath(path), name, value) for name, value in arrays.items()]
    with open_writer(path, infos, format=format, named=named) as writer:
        for info, value in zip(infos, arrays.values(), strict=True):
            if isinstance(value, RowSparseRows):
                writer.write(_payload(value.ids, np.dtype("<i8")))
                value = value.rows
            writer.write(_payload(value, info.dtype))


def load_arrays(path: str | os.PathLike[str], *, format: str | None = None) -> dict[str, Value]:
    """Reads all arrays of a file.

    Args:
        path: the file.
        format: 'params', 'safetensors' or 'npz'; by the suffix if None.

    Returns:
        Name to array or row-sparse rows, in the file's order. The arrays of a plain list have the
        names '0', '1', ...

    Raises:
        FileFormatError: where the file is malformed; the message names the file and the place.
        OSError: where it cannot be read.
    """
    with open_reader(path, format=format) as reader:
        return {info.name: reader.read(index) for index, info in enumerate(reader.infos)}


def _describe(path: str, name: str, value: Value) -> TensorInfo:
    data = value.rows if isinstance(value, RowSparseRows) else np.asarray(value)
    try:
        dtype = dtype_of(data.dtype)
    except TypeError as err:
        raise TypeError(f"{path}: tensor {name!r}: {err}") from err
    if isinstance(value, RowSparseRows):
        return TensorInfo(name, value.shape, dtype, "row_sparse", len(value.ids))
    return TensorInfo(name, data.shape, dtype)


def _payload(value: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[np.uint8]:
    array = np.asarray(value)
    if array.dtype.names is None:
        array = array.astype(dtype, copy=False)
    # MXNet's spelling of bfloat16 is a structured dtype, whose bytes are the same.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
