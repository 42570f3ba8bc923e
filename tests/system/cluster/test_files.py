"""Files of what several shards hold: the same bytes as those of one server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import paramd
from paramd import Parameter, ParameterDict, Session, cpu
from paramd.errors import ServerUnavailable
from paramd.files import load_arrays
from paramd.spec import TensorHead
from paramd.transport.cluster import loading, saving
from tests.support.clusters import small_cluster
from tests.support.contexts import device

SIZES = ["small", "large"]


def _fill(session: Session) -> ParameterDict:
    generator = np.random.default_rng(5)
    params = ParameterDict("net_", session=session)
    for name, shape, stype, dtype in (
        ("dense", (1001, 30), "default", "float32"),
        ("half", (77, 3), "default", "bfloat16"),
        ("small", (2,), "default", "int64"),
        ("table", (1001, 30), "row_sparse", "float32"),
        ("narrow", (5001, 1), "row_sparse", "float16"),
        ("few", (1, 4), "row_sparse", "float32"),
        ("last", (9,), "default", "uint8"),
    ):
        parameter = params.get(name, shape=shape, stype=stype, dtype=dtype)
        parameter.initialize("zeros", ctx=[device(0), device(1)])
        known = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
        parameter.set_data((generator.normal(size=shape) * 50).astype(known))
    # The mean of the copies is what is saved.
    params["net_dense"].data(device(1))[:] = 1
    return params


@pytest.fixture(scope="module")
def of_one_server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("one")
    with small_cluster(1) as target, paramd.connect(target) as session:
        params = _fill(session)
        for suffix in ("params", "safetensors", "npz"):
            params.save(directory / f"x.{suffix}", strip_prefix="net_")
    return directory


@pytest.fixture
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes what is there for small or for large."""
    if request.param == "large":
        monkeypatch.setattr(saving, "_SMALL_BYTES", 100)
        monkeypatch.setattr(saving, "_BLOCK_BYTES", 4000)
        monkeypatch.setattr(saving, "_BLOCK_IDS", 100)
        monkeypatch.setattr(loading, "_WAITING_BYTES", 100)


@pytest.mark.parametrize("pieces", SIZES, indirect=True)
@pytest.mark.parametrize("suffix", ["params", "safetensors", "npz"])
def test_files_are_those_of_one_server(
    session: Session, tmp_path: Path, of_one_server: Path, suffix: str, pieces: None
) -> None:
    params = _fill(session)
    params.save(tmp_path / f"x.{suffix}", strip_prefix="net_")
    name = f"x.{suffix}"
    assert (tmp_path / name).read_bytes() == (of_one_server / name).read_bytes()


@pytest.mark.parametrize("pieces", SIZES, indirect=True)
def test_files_of_one_server_are_loaded(
    session: Session, tmp_path: Path, of_one_server: Path, pieces: None
) -> None:
    held = load_arrays(of_one_server / "x.npz")
    for prefix, declared in (("a_", True), ("b_", False)):
        params = ParameterDict(prefix)
        for name, value in held.items():
            stype = "default" if isinstance(value, np.ndarray) else "row_sparse"
            dtype = value.dtype if isinstance(value, np.ndarray) else value.rows.dtype
            shape = value.shape if declared else None
            params.get(name, shape=shape, stype=stype, dtype=dtype, allow_deferred_init=True)
        if declared:
            params.initialize("zeros", ctx=[device(2)])
        params.load(of_one_server / "x.npz", restore_prefix=prefix)
        params.save(tmp_path / f"{prefix}.npz", strip_prefix=prefix)
        assert (tmp_path / f"{prefix}.npz").read_bytes() == (of_one_server / "x.npz").read_bytes()
        expected = [device(2)] if declared else [cpu(0)]
        assert all(each.list_ctx() == expected for each in params.values())


def test_load_that_one_shard_would_refuse_changes_none(session: Session, tmp_path: Path) -> None:
    params = _fill(session)
    path = tmp_path / "x.params"
    params.save(path)
    params["net_last"].cast("float32")
    for each in params.values():
        if each.stype == "default" and each.name != "net_last":
            each.set_data(np.zeros(each.shape or (), "float32"))
    with pytest.raises(AssertionError, match="net_last"):
        params.load(path)
    assert params["net_dense"].data().asnumpy().max() == 0


@pytest.mark.parametrize("pieces", SIZES, indirect=True)
@pytest.mark.parametrize("fails_after", [0, 1, 5])
def test_sink_that_fails_ends_every_stream(
    session: Session, pieces: None, fails_after: int
) -> None:
    params = _fill(session)
    left: list[bool] = []

    @contextmanager
    def write(heads: Sequence[TensorHead]) -> Iterator[Any]:
        count = 0

        def sink(_payload: memoryview) -> None:
            nonlocal count
            count += 1
            if count > fails_after:
                raise OSError(28, "No space left on device")

        try:
            yield sink
        except OSError:
            left.append(True)
            raise

    with pytest.raises(OSError, match="No space"):
        session.calls.save(list(params), write)
    assert left == [True]
    assert session.calls.describe(["net_dense"])[0].state == "initialized"


@pytest.mark.parametrize("pieces", ["large"], indirect=True)
def test_save_begins_anew_where_a_parameter_changes_meanwhile(
    session: Session, pieces: None
) -> None:
    params = _fill(session)
    names = ["net_dense", "net_table"]
    begun: list[list[str]] = []

    def writer(*, always: bool) -> Any:
        @contextmanager
        def write(heads: Sequence[TensorHead]) -> Iterator[Any]:
            begun.append([head.dtype.name for head in heads])
            if always or len(begun) == 1:
                other = "float64" if begun[-1][1] == "float32" else "float32"
                params["net_table"].cast(other)
            yield lambda _payload: None

        return write

    session.calls.save(names, writer(always=False))
    assert begun == [["float32", "float32"], ["float32", "float64"]]
    with pytest.raises(ServerUnavailable, match=r"began anew 5 times.*net_table"):
        session.calls.save(names, writer(always=True))


def test_what_has_no_value_is_not_saved(session: Session, tmp_path: Path) -> None:
    params = ParameterDict()
    params.get("a", shape=(7, 2)).initialize("ones")
    params.get("b", shape=(7, 2))
    with pytest.raises(RuntimeError, match="'b'"):
        params.save(tmp_path / "x.params")
    late = Parameter("late", shape=(0, 2), allow_deferred_init=True)
    late.initialize("ones")
    late.shape = (7, 2)
    params.update({"late": late})
    params["b"].initialize("zeros")
    params.save(tmp_path / "x.npz")
    assert list(load_arrays(tmp_path / "x.npz")) == ["a", "b", "late"]
    with pytest.raises(ValueError, match="twice"):
        session.calls.save(["a", "a"], lambda _heads: pytest.fail("nothing is opened"))
