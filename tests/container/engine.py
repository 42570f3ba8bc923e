"""Docker's engine, where there is one, and the commands that container tests run."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import docker
import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = os.environ.get("PARAMD_REQUIRE_DOCKER", "") == "1"
# What tests make has this label: with the run's id, or with what is kept for later runs.
RUN_LABEL = "paramd.test-run"
CACHE_LABEL = "paramd.test-cache"
PROCESS_LABEL = "paramd.test-process"
CALL_S = 120


def missing(what: str) -> NoReturn:
    """Skips the test, or fails it where the engine is required."""
    if REQUIRED:
        pytest.fail(f"PARAMD_REQUIRE_DOCKER=1, but {what}", pytrace=False)
    pytest.skip(what)


def connect_engine() -> docker.DockerClient:
    """A client of the engine of the environment."""
    try:
        client = docker.from_env(timeout=CALL_S)
    except docker.errors.DockerException as err:
        missing(f"no Docker engine can be reached: {err}")
    try:
        client.ping()
    except (docker.errors.DockerException, OSError) as err:
        client.close()
        missing(f"the Docker engine does not answer: {err}")
    return client


def run_labels(run_id: str) -> dict[str, str]:
    """Of what a run makes: its id, and the process of this machine that is to remove it."""
    return {RUN_LABEL: run_id, PROCESS_LABEL: f"{socket.gethostname()}/{os.getpid()}"}


def remove_leftovers(client: docker.DockerClient) -> None:
    """Removes what tests have left behind that were killed before they could do so."""
    filters = {"label": RUN_LABEL}
    for container in client.containers.list(all=True, filters=filters):
        if _left(container.labels):
            container.remove(force=True, v=True)
    for network in client.networks.list(filters=filters):
        if _left(network.attrs["Labels"]):
            network.remove()
    for volume in client.volumes.list(filters=filters):
        if _left(volume.attrs["Labels"]):
            volume.remove()


def _left(labels: Mapping[str, str]) -> bool:
    host, _, process = labels.get(PROCESS_LABEL, "").rpartition("/")
    return host == socket.gethostname() and not Path(f"/proc/{process}").exists()


def command(name: str) -> str:
    """The path of a command that the tests need."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        missing(f"the command {name!r} is not installed")
    return found


def run(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    timeout_s: float = 300.0,
) -> str:
    """Runs a command to its end, and gives what it printed. Fails with that where it fails."""
    done = subprocess.run(
        arguments,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        pytest.fail(
            f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout[-20000:]}",
            pytrace=False,
        )
    return done.stdout
