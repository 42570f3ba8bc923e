"""Saving and loading through a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramd import (
    DeferredInitializationError,
    ParameterDict,
    Session,
    cpu,
)
from paramd.files import RowSparseRows, load_arrays, save_arrays
from tests.support.contexts import device, named
from tests.support.proxies import Ramp, ramp


@pytest.mark.parametrize("suffix", ["params", "safetensors", "npz"])
@pytest.mark.parametrize("where", ["", "server:"])
def test_saved_values_come_back(
    session: Session,
    params: ParameterDict,
    tmp_path: Path,
    suffix: str,
    where: str,
    num_shards: int,
) -> None:
    if where and num_shards > 1:
        for use in (params.save, params.load):
            with pytest.raises(ValueError, match=rf"'server:x.{suffix}'.*save_snapshot"):
                use(f"server:x.{suffix}")
        return
    table = params.get("t", shape=(4, 2), stype="row_sparse")
    table.initialize(Ramp())
    params["net_a"].set_data(ramp(2, 3))
    filename = f"{where}saved-{suffix}.{suffix}" if where else str(tmp_path / f"x.{suffix}")
    params.save(filename, strip_prefix="net_")
    params.set_data({"net_a": np.zeros((2, 3)), "net_b": np.zeros(3), "net_t": np.zeros((4, 2))})
    params["net_a"].grad()[:] = 4
    params.load(filename, restore_prefix="net_")
    np.testing.assert_array_equal(params["net_a"].data().asnumpy(), ramp(2, 3))
    assert params["net_b"].data().asnumpy().tolist() == [1, 1, 1]
    np.testing.assert_array_equal(table.row_sparse_data([0, 3]).data.asnumpy(), [[0, 1], [6, 7]])
    assert params["net_a"].grad().asnumpy().max() == 4
    if not where:
        held = load_arrays(filename)
        assert set(held) == {"a", "b", "n", "t"}
        assert isinstance(held["t"], RowSparseRows)


def test_prefix_to_strip_must_be_there(params: ParameterDict, tmp_path: Path) -> None:
    for filename in (str(tmp_path / "x.params"), "server:x.params"):
        with pytest.raises(ValueError, match=r"'other_'.*'net_a'"):
            params.save(filename, strip_prefix="other_")
    assert list(tmp_path.iterdir()) == []


def test_save_writes_the_mean(session: Session, tmp_path: Path) -> None:
    params = ParameterDict()
    weight = params.get("w", shape=(2,), dtype="int32")
    params.initialize("zeros", ctx=[device(0), device(1)])
    weight.data(device(0))[:] = [2**31 - 1, 1]
    weight.data(device(1))[:] = [2**31 - 1, 2]
    params.save(tmp_path / "x.npz")
    (value,) = load_arrays(tmp_path / "x.npz").values()
    assert isinstance(value, np.ndarray)
    assert value.tolist() == [2**31 - 1, 2]


def test_save_of_what_has_no_value_leaves_the_file(params: ParameterDict, tmp_path: Path) -> None:
    path = tmp_path / "x.params"
    params.save(path)
    before = path.read_bytes()
    params.get("late", allow_deferred_init=True).initialize()
    with pytest.raises(DeferredInitializationError, match=r"net_late"):
        params.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_load_initializes_on_cpu_0_or_ctx(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "x.params"
    save_arrays(path, {"arg:a": ramp(2, 3), "aux:b": ramp(3)})
    for name, ctx, expected in (
        ("x_", None, [cpu(0)]),
        ("y_", [device(1), device(2)], [device(1), device(2)]),
    ):
        params = ParameterDict(name)
        params.get("a", shape=(2, 0))
        params.get("b", allow_deferred_init=True)
        with device(3):
            params.load(path, ctx=ctx, restore_prefix=name)
        for each in params.values():
            assert each.list_ctx() == expected
        np.testing.assert_array_equal(params[f"{name}a"].data(expected[0]).asnumpy(), ramp(2, 3))
        assert params[f"{name}b"].shape == (3,)


def _values(shape: Any = (2, 3), dtype: str = "float32") -> dict[str, Any]:
    return {
        "net_a": np.zeros(shape, dtype),
        "net_b": np.zeros(3, np.float16),
        "net_n": np.zeros(2, np.int64),
    }


def _load(
    params: ParameterDict, path: Path, values: dict[str, Any] | None, options: dict[str, Any]
) -> None:
    if values is None:
        params.load(path, **options)
    else:
        params.load_dict(values, filename=path, **options)


@pytest.mark.parametrize(
    ("values", "options", "facts"),
    [
        ({"net_a": np.zeros((2, 3), np.float32)}, {}, "net_b"),
        ({**_values(), "extra": np.zeros(2)}, {}, "extra"),
        (_values((3, 3)), {}, r"net_a.*\(2, 3\).*\(3, 3\)"),
        (_values((2,)), {}, r"net_a.*\(2, 3\).*\(2,\)"),
        (_values((2, 3, 1)), {}, "net_a"),
        (_values(dtype="float64"), {}, "net_a.*float32.*float64"),
        (_values(), {"ctx": device(1)}, rf"net_.*{named(1)}.*{named(0)}"),
    ],
)
@pytest.mark.parametrize("from_file", [True, False])
def test_load_is_all_or_nothing(
    params: ParameterDict,
    tmp_path: Path,
    values: dict[str, Any],
    options: dict[str, Any],
    facts: str,
    from_file: bool,
) -> None:
    save_arrays(tmp_path / "x.params", values)
    with pytest.raises(AssertionError, match=rf"(?s){facts}"):
        _load(params, tmp_path / "x.params", values if not from_file else None, options)
    assert all((value == 1).all() for value in params.pull().values())


def test_load_options(params: ParameterDict) -> None:
    params.load_dict({"net_a": np.zeros((2, 3), np.float32)}, allow_missing=True)
    params.load_dict({**_values(), "extra": np.zeros(2)}, ignore_extra=True)
    params.load_dict([("arg:x", [1])], allow_missing=True, ignore_extra=True)
    with pytest.raises(AssertionError, match=r"param_dict"):
        params.load_dict(list(_values().items())[:1])
    params.load_dict(_values(dtype="float64"), cast_dtype=True)
    assert params["net_a"].dtype is np.float32
    params.load_dict(_values(dtype="float64"), cast_dtype=True, dtype_source="saved")
    assert params["net_a"].dtype is np.float64
    assert params["net_a"].grad().dtype == np.float64


def test_load_sends_only_what_is_wanted(
    session: Session, params: ParameterDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_arrays(tmp_path / "x.npz", {**_values(), "extra": np.zeros(2)})
    sent: list[str] = []
    load = session.calls.load

    def recorded(tensors: Any, options: Any) -> Any:
        sent.extend(write.name for write in tensors())
        return load(tensors, options)

    monkeypatch.setattr(session.calls, "load", recorded)
    params.load(tmp_path / "x.npz", ignore_extra=True)
    assert sent == ["net_a", "net_b", "net_n"]


def test_loaded_parameter_warns_when_initialized(session: Session) -> None:
    params = ParameterDict()
    weight = params.get("w", shape=(2,))
    params.load_dict({"w": np.ones(2, np.float32)})
    with pytest.warns(UserWarning, match=r"'w'"):
        weight.initialize()
    assert weight.data().asnumpy().tolist() == [1, 1]


@pytest.mark.parametrize("path", ["server:../x.params", "server:/etc/x.params"])
def test_paths_stay_below_the_snapshot_directory(params: ParameterDict, path: str) -> None:
    with pytest.raises(ValueError, match=r"x.params"):
        params.save(path)
    with pytest.raises(ValueError, match=r"x.params"):
        params.load(path)


def test_missing_file_on_the_server_is_an_oserror(params: ParameterDict, num_shards: int) -> None:
    if num_shards == 1:
        with pytest.raises(OSError, match=r"none.params"):
            params.load("server:none.params")
