"""Files of optimizer states: safetensors, with a JSON document as one of the tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from paramd.errors import FileFormatError
from paramd.files import FileReader, TensorInfo, file_errors, open_reader, open_writer
from paramd.optimizer.documents import from_document, to_document
from paramd.spec import TensorHead
from paramd.trainer_spec import StatesManifest
from paramd.transport.protocols import TrainerCalls

__all__ = ["load_states", "save_states"]

_FORMAT: Final = "safetensors"
# No state has a name with a slash or a dot, so no tensor can be called like the document.
_DOCUMENT: Final = "paramd.trainer"
_VERSION: Final = 1


def save_states(calls: TrainerCalls, trainer: str, path: str | os.PathLike[str]) -> None:
    """Writes a trainer's states: see `Trainer.save_states`."""

    @contextmanager
    def write(manifest: StatesManifest) -> Iterator[Callable[[memoryview], None]]:
        document = np.frombuffer(_encode(manifest), np.uint8)
        infos = [TensorInfo(_DOCUMENT, document.shape, document.dtype)]
        infos += [
            TensorInfo(f"{state}/{head.name}", head.shape, head.dtype)
            for head, state in manifest.arrays
        ]
        with file_errors(path), open_writer(path, infos, format=_FORMAT) as file:
            file.write(document.data)
            yield file.write

    calls.save_states(trainer, write)


def load_states(calls: TrainerCalls, trainer: str, path: str | os.PathLike[str]) -> None:
    """Reads a trainer's states: see `Trainer.load_states`."""
    with file_errors(path), open_reader(path, format=_FORMAT) as file:
        document, arrays = _split(file, os.fspath(path))
        manifest = _decode(document, arrays, os.fspath(path))

        def values() -> Iterator[np.ndarray[Any, Any]]:
            for _, index in arrays:
                value = file.read(index)
                assert isinstance(value, np.ndarray)
                yield value

        calls.load_states(trainer, manifest, values)


def _split(file: FileReader, path: str) -> tuple[bytes, list[tuple[TensorInfo, int]]]:
    """The document, and the other tensors with their places."""
    document: bytes | None = None
    arrays = []
    for index, info in enumerate(file.infos):
        if info.name != _DOCUMENT:
            arrays.append((info, index))
            continue
        value = file.read(index)
        if isinstance(value, np.ndarray) and value.dtype == np.uint8:
            document = value.tobytes()
    if document is None:
        raise FileFormatError(f"{path}: no states of a trainer: the tensor {_DOCUMENT} is missing")
    return document, arrays


def _encode(manifest: StatesManifest) -> bytes:
    return json.dumps(
        {
            "version": _VERSION,
            "optimizer": to_document(manifest.optimizer),
            "learning_rate": manifest.learning_rate,
            "num_updates": dict(manifest.num_updates),
        }
    ).encode()


def _decode(document: bytes, arrays: list[tuple[TensorInfo, int]], path: str) -> StatesManifest:
    try:
        fields = json.loads(document)
        if fields["version"] != _VERSION:
            raise FileFormatError(f"{path}: version {fields['version']!r} of states is not known")
        rate = fields["learning_rate"]
        return StatesManifest(
            optimizer=from_document(fields["optimizer"]),
            learning_rate=None if rate is None else float(rate),
            num_updates=dict(fields["num_updates"]),
            arrays=tuple(_array(info, path) for info, _ in arrays),
        )
    except FileFormatError:
        raise
    except (
        *(KeyError, TypeError, ValueError, AttributeError),
        *(OverflowError, RecursionError),
    ) as err:
        raise FileFormatError(f"{path}: the tensor {_DOCUMENT} is damaged: {err}") from err


def _array(info: TensorInfo, path: str) -> tuple[TensorHead, str]:
    state, slash, name = info.name.partition("/")
    if not slash or info.stype != "default":
        raise FileFormatError(f"{path}: the tensor {info.name!r} is no state of a parameter")
    return TensorHead(name, info.shape, info.dtype), state
