"""Runs one program on one library, and says in JSON what each of its steps did.

The same file runs in two interpreters: in MXNet's environment, where only NumPy is there besides
the standard library, and in the test process for paramd. So that it stays fair, everything that
the two libraries do differently is in their `Library` (`mxnet_library.py`, `paramd_library.py`).

A program is a list of steps, a step is a dictionary:

    {"op": "call", "on": "w", "member": "data", "args": [...], "kwargs": {...}, "as": "x"}

`on` names an earlier result, or is None for what the library itself offers (`"nd.array"`). Values
that JSON lacks are dictionaries with a `$` (see `Interpreter.decode`). What a step did is

    {"class": "Parameter", "value": ..., "warnings": [[[class, base, ...], text]], "logs": [text]}
    {"class": "Parameter", "error": [class, base, ...], "message": text, ...}
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import operator
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

__all__ = ["Interpreter", "Library", "decode_array", "encode_array"]

_MAX_CONTEXTS = 8


class Library(Protocol):
    """What one of the two libraries must offer to the interpreter."""

    array_types: tuple[type, ...]
    parameter_types: tuple[type, ...]
    initializer_types: tuple[type, ...]

    def resolve(self, name: str) -> Any:
        """Gives what the library offers under a dotted name, such as 'nd.array'."""

    def dense(self, values: np.ndarray[Any, Any], context: Any) -> Any:
        """Makes a local dense array."""

    def row_sparse(
        self, rows: np.ndarray[Any, Any], ids: np.ndarray[Any, Any], shape: Any, context: Any
    ) -> Any:
        """Makes a local row_sparse array."""

    def call(self, target: Any, member: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Calls a member of an object."""

    def settle(self) -> None:
        """Waits for work that the last step left behind, and raises its error."""

    def concerns(self, warning: warnings.WarningMessage) -> bool:
        """Says whether a warning is about the program, and not about the library's insides."""


def encode_array(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Writes an array as dtype, shape and base64 of its C-order bytes."""
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def decode_array(form: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """Reads what `encode_array` wrote."""
    flat = np.frombuffer(base64.b64decode(form["data"]), dtype=form["dtype"])
    return flat.reshape(form["shape"]).copy()


_IN_PLACE: dict[str, Callable[[Any, Any], Any]] = {
    "+=": operator.iadd,
    "-=": operator.isub,
    "*=": operator.imul,
    "/=": operator.itruediv,
}
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "==": operator.eq,
    "is": operator.is_,
    "in": lambda left, right: operator.contains(right, left),
}
_BUILTINS: dict[str, Callable[..., Any]] = {"list": list, "str": str}
_UNARY: dict[str, Callable[[Any], Any]] = {
    "len": len,
    "list": list,
    "repr": repr,
    "str": str,
    "bool": bool,
    "float": float,
    "hash": lambda value: hash(value) == hash(value),
    "type": lambda value: type(value).__name__,
}


class Interpreter:
    """Runs programs on one library.

    Args:
        library: the library to run on.
        folder: folder for the files that programs write.
    """

    def __init__(self, library: Library, folder: str) -> None:
        self._library = library
        self._folder = folder
        self._names: dict[str, Any] = {}

    def run(self, program: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Runs all steps, also those after one that failed.

        Returns:
            One outcome for each step, in order.
        """
        self._names = {}
        return [self._outcome(step) for step in program]

    def _outcome(self, step: Mapping[str, Any]) -> dict[str, Any]:
        outcome: dict[str, Any] = {"class": ""}
        with warnings.catch_warnings(record=True) as caught, _listening() as logged:
            warnings.simplefilter("always")
            try:
                outcome["class"] = self._class_of(step)
                with self._within(step):
                    value = self._do(step)
                    self._library.settle()
                if "as" in step:
                    self._names[step["as"]] = value
                outcome["value"] = value if step["op"] == "state" else self.encode(value)
            except Exception as error:
                outcome.update(_describe_error(error))
        outcome["warnings"] = [
            [_bases(warning.category), str(warning.message)]
            for warning in caught
            if self._library.concerns(warning)
        ]
        outcome["logs"] = logged
        return outcome

    def _class_of(self, step: Mapping[str, Any]) -> str:
        if step.get("on") is None:
            return ""
        return type(self._names[step["on"]]).__name__

    def _within(self, step: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
        if "within" not in step:
            return contextlib.nullcontext()
        manager: contextlib.AbstractContextManager[Any] = self.decode(step["within"])
        return manager

    def _do(self, step: Mapping[str, Any]) -> Any:
        kind = step["op"]
        target: Any = None if step.get("on") is None else self._names[step["on"]]
        if kind == "call":
            return self._call(target, step)
        if kind == "get":
            return getattr(target, step["member"])
        if kind == "set":
            setattr(target, step["member"], self.decode(step["value"]))
            return None
        if kind == "getitem":
            return target[self.decode(step["key"])]
        if kind == "setitem":
            target[self.decode(step["key"])] = self.decode(step["value"])
            return None
        if kind == "state":
            return self._state(target)
        if kind in _IN_PLACE:
            self._names[step["on"]] = _IN_PLACE[kind](target, self.decode(step["value"]))
            return None
        if kind in _BINARY:
            return _BINARY[kind](target, self.decode(step["value"]))
        return _UNARY[kind](target)

    def _call(self, target: Any, step: Mapping[str, Any]) -> Any:
        args = [self.decode(value) for value in step.get("args", [])]
        kwargs = {key: self.decode(value) for key, value in step.get("kwargs", {}).items()}
        if target is None:
            if step["member"] in _BUILTINS:
                return _BUILTINS[step["member"]](*args)
            return self._library.resolve(step["member"])(*args, **kwargs)
        return self._library.call(target, step["member"], args, kwargs)

    def _state(self, parameter: Any) -> dict[str, Any]:
        """Everything that can be read of a parameter: attributes, values and gradients."""

        def attempt(member: str, *args: Any) -> Any:
            try:
                result = self._library.call(parameter, member, list(args), {})
                self._library.settle()
                return self.encode(result)
            except Exception as error:
                return _describe_error(error)

        state = {
            name: self.encode(getattr(parameter, name))
            for name in ("name", "shape", "dtype", "grad_req", "lr_mult", "wd_mult")
        }
        state["dtype"] = dtype_name(parameter.dtype)
        state["contexts"] = attempt("list_ctx")
        if isinstance(state["contexts"], dict):
            return {**state, "data": attempt("data"), "grad": attempt("grad")}
        contexts = self._library.call(parameter, "list_ctx", [], {})[:_MAX_CONTEXTS]
        for context in contexts:
            value = attempt("data", context)
            if "row_sparse_data" in value.get("message", ""):
                ids = np.arange(parameter.shape[0], dtype=np.int64)
                value = attempt("row_sparse_data", self._library.dense(ids, context))
            state[f"data {context}"] = value
            state[f"grad {context}"] = attempt("grad", context)
        return state

    def decode(self, form: Any) -> Any:
        """Makes the value that a program describes."""
        if not isinstance(form, dict):
            return form
        kind = form["$"]
        if kind in ("tuple", "list"):
            items = [self.decode(item) for item in form["items"]]
            return tuple(items) if kind == "tuple" else items
        if kind == "dict":
            return {key: self.decode(value) for key, value in form["items"]}
        if kind == "ref":
            return self._names[form["name"]]
        if kind == "member":
            return self._library.resolve(form["name"])
        if kind == "new":
            return self._call(None, form)
        if kind == "slice":
            return slice(*form["bounds"])
        if kind == "ellipsis":
            return Ellipsis
        if kind == "file":
            return os.path.join(self._folder, form["name"])
        if kind == "dtype":
            dtype = np.dtype(form["name"])
            return dtype.type if form["spelling"] == "class" else dtype
        if kind == "numpy":
            return decode_array(form["array"])
        context = self.decode(form["context"])
        if kind == "dense":
            return self._library.dense(decode_array(form["array"]), context)
        rows, ids = decode_array(form["rows"]), decode_array(form["ids"])
        return self._library.row_sparse(rows, ids, self.decode(form["shape"]), context)

    def encode(self, value: Any) -> Any:
        """Describes a result in JSON."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, np.ndarray):
            return {"kind": "numpy", **encode_array(value)}

        def is_a(types: tuple[type, ...]) -> bool:
            return isinstance(value, types)

        if is_a(self._library.array_types):
            return self._encode_array(value)
        if is_a(self._library.parameter_types):
            return {"kind": type(value).__name__, "name": value.name}
        if hasattr(value, "tojson"):
            return {"kind": "symbol", "graph": json.loads(value.tojson())}
        if hasattr(value, "prefix") and hasattr(value, "get_constant"):
            return {"kind": "ParameterDict", "prefix": value.prefix}
        if is_a(self._library.initializer_types):
            return {"kind": "initializer", "dumps": value.dumps()}
        if isinstance(value, np.dtype) or (
            isinstance(value, type) and issubclass(value, np.generic)
        ):
            return {"kind": "dtype", "name": np.dtype(value).name, "class": isinstance(value, type)}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Mapping):
            return {"kind": "mapping", "items": [[k, self.encode(v)] for k, v in value.items()]}
        if isinstance(value, list | tuple) or hasattr(value, "__iter__"):
            return [self.encode(item) for item in value]
        if hasattr(value, "device_typeid"):
            return {"kind": "context", "text": str(value)}
        return {"kind": "object", "type": type(value).__name__}

    def _encode_array(self, value: Any) -> dict[str, Any]:
        form = {
            "kind": "array",
            "stype": value.stype,
            "context": str(value.context),
            **encode_array(np.asarray(value.asnumpy())),
        }
        if value.stype == "row_sparse":
            form["ids"] = [int(index) for index in value.indices.asnumpy()]
        return form


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    """Collects what is logged at level INFO and above."""
    messages: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def dtype_name(dtype: Any) -> Any:
    """One spelling for a dtype given as a class, a `numpy.dtype` or a name."""
    try:
        return dtype if dtype is None else np.dtype(dtype).name
    except TypeError:
        return str(dtype)


def _describe_error(error: Exception) -> dict[str, Any]:
    message = str(error).split("Stack trace:")[0]
    return {"error": _bases(type(error)), "message": message}


def _bases(cls: type) -> list[str]:
    return [base.__name__ for base in cls.__mro__[:-1]]
