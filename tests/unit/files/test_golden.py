"""Files that MXNet 1.9.1 wrote, or reads: tests/fixtures/mxnet, see write_golden.py there."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from paramd.files import FileReader, TensorInfo, open_reader, open_writer
from paramd.wire.dtypes import dtype_of
from tests.unit.files.samples import FIXTURES

FILES: dict[str, Any] = json.loads((FIXTURES / "expected.json").read_text("ascii"))["files"]
# Files that MXNet wrote and that paramd, on purpose, writes in another way: csr becomes dense, and
# a scalar is written so that MXNet can load it.
REWRITTEN_DIFFERENTLY = {"csr", "csr_empty", "scalar_v2"}
IDENTICAL = sorted(
    name
    for name, file in FILES.items()
    if file["author"] == "mxnet" and name not in REWRITTEN_DIFFERENTLY
)


def expected_infos(file: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            tensor["name"],
            tuple(tensor["shape"]),
            dtype_of(tensor["dtype"]),
            "row_sparse" if tensor["stype"] == "row_sparse" else "default",
            len(tensor["ids"]) if "ids" in tensor else None,
            tensor["context"],
        )
        for tensor in file["tensors"]
    ]


def payload(tensor: dict[str, Any]) -> bytes:
    return np.array(tensor.get("ids", []), "<i8").tobytes() + bytes.fromhex(tensor["data"])


def payload_of(reader: FileReader, index: int) -> bytes:
    return b"".join(reader.chunks(index, 1 << 20))


@pytest.mark.parametrize("name", sorted(FILES))
def test_reads_what_mxnet_holds_in_the_file(name: str) -> None:
    file = FILES[name]
    with open_reader(FIXTURES / f"{name}.params") as reader:
        infos = [
            (info.name, info.shape, info.dtype, info.stype, info.num_rows, str(info.context))
            for info in reader.infos
        ]
        assert infos == expected_infos(file)
        assert reader.named == file["named"]
        for index, tensor in enumerate(file["tensors"]):
            assert payload_of(reader, index) == payload(tensor)


@pytest.mark.parametrize("name", IDENTICAL)
def test_writes_the_same_bytes_as_mxnet(name: str, tmp_path: pathlib.Path) -> None:
    golden = FIXTURES / f"{name}.params"
    with open_reader(golden) as reader:
        infos, named = reader.infos, reader.named
    copy = tmp_path / "copy.params"
    with open_writer(copy, infos, named=named) as writer:
        for tensor in FILES[name]["tensors"]:
            writer.write(payload(tensor))
    assert copy.read_bytes() == golden.read_bytes()


def test_a_scalar_is_written_as_mxnet_writes_it_under_np_shape(tmp_path: pathlib.Path) -> None:
    infos = [TensorInfo("scalar", (), dtype_of("float32")), TensorInfo("x", (1,), dtype_of("int8"))]
    with open_writer(tmp_path / "x.params", infos) as writer:
        writer.write(bytes(5))
    data = (tmp_path / "x.params").read_bytes()
    assert data.count(b"\xca\xfa\x93\xf9") == 2
    assert data.count(b"\xc9\xfa\x93\xf9") == 0


def test_every_golden_file_is_expected() -> None:
    assert {path.stem for path in FIXTURES.glob("*.params")} == set(FILES)
    assert len(IDENTICAL) >= 20
