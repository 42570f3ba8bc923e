"""What a format cannot say by itself, as a small JSON text in the file's metadata.

`.safetensors` and `.npz` are flat lists of arrays under keys. The sidecar tells which arrays make
up a row_sparse tensor, which array is really bfloat16, and which tensor has a name that cannot be
a key. A file without any of that has no sidecar.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

import numpy as np

from paramd.errors import FileFormatError
from paramd.files.contents import Contents, StoredTensor
from paramd.files.limits import MAX_HEADER_BYTES, MAX_TENSORS
from paramd.files.source import InputFile, Part
from paramd.files.tensors import TensorInfo, shape_problem
from paramd.wire.dtypes import BFLOAT16

__all__ = [
    "NewArray",
    "StoredArray",
    "TensorKeys",
    "assemble",
    "assign_keys",
    "brief",
    "decode_json",
    "encode",
    "in_key_order",
    "is_shape",
]

_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array that a file holds under a key.

    Attributes:
        key: its key.
        shape: its shape.
        dtype: its dtype, or np.uint16, which only stands for bfloat16.
        part: its elements.
        place: where it is in the file, for messages.
    """

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    part: Part
    place: str


@dataclass(frozen=True, slots=True)
class TensorKeys:
    """The keys of the arrays that hold a tensor.

    Attributes:
        data: key of the elements, or of the stored rows.
        ids: key of the row ids, for row_sparse only.
    """

    data: str
    ids: str | None = None


def assign_keys(
    infos: Sequence[TensorInfo], is_key: Callable[[str], bool]
) -> tuple[TensorKeys, ...]:
    """Chooses keys, so that no two arrays have one key.

    A dense tensor whose name can be a key has it as its key. All others get what is left.

    Args:
        infos: the tensors.
        is_key: whether the format can have a name as a key.
    """
    taken = {info.name for info in infos if info.stype == "default" and is_key(info.name)}

    def unused(wish: str) -> str:
        while wish in taken:
            wish += "_"
        taken.add(wish)
        return wish

    keys = []
    for index, info in enumerate(infos):
        base = info.name if is_key(info.name) else f"tensor{index}"
        if info.stype == "row_sparse":
            keys.append(TensorKeys(unused(f"{base}.rows"), unused(f"{base}.ids")))
        else:
            keys.append(TensorKeys(base if base == info.name else unused(base)))
    return tuple(keys)


def encode(
    infos: Sequence[TensorInfo],
    keys: Sequence[TensorKeys],
    *,
    named: bool,
    has_bfloat16: bool,
) -> str | None:
    """The sidecar of these tensors, or None where the file needs none.

    Args:
        infos: the tensors.
        keys: their keys.
        named: False for a plain list.
        has_bfloat16: whether the format has a dtype of its own for bfloat16.

    Raises:
        FileFormatError: where it becomes too large to be read again.
    """
    entries = []
    for info, key in zip(infos, keys, strict=True):
        entry: dict[str, Any] = {}
        if info.stype == "row_sparse":
            entry.update(stype="row_sparse", shape=list(info.shape), ids=key.ids)
        if info.dtype == BFLOAT16 and not has_bfloat16:
            entry["dtype"] = "bfloat16"
        if entry or key.data != info.name:
            entries.append({"name": info.name, "data": key.data, **entry})
    if named and not entries:
        return None
    text = json.dumps({"version": _VERSION, "named": named, "tensors": entries})
    if len(text) > MAX_HEADER_BYTES:
        raise FileFormatError(f"the metadata have {len(text)} bytes, more than {MAX_HEADER_BYTES}")
    return text


def decode_json(text: bytes, file: InputFile, place: str) -> dict[str, Any]:
    """Parses a JSON object in which no key comes twice.

    Raises:
        FileFormatError: where it is not such an object.
    """
    if len(text) > MAX_HEADER_BYTES:
        raise file.fail(place, f"the JSON has {len(text)} bytes, more than {MAX_HEADER_BYTES}")
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as err:
        raise file.fail(place, f"malformed JSON: {str(err)[:200]}") from err
    if not isinstance(value, dict):
        raise file.fail(place, f"expected a JSON object, but got {brief(value)}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"two entries of the name {key!r}")
            seen.add(key)
    return value


def assemble(
    arrays: Sequence[StoredArray], text: bytes | None, file: InputFile, place: str
) -> Contents:
    """Puts the arrays of a file together to tensors.

    Args:
        arrays: in the file's order, with unique keys.
        text: the sidecar, or None.
        file: the file.
        place: of the sidecar, for messages.

    Raises:
        FileFormatError: where sidecar and arrays contradict each other.
    """
    if len(arrays) > 2 * MAX_TENSORS:
        raise file.fail("header", f"{len(arrays)} arrays are more than {2 * MAX_TENSORS}")
    named = True
    entries: dict[str, _Entry] = {}
    if text is not None:
        named, entries = _decode(text, file, place)
    by_key = {array.key: array for array in arrays}
    ids_keys = {entry.ids for entry in entries.values() if entry.ids is not None}
    for key in (*entries, *ids_keys):
        if key not in by_key:
            raise file.fail(place, f"there is no array {key!r}, which the metadata names")
    tensors = []
    for array in arrays:
        if array.key in ids_keys:
            continue
        entry = entries.get(array.key, _Entry(array.key))
        ids = None if entry.ids is None else by_key[entry.ids]
        tensors.append(_assemble_one(array, ids, entry, file))
    if len(tensors) > MAX_TENSORS:
        raise file.fail("header", f"{len(tensors)} tensors are more than {MAX_TENSORS}")
    if not named and [tensor.info.name for tensor in tensors] != _numbers(len(tensors)):
        raise file.fail(place, "a plain list whose tensors are not named '0', '1', ...")
    return Contents(tuple(tensors), named)


def _numbers(count: int) -> list[str]:
    return [str(index) for index in range(count)]


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    ids: str | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None


def _decode(text: bytes, file: InputFile, place: str) -> tuple[bool, dict[str, _Entry]]:
    value = decode_json(text, file, place)
    if value.get("version") != _VERSION:
        raise file.fail(
            place, f"the metadata has version {_VERSION}, but got {brief(value.get('version'))}"
        )
    named, listed = value.get("named"), value.get("tensors")
    if not isinstance(named, bool) or not isinstance(listed, list):
        raise file.fail(place, "the metadata lacks 'named' or 'tensors'")
    entries: dict[str, _Entry] = {}
    keys: set[str] = set()
    for item in listed:
        entry = _entry(item)
        if entry is None:
            raise file.fail(place, f"malformed entry of the metadata: {brief(item)}")
        for key in (item["data"], *([] if entry.ids is None else [entry.ids])):
            if key in keys:
                raise file.fail(place, f"the metadata uses the array {key!r} twice")
            keys.add(key)
        entries[item["data"]] = entry
    return named, entries


def _entry(item: Any) -> _Entry | None:
    if not isinstance(item, dict) or not {"name", "data"} <= item.keys():
        return None
    sparse = {"stype", "shape", "ids"}
    if item.keys() - sparse - {"name", "data", "dtype"}:
        return None
    if any(not isinstance(item[key], str) for key in item if key != "shape"):
        return None
    if item.get("dtype", "bfloat16") != "bfloat16":
        return None
    if not item.keys() & sparse:
        return _Entry(item["name"], dtype=item.get("dtype"))
    if not sparse <= item.keys() or item["stype"] != "row_sparse" or not is_shape(item["shape"]):
        return None
    return _Entry(item["name"], item["ids"], tuple(item["shape"]), item.get("dtype"))


def is_shape(value: Any) -> TypeGuard[list[int]]:
    """Whether a JSON value is a list of whole numbers of 64 bits."""
    return isinstance(value, list) and all(
        type(size) is int and -1 << 63 <= size < 1 << 63 for size in value
    )


def brief(value: Any) -> str:
    """A JSON value in few characters, for messages."""
    if isinstance(value, dict) and "name" in value:
        return f"an object of the name {brief(value['name'])}"
    if isinstance(value, dict | list):
        # Their text may be long, and too deep to be made.
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} values"
    return repr(value[:80] if isinstance(value, str) else value)[:80]


def _assemble_one(
    array: StoredArray, ids: StoredArray | None, entry: _Entry, file: InputFile
) -> StoredTensor:
    dtype = array.dtype
    if dtype == np.uint16 and entry.dtype == "bfloat16":
        dtype = BFLOAT16
    elif dtype == np.uint16 or entry.dtype is not None:
        raise file.fail(array.place, f"an array of dtype {dtype} cannot be a parameter here")
    if ids is None or entry.shape is None:
        info = TensorInfo(entry.name, array.shape, dtype)
        return StoredTensor(info, (array.part,), array.place)
    problem = shape_problem(entry.shape, dtype.itemsize)
    if problem is not None:
        raise file.fail(array.place, f"the row_sparse tensor {problem}")
    if ids.dtype != np.int64 or len(ids.shape) != 1:
        raise file.fail(ids.place, f"row ids are int64 of one dimension, but got {ids.dtype}")
    num_rows = ids.shape[0]
    fits = entry.shape and array.shape == (num_rows, *entry.shape[1:])
    if not fits or num_rows > entry.shape[0]:
        raise file.fail(
            array.place,
            f"{num_rows} row ids and rows of the shape {array.shape} do not fit "
            f"the logical shape {entry.shape}",
        )
    info = TensorInfo(entry.name, entry.shape, dtype, "row_sparse", num_rows)
    return StoredTensor(info, (ids.part, array.part), array.place)


@dataclass(frozen=True, slots=True)
class NewArray:
    """An array that is to be written.

    Attributes:
        key: its key.
        shape: its shape.
        dtype: its dtype.
        id_limit: the logical number of rows, where it holds row ids.
    """

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    id_limit: int | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


def in_key_order(infos: Sequence[TensorInfo], keys: Iterable[TensorKeys]) -> list[NewArray]:
    """The arrays that make up these tensors, in the order of the payload."""
    arrays = []
    for info, key in zip(infos, keys, strict=True):
        if key.ids is not None:
            ids_shape = info.data_shape[:1]
            arrays.append(NewArray(key.ids, ids_shape, np.dtype(np.int64), info.shape[0]))
        arrays.append(NewArray(key.data, info.data_shape, info.dtype))
    return arrays
