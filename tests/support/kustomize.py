"""What `kubectl kustomize` makes of a folder, for the few features that `deploy/kubernetes` uses.

Anything else in a kustomization is refused: so the tests see all that a cluster would be given.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, Final

import yaml

__all__ = ["containers_of", "load_yaml", "pod_of", "render"]

Document = dict[str, Any]

_FEATURES: Final = {"apiVersion", "kind", "namespace", "resources", "images", "patches"}
_WITHOUT_NAMESPACE: Final = {"Namespace"}


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which Kubernetes takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise ValueError(f"a key is there twice: {node.start_mark}")
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> list[Any]:
    """The documents of a YAML file."""
    return [each for each in yaml.load_all(text, _Loader) if each is not None]


def render(folder: Path) -> list[Document]:
    """The documents of a folder with a `kustomization.yaml`, in the order of its resources.

    Raises:
        ValueError: for what this reader does not know, or what does not fit.
    """
    (kustomization,) = load_yaml((folder / "kustomization.yaml").read_text())
    if unknown := set(kustomization) - _FEATURES:
        raise ValueError(f"{folder}: not known here: {sorted(unknown)}")
    if kustomization["kind"] != "Kustomization":
        raise ValueError(f"{folder}: a {kustomization['kind']}")
    documents: list[Document] = []
    for resource in kustomization["resources"]:
        path = (folder / resource).resolve()
        documents += render(path) if path.is_dir() else load_yaml(path.read_text())
    for patch in kustomization.get("patches", ()):
        _patch(documents, folder, **patch)
    for image in kustomization.get("images", ()):
        _name_images(documents, image["name"], f"{image['newName']}:{image['newTag']}")
    if namespace := kustomization.get("namespace"):
        for document in documents:
            if document["kind"] not in _WITHOUT_NAMESPACE:
                document["metadata"]["namespace"] = namespace
    return documents


def pod_of(document: Document) -> Document | None:
    """The pod template of a document, with `metadata` and `spec`; None where it makes no pods."""
    template: Document | None = document.get("spec", {}).get("template")
    return template


def containers_of(document: Document) -> Iterator[Document]:
    """The containers of the pods that a document makes."""
    if pod := pod_of(document):
        yield from (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])


def _name_images(documents: list[Document], name: str, image: str) -> None:
    for document in documents:
        for container in containers_of(document):
            # An overlay names what a base has named already by the name of the base.
            if container["image"].partition(":")[0] == name:
                container["image"] = image


def _patch(documents: list[Document], folder: Path, *, path: str, target: Document) -> None:
    """Carries out a list of operations (RFC 6902) on the documents that the target selects."""
    (operations,) = load_yaml((folder / path).read_text())
    found = [
        document
        for document in documents
        if (document["kind"], document["metadata"]["name"]) == (target["kind"], target["name"])
    ]
    if not found:
        raise ValueError(f"{folder / path}: no document is {target}")
    for document in found:
        for operation in operations:
            _operate(document, **operation)


def _operate(document: Document, *, op: str, path: str, value: Any = None) -> None:
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]
    place: Any = document
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    key: Any = int(last) if isinstance(place, list) else last
    if isinstance(place, dict) and op != "add" and key not in place:
        raise ValueError(f"{op} {path}: there is none")
    match op:
        case "remove":
            del place[key]
        case "replace":
            place[key] = value
        case "add" if isinstance(place, dict):
            place[key] = value
        case _:
            raise ValueError(f"{op} {path}: not known here")
