"""What a client sees of a server's GPUs, and of their absence: real servers, and a fake driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import paramd
from paramd import Parameter, Session, cpu, gpu
from paramd.context import Context, cpu_pinned
from paramd.errors import ContextNotAvailableError
from paramd.session import DeviceStatus
from paramd_server.arrays.cuda.driver import DriverError, find_driver
from tests.support.fake_driver import GIB, NO_DEVICE, build_driver, hide_cupy, install_cupy
from tests.support.server_process import ServerProcess, run_server, serve

# The tests say what machine there is.
pytestmark = pytest.mark.real_devices

DEFAULT_LIMITS = (int(16 * GIB * 0.9), int(17 * GIB * 0.9))
HIDES_CUPY = "hides-cupy"
NO_CUPY = "the machine has 2 GPUs (Fake GPU 0, Fake GPU 1), but CuPy is not installed"


@pytest.fixture(autouse=True)
def real_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever `pytest --devices` puts in their place has no driver to ask."""
    for name in [name for name in os.environ if name.startswith("TESTS_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Variables with which a server finds two GPUs, and a CuPy that cannot be loaded."""
    directory = tmp_path_factory.mktemp("machine")
    build_driver(directory / "lib")
    install_cupy(directory / "site", "cupy-cuda12x", "14.2.0")
    return {"LD_LIBRARY_PATH": str(directory / "lib"), "PYTHONPATH": str(directory / "site")}


@contextmanager
def session_on(
    directory: Path, environment: Mapping[str, str] | None, *options: str
) -> Iterator[tuple[ServerProcess, Session]]:
    with (
        serve(directory, *options, environment=environment) as server,
        paramd.connect(server.address) as session,
    ):
        yield server, session
        # Nothing that a client asked for is the server's trouble.
        assert server.trouble() == []


def check_refused(session: Session, context: Context, *words: str) -> None:
    """A context is refused wherever one is named, with these words; nothing changes."""
    fresh = Parameter("fresh", shape=(2,), session=session)
    with pytest.raises(ContextNotAvailableError) as refused:
        fresh.initialize("ones", ctx=[cpu(0), context])
    for word in (str(context), *words):
        assert word in str(refused.value)
    fresh.initialize("zeros", ctx=cpu(1))
    with pytest.raises(ContextNotAvailableError):
        fresh.reset_ctx([cpu(1), context])
    assert fresh.list_ctx() == [cpu(1)]
    fresh.set_data(np.array([3, 4], "f4"))
    np.testing.assert_array_equal(fresh.data(cpu(1)).asnumpy(), np.array([3, 4], "f4"))
    session.delete("fresh")


def test_machine_without_a_driver_has_host_contexts_alone(tmp_path: Path) -> None:
    """The machine that runs the test, where it is such a one."""
    try:
        driver = find_driver()
    except DriverError as err:
        why = str(err)
    else:
        pytest.skip(f"this machine has {len(driver.gpus)} GPUs")
    with session_on(tmp_path, None) as (_, session):
        assert session.num_gpus() == 0
        assert session.status().devices == ()
        for context in (gpu(0), gpu(9), cpu_pinned(0)):
            check_refused(session, context, "it has cpu(0..)", why)
        check_refused(session, Context("cpu_shared", 0), "it has cpu(0..)")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"PYTHONPATH": HIDES_CUPY}, NO_CUPY),
        ({"FAKE_CUDA_VERSION": "11080"}, "its driver is for CUDA 11.8"),
        ({"FAKE_CUDA_INIT": str(NO_DEVICE), "CUDA_VISIBLE_DEVICES": ""}, "VISIBLE_DEVICES is ''"),
    ],
    ids=["no CuPy", "old driver", "hidden"],
)
def test_gpus_that_cannot_be_used_are_refused_with_why(
    tmp_path: Path, machine: Mapping[str, str], changes: Mapping[str, str], why: str
) -> None:
    hide_cupy(tmp_path / HIDES_CUPY)
    given = {**machine, **changes}
    if given["PYTHONPATH"] == HIDES_CUPY:
        given["PYTHONPATH"] = str(tmp_path / HIDES_CUPY)
    with session_on(tmp_path, given) as (_, session):
        assert session.num_gpus() == 0
        assert session.status().devices == ()
        for context in (gpu(0), cpu_pinned(2)):
            check_refused(session, context, "it has cpu(0..)", why)


def test_gpus_whose_cupy_cannot_be_loaded_are_refused_and_the_server_goes_on(
    tmp_path: Path, machine: Mapping[str, str]
) -> None:
    with session_on(tmp_path, machine) as (server, session):
        assert session.num_gpus() == 2
        check_refused(session, gpu(2), "it has cpu(0..), gpu(0..1), cpu_pinned(0..)")
        assert "cannot be used" not in server.log
        check_refused(session, gpu(1), "CuPy cannot be loaded: broken")
        check_refused(session, cpu_pinned(0), "CuPy cannot be loaded: broken")
        assert "context gpu(1) cannot be used: CuPy cannot be loaded" in server.log


def test_status_tells_of_gpus_before_anybody_uses_them(
    tmp_path: Path, machine: Mapping[str, str]
) -> None:
    with session_on(tmp_path, machine) as (_, session):
        assert session.status().devices == (
            DeviceStatus(gpu(0), "Fake GPU 0", 0, DEFAULT_LIMITS[0], 16 * GIB),
            DeviceStatus(gpu(1), "Fake GPU 1", 0, DEFAULT_LIMITS[1], 17 * GIB),
        )


@pytest.mark.parametrize("by_variable", [False, True])
def test_limit_of_each_gpu_is_what_is_said(
    tmp_path: Path, machine: Mapping[str, str], by_variable: bool
) -> None:
    options = () if by_variable else ("--gpu-memory-limit", "1.5G")
    environment = {**machine, "PARAMD_GPU_MEMORY_LIMIT": "1536M"} if by_variable else machine
    with session_on(tmp_path, environment, *options) as (_, session):
        limits = [device.memory_limit_bytes for device in session.status().devices]
        assert limits == [3 * GIB // 2] * 2


def health(addresses: Sequence[str], *options: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "paramd.cli", "health", "--target", ",".join(addresses)]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_health_has_a_line_for_each_gpu(tmp_path: Path, machine: Mapping[str, str]) -> None:
    with serve(tmp_path, "--gpu-memory-limit", "1G", environment=machine) as server:
        assert health(server.addresses).splitlines()[1:] == [
            "gpu(0) Fake GPU 0, 16.0 GiB: 0 B (1.0 GiB)",
            "gpu(1) Fake GPU 1, 17.0 GiB: 0 B (1.0 GiB)",
        ]
        described = json.loads(health(server.addresses, "--json"))
    assert described["gpus"] == 2
    assert described["devices"][1] == {
        "shard": 0,
        "context": "gpu(1)",
        "name": "Fake GPU 1",
        "memory_bytes": 0,
        "memory_limit_bytes": GIB,
        "total_bytes": 17 * GIB,
    }


@pytest.mark.parametrize(
    ("options", "limit"),
    [(("--gpu-memory-limit", "1G"), GIB // 2), ((), DEFAULT_LIMITS[0] // 2)],
    ids=["said", "default"],
)
def test_shards_of_one_host_share_the_limit(
    tmp_path: Path, machine: Mapping[str, str], options: tuple[str, ...], limit: int
) -> None:
    """They are processes that the supervisor has executed: each asks the driver itself."""
    with serve(tmp_path, "--shards", "2", *options, environment=machine) as cluster:
        with paramd.connect(",".join(cluster.addresses)) as session:
            status = session.status()
            for shard in status.shards:
                assert [each.context for each in shard.devices] == [gpu(0), gpu(1)]
                assert [each.memory_limit_bytes for each in shard.devices] == [limit, limit]
            assert status.devices == status.shards[0].devices + status.shards[1].devices
            assert session.num_gpus() == 2
        lines = health(cluster.addresses).splitlines()
        assert [line.split(" Fake")[0] for line in lines[1:]] == [
            *("shard 0 gpu(0)", "shard 0 gpu(1)"),
            *("shard 1 gpu(0)", "shard 1 gpu(1)"),
        ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpu-memory-limit", "0"), "at least 1 byte"),
        (("--gpu-memory-limit", "much"), "a size is a number"),
        (("--shards", "2", "--gpu-memory-limit", "1"), "less than a byte for each of 2 shards"),
    ],
)
def test_limit_that_is_none_is_refused(options: tuple[str, ...], message: str) -> None:
    done = run_server(*options, "--listen", "127.0.0.1:0")
    assert done.returncode != 0
    assert message in done.stderr
    assert "--gpu-memory-limit" in done.stderr
