"""Cases for the section on ParameterDict, but for its files."""

from __future__ import annotations

from tests.conformance.cases.case import Case
from tests.conformance.program import Program, cpu, dense, dtype, init

__all__ = ["CASES"]


def order_and_prefix(p: Program) -> None:
    params = p.make("ParameterDict", "net_")
    for name in ("z", "a", "m"):
        p.call(params, "get", name, shape=(2,))
    p.call(params, "get", "a")
    p.get(params, "prefix")
    p.set(params, "prefix", "x")
    p.apply("list", params)
    p.get(p.item(params, "net_a"), "name")
    p.item(params, "a")
    p.call(params, "get", "", shape=(1,))
    p.apply("list", params)


def mapping_interface(p: Program) -> None:
    params = p.make("ParameterDict", "net_")
    for name in ("b", "a"):
        p.call(params, "get", name, shape=(2,))
    for member in ("items", "keys", "values"):
        p.apply("list", p.call(params, member))
    names = p.make("list", ["net_b"])
    for name in ("net_b", "net_a", "b", "zz"):
        p.apply("in", p.make("str", name), params)
    p.apply("list", params)
    p.apply("bool", params)
    p.apply("len", names)
    p.put(params, "net_c", 1)
    p.apply("list", p.make("ParameterDict"))


def get_merges_shapes(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    w = p.call(params, "get", "w", shape=(0, 3))
    merging: tuple[tuple[int, ...], ...] = ((4, 0), (-1, 3), (4, 3), (0, 0))
    failing: tuple[tuple[int, ...], ...] = ((5, 3), (4, 3, 0), (4,), (4, 2))
    for shape in merging + failing:
        p.call(params, "get", "w", shape=shape)
        p.get(w, "shape")
    v = p.call(params, "get", "v")
    p.call(params, "get", "v", shape=(0, 3))
    p.get(v, "shape")
    p.call(params, "initialize", init="ones")
    d = p.make("ParameterDict", "d_")
    u = p.call(d, "get", "u", shape=(0, 3), allow_deferred_init=True)
    p.call(d, "initialize", init="ones")
    p.call(d, "get", "u", shape=(2, 0))
    p.state(u)
    p.call(d, "get", "u", shape=(2, 3))
    p.call(d, "get", "u", shape=(7, 3))


def get_and_dtypes(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    w = p.call(params, "get", "w", dtype="float64", shape=(2,))
    for value in ("float64", dtype("float64"), dtype("float64", "dtype"), None):
        p.apply("is", p.call(params, "get", "w", dtype=value), w)
    for value in ("float32", dtype("int8")):
        p.call(params, "get", "w", dtype=value)
    p.get(w, "dtype")


def get_names_what_differs(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    w = p.call(params, "get", "w", shape=(2,), lr_mult=2.0, init="ones", grad_req="add")
    for kwargs in (
        {"lr_mult": 3.0},
        {"wd_mult": 2.0},
        {"grad_req": "write"},
        {"init": "zeros"},
        {"shape": (3,)},
        {"lr_mult": 2.0, "wd_mult": 5.0},
    ):
        p.call(params, "get", "w", **kwargs)
    p.apply("is", p.call(params, "get", "w", lr_mult=2, init="ones", grad_req=None), w)
    v = p.call(params, "get", "v", init=init("Constant", 2))
    p.apply("is", p.call(params, "get", "v", init=init("Constant", 2)), v)
    with p.loosely("class"):
        p.call(params, "get", "v", init=init("Constant", 3))
    u = p.call(params, "get", "u")
    p.call(params, "get", "u", init="ones")
    p.get(u, "init")
    p.call(params, "get", "new", bogus=3)


def int_as_shape(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    w = p.call(params, "get", "w", shape=5)
    p.get(w, "shape")
    p.call(params, "get", "w", shape=(5,))
    v = p.make("Parameter", "v", shape=3)
    p.call(v, "initialize", init="ones")
    p.state(v)


def shared_objects(p: Program) -> None:
    base = p.make("ParameterDict", "p_")
    w = p.call(base, "get", "w", shape=(2,))
    c = p.call(base, "get_constant", "c", dense([1, 2]))
    user = p.make("ParameterDict", "p_", shared=base)
    p.apply("list", user)
    p.apply("is", p.call(user, "get", "w"), w)
    p.apply("is", p.call(user, "get_constant", "c"), c)
    p.call(user, "get", "w", shape=(3,))
    p.apply("list", user)
    p.call(user, "get", "own", shape=(1,))
    p.apply("list", base)
    other = p.make("ParameterDict", "q_", base)
    p.apply("is", p.call(other, "get", "w", shape=(7,)), w)
    p.call(user, "initialize", init="ones")
    p.state(w)


def update_is_all_or_nothing(p: Program) -> None:
    one = p.make("ParameterDict", "p_")
    w = p.call(one, "get", "w", shape=(2,))
    other = p.make("ParameterDict", "p_")
    p.call(other, "get", "v", shape=(2,))
    p.call(other, "get", "w", shape=(2,))
    p.call(one, "update", other)
    p.apply("list", one)
    third = p.make("ParameterDict", "q_")
    z = p.call(third, "get", "z", shape=(2,))
    p.call(one, "update", third)
    p.call(one, "update", third)
    p.call(one, "update", one)
    p.apply("list", one)
    p.apply("is", p.item(one, "q_z"), z)
    p.call(one, "update", {"p_w": w})
    p.call(one, "update", 5)


def initialize_in_bulk(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    a = p.call(params, "get", "a", shape=(2,))
    b = p.call(params, "get", "b", shape=(2, 2), init="zeros", grad_req="null")
    d = p.call(params, "get", "d", shape=(0,), allow_deferred_init=True)
    p.call(params, "initialize", init("One"), [cpu(0), cpu(1)])
    p.state(a, b, d)
    p.call(params, "initialize", init("One"), [cpu(2)])
    p.state(a, b, d)
    p.call(params, "initialize", init("Zero"), [cpu(2)], force_reinit=True)
    p.state(a, b, d)


def verbose_initialize_logs(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    for name in ("first", "second"):
        p.call(params, "get", name, shape=(2,))
    p.call(params, "initialize", init("One"), verbose=True)


def bulk_operations(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    a = p.call(params, "get", "a", shape=(2,))
    b = p.call(params, "get", "b", shape=(2, 2), grad_req="add", grad_stype="row_sparse")
    p.call(params, "zero_grad")
    p.call(params, "list_ctx")
    p.call(params, "reset_ctx", cpu(1))
    p.call(params, "initialize", init("One"), [cpu(0), cpu(1)])
    with p.loosely("unordered"):
        p.call(params, "list_ctx")
    for w in (a, b):
        p.put(p.call(w, "grad", cpu(0)), slice(None), 3)
    p.call(params, "zero_grad")
    p.state(a, b)
    p.call(params, "reset_ctx", [cpu(2), cpu(1)])
    p.state(a, b)
    p.call(params, "setattr", "grad_req", "null")
    p.call(params, "setattr", "lr_mult", 0.5)
    p.call(params, "setattr", "wd_mult", 0.25)
    p.call(params, "setattr", "dtype", "float64")
    p.state(a, b)
    p.call(params, "setattr", "grad_req", "write")
    p.state(a, b)
    p.call(params, "setattr", "grad_req", "bogus")
    p.call(params, "setattr", "shape", (2,))
    p.state(a, b)
    for member in ("zero_grad", "list_ctx", "initialize"):
        p.call(p.make("ParameterDict"), member)


CASES = (
    Case(order_and_prefix, ("dict.1a",)),
    Case(mapping_interface, ("dict.1b",)),
    Case(get_merges_shapes, ("dict.2a", "dict.2c")),
    Case(get_and_dtypes, ("dict.2b", "dict.2c")),
    Case(get_names_what_differs, ("dict.2c",)),
    Case(int_as_shape, ("dict.2e",)),
    Case(shared_objects, ("dict.3a",)),
    Case(update_is_all_or_nothing, ("dict.3b",)),
    Case(verbose_initialize_logs, ("dict.4a",)),
    Case(initialize_in_bulk, ("dict.6",)),
    Case(bulk_operations, ("dict.6",)),
)
