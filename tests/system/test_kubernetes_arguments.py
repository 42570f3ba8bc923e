"""Real servers, started with the arguments of the pods in `deploy/kubernetes`, and its probes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner

from paramd_server.certificates import main as make_certificates
from tests.support.kustomize import Document, containers_of, render
from tests.support.server_process import ServerProcess, serve, server_environment
from tests.support.waiting import wait_until

MANIFESTS: Final = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"


def _server(folder: str) -> Document:
    (shards,) = [each for each in render(MANIFESTS / folder) if each["kind"] == "StatefulSet"]
    (server,) = containers_of(shards)
    assert shards["spec"]["replicas"] == 2
    return server


def _replaced(words: list[str], places: Mapping[str, str]) -> list[str]:
    """The words of a pod, with places of this machine for those of the pod."""
    for old, new in places.items():
        words = [word.replace(old, new) for word in words]
    return words


# Each pod is given the same arguments: there is one template for all of them.
@pytest.mark.parametrize("folder", ["base", "overlays/plaintext"])
def test_pods_serve_and_their_probes_say_so(folder: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(make_certificates, [str(tmp_path / "made")])
    assert done.exit_code == 0, done.output
    server = _server(folder)
    with ExitStack() as stack:
        pods: list[ServerProcess] = []
        asked: list[tuple[dict[str, str], str]] = []
        for index in range(2):
            pod = tmp_path / str(index)
            pod.mkdir()
            places = {
                "$(POD_INDEX)": str(index),
                "0.0.0.0:50051": "127.0.0.1:0",
                "paramd-0.paramd:50051": pods[0].address if pods else "127.0.0.1:50051",
                "/etc/paramd/tls": str(tmp_path / "made"),
                "/etc/paramd/tokens": str(tmp_path / "made"),
                "/run/paramd": str(pod),
                "/var/lib/paramd": str(pod / "state"),
            }
            words = _replaced(server["args"], places)
            pods.append(stack.enter_context(serve(pod, *words, listen=None)))
            asked.append((places, pods[-1].address))
            for probe in ("startupProbe", "livenessProbe"):
                assert _ask(server[probe], *asked[-1]) == 0
            if index == 0:
                assert _ask(server["readinessProbe"], *asked[0]) == 3, "no cluster has formed"
        for each_asked in asked:
            wait_until(
                lambda each=each_asked: _ask(server["readinessProbe"], *each) == 0,  # type: ignore[misc]
                "the cluster has formed",
            )
        for each in pods:
            each.terminate()
        assert [each.await_end() for each in pods] == [0, 0]
        assert [each.trouble() for each in pods] == [[], []]


def _ask(probe: Document, places: Mapping[str, str], address: str) -> int:
    """Asks a server as the kubelet would, by a command in the pod or the health service.

    Returns:
        The exit status.
    """
    if "exec" in probe:
        program, *words = _replaced(probe["exec"]["command"], places)
        assert program == "paramd"
    else:
        service = probe["grpc"].get("service")
        assert service in (None, "paramd.v1.ParameterService")
        words = ["health", "--ready" if service else "--probe", f"--target={address}"]
    done = subprocess.run(
        [sys.executable, "-m", "paramd.cli", *words],
        env=server_environment(),
        capture_output=True,
        text=True,
        timeout=probe["timeoutSeconds"] * 3,
        check=False,
    )
    print(done.stderr)
    return done.returncode
