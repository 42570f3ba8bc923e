"""Files on the server's side: paths, broken files, odd names; and loads that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from paramd.context import gpu
from paramd.spec import InitializerSpec, TensorHead
from paramd.v1 import parameter_service_pb2 as pb
from paramd.v1 import tensor_pb2
from paramd.wire.messages import context_to_wire
from paramd.wire.tensors import head_to_wire
from tests.support.contexts import device
from tests.support.raw_calls import (
    SHAPE,
    RawClient,
    payload,
    refused,
)
from tests.support.server_process import ServerProcess

PATHS: Final = (
    "../outside.params",
    "..",
    ".",
    "/tmp/outside.params",
    "a/../../outside.params",
    "link.params",
    "linked/x.params",
    "nul\0.params",
)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["Save", "Load"])
def test_path_that_leaves_the_snapshot_directory(
    unchanged: RawClient, shared_server: ServerProcess, tmp_path: Path, method: str, path: str
) -> None:
    snapshots = shared_server.log_file.parent / "snapshots"
    outside = tmp_path / "outside.params"
    outside.write_bytes(b"secret")
    for name, target in (("link.params", outside), ("linked", tmp_path)):
        link = snapshots / name
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    with refused("PATH_NOT_ALLOWED") as outcome:
        if method == "Save":
            unchanged.call("Save", pb.SaveRequest(names=["dense"], path=path))
        else:
            opened = pb.LoadOpen(operation=unchanged.operation(), names=["dense"], path=path)
            unchanged.call("Load", [pb.LoadRequest(open=opened)])
    assert "secret" not in outcome.message
    assert outside.read_bytes() == b"secret"
    assert not (snapshots.parent / "outside.params").exists()


@pytest.mark.parametrize("suffix", ["params", "safetensors", "npz"])
def test_truncated_file_on_the_server(
    unchanged: RawClient, shared_server: ServerProcess, suffix: str
) -> None:
    file = shared_server.log_file.parent / "snapshots" / f"whole.{suffix}"
    unchanged.call("Save", pb.SaveRequest(names=["dense", "two"], path=file.name))
    data = file.read_bytes()
    for size in (0, 1, 7, 8, 20, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:size])
        opened = pb.LoadOpen(
            operation=unchanged.operation(), names=["dense", "two"], path=file.name
        )
        with refused("FILE_FORMAT") as outcome:
            unchanged.call("Load", [pb.LoadRequest(open=opened)])
        assert file.name in outcome.message
        assert str(file.parent) not in outcome.message, "the path is the server's own affair"


def test_file_that_cannot_be_read_or_written(
    unchanged: RawClient, shared_server: ServerProcess
) -> None:
    snapshots = shared_server.log_file.parent / "snapshots"
    (snapshots / "folder.params").mkdir(exist_ok=True)
    (snapshots / "plain").write_text("a file")
    for path in ("none.params", "folder.params", "plain/x.params", "x" * 300 + ".params"):
        opened = pb.LoadOpen(operation=unchanged.operation(), names=["dense"], path=path)
        with refused("FILE_FAILED", "FILE_MISSING"):
            unchanged.call("Load", [pb.LoadRequest(open=opened)])
    for path in ("folder.params", "plain/x.params", "x" * 300 + ".params"):
        with refused("FILE_FAILED"):
            unchanged.call("Save", pb.SaveRequest(names=["dense"], path=path))
    for path in ("x.unknown", "x"):
        with refused("FILE_FORMAT"):
            unchanged.call("Save", pb.SaveRequest(names=["dense"], path=path))
    assert sorted(each.name for each in (snapshots / "folder.params").iterdir()) == []
    assert not list(snapshots.glob("*.tmp*"))


@pytest.mark.parametrize("suffix", ["params", "safetensors", "npz"])
def test_odd_names_in_a_file_on_the_server(raw: RawClient, world: None, suffix: str) -> None:
    """Whatever a parameter is called, it is saved and loaded again, or refused."""
    for name in ("__metadata__", "a/../../b", "nul\0name", "ü \n", "__paramd__", ".", "n" * 1024):
        raw.create(name, (3,), init=InitializerSpec("one"))
        try:
            try:
                raw.call("Save", pb.SaveRequest(names=[name], path=f"odd.{suffix}"))
            except Exception:
                with refused("FILE_FORMAT", "INVALID_ARGUMENT", "INVALID_NAME"):
                    raw.call("Save", pb.SaveRequest(names=[name], path=f"odd.{suffix}"))
                continue
            raw.set(name, np.full(3, 5, "f4"))
            opened = pb.LoadOpen(operation=raw.operation(), names=[name], path=f"odd.{suffix}")
            raw.call("Load", [pb.LoadRequest(open=opened)])
            np.testing.assert_array_equal(raw.get(name), np.ones(3, "f4"))
        finally:
            raw.call("Delete", pb.DeleteRequest(operation=raw.operation(), names=[name]))


@pytest.mark.parametrize("suffix", ["params", "safetensors", "npz"])
def test_name_that_the_prefix_takes_away_whole(raw: RawClient, world: None, suffix: str) -> None:
    """The file has an empty name, and the same prefix restores it."""
    path, names = f"empty.{suffix}", ["dense"]
    raw.call("Save", pb.SaveRequest(names=names, path=path, strip_prefix="dense"))
    saved = raw.get("dense")
    raw.set("dense", saved + 1)
    opened = pb.LoadOpen(operation=raw.operation(), names=names, path=path, restore_prefix="dense")
    raw.call("Load", [pb.LoadRequest(open=opened)])
    np.testing.assert_array_equal(raw.get("dense"), saved)


@pytest.mark.parametrize(
    ("names", "held", "more", "reason"),
    [
        (["dense", "two"], ["dense"], {}, "PARAMETER_MISSING"),
        (["dense"], ["dense", "two"], {}, "PARAMETER_UNEXPECTED"),
        (["declared"], ["declared"], {"cast_dtype": False}, "DTYPE_MISMATCH"),
        (["dense"], ["dense"], {"dtype_source": 7}, "INVALID_ARGUMENT"),
        (["dense"], ["dense"], {"contexts": [tensor_pb2.Context()]}, "INVALID_ARGUMENT"),
        (
            ["dense"],
            ["dense"],
            {"contexts": [context_to_wire(device(5))]},
            "CONTEXT_MISMATCH",
        ),
        (
            ["dense"],
            ["dense"],
            {"contexts": [context_to_wire(gpu(99))]},
            "CONTEXT_NOT_AVAILABLE",
        ),
        (["deferred"], ["deferred"], {"shape": (4, 6)}, "SHAPE_MISMATCH"),
        (["dense"], ["dense"], {"shape": (0, 5)}, "SHAPE_MISMATCH"),
        (["dense", "two"], ["dense", "two"], {}, "INVALID_STREAM"),
    ],
)
def test_load_that_does_not_fit(
    unchanged: RawClient, names: list[str], held: list[str], more: dict[str, Any], reason: str
) -> None:
    shape = more.pop("shape", SHAPE)
    dtype = "f8" if reason == "DTYPE_MISMATCH" else "f4"
    value = np.zeros(shape, dtype)
    opened = pb.LoadOpen(operation=unchanged.operation(), names=names, file_names=held, **more)
    head = TensorHead(names[0], shape, value.dtype, mode="assign")
    with refused(reason):
        unchanged.call(
            "Load",
            [
                pb.LoadRequest(open=opened),
                pb.LoadRequest(header=head_to_wire(head)),
                *payload(value),
            ],
        )
