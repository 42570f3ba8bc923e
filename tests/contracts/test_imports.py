"""Who may import whom: the rules of the design, held over the sources of both packages.

Every import counts, wherever it stands: at the top, in a function, under TYPE_CHECKING, relative,
or through `importlib.import_module` with a literal name.
"""

import ast
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"paramd": ROOT / "client" / "src", "paramd_server": ROOT / "server" / "src"}
INTEGRATIONS = {"paramd.torch": "torch", "paramd.jax": "jax", "paramd_server.ray": "ray"}
FRAMEWORKS = ("torch", "jax", "jaxlib", "flax", "tensorflow", "mxnet", "ray")
CUPY = ("cupy", "cupyx", "cupy_backends")
GENERATED = "paramd.v1"
CLIENT_DEPENDENCIES = {"click", "google", "grpc", "ml_dtypes", "numpy"}
SERVER_DEPENDENCIES = CLIENT_DEPENDENCIES | {
    *("cryptography", "grpc_health", "grpc_reflection", "numba"),
    *CUPY,
}


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, the names that it imports, and the `a.b` that it uses."""

    name: str
    imports: frozenset[str]
    uses: frozenset[str]

    def within(self, *packages: str) -> bool:
        """Tells whether this module is one of `packages` or inside one."""
        return any(_covers(package, self.name) for package in packages)

    def importing(self, *packages: str) -> list[str]:
        """The import of each name in `packages`, as text for a message."""
        found = {
            package
            for package in packages
            if any(_covers(package, imported) for imported in self.imports)
        }
        return [f"{self.name} imports {package}" for package in sorted(found)]


@dataclass(frozen=True)
class Rule:
    """A rule, sources (module name to text) that break it, and sources that just keep it."""

    name: str
    violations: Callable[[Sequence[Module]], list[str]]
    broken_by: tuple[Mapping[str, str], ...]
    kept_by: Mapping[str, str]


def _covers(package: str, name: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _imported_names(tree: ast.AST, package: str) -> Iterator[str]:
    """The absolute names that `tree` imports; `package` is where its relative ones start."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                yield from (alias.name for alias in aliases)
            case ast.ImportFrom(module=origin, names=aliases, level=level):
                parts = package.split(".")[: -(level - 1) or None] if level else []
                base = ".".join([*parts, *([origin] if origin else [])])
                yield base
                yield from (f"{base}.{alias.name}" for alias in aliases)
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
                called = function.attr if isinstance(function, ast.Attribute) else function
                if isinstance(called, ast.Name):
                    called = called.id
                if called in ("import_module", "__import__"):
                    yield name


def _parse(name: str, source: str, *, is_package: bool = False) -> Module:
    package = name if is_package else name.rpartition(".")[0]
    tree = ast.parse(source)
    uses = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return Module(name, frozenset(_imported_names(tree, package)), frozenset(uses))


def _modules_of_the_sources() -> list[Module]:
    modules = []
    for package, base in PACKAGES.items():
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            modules.append(_parse(name, path.read_text(encoding="utf-8"), is_package=is_package))
    return modules


def _never(within: str, *forbidden: str) -> Callable[[Sequence[Module]], list[str]]:
    """Modules within a package import none of the forbidden names."""
    return lambda modules: [
        text for module in modules if module.within(within) for text in module.importing(*forbidden)
    ]


def _framework_of(module: Module) -> str:
    """What the integration is for that a module is, or belongs to; '' for any other module."""
    found = (framework for name, framework in INTEGRATIONS.items() if module.within(name))
    return next(found, "")


def _frameworks_only_in_their_integration(modules: Sequence[Module]) -> list[str]:
    return [
        text
        for module in modules
        for framework in FRAMEWORKS
        if _framework_of(module) != framework
        for text in module.importing(framework)
    ]


def _nothing_imports_an_integration(modules: Sequence[Module]) -> list[str]:
    return [
        text
        for module in modules
        for integration in INTEGRATIONS
        if not module.within(integration)
        for text in module.importing(integration)
    ]


def _cupy_in_one_file_of_arrays(modules: Sequence[Module]) -> list[str]:
    users = [module for module in modules if module.importing(*CUPY)]
    elsewhere = [m.name for m in users if not m.within("paramd_server.arrays")]
    return elsewhere or [module.name for module in users if len(users) > 1]


def _numba_in_arrays(modules: Sequence[Module]) -> list[str]:
    users = [module for module in modules if module.importing("numba")]
    return [module.name for module in users if not module.within("paramd_server.arrays")]


def _generated_messages_only_in_transport_and_wire(modules: Sequence[Module]) -> list[str]:
    allowed = ("paramd.transport", "paramd.wire", GENERATED)
    return [
        text
        for module in modules
        if module.within("paramd") and not module.within(*allowed)
        for text in module.importing(GENERATED)
    ]


def _nothing_is_pickled(modules: Sequence[Module]) -> list[str]:
    # The module's errors are fine: an object that cannot be pickled says so with one.
    forbidden = {"pickle.*", "marshal", "shelve", "_pickle", "cloudpickle", "dill"}
    for function in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        forbidden.add(f"pickle.{function}")
    return [
        f"{module.name} uses {name}"
        for module in modules
        for name in sorted(forbidden & (module.imports | module.uses))
    ]


def _undeclared_dependencies(modules: Sequence[Module]) -> list[str]:
    found = []
    for module in modules:
        server = module.within("paramd_server")
        declared = SERVER_DEPENDENCIES if server else CLIENT_DEPENDENCIES
        declared = declared | {"paramd", "paramd_server"} | sys.stdlib_module_names
        declared = declared | {_framework_of(module)}
        tops = {imported.partition(".")[0] for imported in module.imports}
        found += [f"{module.name} imports {top}" for top in sorted(tops - declared)]
    return found


RULES = [
    Rule(
        name="the client never imports the server, CuPy or docker",
        violations=_never("paramd", "paramd_server", *CUPY, "docker"),
        broken_by=(
            {"paramd.embedded": "def start():\n    from paramd_server import app"},
            {"paramd.ndarray": "import cupy as cp"},
            {"paramd.session": "import importlib\nimportlib.import_module('docker.client')"},
        ),
        kept_by={
            "paramd.embedded": "import subprocess",
            "paramd_server.app": "import paramd_server.core",
        },
    ),
    Rule(
        name="a framework is imported by its own integration alone",
        violations=_frameworks_only_in_their_integration,
        broken_by=(
            {"paramd.ndarray": "import torch"},
            {"paramd.torch": "from jax import numpy"},
            {"paramd_server.core.trainer": "try:\n    import torch.optim\nfinally: pass"},
            {"paramd_server.supervisor": "import ray"},
        ),
        kept_by={
            "paramd.torch": "import torch.nn",
            "paramd.jax": "from jax import numpy",
            "paramd_server.ray.cluster": "from ray.util import placement_group",
        },
    ),
    Rule(
        name="nothing imports an integration",
        violations=_nothing_imports_an_integration,
        broken_by=(
            {"paramd.session": "from paramd import torch"},
            {"paramd.session": "from . import jax"},
            {"paramd_server.app": "import paramd.torch"},
            {"paramd_server.__main__": "from paramd_server.ray.plan import ShardPlan"},
        ),
        kept_by={
            "paramd.session": "from paramd import trainer",
            "paramd_server.ray": "from paramd_server.ray.plan import ShardPlan",
        },
    ),
    Rule(
        name="core imports no grpc and no generated message",
        violations=_never("paramd_server.core", "grpc", GENERATED, "google"),
        broken_by=(
            {"paramd_server.core.registry": "import grpc"},
            {"paramd_server.core.initializers.normal": "from paramd.v1 import tensor_pb2"},
            {"paramd_server.core.registry": "from paramd import v1"},
            {"paramd_server.core.registry": "from google.protobuf import message"},
        ),
        kept_by={
            "paramd_server.core.registry": "from paramd.spec import ParameterSpec",
            "paramd_server.rpc.parameters": "import grpc\nfrom paramd.v1 import tensor_pb2",
        },
    ),
    Rule(
        name="arrays knows nothing of storage",
        violations=_never("paramd_server.arrays", "paramd_server.storage", "paramd.files"),
        broken_by=(
            {"paramd_server.arrays.backend": "from paramd_server.storage import snapshots"},
            {"paramd_server.arrays.backend": "from ..storage import snapshots"},
            {"paramd_server.arrays.backend": "import paramd.files"},
        ),
        kept_by={"paramd_server.arrays.backend": "from . import memory"},
    ),
    Rule(
        name="storage knows nothing of arrays",
        violations=_never("paramd_server.storage", "paramd_server.arrays"),
        broken_by=(
            {"paramd_server.storage.snapshots": "from paramd_server import arrays"},
            {"paramd_server.storage.snapshots": "from ..arrays.backend import ArrayBackend"},
        ),
        kept_by={"paramd_server.storage.snapshots": "from paramd.files import open_reader"},
    ),
    Rule(
        name="CuPy is imported in one file of arrays",
        violations=_cupy_in_one_file_of_arrays,
        broken_by=(
            {"paramd_server.core.trainer": "import cupy"},
            {
                "paramd_server.arrays.cupy_backend": "import cupy",
                "paramd_server.arrays.devices": "def count():\n    from cupy import cuda",
            },
        ),
        kept_by={"paramd_server.arrays.cupy_backend": "import cupy\nimport cupyx"},
    ),
    Rule(
        name="Numba is imported in arrays",
        violations=_numba_in_arrays,
        broken_by=(
            {"paramd_server.core.optimizers.rule": "def warm_up():\n    import numba"},
            {"paramd.optimizer": "from numba import njit"},
        ),
        kept_by={"paramd_server.arrays.compiled_elements": "import numba"},
    ),
    Rule(
        name="in the client, only transport and wire use generated messages",
        violations=_generated_messages_only_in_transport_and_wire,
        broken_by=(
            {"paramd.parameter": "from paramd.v1 import parameter_pb2"},
            {"paramd.session": "from .v1.tensor_pb2 import Chunk"},
        ),
        kept_by={
            "paramd.transport.calls": "from paramd.v1 import parameter_pb2",
            "paramd.wire.messages": "from ..v1 import tensor_pb2",
            "paramd.v1.parameter_pb2": "from paramd.v1 import tensor_pb2",
        },
    ),
    Rule(
        name="nothing is pickled",
        violations=_nothing_is_pickled,
        broken_by=(
            {"paramd.session": "import pickle\npickle.loads(b'')"},
            {"paramd.session": "from pickle import Unpickler as Reader"},
            {"paramd.session": "from pickle import *"},
            {"paramd_server.app": "import marshal"},
        ),
        kept_by={"paramd.session": "import pickle\nraise pickle.PicklingError('local')"},
    ),
    Rule(
        name="every other distribution that is imported is a declared dependency",
        violations=_undeclared_dependencies,
        broken_by=(
            {"paramd.session": "import requests"},
            {"paramd.wire.status": "import grpc_reflection"},
            {"paramd_server.storage.snapshots": "import safetensors"},
        ),
        kept_by={
            "paramd.session": "import grpc, json\nfrom google.protobuf import message",
            "paramd_server.rpc.health": "from grpc_health.v1 import health",
        },
    ),
]

every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


@every_rule
def test_sources_keep_the_rule(rule: Rule) -> None:
    assert rule.violations(_modules_of_the_sources()) == []


@every_rule
def test_rule_finds_what_breaks_it_and_nothing_else(rule: Rule) -> None:
    for sources in rule.broken_by:
        broken = [_parse(name, text) for name, text in sources.items()]
        assert rule.violations(broken), f"not found: {dict(sources)}"
    kept = [_parse(name, text) for name, text in rule.kept_by.items()]
    assert rule.violations(kept) == []


def test_sources_of_both_packages_are_read() -> None:
    names = {module.name for module in _modules_of_the_sources()}
    assert {*PACKAGES, "paramd.wire", "paramd_server.core", GENERATED} <= names
    assert any(module.imports for module in _modules_of_the_sources())


@pytest.mark.parametrize(
    ("source", "is_package", "expected"),
    [
        ("from . import b", False, "p.q.b"),
        ("from . import b", True, "p.q.m.b"),
        ("from .. import b", False, "p.b"),
        ("from ..r.s import t", False, "p.r.s"),
        ("from ...r import t", True, "p.r.t"),
    ],
)
def test_relative_imports_resolve_to_absolute_names(
    source: str, is_package: bool, expected: str
) -> None:
    assert expected in _parse("p.q.m", source, is_package=is_package).imports
