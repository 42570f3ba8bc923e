"""What the driver's library is asked, and what is said where it gives nothing."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paramd_server.arrays.cuda.driver import DriverError, Gpu, find_driver, version_text
from tests.support.fake_driver import GIB, NO_DEVICE, STUB_LIBRARY, UNKNOWN, build_driver


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def load(library: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Loads the fake library under the driver's name. Its variables are a test's own."""
    for name in [name for name in os.environ if name.startswith(("FAKE_CUDA", "CUDA_VISIBLE"))]:
        monkeypatch.delenv(name)

    def loaded(name: str) -> Any:
        assert name == "libcuda.so.1"
        return ctypes.CDLL(str(library))

    return loaded


def why_none(load: Callable[[str], Any], control_device: Path = Path("/dev/null")) -> str:
    with pytest.raises(DriverError) as refused:
        find_driver(load=load, control_device=control_device)
    return str(refused.value)


def test_version_and_gpus_are_what_the_driver_says(load: Callable[[str], Any]) -> None:
    driver = find_driver(load=load)
    assert driver.version == 12040
    assert driver.gpus == (Gpu("Fake GPU 0", 16 * GIB), Gpu("Fake GPU 1", 17 * GIB))


@pytest.mark.parametrize(
    ("version", "text"), [(11080, "11.8"), (12000, "12.0"), (12040, "12.4"), (13020, "13.2")]
)
def test_version_is_told_as_cuda_tells_it(version: int, text: str) -> None:
    assert version_text(version) == text


def test_missing_library_is_named() -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    why = why_none(missing)
    assert why.startswith("no NVIDIA driver: libcuda.so.1: cannot open")


def test_library_that_is_no_driver_is_refused(tmp_path: Path) -> None:
    other = build_driver(tmp_path, "int cuInit(unsigned int flags) { return 0; }")
    why = why_none(lambda name: ctypes.CDLL(str(other)))
    assert "libcuda.so.1 is no NVIDIA driver" in why
    assert "cuDriverGetVersion" in why


def test_stub_of_a_toolkit_is_told_from_a_driver(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CUDA_INIT", str(STUB_LIBRARY))
    assert "is the stub of a CUDA toolkit" in why_none(load)


@pytest.mark.parametrize("visible", ["", "-1"])
def test_hidden_gpus_are_explained_by_the_variable(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv("FAKE_CUDA_INIT", str(NO_DEVICE))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert why_none(load) == (
        f"the NVIDIA driver has no GPU for this process; CUDA_VISIBLE_DEVICES is {visible!r}"
    )


def test_no_gpu_at_all_is_said_so(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CUDA_GPUS", "0")
    assert why_none(load) == "the NVIDIA driver has no GPU for this process"


def test_failure_is_named_as_the_driver_names_it(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CUDA_INIT", str(UNKNOWN))
    assert why_none(load) == (
        "the NVIDIA driver does not work: cuInit gave CUDA_ERROR_UNKNOWN (999)"
    )
    monkeypatch.setenv("FAKE_CUDA_INIT", "777")
    assert why_none(load).endswith("cuInit gave error (777)")


def test_container_without_gpus_is_guessed(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE_CUDA_INIT", str(NO_DEVICE))
    assert "there is no" in why_none(load, tmp_path / "nvidiactl")
    assert "container that was given no GPU" in why_none(load, tmp_path / "nvidiactl")


def test_device_without_permission_is_named(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    control = tmp_path / "nvidiactl"
    control.touch()
    monkeypatch.setenv("FAKE_CUDA_INIT", str(NO_DEVICE))
    # Root may open anything.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != control)
    assert why_none(load, control).endswith(f"this user may not open {control}")


def test_gpus_can_be_looked_for_again(load: Callable[[str], Any]) -> None:
    assert find_driver(load=load) == find_driver(load=load)
