"""The command `paramd` against a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import paramd
from paramd import Parameter, ParameterDict, Session
from paramd.cli import main
from paramd.files import load_arrays, save_arrays
from tests.support.contexts import device
from tests.support.server_process import ServerProcess, serve


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with serve(tmp_path, "--snapshot-dir", str(tmp_path / "snapshots")) as started:
        yield started


@pytest.fixture
def session(server: ServerProcess) -> Iterator[Session]:
    with paramd.connect(server.address) as opened:
        yield opened


@pytest.fixture
def params(session: Session) -> ParameterDict:
    found = ParameterDict("net_", session=session)
    found.get("weight", shape=(64, 10), init="xavier")
    found.get("bias", shape=(10,), dtype="float16", grad_req="null")
    found.initialize(ctx=[device(0), device(1)])
    found.get("late", shape=(0, 3), stype="row_sparse")
    found["net_late"].zero_grad()
    return found


def run(server: ServerProcess, *arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, env={"PARAMD_TARGET": server.address})


def as_json(server: ServerProcess, *arguments: str) -> Any:
    result = run(server, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_ls_prints_a_table(server: ServerProcess, params: ParameterDict) -> None:
    result = run(server, "ls")
    assert result.exit_code == 0
    head, *lines = result.stdout.splitlines()
    assert head.split() == [
        "NAME",
        "SHAPE",
        "DTYPE",
        "STYPE",
        "GRAD_REQ",
        "STATE",
        "CONTEXTS",
        "SIZE",
    ]
    assert [line.split()[:6] for line in lines] == [
        ["net_weight", "64x10", "float32", "default", "write", "initialized"],
        ["net_bias", "10", "float16", "default", "null", "initialized"],
        ["net_late", "?x3", "float32", "row_sparse", "write", "declared"],
    ]
    assert f"{device(0)} {device(1)}  10.0 KiB" in lines[0]
    assert [each["name"] for each in as_json(server, "ls", "net_b")] == ["net_bias"]


def test_ls_of_nothing_prints_the_head_only(server: ServerProcess) -> None:
    assert run(server, "ls").stdout.split()[0] == "NAME"
    assert len(run(server, "ls").stdout.splitlines()) == 1
    assert as_json(server, "ls") == []


def test_show_tells_all(server: ServerProcess, params: ParameterDict) -> None:
    (shown,) = as_json(server, "show", "net_weight")
    assert shown["shape"] == [64, 10]
    assert shown["contexts"] == [str(device(0)), str(device(1))]
    assert shown["init"]["name"] == "xavier"
    assert shown["value_bytes"] == shown["gradient_bytes"] == 2 * 64 * 10 * 4
    text = run(server, "show", "net_weight", "net_late").stdout
    assert "xavier(" in text
    assert "net_late" in text
    assert "\n\n" in text


def test_unknown_name_ends_with_1_and_no_traceback(server: ServerProcess) -> None:
    result = run(server, "show", "nothing")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "nothing" in result.stderr
    assert "Traceback" not in result.stderr


def test_saved_file_loads_into_another_server(
    server: ServerProcess, params: ParameterDict, tmp_path: Path
) -> None:
    path = str(tmp_path / "x.safetensors")
    saved = as_json(server, "save", path, "net_weight", "net_bias", "--strip-prefix", "net_")
    assert saved == {"file": path, "saved": ["net_weight", "net_bias"]}
    assert set(load_arrays(path)) == {"weight", "bias"}
    (tmp_path / "fresh").mkdir()
    with serve(tmp_path / "fresh") as fresh:
        refused = run(fresh, "load", path)
        assert refused.exit_code == 1
        assert "bias" in refused.stderr
        assert as_json(fresh, "ls") == []
        arguments = ("--create", "--restore-prefix", "new_", "--ctx", str(device(2)))
        loaded = as_json(fresh, "load", path, *arguments)
        assert sorted(loaded["loaded"]) == ["new_bias", "new_weight"]
        with paramd.connect(fresh.address) as other:
            values = other.parameters().pull()
            assert other.parameters()["new_bias"].list_ctx() == [device(2)]
    np.testing.assert_array_equal(
        values["new_weight"], params["net_weight"].data(device(0)).asnumpy()
    )
    assert values["new_bias"].dtype == np.float16


def test_failed_load_leaves_no_new_parameters(server: ServerProcess, tmp_path: Path) -> None:
    with paramd.connect(server.address) as session:
        Parameter("a", shape=(2,), session=session).initialize()
    path = str(tmp_path / "x.npz")
    save_arrays(path, {"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)})
    result = run(server, "load", path, "--create")
    assert result.exit_code == 1
    assert "'a'" in result.stderr
    assert [each["name"] for each in as_json(server, "ls")] == ["a"]


def test_files_of_the_server(
    server: ServerProcess, session: Session, params: ParameterDict, tmp_path: Path
) -> None:
    session.delete("net_late")
    assert run(server, "save", "server:x.params").exit_code == 0
    assert set(load_arrays(tmp_path / "snapshots" / "x.params")) == {"net_weight", "net_bias"}
    assert run(server, "load", "server:x.params").exit_code == 0
    for wrong in (("load", "server:none.params"), ("save", "server:../x.params")):
        result = run(server, *wrong)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["x.bin", "none.params", "broken.params"])
def test_bad_files_are_named(server: ServerProcess, tmp_path: Path, name: str) -> None:
    (tmp_path / "broken.params").write_bytes(b"\x12\x01\0\0\0\0\0\0 no such thing")
    result = run(server, "load", str(tmp_path / name))
    assert result.exit_code == 1
    assert name in result.stderr
    assert "Traceback" not in result.stderr


def test_health(server: ServerProcess, params: ParameterDict) -> None:
    health = as_json(server, "health")
    assert health["status"] == "serving"
    assert health["parameters"] == 3
    assert health["latency_ms"] > 0
    assert "3 parameters" in run(server, "health").stdout


def test_the_command_is_installed(server: ServerProcess) -> None:
    command = os.path.join(os.path.dirname(sys.executable), "paramd")
    done = subprocess.run(
        [command, "health", "--target", server.address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "serves" in done.stdout
    assert done.stderr == ""
