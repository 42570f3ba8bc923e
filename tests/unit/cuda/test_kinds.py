"""Which contexts of CUDA a machine has, without loading CuPy, and why it has none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from paramd import cpu, gpu
from paramd.context import Context, cpu_pinned
from paramd.errors import ContextNotAvailableError
from paramd_server.arrays.backend import DeviceStatus
from paramd_server.arrays.cuda.driver import Driver, DriverError, Gpu
from paramd_server.arrays.cuda.kinds import (
    Cupy,
    GpuKind,
    PinnedKind,
    default_gpu_limit,
    find_cupy,
    usable_gpus,
)
from paramd_server.arrays.devices import Devices
from paramd_server.arrays.kinds import HostMemory
from paramd_server.arrays.memory import MemoryAccount, SpareBuffers
from tests.support.fake_driver import GIB, install_cupy

TWO = (Gpu("A100", 80 * GIB), Gpu("T4", 16 * GIB))
CUPY_12 = Cupy("cupy-cuda12x", "14.2.0", 12)
CUPY_13 = Cupy("cupy-cuda13x", "14.2.0", 13)
HAS_TWO = "the machine has 2 GPUs (A100, T4), but "


def machine(
    version: int = 12040, cupy: Cupy | None = CUPY_12, gpus: tuple[Gpu, ...] = TWO
) -> Callable[[], Sequence[Gpu]]:
    return lambda: usable_gpus(lambda: Driver(version, gpus), lambda: cupy)


def no_driver() -> Sequence[Gpu]:
    def look() -> Driver:
        raise DriverError("no NVIDIA driver: libcuda.so.1: not there")

    return usable_gpus(look, lambda: CUPY_12)


def host_memory(limit: int = 0) -> HostMemory:
    return HostMemory(MemoryAccount(1 << 20), SpareBuffers(), limit)


def devices(gpus: Callable[[], Sequence[Gpu]], limit: int = 0) -> Devices:
    kinds = (GpuKind(gpus), PinnedKind(gpus))
    return Devices(MemoryAccount(1 << 20), gpu_memory_limit=limit, kinds=kinds)


@pytest.mark.parametrize("version", [12000, 12040, 13020])
def test_every_gpu_of_a_driver_that_is_new_enough_is_a_context(version: int) -> None:
    found = GpuKind(machine(version)).look(host_memory())
    assert (found.count, found.why_none) == (2, "")
    assert [(each.context, each.name, each.total_bytes) for each in found.devices] == [
        (gpu(0), "A100", 80 * GIB),
        (gpu(1), "T4", 16 * GIB),
    ]
    pinned = PinnedKind(machine(version)).look(host_memory())
    assert (pinned.count, pinned.why_none) == (None, "")


def test_limit_is_nine_tenths_of_each_gpu_or_what_is_said() -> None:
    unlimited = GpuKind(machine()).look(host_memory()).devices
    assert [each.limit_bytes for each in unlimited] == [72 * GIB, int(14.4 * GIB)]
    limited = GpuKind(machine()).look(host_memory(5 * GIB)).devices
    assert [each.limit_bytes for each in limited] == [5 * GIB, 5 * GIB]


def test_least_limit_is_that_of_the_smallest_gpu() -> None:
    assert devices(machine()).least_device_limit == default_gpu_limit(16 * GIB)
    assert devices(no_driver).least_device_limit == 0


@pytest.mark.parametrize(
    ("gpus", "why"),
    [
        (no_driver, "no NVIDIA driver: libcuda.so.1: not there"),
        (
            machine(cupy=None),
            f"{HAS_TWO}CuPy is not installed: pip install 'paramd-server[cuda12x]'",
        ),
        (
            machine(cupy=None, gpus=TWO[:1]),
            "the machine has one GPU (A100), but CuPy is not installed: "
            "pip install 'paramd-server[cuda12x]'",
        ),
        (
            machine(11080, None),
            f"{HAS_TWO}its driver is for CUDA 11.8, and a driver for CUDA 12.0 or newer is needed",
        ),
        (
            machine(12040, CUPY_13),
            f"{HAS_TWO}CuPy 14.2.0 (cupy-cuda13x) needs a driver for CUDA 13.0 or newer, and this "
            "one is for CUDA 12.4",
        ),
        (
            machine(cupy=Cupy("cupy-cuda12x", "12.3.0", 12)),
            f"{HAS_TWO}CuPy 12.3.0 (cupy-cuda12x) is too old, 13.0 or newer is needed: "
            "pip install 'paramd-server[cuda12x]'",
        ),
    ],
    ids=["no driver", "no CuPy", "one GPU", "old driver", "driver older than CuPy", "old CuPy"],
)
def test_what_is_missing_is_said(gpus: Callable[[], Sequence[Gpu]], why: str) -> None:
    for kind in (GpuKind(gpus), PinnedKind(gpus)):
        found = kind.look(host_memory())
        assert (found.count, list(found.devices), found.why_none) == (0, [], why)


@pytest.mark.parametrize("cupy", [Cupy("cupy", "14.0.0"), Cupy()], ids=["built", "unknown"])
def test_cupy_of_an_unknown_build_is_left_to_itself(cupy: Cupy) -> None:
    """What it was built for is learnt when it is loaded."""
    assert GpuKind(machine(12000, cupy)).look(host_memory()).count == 2


@pytest.mark.parametrize(
    ("gpus", "context", "message"),
    [
        (no_driver, gpu(0), r"no context gpu\(0\); it has cpu\(0\.\.\) \(no NVIDIA driver: .*\)"),
        (no_driver, cpu_pinned(0), r"no context cpu_pinned\(0\); it has cpu\(0\.\.\) \(no NVID"),
        (machine(cupy=None), gpu(1), r"has cpu\(0\.\.\) \(the machine has 2 GPUs .* CuPy is not"),
        (machine(), gpu(9), r"gpu\(9\); it has cpu\(0\.\.\), gpu\(0\.\.1\), cpu_pinned\(0\.\.\)$"),
        (
            machine(),
            Context("cpu_shared", 0),
            r"no context cpu_shared\(0\); it has cpu\(0\.\.\), g",
        ),
    ],
    ids=["no driver", "no driver, pinned", "no CuPy", "no such GPU", "shared"],
)
def test_context_that_is_not_there_is_refused_with_why(
    gpus: Callable[[], Sequence[Gpu]], context: Context, message: str
) -> None:
    found = devices(gpus)
    with pytest.raises(ContextNotAvailableError, match=message):
        found.backend(context)
    # The others are as they were.
    assert found.backend(cpu(0)).device_types


def test_server_tells_of_gpus_that_nobody_uses_yet() -> None:
    found = devices(machine(), limit=GIB)
    assert found.num_gpus == 2
    assert found.device_types == ("cpu", "gpu", "cpu_pinned")
    assert found.statuses()[1] == DeviceStatus(gpu(1), "T4", 0, GIB, 16 * GIB)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes Python look for modules in these directories alone, and forget a CuPy that it has."""

    def looks(*directories: Path) -> None:
        monkeypatch.delitem(sys.modules, "cupy", raising=False)
        monkeypatch.setattr(sys, "path", [str(each) for each in directories])

    return looks


@pytest.mark.parametrize(
    ("distribution", "major"), [("cupy-cuda12x", 12), ("cupy-cuda13x", 13), ("cupy", None)]
)
def test_cupy_is_found_without_being_imported(
    only: Callable[..., None], tmp_path: Path, distribution: str, major: int | None
) -> None:
    install_cupy(tmp_path / "site", distribution, "14.2.0")
    only(tmp_path / "site")
    assert find_cupy() == Cupy(distribution, "14.2.0", major)
    assert "cupy" not in sys.modules


def test_of_two_cupys_none_is_believed(only: Callable[..., None], tmp_path: Path) -> None:
    install_cupy(tmp_path / "a", "cupy-cuda12x", "14.2.0")
    install_cupy(tmp_path / "b", "cupy-cuda13x", "14.2.0")
    only(tmp_path / "a", tmp_path / "b")
    assert find_cupy() == Cupy()


def test_what_is_left_of_an_uninstalled_cupy_is_none(
    only: Callable[..., None], tmp_path: Path
) -> None:
    install_cupy(tmp_path / "site", "cupy-cuda12x", "14.2.0")
    (tmp_path / "site" / "cupy" / "__init__.py").unlink()
    (tmp_path / "site" / "cupy").rmdir()
    only(tmp_path / "site")
    assert find_cupy() is None
