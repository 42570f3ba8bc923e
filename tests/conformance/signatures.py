"""Reads the public members and signatures of a library's Gluon classes, under either library."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

__all__ = ["describe_members"]

_CLASSES = ("Parameter", "Constant", "ParameterDict", "Trainer", "Context")
_INITIALIZERS = (
    "Initializer",
    "Zero",
    "One",
    "Constant",
    "Uniform",
    "Normal",
    "Orthogonal",
    "Xavier",
    "MSRAPrelu",
    "Bilinear",
    "LSTMBias",
    "Mixed",
    "Load",
)


def describe_members(gluon: Any, library: Any) -> dict[str, Any]:
    """Describes the classes that paramd mirrors.

    Args:
        gluon: what has `Parameter`, `Constant`, `ParameterDict`.
        library: what has `Context`, `init`, `cpu`, ...

    Returns:
        `{class: {member: kind}}` under "members" (kind is 'method' with parameters, 'property' with
        'settable', or 'attribute'), and the names that exist under "names".
    """
    classes = {name: getattr(gluon, name, None) or getattr(library, name) for name in _CLASSES}
    initializers = {
        f"init.{name}": getattr(library.init, name)
        for name in _INITIALIZERS
        if hasattr(library.init, name)
    }
    members = {name: _describe_class(cls) for name, cls in {**classes, **initializers}.items()}
    parameter = gluon.Parameter("conformance_member_probe", shape=(1,))
    members["Parameter"].update(
        {name: {"kind": "attribute"} for name in vars(parameter) if not name.startswith("_")}
    )
    functions = {
        name: _signature(getattr(library, name))
        for name in ("cpu", "gpu", "cpu_pinned", "current_context")
        if hasattr(library, name)
    }
    return {"members": members, "functions": functions, "exported": _exported(gluon)}


def _exported(gluon: Any) -> list[str]:
    module = gluon.parameter if isinstance(gluon, ModuleType) else gluon
    return sorted(getattr(module, "__all__", []))


def _describe_class(cls: type) -> dict[str, Any]:
    described: dict[str, Any] = {"__init__": _signature(cls)}
    for name in dir(cls):
        if name.startswith("_"):
            continue
        value = inspect.getattr_static(cls, name)
        if isinstance(value, property):
            described[name] = {"kind": "property", "settable": value.fset is not None}
        elif callable(getattr(cls, name)):
            described[name] = _signature(getattr(cls, name))
        else:
            described[name] = {"kind": "attribute"}
    return described


def _signature(function: Any) -> dict[str, Any]:
    parameters = [
        [parameter.name, str(parameter.kind), _default(parameter.default)]
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self"
    ]
    return {"kind": "method", "parameters": parameters}


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if isinstance(value, type):
        return value.__name__
    if hasattr(value, "dumps"):
        return str(value.dumps())
    return repr(value)
