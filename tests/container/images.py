"""The images under test, and the images that they are made of where no registry can be reached.

Everything is tagged with a digest of what went into it, so that a second run finds it there.
PARAMD_BASE_IMAGE and PARAMD_BUILD_IMAGE name other images to begin with: those of a registry.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import docker
import pytest

from tests.container.engine import CACHE_LABEL, ROOT, command, run

CACHE = ROOT / ".cache" / "container"
DOCKERFILES = ROOT / "deploy" / "docker"
SUITE = "bookworm"
SUITE_PYTHON = (3, 11)
PACKAGES = ("ca-certificates", "python3", "python3-pip", "python3-venv")
LOCKS = ("build", "runtime", "client", "worker")
CUDA_LOCKS = ("build", "runtime", "cuda")


@dataclass(frozen=True)
class Images:
    """Names of images.

    Attributes:
        base: what the others are built upon.
        build: what builds them.
        server: serves on CPUs.
        client: the base of workers.
        worker: trains on digits.
    """

    base: str
    build: str
    server: str
    client: str
    worker: str


def make_images(engine: docker.DockerClient) -> Images:
    """Builds what the engine does not have yet."""
    base = os.environ.get("PARAMD_BASE_IMAGE") or _base(engine)
    build = _build_image(engine, base, "build", LOCKS)
    product = partial(_product, engine, base, build)
    client_sources = ("client", "requirements")
    return Images(
        base=base,
        build=build,
        server=product("server", "server.Dockerfile", None, (*client_sources, "server")),
        client=product("client", "client.Dockerfile", "client", client_sources),
        worker=product("worker", "client.Dockerfile", "worker", (*client_sources, "examples")),
    )


def make_cuda_image(engine: docker.DockerClient, base: str) -> str:
    """Builds the server with CuPy, where the engine does not have it: some hundred megabytes.

    Args:
        engine: that builds it.
        base: what it is built upon: that of the others.
    """
    build = _build_image(engine, base, "build-cuda", CUDA_LOCKS)
    sources = ("client", "server", "requirements")
    return _product(engine, base, build, "server-cuda", "server-cuda.Dockerfile", None, sources)


def _product(
    engine: docker.DockerClient,
    base: str,
    build: str,
    name: str,
    file: str,
    target: str | None,
    folders: Iterable[str],
) -> str:
    sources = [DOCKERFILES / file, ROOT / ".dockerignore", *(ROOT / each for each in folders)]
    tag = f"paramd-test-{name}:{_digest(sources, base, build, target or '')}"
    if not _has(engine, tag):
        arguments = {"BASE_IMAGE": base, "BUILD_IMAGE": build}
        _build(engine, tag, ROOT, file=DOCKERFILES / file, target=target, arguments=arguments)
    return tag


def _build_image(engine: docker.DockerClient, base: str, name: str, locks: Collection[str]) -> str:
    """The image that builds others: what PARAMD_BUILD_IMAGE names, or one with the wheels."""
    named = os.environ.get("PARAMD_BUILD_IMAGE")
    if named or "PARAMD_BASE_IMAGE" in os.environ:
        return named or base
    return _builder(engine, base, name, locks)


def _base(engine: docker.DockerClient) -> str:
    """Debian with Python, as its own installer makes it."""
    tag = f"paramd-test-base:{SUITE}-{_digest((), *PACKAGES)}"
    if _has(engine, tag):
        return tag
    archive = CACHE / f"{tag.replace(':', '-')}.tar"
    if not archive.exists():
        debootstrap = command("debootstrap")
        with _scratch() as folder:
            include = f"--include={','.join(PACKAGES)}"
            run([debootstrap, "--variant=minbase", include, SUITE, str(folder / "root")])
            partial = folder / "root.tar"
            run(["tar", "-C", str(folder / "root"), "-cf", str(partial), "."])
            partial.replace(archive)
    name, _, version = tag.partition(":")
    engine.api.import_image(
        src=str(archive), repository=name, tag=version, changes=[f"LABEL {CACHE_LABEL}=base"]
    )
    _forget_others(engine, tag)
    return tag


def _builder(engine: docker.DockerClient, base: str, name: str, of: Collection[str]) -> str:
    """The base with the wheels of lock files, from which alone its pip installs."""
    locks = [ROOT / "requirements" / f"{each}.txt" for each in of]
    tag = f"paramd-test-{name}:{_digest(locks, base)}"
    if _has(engine, tag):
        return tag
    if sys.version_info[:2] != SUITE_PYTHON:
        pytest.fail(
            f"the base image has Python {SUITE_PYTHON}, and this is {sys.version_info[:2]}, for "
            "which pip downloads other wheels: run with that version, or name images with "
            "PARAMD_BASE_IMAGE and PARAMD_BUILD_IMAGE",
            pytrace=False,
        )
    with _scratch() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        exactly = ["--no-deps", "--only-binary=:all:", "--require-hashes"]
        for lock in locks:
            run([*pip, *exactly, "--dest", str(folder / "wheels"), "--requirement", str(lock)])
        (folder / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        file = folder / "Dockerfile"
        file.write_text(f"FROM {base}\nCOPY wheels /wheels\nCOPY pip.conf /etc/pip.conf\n")
        _build(engine, tag, folder, file=file)
    return tag


def _build(
    engine: docker.DockerClient,
    tag: str,
    context: Path,
    *,
    file: Path,
    target: str | None = None,
    arguments: dict[str, str] | None = None,
) -> None:
    try:
        engine.images.build(
            path=str(context),
            dockerfile=str(file.relative_to(context)),
            tag=tag,
            target=target,
            buildargs=arguments,
            labels={CACHE_LABEL: tag.partition(":")[0]},
            rm=True,
            forcerm=True,
        )
    except docker.errors.BuildError as err:
        log = "".join(str(line.get("stream", "")) for line in err.build_log)
        pytest.fail(f"{file.name} cannot be built: {err}\n{log[-20000:]}", pytrace=False)
    _forget_others(engine, tag)


def _has(engine: docker.DockerClient, tag: str) -> bool:
    try:
        engine.images.get(tag)
    except docker.errors.ImageNotFound:
        return False
    return True


def _forget_others(engine: docker.DockerClient, tag: str) -> None:
    """Takes away the names that earlier sources had: what nothing is built upon goes with them."""
    for image in engine.images.list(tag.partition(":")[0]):
        for other in image.tags:
            if other != tag and not engine.containers.list(all=True, filters={"ancestor": other}):
                engine.images.remove(other, force=True)


def _digest(paths: Iterable[Path], *words: str) -> str:
    """Twelve digits of what files hold, how they are called, and words."""
    digest = hashlib.sha256(repr(words).encode())
    for path in sorted(_files(paths)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"\n{path.relative_to(ROOT)} {content}".encode())
    return digest.hexdigest()[:12]


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from (
                each
                for each in path.rglob("*")
                if each.is_file() and "__pycache__" not in each.parts
            )
        else:
            yield path


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder beside the cache: the machine's own for such may be small, or refuse devices."""
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=CACHE))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
