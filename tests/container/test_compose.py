"""`docker-compose.yml` by Compose v1 and v2: `make up` trains and ends, `make down` tidies up."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.container.engine import ROOT, command, run
from tests.container.images import Images
from tests.container.test_training import REQUIRED

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]

PRODUCTS = ("server", "worker")
Make = Callable[..., str]


@pytest.fixture(params=["v1", "v2"])
def compose(request: pytest.FixtureRequest) -> str:
    """The command of a version of Compose."""
    if request.param == "v1":
        command("docker-compose")
        return "docker-compose"
    known = shutil.which("docker") and subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False
    )
    if not known or known.returncode:
        # Not even with PARAMD_REQUIRE_DOCKER: Debian's engine comes without.
        pytest.skip("Compose v2 is not installed")
    return "docker compose"


@dataclass(frozen=True)
class Project:
    """A project of Compose, by its name, and what belongs to it."""

    engine: docker.DockerClient
    name: str

    def containers(self) -> list[Any]:
        """All of them, those that have ended too."""
        label = f"com.docker.compose.project={self.name}"
        found: list[Any] = self.engine.containers.list(all=True, filters={"label": label})
        return found

    @property
    def image_names(self) -> dict[str, str]:
        """Images of its own, whose layers the tests' own builds have made already."""
        return {f"PARAMD_{each.upper()}_IMAGE": f"{self.name}-{each}" for each in PRODUCTS}


@pytest.fixture
def project(engine: docker.DockerClient) -> Project:
    return Project(engine, f"paramd-test-{secrets.token_hex(4)}")


@pytest.fixture
def make(compose: str, project: Project, images: Images) -> Iterator[Make]:
    """Runs make with a project of its own, whose containers and volumes are removed."""
    environment = {
        "COMPOSE_PROJECT_NAME": project.name,
        "PARAMD_BASE_IMAGE": images.base,
        "PARAMD_BUILD_IMAGE": images.build,
        "PARAMD_PORT_0": "0",
        "PARAMD_PORT_1": "0",
        # A make that runs these tests must not lend its options.
        "MAKEFLAGS": "",
        **project.image_names,
    }

    def made(*arguments: str) -> str:
        program = [command("make"), "--no-print-directory", f"COMPOSE={compose}"]
        return run([*program, *arguments], environment=environment)

    try:
        yield made
    finally:
        down = [*compose.split(), "down", "--volumes", "--remove-orphans", "--timeout", "10"]
        run(down, environment=environment)
        for image in project.image_names.values():
            if project.engine.images.list(image):
                project.engine.images.remove(image)
        assert project.containers() == []


def test_up_trains_and_down_keeps_the_snapshots(make: Make, project: Project) -> None:
    first = make("up")
    found = re.findall(r"accuracy on held-out digits after 200 steps: (\d\.\d+)", first)
    assert len(found) == 2, first
    assert min(map(float, found)) >= REQUIRED
    assert "begins at clock 0" in first
    for container in project.containers():
        check_confined(container.attrs["HostConfig"], container.name)
    make("down")
    assert project.containers() == []
    again = make("up")
    assert "begins at clock 200" in again, again


def check_confined(host: dict[str, Any], name: str) -> None:
    """Nothing may write its root file system, has rights, or is published beyond loopback."""
    assert host["ReadonlyRootfs"] is True, name
    assert host["CapDrop"] == ["ALL"], name
    assert host["SecurityOpt"] == ["no-new-privileges:true"], name
    assert not host["Privileged"], name
    bound = [each["HostIp"] for port in (host["PortBindings"] or {}).values() for each in port]
    assert set(bound) <= {"127.0.0.1"}, name


def test_up_fails_where_a_worker_does(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    override = tmp_path / "override.yml"
    failing = {"command": ["python", "-c", "raise SystemExit('no luck')"], "restart": "no"}
    override.write_text(json.dumps({"services": {"worker-a": failing, "worker-b": failing}}))
    monkeypatch.setenv("COMPOSE_FILE", f"{ROOT / 'docker-compose.yml'}:{override}")
    with pytest.raises(pytest.fail.Exception, match="no luck"):
        make("up")
