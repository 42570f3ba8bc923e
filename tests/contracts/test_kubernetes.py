"""The manifests of Kubernetes fit its schemas, and what they say fits together and the programs.

No cluster is asked: docs/kubernetes.md says that this is all that was checked.
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner
from kubernetes_validate import ValidationError, validate  # type: ignore[import-untyped]

from paramd_server.__main__ import main
from paramd_server.certificates import main as make_certificates
from paramd_server.config import ServerConfig
from tests.support.kustomize import Document, containers_of, load_yaml, pod_of, render

ROOT: Final = Path(__file__).resolve().parents[2]
MANIFESTS: Final = ROOT / "deploy" / "kubernetes"
FOLDERS: Final = ("base", "overlays/example", "overlays/plaintext")
# The oldest that labels pods with their index, and the newest that the schemas are there for.
VERSIONS: Final = ("1.28", "1.37")
INDEX_LABELS: Final = {
    "StatefulSet": "apps.kubernetes.io/pod-index",
    "Job": "batch.kubernetes.io/job-completion-index",
}


@cache
def _rendered(folder: str) -> list[Document]:
    return render(MANIFESTS / folder)


def _documents(folder: str) -> dict[str, Document]:
    """The documents by kind; a copy."""
    documents = copy.deepcopy(_rendered(folder))
    assert len({document["kind"] for document in documents}) == len(documents)
    return {document["kind"]: document for document in documents}


@cache
def _files_of_certificates() -> frozenset[str]:
    """What `paramd-certificates` writes."""
    with tempfile.TemporaryDirectory() as directory:
        done = CliRunner().invoke(make_certificates, [f"{directory}/made"])
        assert done.exit_code == 0, done.output
        return frozenset(path.name for path in Path(directory, "made").iterdir())


@cache
def _variables_of_programs() -> frozenset[str]:
    """The PARAMD_... that server, client and examples read."""
    found = {f"PARAMD_{option.name.upper()}" for option in main.params if option.name}
    for folder in ("client/src/paramd", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found |= set(re.findall(r"\bPARAMD_[A-Z_]+[A-Z]\b", path.read_text()))
            # Names are also put together: f"PARAMD_TLS_{what}".
            found |= {
                f"PARAMD_TLS_{what}" for what in re.findall(r'"(CA|CERT|KEY)"', path.read_text())
            }
    return frozenset(found)


# --- What is checked. Each gives the trouble that it finds, in words.


def _schema(documents: dict[str, Document], versions: tuple[str, ...] = VERSIONS) -> Iterator[str]:
    for document in documents.values():
        for version in versions:
            try:
                validate(document, version, strict=True)
            except ValidationError as err:
                path = ".".join(map(str, err.path))
                yield f"{document['kind']} ({version}): {path}: {err.message[:200]}"


def _selects(selector: Document, labels: Document) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def _labels(documents: dict[str, Document]) -> Iterator[str]:
    shards = documents["StatefulSet"]
    labels = shards["spec"]["template"]["metadata"]["labels"]
    selectors = {
        "StatefulSet": shards["spec"]["selector"]["matchLabels"],
        "Service": documents["Service"]["spec"]["selector"],
        "PodDisruptionBudget": documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        "NetworkPolicy": documents["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    }
    for kind, selector in selectors.items():
        if not _selects(selector, labels):
            yield f"{kind} does not select the shards"
    peers = [
        peer["podSelector"]["matchLabels"]
        for rule in documents["NetworkPolicy"]["spec"]["ingress"]
        for peer in rule["from"]
    ]
    for document in documents.values():
        if (pod := pod_of(document)) and not any(
            _selects(peer, pod["metadata"]["labels"]) for peer in peers
        ):
            yield f"NetworkPolicy keeps {document['kind']} out"
    if "Job" in documents and _selects(
        selectors["Service"], documents["Job"]["spec"]["template"]["metadata"]["labels"]
    ):
        yield "Service selects the workers"


def _ports(documents: dict[str, Document]) -> Iterator[str]:
    (server,) = containers_of(documents["StatefulSet"])
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    for port in documents["Service"]["spec"]["ports"]:
        if ports.get(port["targetPort"]) != port["port"]:
            yield f"Service: the shards have no port {port['targetPort']} {port['port']}"
    policy = documents["NetworkPolicy"]["spec"]
    for port in policy["ingress"][0]["ports"] + policy["egress"][0]["ports"]:
        if port["port"] not in ports:
            yield f"NetworkPolicy: the shards have no port {port['port']}"
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        if "grpc" in server[name] and server[name]["grpc"]["port"] not in ports.values():
            yield f"{name}: the shards have no port {server[name]['grpc']['port']}"
    if documents["StatefulSet"]["spec"]["serviceName"] != documents["Service"]["metadata"]["name"]:
        yield "StatefulSet: serviceName names no Service"


def _volumes(documents: dict[str, Document]) -> Iterator[str]:
    for document in documents.values():
        if (pod := pod_of(document)) is None:
            continue
        spec = document["spec"]
        there = [volume["name"] for volume in pod["spec"].get("volumes", ())]
        there += [claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", ())]
        used = [mount["name"] for each in containers_of(document) for mount in each["volumeMounts"]]
        if sorted(there) != sorted(used):
            yield f"{document['kind']}: volumes {sorted(there)}, mounts {sorted(used)}"
        for volume in pod["spec"].get("volumes", ()):
            for item in volume.get("secret", {}).get("items", ()):
                if item["key"] not in _files_of_certificates():
                    yield f"{document['kind']}: nobody makes {item['key']}"


def _files(documents: dict[str, Document]) -> Iterator[str]:
    """Every path that a program is given is in a volume, and one of its files if it has a list."""
    for document in documents.values():
        if (pod := pod_of(document)) is None:
            continue
        secrets = {
            volume["name"]: {item["path"] for item in volume["secret"]["items"]}
            for volume in pod["spec"].get("volumes", ())
            if "secret" in volume
        }
        for container in containers_of(document):
            words = [*container.get("args", ()), *_commands_of_probes(container)]
            words += [each.get("value", "") for each in container.get("env", ())]
            for path in re.findall(r"(?:^|=|unix:)(/[\w./-]+)", "\n".join(words), re.MULTILINE):
                mounts = [
                    mount
                    for mount in container["volumeMounts"]
                    if Path(path).is_relative_to(mount["mountPath"])
                ]
                files = secrets.get(mounts[0]["name"]) if mounts else None
                if not mounts or (files is not None and Path(path).name not in files):
                    yield f"{document['kind']}: there is no {path}"


def _commands_of_probes(container: Document) -> Iterator[str]:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        yield from container.get(name, {}).get("exec", {}).get("command", ())


def _variables(documents: dict[str, Document]) -> Iterator[str]:
    for document in documents.values():
        for container in containers_of(document):
            names = [each["name"] for each in container.get("env", ())]
            for name in names:
                if name.startswith("PARAMD_") and name not in _variables_of_programs():
                    yield f"{document['kind']}: nothing reads {name}"
            values = [each.get("value", "") for each in container.get("env", ())]
            text = "\n".join([*container.get("args", ()), *values])
            for name in re.findall(r"\$\((\w+)\)", text):
                if name not in names:
                    yield f"{document['kind']}: {name} is not set"
            for each in container.get("env", ()):
                path = each.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
                if path and path != f"metadata.labels['{INDEX_LABELS[document['kind']]}']":
                    yield f"{document['kind']}: {each['name']} is {path}"


def _arguments(documents: dict[str, Document]) -> Iterator[str]:
    """What the server itself makes of the arguments of each pod."""
    shards, service = documents["StatefulSet"], documents["Service"]
    (server,) = containers_of(shards)
    number, port = shards["spec"]["replicas"], server["ports"][0]["containerPort"]
    names = [
        f"{shards['metadata']['name']}-{index}.{service['metadata']['name']}:{port}"
        for index in range(number)
    ]
    for index in range(number):
        words = [word.replace("$(POD_INDEX)", str(index)) for word in server["args"]]
        try:
            given = main.make_context("paramd-server", words).params
        except Exception as err:
            yield f"paramd-server does not take its arguments: {err}"
            return
        if given["shard"] != (index, number):
            yield f"--shard of pod {index} of {number} is {given['shard']}"
        if given["coordinator"] != names[0]:
            yield f"--coordinator is {given['coordinator']}, shard 0 is {names[0]}"
        if f"0.0.0.0:{port}" not in given["listen"]:
            yield f"nothing listens on port {port}"
        if given["insecure"] == (given["tls_cert"] is not None):
            yield "TLS or --insecure, and not both"
        if given["grace"] + 60 > pod_of(shards)["spec"]["terminationGracePeriodSeconds"]:  # type: ignore[index]
            yield "there is no time to save the state"
        yield from _probes(server, given)
    if "Job" in documents:
        yield from _workers(documents["Job"], names)


def _probes(server: Document, given: dict[str, Any]) -> Iterator[str]:
    # The kubelet of most versions speaks no TLS, and has no certificate of its own.
    kind = "grpc" if given["insecure"] else "exec"
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = server[name]
        if kind not in probe:
            yield f"{name} does not ask by {kind}"
        targets = re.findall(r"--target=(\S+)", " ".join(probe.get("exec", {}).get("command", ())))
        if not set(targets) <= set(given["listen"]) or (kind == "exec" and not targets):
            yield f"{name} asks {targets}, the server listens on {given['listen']}"


def _workers(job: Document, names: list[str]) -> Iterator[str]:
    (worker,) = containers_of(job)
    env = {each["name"]: each.get("value") for each in worker["env"]}
    if env["PARAMD_TARGET"] != ",".join(names):
        yield f"PARAMD_TARGET is {env['PARAMD_TARGET']}, the shards are {names}"
    number = job["spec"]["completions"]
    if env["PARAMD_NUM_WORKERS"] != str(number) or job["spec"]["parallelism"] != number:
        yield f"PARAMD_NUM_WORKERS is {env['PARAMD_NUM_WORKERS']} of {number}"


def _confinement(documents: dict[str, Document]) -> Iterator[str]:
    """The Pod Security Standard 'restricted', and what goes beyond it."""
    for document in documents.values():
        if (pod := pod_of(document)) is None:
            continue
        context = pod["spec"].get("securityContext", {})
        if not (context.get("runAsNonRoot") and context.get("runAsUser")):
            yield f"{document['kind']}: runs as root"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{document['kind']}: no seccomp profile"
        for name in ("automountServiceAccountToken", "enableServiceLinks"):
            if pod["spec"].get(name) is not False:
                yield f"{document['kind']}: {name}"
        for container in containers_of(document):
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{document['kind']}: may gain privileges"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{document['kind']}: its file system can be written to"
            if own.get("capabilities", {}).get("drop") != ["ALL"]:
                yield f"{document['kind']}: has capabilities"
            resources = container.get("resources", {})
            if not ({"cpu", "memory"} <= set(resources.get("requests", {}))) or (
                resources.get("limits", {}).get("memory") != resources["requests"]["memory"]
            ):
                yield f"{document['kind']}: resources {resources}"
            if "/tmp" not in [mount["mountPath"] for mount in container["volumeMounts"]]:
                yield f"{document['kind']}: no /tmp"


CHECKS: Final[tuple[Callable[[dict[str, Document]], Iterator[str]], ...]] = (
    *(_labels, _ports, _volumes, _files, _variables, _arguments, _confinement),
)


def _trouble(documents: dict[str, Document]) -> list[str]:
    return [text for check in CHECKS for text in check(documents)]


# --- The tests.


@pytest.mark.parametrize("folder", FOLDERS)
def test_manifests_fit_the_schemas(folder: str) -> None:
    assert list(_schema(_documents(folder))) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_manifests_fit_together_and_the_programs(folder: str) -> None:
    assert _trouble(_documents(folder)) == []


# Each pod is given the same arguments: there is one template for all of them.
@pytest.mark.parametrize("folder", FOLDERS)
def test_server_takes_the_settings_of_each_pod(folder: str) -> None:
    shards = _documents(folder)["StatefulSet"]
    (server,) = containers_of(shards)
    for index in range(shards["spec"]["replicas"]):
        words = [word.replace("$(POD_INDEX)", str(index)) for word in server["args"]]
        config = _config(main.make_context("paramd-server", words).params)
        assert (config.shard, config.num_shards) == (index, shards["spec"]["replicas"])


def _config(given: dict[str, Any]) -> ServerConfig:
    """What the command makes of its options."""
    shard, num_shards = given["shard"]
    named: dict[str, Any] = {
        "shard": shard,
        "num_shards": num_shards,
        "memory_limit": given["memory_limit"] or 0,
        "gpu_memory_limit": given["gpu_memory_limit"] or 0,
        "grace_s": given["grace"],
        "stall_s": given["stall_timeout"],
        "num_threads": given["threads"],
        "snapshot_every_s": given["snapshot_every"],
    }
    names = [each.name for each in fields(ServerConfig)]
    settings: dict[str, Any] = {name: named.get(name, given.get(name)) for name in names}
    return ServerConfig(**settings)


def test_every_file_belongs_to_a_kustomization() -> None:
    listed = set()
    for kustomization in MANIFESTS.rglob("kustomization.yaml"):
        (content,) = load_yaml(kustomization.read_text())
        names = [*content["resources"], *(patch["path"] for patch in content.get("patches", ()))]
        listed |= {(kustomization.parent / name).resolve() for name in (*names, kustomization.name)}
    files = {path for path in listed if path.is_file()}
    assert files == set(MANIFESTS.rglob("*.yaml"))
    assert listed - files == {MANIFESTS / "base"}
    assert {str(path.parent.relative_to(MANIFESTS)) for path in files} == set(FOLDERS)


def test_images_are_named_by_the_kustomization() -> None:
    (server,) = containers_of(_documents("base")["StatefulSet"])
    assert re.fullmatch(r"paramd-server:\d+\.\d+\.\d+", server["image"])
    example = _documents("overlays/example")
    images = [c["image"] for d in example.values() for c in containers_of(d)]
    assert sorted(name.partition(":")[0] for name in images) == [
        "registry.example/paramd-server",
        "registry.example/paramd-worker",
    ]


def test_example_is_in_its_namespace() -> None:
    documents = _documents("overlays/example")
    namespace = documents.pop("Namespace")["metadata"]["name"]
    assert {each["metadata"]["namespace"] for each in documents.values()} == {namespace}


def test_secrets_of_the_docs_are_those_of_the_manifests() -> None:
    """The commands in the docs make each Secret with the keys that are mounted of it."""
    text = (ROOT / "docs" / "kubernetes.md").read_text().replace("\\\n", " ")
    made = {
        name: set(re.findall(r"--from-file=(?:\w+/)?([\w.]+)", rest))
        for name, rest in re.findall(r"create secret generic (\S+)(.*)", text)
    }
    for document in _documents("overlays/example").values():
        pod = pod_of(document)
        for volume in pod["spec"]["volumes"] if pod else ():
            if "secret" in volume:
                keys = {item["key"] for item in volume["secret"]["items"]}
                assert keys <= made[volume["secret"]["secretName"]]


def _set(path: str, value: Any) -> Callable[[dict[str, Document]], None]:
    """Changes one place, such as 'Kind/key/0/key'; None removes it."""

    def change(documents: dict[str, Document]) -> None:
        *parents, last = [part.replace("~1", "/") for part in path.split("/")]
        place: Any = documents
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        key: Any = int(last) if isinstance(place, list) else last
        if value is None:
            del place[key]
        else:
            place[key] = value

    return change


POD: Final = "StatefulSet/spec/template/spec"
SERVER: Final = f"{POD}/containers/0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("StatefulSet/spec/replicas", "three"), "spec.replicas"),
        (_set("StatefulSet/spec/selector", None), "'selector' is a required property"),
        (_set("StatefulSet/spec/replica", 3), "'replica' was unexpected"),
        (_set(f"{SERVER}/ports/0/containerPort", "grpc"), "containerPort"),
        (_set(f"{SERVER}/readinessProbe/exec/command", "paramd health"), "readinessProbe"),
        (_set(f"{POD}/securityContext/runAsUser", "paramd"), "runAsUser"),
        (_set(f"{POD}/volumes/0/emptydir", {}), "'emptydir' was unexpected"),
        (_set("Service/spec/ports/0/port", None), "'port' is a required property"),
        (_set("PodDisruptionBudget/spec/maxUnavailable", [1]), "maxUnavailable"),
        (_set("NetworkPolicy/spec/podSelector/labels", {}), "'labels' was unexpected"),
        (_set("Job/spec/template/spec/containers", None), "'containers' is a required property"),
    ],
)
def test_schemas_find_what_is_broken(
    change: Callable[[dict[str, Document]], None], message: str
) -> None:
    documents = _documents("overlays/example")
    change(documents)
    assert any(message in text for text in _schema(documents, VERSIONS[:1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("Service/spec/selector/app.kubernetes.io~1name", "x"), "Service does not select"),
        (_set("PodDisruptionBudget/spec/selector/matchLabels", {"a": "b"}), "PodDisruptionBudget"),
        (_set("NetworkPolicy/spec/ingress/0/from/1", None), "NetworkPolicy keeps Job out"),
        (_set("Service/spec/ports/0/targetPort", "http"), "no port http"),
        (_set("NetworkPolicy/spec/ingress/0/ports/0/port", 50052), "no port 50052"),
        (_set("StatefulSet/spec/serviceName", "other"), "serviceName"),
        (_set(f"{POD}/volumes/2/name", "certificates"), "volumes"),
        (_set(f"{POD}/volumes/2/secret/items/1/key", "tls.crt"), "nobody makes tls.crt"),
        (_set(f"{POD}/volumes/3/secret/items/1", None), "no /etc/paramd/tokens/admin.token"),
        (_set(f"{SERVER}/args/4", "--snapshot-dir=/srv"), "there is no /srv"),
        (_set(f"{SERVER}/args/0", "--shard=$(POD_INDEX)/2"), "--shard of pod 0 of 3 is (0, 2)"),
        (_set(f"{SERVER}/args/0", "--shard=$(INDEX)/3"), "INDEX is not set"),
        (_set(f"{SERVER}/args/1", "--coordinator=paramd-0:50051"), "shard 0 is paramd-0.paramd"),
        (_set(f"{SERVER}/args/2", "--listen=0.0.0.0:50052"), "nothing listens on port 50051"),
        (_set(f"{SERVER}/args/3", "--listen=unix:/run/paramd/s"), "startupProbe asks"),
        (_set(f"{SERVER}/args/5", "--snapshot-each=600"), "does not take its arguments"),
        (_set(f"{SERVER}/args/6", "--grace=150"), "no time to save"),
        (_set(f"{SERVER}/args/6", "--insecure"), "TLS or --insecure, and not both"),
        (_set(f"{SERVER}/livenessProbe", {"grpc": {"port": 50051}}), "does not ask by exec"),
        (_set(f"{SERVER}/env/0/valueFrom/fieldRef/fieldPath", "metadata.name"), "POD_INDEX is"),
        (_set(f"{SERVER}/env/0/name", "PARAMD_INDEX"), "nothing reads PARAMD_INDEX"),
        (_set(f"{POD}/securityContext/runAsNonRoot", None), "runs as root"),
        (_set(f"{POD}/enableServiceLinks", None), "enableServiceLinks"),
        (_set(f"{SERVER}/securityContext/readOnlyRootFilesystem", False), "can be written to"),
        (_set(f"{SERVER}/resources/limits", None), "resources"),
        (_set("Job/spec/completions", 3), "PARAMD_NUM_WORKERS is 2 of 3"),
        (
            _set("Job/spec/template/spec/containers/0/env/3/value", "paramd-0.paramd:50051"),
            "PARAMD_TARGET is",
        ),
    ],
)
def test_checks_find_what_does_not_fit(
    change: Callable[[dict[str, Document]], None], message: str
) -> None:
    documents = _documents("overlays/example")
    change(documents)
    assert any(message in text for text in _trouble(documents)), _trouble(documents)


def test_key_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        load_yaml("spec:\n  replicas: 1\n  replicas: 2\n")


def test_kustomization_with_more_than_the_tests_know_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("kind: Kustomization\nresources: []\nhelm: {}\n")
    with pytest.raises(ValueError, match=r"not known here: \['helm'\]"):
        render(tmp_path)
