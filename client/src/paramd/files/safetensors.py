"""`.safetensors` files: u64 length of the header, the header in JSON, the bytes of the tensors.

A row_sparse tensor is two tensors, its rows and its ids, told by the sidecar in `__metadata__`.
Source: the format's description, https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from paramd.errors import FileFormatError
from paramd.files.contents import Contents, Extent, Layout
from paramd.files.limits import MAX_HEADER_BYTES, MAX_TENSORS
from paramd.files.sidecar import (
    StoredArray,
    assemble,
    assign_keys,
    brief,
    decode_json,
    encode,
    in_key_order,
    is_shape,
)
from paramd.files.source import BoolPart, Fields, InputFile, RawPart
from paramd.files.tensors import TensorInfo, shape_problem
from paramd.wire.dtypes import BFLOAT16

__all__ = ["lay_out", "scan"]

_METADATA: Final = "__metadata__"
_SIDECAR: Final = "paramd"
_LENGTH_BYTES: Final = 8

_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "BOOL": np.dtype("?"),
}
_DTYPE_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}


def scan(file: InputFile) -> Contents:
    """Finds the tensors of a `.safetensors` file.

    Raises:
        FileFormatError: where the file is malformed.
    """
    fields = Fields(file)
    (size,) = fields.unpack("Q", "the header's length")
    if size > MAX_HEADER_BYTES:
        raise file.fail("byte 0", f"the header has {size} bytes, more than {MAX_HEADER_BYTES}")
    header = decode_json(fields.take(size, "the header"), file, "header")
    sidecar = _sidecar(header.pop(_METADATA, None), file)
    if len(header) > 2 * MAX_TENSORS:
        raise file.fail("header", f"{len(header)} tensors are more than {2 * MAX_TENSORS}")
    arrays = [_array(key, entry, file, fields.position) for key, entry in header.items()]
    _check_cover(arrays, file, fields.position)
    return assemble([array for array, _ in arrays], sidecar, file, f"header, {_METADATA}")


def _sidecar(metadata: Any, file: InputFile) -> bytes | None:
    if metadata is None:
        return None
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise file.fail(f"header, {_METADATA}", "expected an object of texts")
    text = metadata.get(_SIDECAR)
    try:
        return None if text is None else text.encode()
    except UnicodeEncodeError as err:
        raise file.fail(f"header, {_METADATA}", "the text has no UTF-8 encoding") from err


def _array(
    key: str, entry: Any, file: InputFile, data_begin: int
) -> tuple[StoredArray, tuple[int, int]]:
    place = f"header, tensor {key[:80]!r}"
    if not isinstance(entry, dict):
        raise file.fail(place, f"expected an object, but got {brief(entry)}")
    name, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise file.fail(place, f"dtype is one of {', '.join(_DTYPES)}, but got {brief(name)}")
    if not is_shape(shape) or not is_shape(offsets) or len(offsets) != 2:
        raise file.fail(place, "'shape' or 'data_offsets' is no list of whole numbers")
    problem = shape_problem(shape, dtype.itemsize)
    if problem is not None:
        raise file.fail(place, f"it {problem}")
    begin, end = offsets
    size = math.prod(shape) * dtype.itemsize
    if begin < 0 or end - begin != size:
        raise file.fail(
            place, f"shape {shape} of {name} takes {size} bytes, but data_offsets are {offsets}"
        )
    file.check_range(data_begin + begin, size, f"tensor {key[:80]!r}")
    part = RawPart(data_begin + begin, size)
    checked = BoolPart(part, place) if dtype.kind == "b" else part
    return StoredArray(key, tuple(shape), dtype, checked, place), (begin, end)


def _check_cover(
    arrays: list[tuple[StoredArray, tuple[int, int]]], file: InputFile, data_begin: int
) -> None:
    position = 0
    for array, (begin, end) in sorted(arrays, key=lambda item: item[1]):
        if begin != position:
            raise file.fail(
                array.place,
                f"it begins at {begin} of the data, but the tensor before it ends at {position}",
            )
        position = end
    if data_begin + position != file.size_bytes:
        raise file.fail(
            f"byte {data_begin + position}",
            f"the tensors end here, but the file ends at byte {file.size_bytes}",
        )


def lay_out(infos: Sequence[TensorInfo], named: bool) -> Layout:
    """Where everything goes in a `.safetensors` file.

    Raises:
        FileFormatError: where the header becomes too large to be read again.
    """
    keys = assign_keys(infos, lambda name: name != _METADATA)
    arrays = in_key_order(infos, keys)
    sidecar = encode(infos, keys, named=named, has_bfloat16=True)
    # Readers that map the file want every element aligned: the widest come first.
    begins = [0] * len(arrays)
    position = 0
    for index in sorted(range(len(arrays)), key=lambda index: -arrays[index].dtype.itemsize):
        begins[index] = position
        position += arrays[index].size_bytes
    header: dict[str, Any] = {} if sidecar is None else {_METADATA: {_SIDECAR: sidecar}}
    for array, begin in zip(arrays, begins, strict=True):
        header[array.key] = {
            "dtype": _DTYPE_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, begin + array.size_bytes],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    if len(text) > MAX_HEADER_BYTES:
        raise FileFormatError(f"the header has {len(text)} bytes, more than {MAX_HEADER_BYTES}")
    head = struct.pack("<Q", len(text)) + text
    extents = [
        Extent(len(head) + begin, array.size_bytes, id_limit=array.id_limit)
        for array, begin in zip(arrays, begins, strict=True)
    ]
    return Layout([(0, head)], extents)
