"""The build's own promises: versions, dependencies, lock files and make targets agree."""

import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = (
    *("runtime", "client", "cuda", "dev", "worker", "build", "proto", "conformance-oracle"),
    "lock",
)
TARGETS = (
    *("help", "setup", "frameworks", "demo", "test", "lint", "verify", "proto", "lock"),
    *("conformance", "bench", "bench-peers", "wheels", "clean", "container-test", "gpu-test"),
    *("up", "down"),
)
# Where packages come from is the business of the machine that installs them.
INDEX_OPTION = re.compile(
    r"(?<!no-emit-)(index-url|find-links)|trusted-host|/simple\b|pythonhosted|tool\.uv",
    re.IGNORECASE,
)


def _project(folder: str) -> dict[str, Any]:
    document = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))
    project: dict[str, Any] = document["project"]
    return project


def _normalized(requirement: str) -> str:
    """The name of a requirement, as package indices compare names (PEP 503)."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def _pins(lock: str) -> set[str]:
    """The pinned requirements of a lock file, markers included, hashes left out."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
    return {line.removesuffix("\\").strip() for line in text.splitlines() if re.match(r"\w", line)}


def _inputs(lock: str) -> set[str]:
    text = (ROOT / "requirements" / f"{lock}.in").read_text(encoding="utf-8")
    return {_normalized(line) for line in text.splitlines() if re.match(r"\w", line)}


def test_both_packages_have_one_version() -> None:
    assert _project("client")["version"] == _project("server")["version"]


def test_server_pins_the_exact_client() -> None:
    pin = f"paramd=={_project('client')['version']}"
    assert [d for d in _project("server")["dependencies"] if _normalized(d) == "paramd"] == [pin]


def test_both_packages_ask_for_the_same_python_and_license() -> None:
    client, server = _project("client"), _project("server")
    for key in ("requires-python", "license", "license-files", "classifiers"):
        assert client[key] == server[key], key


@pytest.mark.parametrize("folder", ["client", "server"])
def test_license_goes_with_each_package(folder: str) -> None:
    assert (ROOT / folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_runtime_inputs_are_the_packages_dependencies() -> None:
    declared = {
        _normalized(dependency)
        for folder in ("client", "server")
        for dependency in _project(folder)["dependencies"]
    }
    assert _inputs("runtime") == declared - {"paramd"}


def test_development_pins_contain_the_runtime_pins() -> None:
    assert _pins("runtime") <= _pins("dev")


def test_pins_of_the_gpu_image_go_with_the_runtime_pins() -> None:
    """Both are installed together, and CuPy needs NumPy too."""
    of_runtime = {_normalized(pin): pin for pin in _pins("runtime") if ";" not in pin}
    for pin in _pins("cuda"):
        assert of_runtime.get(_normalized(pin), pin) == pin
    assert {pin for pin in _pins("cuda") if pin.startswith("numpy")} <= _pins("runtime")


def test_gpu_image_has_what_the_extra_asks_for() -> None:
    extras = _project("server")["optional-dependencies"]
    assert _inputs("cuda") == {_normalized(each) for each in extras["cuda12x"]}


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_has_every_input(lock: str) -> None:
    assert _inputs(lock) <= {_normalized(pin) for pin in _pins(lock)}


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_pins_exactly_and_with_hashes(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=\w)", re.sub(r"(?m)^\s*#.*\n?", "", text))
    for block in blocks:
        assert re.match(r"[\w.-]+==[\w.]+( ;[^\\]*)? \\\n", block), block[:80]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block[:80]


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_names_no_place_to_download_from(lock: str) -> None:
    for suffix in ("in", "txt"):
        text = (ROOT / "requirements" / f"{lock}.{suffix}").read_text(encoding="utf-8")
        assert "://" not in text
        assert " @ " not in text
        assert not re.search(r"(?m)^-(?!r |c )", text), "an option of pip other than -r and -c"


@pytest.mark.parametrize(
    "path",
    ["Makefile", ".ci/run", "pyproject.toml", "client/pyproject.toml", "server/pyproject.toml"],
)
def test_build_files_name_no_index(path: str) -> None:
    found = INDEX_OPTION.search((ROOT / path).read_text(encoding="utf-8"))
    assert found is None, found


def test_oracle_and_generator_stay_at_their_versions() -> None:
    assert {"mxnet==1.9.1", "numpy==1.23.5"} <= _pins("conformance-oracle")
    assert "grpcio-tools==1.62.3" in _pins("proto")


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    make = shutil.which("make")
    assert make, "make is not installed"
    # A make that runs these tests must not lend them its options.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        [make, "--no-print-directory", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_help_lists_every_target_with_what_it_does() -> None:
    done = _make("help")
    assert done.returncode == 0, done.stderr
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert set(listed) == set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_target_has_a_recipe_or_prerequisites_that_make_can_build(target: str) -> None:
    done = _make("--dry-run", target)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("section", ["setup", "lint", "verify", "test", "conformance", "wheels"])
def test_ci_runs_the_section(section: str) -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    words = re.findall(r"(?m)^(?:section|for target in) ([a-z ]+?)(?:; do)?$", script.read_text())
    assert section in " ".join(words).split()
