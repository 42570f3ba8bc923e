"""What stands in for CuPy has no name and no parameter that CuPy has not."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from paramd_server.arrays.cuda.runtime import Runtime
from tests.support.emulated_cuda import install

cupy: Any = pytest.importorskip("cupy", reason="needs CuPy, which needs no GPU for this")


def names(module: ModuleType, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All public names of a module, and of those in it, with what they are."""
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        yield (*path, name), value
        if isinstance(value, ModuleType):
            yield from names(value, (*path, name))
        elif inspect.isclass(value) and not issubclass(value, BaseException):
            for method, function in vars(value).items():
                if not method.startswith("_"):
                    yield (*path, name, method), function


def parameters_of_cupy(function: Any) -> list[str] | None:
    """The names of parameters; of compiled functions as their first line tells them."""
    try:
        return [name for name in inspect.signature(function).parameters if name != "self"]
    except (TypeError, ValueError):
        line = (function.__doc__ or "").partition("\n")[0]
        match = re.search(r"\((.*)\)", line)
        if match is None:
            return None
        given = [each.strip().split("=")[0] for each in match[1].split(",")]
        found = [each.split(" ")[-1].strip() for each in given]
        return [each for each in found if each and each not in ("self", "*")]


def parameters_of_ours(function: Any) -> list[str]:
    return [
        each.name.strip("_")
        for each in inspect.signature(function).parameters.values()
        if each.name != "self"
    ]


@pytest.fixture(scope="module")
def stand_in() -> dict[tuple[str, ...], Any]:
    with install():
        return dict(names(importlib.import_module("cupy")))


def test_every_name_is_one_of_cupys(stand_in: dict[tuple[str, ...], Any]) -> None:
    assert ("cuda", "runtime", "memcpyAsync") in stand_in
    assert len(stand_in) > 40
    missing = []
    for path in stand_in:
        found = cupy
        for name in path:
            found = getattr(found, name, None)
        if found is None:
            missing.append(".".join(path))
    assert missing == []


def test_every_function_takes_as_many_parameters_as_cupys(
    stand_in: dict[tuple[str, ...], Any],
) -> None:
    compared, wrong = 0, []
    for path, ours in stand_in.items():
        if not inspect.isroutine(ours) or isinstance(ours, staticmethod | classmethod):
            continue
        theirs = cupy
        for name in path:
            theirs = getattr(theirs, name)
        expected = parameters_of_cupy(theirs)
        if expected is None:
            continue
        compared += 1
        if len(parameters_of_ours(ours)) > len(expected):
            wrong.append((".".join(path), parameters_of_ours(ours), expected))
    assert compared > 10
    assert wrong == []


def test_the_runtime_finds_all_that_it_uses_in_cupy() -> None:
    assert Runtime(cupy).describe().startswith(f"CuPy {cupy.__version__}, CUDA ")
