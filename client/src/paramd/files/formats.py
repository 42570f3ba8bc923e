"""The formats by name, and opening a file in one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from paramd.errors import FileFormatError
from paramd.files import mxnet, npz, safetensors
from paramd.files.contents import Contents, Layout
from paramd.files.limits import MAX_NAME_BYTES, MAX_TENSORS
from paramd.files.reader import FileReader
from paramd.files.source import InputFile
from paramd.files.tensors import TensorInfo
from paramd.files.writer import FileWriter

__all__ = ["FORMATS", "format_of", "open_reader", "open_writer"]


@dataclass(frozen=True)
class _Format:
    scan: Callable[[InputFile], Contents]
    lay_out: Callable[[Sequence[TensorInfo], bool], Layout]


_FORMATS: Final = {
    "params": _Format(mxnet.scan, mxnet.lay_out),
    "safetensors": _Format(safetensors.scan, safetensors.lay_out),
    "npz": _Format(npz.scan, npz.lay_out),
}

FORMATS: Final = tuple(_FORMATS)
"""Names of the formats; a file's suffix is '.' and the name of its format."""


def format_of(path: str | os.PathLike[str]) -> str:
    """The format that a path's suffix names: 'params', 'safetensors' or 'npz'.

    Raises:
        FileFormatError: for any other suffix.
    """
    text = os.fspath(path)
    name = os.path.splitext(text)[1].lower().removeprefix(".")
    if name not in _FORMATS:
        known = ", ".join(f".{known}" for known in FORMATS)
        raise FileFormatError(f"{text}: the suffix selects the format and is one of {known}")
    return name


def open_reader(path: str | os.PathLike[str], *, format: str | None = None) -> FileReader:
    """Opens a file for reading and checks its whole structure.

    Headers, names, sizes (against the file's real size) and row ids are checked here, in memory
    that is bounded by the file's size and a constant. What only the values can show is checked as
    they are read.

    Args:
        path: the file.
        format: 'params', 'safetensors' or 'npz'; by the suffix if None.

    Raises:
        FileFormatError: where the file is malformed; the message names the file and the place.
        OSError: where it cannot be read, or is no regular file.
    """
    codec = _codec(path, format)
    file = InputFile(path)
    try:
        return FileReader(file, codec.scan(file))
    except BaseException:
        file.close()
        raise


def open_writer(
    path: str | os.PathLike[str],
    infos: Sequence[TensorInfo],
    *,
    format: str | None = None,
    named: bool = True,
) -> FileWriter:
    """A writer for a file of these tensors, to be used in a `with` block.

    Args:
        path: the file, which is replaced when the block ends well.
        infos: the tensors, in the order in which their payloads will come.
        format: 'params', 'safetensors' or 'npz'; by the suffix if None.
        named: False for a plain list, as MXNet has it: the names are then '0', '1', ...

    Raises:
        FileFormatError: where the format cannot hold these tensors: two of one name, a name that is
            too long or not UTF-8, too many tensors.
    """
    codec = _codec(path, format)
    _check_infos(os.fspath(path), infos, named)
    try:
        return FileWriter(path, codec.lay_out(infos, named))
    except FileFormatError as err:
        raise FileFormatError(f"{os.fspath(path)}: {err}") from err


def _codec(path: str | os.PathLike[str], format: str | None) -> _Format:
    name = format_of(path) if format is None else format
    if name not in _FORMATS:
        raise FileFormatError(
            f"{os.fspath(path)}: format is one of {', '.join(FORMATS)}, but got {name!r}"
        )
    return _FORMATS[name]


def _check_infos(path: str, infos: Sequence[TensorInfo], named: bool) -> None:
    if len(infos) > MAX_TENSORS:
        raise FileFormatError(f"{path}: {len(infos)} tensors are more than {MAX_TENSORS}")
    seen: set[str] = set()
    for index, info in enumerate(infos):
        if info.name in seen:
            raise FileFormatError(f"{path}: there are two tensors of the name {info.name!r}")
        seen.add(info.name)
        if not named and info.name != str(index):
            raise FileFormatError(
                f"{path}: tensor {index} of a plain list has the name '{index}', "
                f"but got {info.name!r}"
            )
        try:
            size = len(info.name.encode())
        except UnicodeEncodeError as err:
            raise FileFormatError(f"{path}: the name {info.name!r} has no UTF-8 encoding") from err
        if size > MAX_NAME_BYTES:
            raise FileFormatError(
                f"{path}: the name {info.name[:40]!r}... has {size} bytes, "
                f"more than {MAX_NAME_BYTES}"
            )
