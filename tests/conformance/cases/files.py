"""Cases for saving and loading."""

from __future__ import annotations

from typing import Any

from tests.conformance.cases.case import Case
from tests.conformance.program import Program, Ref, cpu, dense, file, row_sparse

__all__ = ["CASES"]


def save_and_load(p: Program) -> None:
    params = _saved(p)
    p.make("nd.load", file("f.params"))
    for name in ("p_a", "p_b"):
        p.call(p.item(params, name), "zero_grad")
        p.put(p.call(p.item(params, name), "data"), slice(None), 9)
        p.put(p.call(p.item(params, name), "grad"), slice(None), 4)
    p.call(params, "load", file("f.params"))
    p.state(p.item(params, "p_a"), p.item(params, "p_b"))
    fresh = p.make("ParameterDict", "q_")
    a = p.call(fresh, "get", "a")
    b = p.call(fresh, "get", "b", shape=(0, 3), dtype="float64")
    p.call(params, "save", file("g.params"), strip_prefix="p_")
    p.call(fresh, "load", file("g.params"), [cpu(1), cpu(2)], restore_prefix="q_")
    p.call(a, "data", cpu(1))
    p.call(b, "grad", cpu(2))
    p.state(b)


def strip_prefix(p: Program) -> None:
    params = _saved(p)
    p.call(params, "save", file("s.params"), strip_prefix="p_")
    p.make("nd.load", file("s.params"))
    p.call(params, "save", file("t.params"), "x_")
    p.call(params, "save", file("no/such/folder/t.params"))


def save_of_unfinished_parameters(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    p.call(params, "get", "a", shape=(2,))
    p.call(params, "save", file("u.params"))
    other = p.make("ParameterDict", "q_")
    p.call(other, "get", "a", shape=(0,), allow_deferred_init=True)
    p.call(other, "initialize")
    p.call(other, "save", file("u.params"))
    empty = p.make("ParameterDict", "e_")
    p.call(empty, "save", file("e.params"))
    p.call(empty, "load", file("e.params"))


def arg_and_aux(p: Program) -> None:
    params = _saved(p)
    values = {"arg:p_a": dense([5, 6]), "aux:p_b": dense([[1, 2, 3], [4, 5, 6]], "float64")}
    p.call(params, "load_dict", values)
    p.state(p.item(params, "p_a"), p.item(params, "p_b"))


def file_without_names(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    p.call(params, "get", "a", shape=(2,))
    p.make("nd.save", file("list.params"), [dense([1, 2])])
    p.make("nd.load", file("list.params"))
    p.call(params, "load", file("list.params"))


def restore_prefix(p: Program) -> None:
    params = _saved(p)
    p.call(params, "load_dict", {"a": dense([5, 6])}, restore_prefix="p_", allow_missing=True)
    p.state(p.item(params, "p_a"))
    p.call(params, "save", file("r.params"), strip_prefix="p_")
    p.call(params, "load", file("r.params"))
    p.call(params, "load", file("r.params"), restore_prefix="x_")
    p.call(params, "load", file("missing.params"))


def missing_and_extra(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    a = p.call(params, "get", "a", shape=(2,))
    b = p.call(params, "get", "b", shape=(2,))
    p.call(params, "load_dict", {"p_a": dense([1, 2])})
    p.call(params, "load_dict", {"p_a": dense([1, 2])}, filename="some.file")
    p.state(a)
    p.call(params, "load_dict", {"p_a": dense([1, 2])}, allow_missing=True)
    p.state(a, b)
    values = {"p_x": dense([1]), "p_a": dense([3, 4]), "p_b": dense([5, 6])}
    p.call(params, "load_dict", values)
    p.state(a, b)
    p.call(params, "load_dict", values, ignore_extra=True)
    p.state(a, b)
    p.call(params, "load_dict", {})
    p.call(params, "load_dict", {}, allow_missing=True)


def pairs(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    a = p.call(params, "get", "a", shape=(2,))
    p.call(params, "load_dict", [("p_a", dense([1, 2]))])
    p.state(a)
    p.call(params, "load_dict", [("arg:p_a", dense([3, 4]))])
    p.state(a)


def casting_loads(p: Program) -> None:
    for stored in ("float32", "float64", "int32"):
        for saved in ("float32", "float64", "float16"):
            for kwargs in (
                {},
                {"cast_dtype": True},
                {"cast_dtype": True, "dtype_source": "current"},
                {"cast_dtype": True, "dtype_source": "saved"},
                {"dtype_source": "saved"},
            ):
                _load_once(p, stored, saved, kwargs)


def _load_once(p: Program, stored: str, saved: str, kwargs: dict[str, Any]) -> None:
    prefix = f"n{len(p.steps)}_"
    params = p.make("ParameterDict", prefix)
    p.call(params, "get", "w", shape=(2,), dtype=stored)
    v = p.call(params, "get", "v", shape=(2,), dtype=stored)
    p.call(v, "initialize", init="ones")
    p.put(p.call(v, "grad"), slice(None), 3)
    values = dense([1.5, 2], saved)
    p.call(params, "load_dict", {f"{prefix}w": values, f"{prefix}v": values}, **kwargs)
    p.state(v)


def wrong_dtype_source(p: Program) -> None:
    params = p.make("ParameterDict")
    w = p.call(params, "get", "w", shape=(2,))
    values = {"w": dense([1, 2])}
    p.call(params, "load_dict", values, cast_dtype=True, dtype_source="bogus")
    p.call(params, "load_dict", values, dtype_source="bogus")
    p.state(w)


def contexts_of_load(p: Program) -> None:
    for contexts in (None, cpu(0), cpu(1), [cpu(0), cpu(1)], [cpu(1), cpu(0)]):
        for before in ("never", "deferred", "initialized"):
            name = f"w{len(p.steps)}"
            params = p.make("ParameterDict")
            shape = (0,) if before == "deferred" else (2,)
            w = p.call(params, "get", name, shape=shape, allow_deferred_init=True)
            if before != "never":
                p.call(params, "initialize", init="ones", ctx=[cpu(0), cpu(1)])
            p.call(params, "load_dict", {name: dense([1, 2])}, contexts)
            p.call(w, "list_ctx")
            if before != "deferred":
                p.state(w)
    with p.within(cpu(1)):
        params = p.make("ParameterDict")
        w = p.call(params, "get", "v", shape=(2,))
        p.call(params, "load_dict", {"v": dense([1, 2])})
    p.state(w)


def shapes_of_load(p: Program) -> None:
    for index, shape in enumerate(((2, 3), (0, 3), (2, 0), (0, 0), (3, 3), (2, 4))):
        params = p.make("ParameterDict")
        name = f"w{index}"
        w = p.call(params, "get", name, shape=shape)
        p.call(params, "load_dict", {name: dense([[1, 2, 3], [4, 5, 6]])})
        p.state(w)


def sparse_files(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    w = p.call(params, "get", "w", shape=(4, 2), stype="row_sparse")
    rows = row_sparse([[1, 2], [3, 4], [5, 6], [7, 8]], [0, 1, 2, 3], (4, 2))
    p.call(params, "load_dict", {"p_w": rows})
    p.call(params, "save", file("w.params"))
    p.make("nd.load", file("w.params"))
    p.call(params, "load", file("w.params"))
    p.state(w)


def constants_in_files(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    c = p.call(params, "get_constant", "c", dense([1, 2]))
    p.call(params, "initialize")
    p.call(params, "save", file("c.params"))
    p.make("nd.load", file("c.params"))
    p.call(params, "load_dict", {"p_c": dense([5, 6])})
    p.state(c)
    p.get(c, "value")


def _saved(p: Program) -> Ref:
    params = p.make("ParameterDict", "p_")
    p.call(params, "get", "a", shape=(2,))
    p.call(params, "get", "b", shape=(2, 3), dtype="float64")
    p.call(params, "initialize", init="ones")
    p.call(params, "save", file("f.params"))
    return params


CASES = (
    Case(save_and_load, ("dict.5c", "dict.5f", "values.6d")),
    Case(strip_prefix, ("dict.5a",)),
    Case(save_of_unfinished_parameters, ("dict.5a",)),
    Case(file_without_names, ("dict.5d",)),
    Case(arg_and_aux, ("dict.5b",)),
    Case(restore_prefix, ("dict.5c",)),
    Case(missing_and_extra, ("dict.5d", "dict.4b")),
    Case(pairs, ("dict.4b",)),
    Case(casting_loads, ("dict.5e",)),
    Case(wrong_dtype_source, ("dict.5e",)),
    Case(contexts_of_load, ("dict.5f",)),
    Case(shapes_of_load, ("dict.5d", "dict.5c")),
    Case(sparse_files, ("row_sparse.5a", "dict.5c")),
    Case(constants_in_files, ("constant.1c",)),
)
