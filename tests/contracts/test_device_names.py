"""The server outside `arrays` knows no kind of device but main memory."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from paramd.context import Context

SERVER = Path(__file__).resolve().parents[2] / "server" / "src" / "paramd_server"
# Main memory is where everything is that names no context.
OTHER_TYPES = set(Context.devstr2type) - {"cpu"}
# The names of the device types are those of an enumeration on the wire, too.
WITH_WIRE_NAMES = {"rpc/session_servicer.py"}
# What every backend is.
PROTOCOLS = {"ArrayBackend"}


def names_of_devices(source: str) -> Iterator[str]:
    """What a source says of kinds of devices: types as text, contexts, modules and classes."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=str() as text) if text in OTHER_TYPES:
                yield f"line {node.lineno}: {text!r}"
            case ast.ImportFrom(module=str() as module):
                for each in node.names:
                    yield from _imported(f"{module}.{each.name}", node.lineno)
            case ast.Import():
                for each in node.names:
                    yield from _imported(each.name, node.lineno)


def _imported(name: str, line: int) -> Iterator[str]:
    *modules, last = name.split(".")
    backend = last.endswith("Backend") and last not in PROTOCOLS
    context = modules[:1] == ["paramd"] and last in OTHER_TYPES
    own = name.startswith("paramd_server.arrays.") and {"cuda", "numpy_backend", "kinds"} & {
        *modules[2:],
        last,
    }
    if backend or context or own:
        yield f"line {line}: {name}"


def test_no_kind_of_device_is_named_outside_arrays() -> None:
    sources = {
        path.relative_to(SERVER).as_posix(): path.read_text()
        for path in sorted(SERVER.rglob("*.py"))
        if SERVER / "arrays" not in path.parents
    }
    assert len(sources) > 50
    found = {name: list(names_of_devices(source)) for name, source in sources.items()}
    named = {name: what for name, what in found.items() if what and name not in WITH_WIRE_NAMES}
    assert named == {}


@pytest.mark.parametrize(
    "source",
    [
        "if context.device_type == 'gpu': pass",
        "TYPES = ('cpu', 'cpu_pinned')",
        "from paramd.context import gpu",
        "from paramd_server.arrays.numpy_backend import NumpyBackend",
        "from paramd_server.arrays.cuda.kinds import CUDA_KINDS",
        "from paramd_server.arrays import cuda",
        "import paramd_server.arrays.cuda.backend",
        "def f():\n    from paramd_server.arrays.kinds import registered_kinds",
    ],
)
def test_what_names_one_is_found(source: str) -> None:
    assert list(names_of_devices(source))


@pytest.mark.parametrize(
    "source",
    [
        "from paramd_server.arrays.backend import ArrayBackend, Buffer",
        "from paramd_server.arrays.devices import Devices",
        "from paramd.context import Context, cpu",
        "gpu_memory_limit = 0",
    ],
)
def test_what_any_backend_has_is_no_name_of_one(source: str) -> None:
    assert not list(names_of_devices(source))
