"""The Dockerfiles follow hadolint's rules and a few of our own. Nothing is built here."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
DOCKERFILES: Final = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
NAMES: Final = [path.name for path in DOCKERFILES]

GOOD: Final = """\
ARG BASE_IMAGE=python:3.12-slim
ARG BUILD_IMAGE=${BASE_IMAGE}
FROM ${BUILD_IMAGE} AS build
COPY client client
FROM ${BASE_IMAGE} AS image
COPY --from=build /client /client
USER 10001:10001
FROM image
COPY examples examples
"""


def instructions(text: str) -> list[tuple[str, list[str]]]:
    """The instructions of a Dockerfile in their order, with their words."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    words = [shlex.split(line, posix=True) for line in joined.splitlines() if line.strip()]
    return [(first.upper(), rest) for first, *rest in words]


def _image(name: str, arguments: dict[str, str]) -> str:
    """What a FROM names, with the defaults of arguments put in."""
    for _ in arguments:
        name = re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], ""), name)
    return name


def troubles(text: str) -> Iterator[str]:
    """What breaks our own rules, in words."""
    arguments: dict[str, str] = {}
    users: dict[str, str] = {}
    stage = ""
    for instruction, words in instructions(text):
        if instruction == "ARG" and not users:
            name, _, default = words[0].partition("=")
            arguments[name] = default
        elif instruction == "FROM":
            image = _image(words[0], arguments)
            stage = words[2] if len(words) == 3 else ""
            users[stage] = users.get(image, "")
            if image not in users and not re.search(r":(?!latest$).|@sha256:", image):
                yield f"the base {image!r} has no version"
        elif instruction == "USER":
            users[stage] = words[0]
        elif instruction == "COPY" and not words[0].startswith("--from="):
            for source in words[:-1]:
                if not (ROOT / source).exists():
                    yield f"there is no {source} to be copied"
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[stage]):
        yield f"the image's user is {users[stage]!r}"


@pytest.mark.parametrize("name", NAMES)
def test_dockerfile_breaks_no_rule_of_ours(name: str) -> None:
    assert list(troubles((ROOT / "deploy" / "docker" / name).read_text())) == []


@pytest.mark.parametrize(
    ("good", "bad", "trouble"),
    [
        ("python:3.12-slim", "python", "the base 'python' has no version"),
        ("python:3.12-slim", "python:latest", "the base 'python:latest' has no version"),
        ("USER 10001:10001\n", "", "the image's user is ''"),
        ("USER 10001:10001", "USER root", "the image's user is 'root'"),
        ("COPY examples", "COPY sources", "there is no sources to be copied"),
    ],
)
def test_rules_of_ours_find_what_breaks_them(good: str, bad: str, trouble: str) -> None:
    assert list(troubles(GOOD)) == []
    assert trouble in list(troubles(GOOD.replace(good, bad)))


def hadolint(path: Path) -> list[str]:
    """The findings of hadolint, one in a line."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("hadolint", path=beside)
    assert program, "hadolint is not installed: make setup"
    done = subprocess.run(
        [program, "--no-color", "--failure-threshold", "style", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode == 0) == (not done.stdout), done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_hadolint_finds_nothing(name: str) -> None:
    assert hadolint(ROOT / "deploy" / "docker" / name) == []


def test_hadolint_finds_something_where_there_is_something(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text("FROM debian:latest\nRUN apt-get install python3\n")
    found = "\n".join(hadolint(path))
    assert "DL3007" in found
    assert "DL3015" in found


def _steps(name: str) -> list[str]:
    """The instructions of a Dockerfile but for its labels, each in one line."""
    found = instructions((ROOT / "deploy" / "docker" / name).read_text())
    return [" ".join([first, *words]) for first, words in found if first != "LABEL"]


def test_gpu_image_is_that_of_the_cpu_with_cupy() -> None:
    """What one of them learns, the other has to learn too."""
    ours = re.compile(r"( -r)? (requirements/cuda\.txt|(NVIDIA|CUPY)_\w+=\S+)")
    with_cupy = _steps("server-cuda.Dockerfile")
    assert [ours.sub("", step) for step in with_cupy] == _steps("server.Dockerfile")
    assert len(ours.findall("\n".join(with_cupy))) == 6
