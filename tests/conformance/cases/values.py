"""Cases for the section on values: what changes values, gradients, dtypes and contexts."""

from __future__ import annotations

from typing import Any

from tests.conformance.cases.case import Case
from tests.conformance.program import Program, Ref, cpu, dense, dtype, file, numpy

__all__ = ["CASES"]

_ALL = slice(None)
_SIX = [[0, 1, 2], [3, 4, 5]]


def set_data_checks_the_shape(p: Program) -> None:
    w = _ones(p)
    for value in (dense([[1, 2], [3, 4]]), dense([1, 2, 3]), dense([[1, 2, 3]]), numpy([[]])):
        p.call(w, "set_data", value)
    p.state(w)
    p.call(w, "set_data", numpy(_SIX))
    p.state(w)


def set_data_casts(p: Program) -> None:
    floats = [[1.7, -2.2, 3.5], [-1.5, 2.5, 100.9]]
    for target in ("float64", "float16", "int32", "int8", "int64", "bool", "float32"):
        w = p.make("Parameter", f"w_{target}", shape=(2, 3), dtype=target)
        p.call(w, "initialize", init="ones", ctx=[cpu(0), cpu(1)])
        for source in ("float32", "float64", "float16", "int32", "uint8"):
            values: Any = floats if source.startswith("float") else _SIX
            p.call(w, "set_data", dense(values, source))
            p.call(w, "data", cpu(1))
            p.call(w, "set_data", numpy(values, source))
            p.call(w, "data", cpu(0))
        p.state(w)
    u = p.make("Parameter", "u", shape=(2,), dtype="uint8")
    p.call(u, "initialize", init="ones")
    p.call(u, "set_data", dense([300, -1]))
    p.state(u)
    exact = p.make("Parameter", "exact", shape=(2,), dtype="int64")
    p.call(exact, "initialize", init="ones")
    p.call(exact, "set_data", numpy([2**53 + 1, 2**60 + 1], "int64"))
    p.state(exact)


def set_data_leaves_gradients(p: Program) -> None:
    w = _ones(p, ctx=[cpu(0), cpu(1)])
    p.put(p.call(w, "grad", cpu(1)), _ALL, dense(_SIX))
    p.call(w, "set_data", dense(_SIX))
    p.state(w)


def set_data_without_initialize(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(2, 3))
    p.call(w, "set_data", dense(_SIX))
    p.state(w)


def set_data_supplies_the_shape(p: Program) -> None:
    for name, shape in (("a", (0, 3)), ("b", None), ("c", (2, 0)), ("d", (0, 0))):
        w = p.make("Parameter", name, shape=shape, allow_deferred_init=True)
        p.call(w, "initialize", ctx=[cpu(0), cpu(1)])
        p.call(w, "set_data", dense([[1, 2], [3, 4], [5, 6]]))
        p.call(w, "set_data", dense(_SIX))
        p.state(w)


def cast_keeps_gradients(p: Program) -> None:
    w = _ones(p, ctx=[cpu(0), cpu(1)])
    p.put(p.call(w, "grad", cpu(1)), _ALL, 3.75)
    p.put(p.call(w, "data", cpu(0)), _ALL, 2.5)
    for name in ("float16", "float64", "int32", "float32", "int8", "uint8", "int64", "bool"):
        p.call(w, "cast", name)
        p.state(w)
    n = _ones(p, "n", grad_req="null")
    p.call(n, "cast", dtype("float64"))
    p.state(n)


def assigning_dtype_casts(p: Program) -> None:
    w = _ones(p)
    for value in ("float64", dtype("float16"), dtype("int32", "dtype")):
        p.set(w, "dtype", value)
        p.state(w)
        p.get(p.call(w, "data"), "dtype")
    v = p.make("Parameter", "v", shape=(2,))
    p.call(v, "cast", "float16")
    p.state(v)
    p.call(v, "initialize", init="ones")
    p.state(v)


def cast_of_a_deferred_parameter(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(0, 3), allow_deferred_init=True)
    p.call(w, "initialize", init="ones")
    p.call(w, "cast", "float64")
    p.get(w, "dtype")
    p.call(w, "set_data", dense(_SIX, "float64"))
    p.state(w)
    v = p.make("Parameter", "v", shape=(0,), allow_deferred_init=True)
    p.call(v, "initialize", init="ones")
    p.set(v, "dtype", "int32")
    p.set(v, "shape", (2,))
    p.state(v)


def grad_req_has_three_values(p: Program) -> None:
    w = _ones(p)
    for value in ("bogus", None, "WRITE", 1):
        p.set(w, "grad_req", value)
    p.state(w)
    p.make("Parameter", "v", grad_req="bogus")
    for value in ("write", "add", "null"):
        p.state(p.make("Parameter", f"v_{value}", grad_req=value, shape=(2,)))


def write_and_add_zero_the_buffers(p: Program) -> None:
    w = _ones(p, ctx=[cpu(0), cpu(1)])
    for value in ("add", "add", "write", "write", "null", "add"):
        p.set(w, "grad_req", value)
        if value != "null":
            p.put(p.call(w, "grad", cpu(1)), _ALL, 4)
        p.state(w)
    held = p.call(w, "data", cpu(0))
    p.set(w, "grad_req", "null")
    p.put(held, _ALL, 6)
    p.state(w)


def null_frees_the_buffers(p: Program) -> None:
    w = _ones(p, grad_req="null")
    p.call(w, "grad")
    p.call(w, "list_grad")
    p.call(w, "grad", cpu(2))
    p.call(w, "zero_grad")
    p.set(w, "grad_req", "write")
    p.call(w, "list_grad")
    p.set(w, "grad_req", "null")
    p.call(w, "grad")
    u = p.make("Parameter", "u", shape=(2,), grad_req="null")
    p.call(u, "grad")
    p.call(u, "list_grad")


def grad_req_before_initialize(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(2,))
    p.set(w, "grad_req", "add")
    p.get(w, "grad_req")
    p.call(w, "initialize", init="ones")
    p.state(w)
    v = p.make("Parameter", "v", shape=(0,), allow_deferred_init=True)
    p.call(v, "initialize", init="ones")
    p.set(v, "grad_req", "null")
    p.set(v, "shape", (2,))
    p.state(v)
    p.set(v, "grad_req", "write")
    p.state(v)


def not_differentiable(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(2,), grad_req="add", differentiable=False)
    p.get(w, "grad_req")
    p.set(w, "grad_req", "write")
    p.get(w, "grad_req")
    p.set(w, "grad_req", "bogus")
    p.call(w, "initialize", init="ones")
    p.state(w)


def zero_grad_of_all_kinds(p: Program) -> None:
    p.call(p.make("Parameter", "u", shape=(2,)), "zero_grad")
    w = _ones(p, ctx=[cpu(0), cpu(1)])
    p.put(p.call(w, "grad", cpu(0)), _ALL, 4)
    p.call(w, "zero_grad")
    p.state(w)


def shape_setter(p: Program) -> None:
    for name, stored in (("a", (2, 0)), ("b", (2, 3)), ("c", None), ("d", (0, 0))):
        w = p.make("Parameter", name, shape=stored)
        for new in ((3, 3), (2, 3, 1), (2,), (0, 3), (2, 3), (2, 3), (2, 0), (2, 4)):
            p.set(w, "shape", new)
            p.get(w, "shape")
    i = _ones(p, "i")
    p.set(i, "shape", (2, 3))
    p.set(i, "shape", (3, 2))
    p.state(i)


def attributes(p: Program) -> None:
    w = p.make("Parameter", "w", "add", (2, 3), "float64", 2.0, 0.5, "ones", True, True, "default")
    p.state(w)
    for name, value in (("lr_mult", 3.0), ("wd_mult", 0.0), ("init", "zeros")):
        p.set(w, name, value)
        p.get(w, name)
    p.call(w, "initialize")
    p.state(w)
    p.get(w, "name")
    for kwargs in ({"stype": "bogus"}, {"grad_stype": "bogus"}):
        p.make("Parameter", "x", **kwargs)
    p.make("Parameter", "x", bogus=1)


def reset_ctx_takes_the_mean(p: Program) -> None:
    w = _ones(p, ctx=[cpu(0), cpu(1)])
    p.put(p.call(w, "data", cpu(1)), _ALL, dense(_SIX))
    p.put(p.call(w, "grad", cpu(0)), _ALL, 3)
    p.call(w, "reset_ctx", [cpu(2), cpu(0), cpu(1)])
    p.state(w)
    p.put(p.call(w, "data", cpu(2)), _ALL, 11)
    p.call(w, "reset_ctx", cpu(1))
    p.state(w)
    p.put(p.call(w, "grad"), _ALL, 3)
    p.call(w, "reset_ctx", cpu(1))
    p.state(w)
    with p.within(cpu(2)):
        p.call(w, "reset_ctx", None)
    p.state(w)
    p.call(w, "reset_ctx")


def reset_ctx_of_a_deferred_parameter(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(0,), allow_deferred_init=True)
    p.call(w, "initialize", init="ones", ctx=cpu(0))
    p.call(w, "reset_ctx", [cpu(1), cpu(2)])
    p.call(w, "list_ctx")
    p.call(w, "data")
    p.set(w, "shape", (3,))
    p.state(w)


def reset_ctx_without_initialize(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(2,))
    p.call(w, "reset_ctx", cpu(1))
    p.call(w, "list_ctx")


def save_writes_the_mean(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    w = p.call(params, "get", "w", shape=(2, 3))
    p.call(params, "initialize", init="ones", ctx=[cpu(0), cpu(1)])
    p.put(p.call(w, "data", cpu(1)), _ALL, dense(_SIX))
    p.call(params, "save", file("mean.params"))
    p.make("nd.load", file("mean.params"))
    p.state(w)


def uninitialized_parameters(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(2,))
    for member in ("data", "grad", "list_data", "list_grad", "list_ctx"):
        p.call(w, member)
    p.call(w, "data", cpu(1))
    p.state(w)


def error_classes(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(0,), allow_deferred_init=True)
    p.call(w, "initialize")
    p.call(w, "data")


def representations(p: Program) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"shape": (2,)},
        {"shape": (2, 3), "dtype": "float64"},
        {"shape": (0, 3), "dtype": dtype("int8")},
        {"shape": (2, 3), "dtype": dtype("float16", "dtype")},
    ]
    for index, kwargs in enumerate(options):
        w = p.make("Parameter", f"w{index}", **kwargs)
        p.apply("repr", w)
        p.apply("str", w)
    params = p.make("ParameterDict", "net_")
    p.apply("repr", params)
    p.call(params, "get", "a", shape=(2, 2), dtype="float32")
    p.call(params, "get", "b", dtype="int8")
    p.call(params, "get_constant", "c", dense([[1, 2], [3, 4]]))
    p.apply("repr", params)
    p.apply("repr", p.make("ParameterDict"))
    a = p.item(params, "net_a")
    p.call(a, "initialize", init="ones", ctx=cpu(1))
    for handle in (p.call(a, "data"), p.call(a, "grad"), p.item(p.call(a, "data"), 0)):
        p.apply("repr", handle)
        p.apply("str", handle)
    p.apply("repr", p.make("nd.array", [1.5, 2]))
    p.apply("repr", p.make("nd.array", [[1, 2]], dtype="int32"))
    p.apply("repr", p.make("nd.array", numpy([[[1]]], "float64"), ctx=cpu(2)))
    sparse = p.make("Parameter", "s", shape=(4, 2), stype="row_sparse", grad_stype="row_sparse")
    p.apply("repr", sparse)
    p.call(sparse, "initialize", init="ones")
    p.apply("repr", p.call(sparse, "grad"))
    p.apply("repr", p.call(sparse, "row_sparse_data", dense([1], "int64")))


def variables(p: Program) -> None:
    options: dict[str, dict[str, Any]] = {
        "a": {},
        "b": {"shape": (2, 3), "dtype": "float16", "lr_mult": 2.0, "wd_mult": 0.5},
        "c": {"shape": (0, 3), "init": "zeros", "dtype": "float64"},
        "d": {"shape": (4, 3), "stype": "row_sparse"},
    }
    for name, kwargs in options.items():
        w = p.make("Parameter", name, **kwargs)
        symbol = p.call(w, "var")
        p.get(symbol, "name")
        p.apply("repr", symbol)
        p.call(w, "var")


def _ones(p: Program, name: str = "w", ctx: object = None, **kwargs: Any) -> Ref:
    w = p.make("Parameter", name, shape=(2, 3), **kwargs)
    p.call(w, "initialize", init="ones", ctx=ctx)
    return w


CASES = (
    Case(set_data_checks_the_shape, ("values.2a",)),
    Case(set_data_casts, ("values.2b",)),
    Case(set_data_leaves_gradients, ("values.2c",)),
    Case(set_data_supplies_the_shape, ("values.2d",)),
    Case(set_data_without_initialize, ("values.2e",)),
    Case(cast_keeps_gradients, ("values.3a",)),
    Case(assigning_dtype_casts, ("values.3b",)),
    Case(cast_of_a_deferred_parameter, ("values.3c",)),
    Case(grad_req_has_three_values, ("values.4a",)),
    Case(write_and_add_zero_the_buffers, ("values.4b",)),
    Case(null_frees_the_buffers, ("values.4c",)),
    Case(grad_req_before_initialize, ("values.4b", "values.4c")),
    Case(not_differentiable, ("values.4d",)),
    Case(zero_grad_of_all_kinds, ("values.4e",)),
    Case(shape_setter, ("values.5",)),
    Case(attributes, ("values.5", "values.4a")),
    Case(reset_ctx_takes_the_mean, ("values.6a",)),
    Case(reset_ctx_of_a_deferred_parameter, ("values.6b",)),
    Case(reset_ctx_without_initialize, ("values.6c",)),
    Case(save_writes_the_mean, ("values.6d",)),
    Case(uninitialized_parameters, ("values.4e", "initialize.4a")),
    Case(error_classes, ("values.7",)),
    Case(representations, ("values.8a",)),
    Case(variables, ("values.8b",)),
)
