"""Writes programs for the interpreter: one method for each kind of step.

`w = program.make("Parameter", "w", shape=(2, 3))` makes a parameter, `program.call(w, "initialize",
ctx=cpu(1))` calls a member of it, and `program.state(w)` reads all of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.conformance.interpreter import encode_array

__all__ = [
    "New",
    "Program",
    "Ref",
    "cpu",
    "dense",
    "dtype",
    "file",
    "gpu",
    "init",
    "member",
    "numpy",
    "row_sparse",
]

Form = dict[str, Any]


@dataclass(frozen=True)
class Ref:
    """A step's result, to be used by later steps.

    Attributes:
        name: the name under which the interpreter keeps it.
    """

    name: str


@dataclass(frozen=True)
class Raw:
    """A value that is written down as the interpreter reads it."""

    form: Form


@dataclass(frozen=True)
class New:
    """A value that the library makes: `New("cpu", (1,))`.

    Attributes:
        member: dotted name of what makes it.
        args: positional arguments.
        kwargs: keyword arguments, as pairs.
    """

    member: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()


def cpu(device_id: int) -> New:
    """A CPU context."""
    return New("cpu", (device_id,))


def gpu(device_id: int) -> New:
    """A GPU context."""
    return New("gpu", (device_id,))


def init(name: str, *args: Any, **kwargs: Any) -> New:
    """An initializer, by the name of its class."""
    return New(f"init.{name}", args, tuple(kwargs.items()))


def member(name: str) -> Raw:
    """Something that the library offers, itself and not called."""
    return Raw({"$": "member", "name": name})


def numpy(values: Any, dtype: str = "float32") -> Raw:
    """A NumPy array."""
    return Raw({"$": "numpy", "array": encode_array(np.array(values, dtype=dtype))})


def dense(values: Any, dtype: str = "float32", ctx: New | None = None) -> Raw:
    """A local array of the library."""
    array = encode_array(np.array(values, dtype=dtype))
    return Raw({"$": "dense", "array": array, "context": encode(ctx or cpu(0))})


def row_sparse(
    rows: Any,
    ids: Sequence[int],
    shape: tuple[int, ...],
    dtype: str = "float32",
    ctx: New | None = None,
) -> Raw:
    """A local row_sparse array of the library."""
    form = {
        "$": "row_sparse",
        "rows": encode_array(np.array(rows, dtype=dtype)),
        "ids": encode_array(np.array(ids, dtype=np.int64)),
        "shape": encode(shape),
        "context": encode(ctx or cpu(0)),
    }
    return Raw(form)


def dtype(name: str, spelling: str = "class") -> Raw:
    """A dtype as NumPy's scalar class (`spelling="class"`) or as a `numpy.dtype`."""
    return Raw({"$": "dtype", "name": name, "spelling": spelling})


def file(name: str) -> Raw:
    """A file in the program's own folder."""
    return Raw({"$": "file", "name": name})


def encode(value: Any) -> Any:
    """Writes a value the way `Interpreter.decode` reads it."""
    if isinstance(value, Raw):
        return value.form
    if isinstance(value, Ref):
        return {"$": "ref", "name": value.name}
    if isinstance(value, New):
        kwargs = {key: encode(item) for key, item in value.kwargs}
        args = [encode(item) for item in value.args]
        return {"$": "new", "member": value.member, "args": args, "kwargs": kwargs}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {"$": kind, "items": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"$": "dict", "items": [[key, encode(item)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"$": "slice", "bounds": [value.start, value.stop, value.step]}
    return {"$": "ellipsis"} if value is Ellipsis else value


class Program:
    """A program while it is written.

    Attributes:
        steps: the steps, in JSON's types.
    """

    def __init__(self) -> None:
        self.steps: list[Form] = []
        self._within: New | None = None
        self._loose: str | None = None

    def make(self, member: str, /, *args: Any, **kwargs: Any) -> Ref:
        """Calls what the library offers under a name."""
        return self._add({"op": "call", "on": None, "member": member, **_arguments(args, kwargs)})

    def call(self, on: Ref, member: str, /, *args: Any, **kwargs: Any) -> Ref:
        """Calls a member of an earlier result."""
        step = {"op": "call", "on": on.name, "member": member, **_arguments(args, kwargs)}
        return self._add(step)

    def get(self, on: Ref, member: str) -> Ref:
        """Reads an attribute."""
        return self._add({"op": "get", "on": on.name, "member": member})

    def set(self, on: Ref, member: str, value: Any) -> Ref:
        """Assigns an attribute."""
        return self._add({"op": "set", "on": on.name, "member": member, "value": encode(value)})

    def item(self, on: Ref, key: Any) -> Ref:
        """Reads `on[key]`."""
        return self._add({"op": "getitem", "on": on.name, "key": encode(key)})

    def put(self, on: Ref, key: Any, value: Any) -> Ref:
        """Assigns `on[key]`."""
        step = {"op": "setitem", "on": on.name, "key": encode(key), "value": encode(value)}
        return self._add(step)

    def apply(self, op: str, on: Ref, value: Any = None) -> Ref:
        """Applies an operator or a built-in function: '+=', '==', 'in', 'is', 'len', 'repr', ..."""
        return self._add({"op": op, "on": on.name, "value": encode(value)})

    def state(self, *parameters: Ref) -> None:
        """Reads all that can be read of parameters."""
        for parameter in parameters:
            self._add({"op": "state", "on": parameter.name})

    @contextlib.contextmanager
    def within(self, context: New) -> Iterator[None]:
        """Runs the steps written inside with that context as the current one."""
        self._within, before = context, self._within
        yield
        self._within = before

    @contextlib.contextmanager
    def loosely(self, how: str) -> Iterator[None]:
        """Compares the steps written inside more loosely.

        Args:
            how: arrays by 'distribution' or 'shape', or as 'close' as `compare` says, a list as
                'unordered', an error by 'class'.
        """
        self._loose, before = how, self._loose
        yield
        self._loose = before

    def _add(self, step: Form) -> Ref:
        result = Ref(f"${len(self.steps)}")
        step["as"] = result.name
        if self._within is not None:
            step["within"] = encode(self._within)
        if self._loose is not None:
            step["loose"] = self._loose
        self.steps.append(step)
        return result


def _arguments(args: Sequence[Any], kwargs: dict[str, Any]) -> Form:
    return {
        "args": [encode(value) for value in args],
        "kwargs": {key: encode(value) for key, value in kwargs.items()},
    }
