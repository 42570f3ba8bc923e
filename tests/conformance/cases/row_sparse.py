"""Cases for the section on row_sparse."""

from __future__ import annotations

from typing import Any

from tests.conformance.cases.case import Case
from tests.conformance.program import Program, Ref, cpu, dense, init, row_sparse

__all__ = ["CASES"]

_ALL = slice(None)
_TABLE = [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12]]


def data_names_the_call_to_use(p: Program) -> None:
    for w in (_table(p), p.make("Parameter", "u", shape=(6, 2), stype="row_sparse")):
        p.call(w, "data")
        p.call(w, "data", cpu(1))
        p.call(w, "list_data")


def row_sparse_data_of_a_dense_parameter(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(4, 2), grad_stype="row_sparse")
    for _ in range(2):
        p.call(w, "row_sparse_data", dense([1], "int64"))
        p.call(w, "list_row_sparse_data", dense([1], "int64"))
        p.call(w, "initialize", init="ones")


def only_the_rows_asked_for(p: Program) -> None:
    w = _table(p)
    result = p.call(w, "row_sparse_data", dense([1, 4], "int64"))
    for name in ("shape", "dtype", "stype", "context"):
        p.get(result, name)
    p.get(result, "indices")
    p.get(result, "data")
    p.call(result, "asnumpy")
    p.call(result, "tostype", "default")
    p.apply("repr", result)


def any_order_and_number_of_ids(p: Program) -> None:
    w = _table(p)
    for ids in ([4, 1], [1, 1, 4, 1], [5, 4, 3, 2, 1, 0], [0], []):
        p.call(w, "row_sparse_data", dense(ids, "int64"))
        p.call(w, "list_row_sparse_data", dense(ids, "int64"))


def dtypes_of_ids(p: Program) -> None:
    w = _table(p)
    for name in ("int64", "int32", "int8", "uint8", "float32"):
        p.call(w, "row_sparse_data", dense([3, 0], name))


def ids_of_several_dimensions(p: Program) -> None:
    w = _table(p)
    p.call(w, "row_sparse_data", dense([[5, 0], [1, 2]], "int64"))
    p.call(w, "row_sparse_data", dense([[[2]]], "int32"))


def copy_on_the_context_of_the_ids(p: Program) -> None:
    w = _table(p, ctx=[cpu(0), cpu(1)])
    for context in (cpu(0), cpu(1), cpu(2)):
        p.call(w, "row_sparse_data", dense([2, 3], "int64", context))
    p.call(w, "list_row_sparse_data", dense([2, 3], "int64"))
    p.state(w)


def rows_of_uninitialized_and_deferred_parameters(p: Program) -> None:
    u = p.make("Parameter", "u", shape=(6, 2), stype="row_sparse")
    d = p.make("Parameter", "d", shape=(6, 0), stype="row_sparse", allow_deferred_init=True)
    p.call(d, "initialize", init="ones")
    for w in (u, d):
        p.call(w, "row_sparse_data", dense([1], "int64"))
        p.call(w, "list_row_sparse_data", dense([1], "int64"))
        p.call(w, "list_ctx")
    p.set(d, "shape", (6, 2))
    p.state(d)


def set_data_takes_both(p: Program) -> None:
    w = _table(p, ctx=[cpu(0), cpu(1)])
    p.call(w, "set_data", row_sparse([[7, 7], [8, 8]], [0, 3], (6, 2)))
    p.state(w)
    p.call(w, "row_sparse_data", dense([0, 1, 2], "int64"))
    p.call(w, "set_data", dense([[0, 0], [1, 2], [0, 0], [3, 4], [0, 0], [5, 6]]))
    p.state(w)
    p.call(w, "set_data", dense([[1, 2]]))
    p.state(w)


def initializers_of_row_sparse(p: Program) -> None:
    for index, initializer in enumerate(("zeros", "ones", init("Constant", 3))):
        w = p.make("Parameter", f"w{index}", shape=(4, 2), stype="row_sparse")
        p.call(w, "initialize", init=initializer, ctx=[cpu(0), cpu(1)])
        p.state(w)
    p.make("random.seed", 21)
    for index, initializer in enumerate((init("Uniform", 1), init("Normal", 1), init("Xavier"))):
        w = p.make("Parameter", f"r{index}", shape=(40, 50), stype="row_sparse")
        p.call(w, "initialize", init=initializer)
        with p.loosely("distribution"):
            p.call(w, "row_sparse_data", dense(list(range(40)), "int64"))
    for shape in ((4,), (4, 2, 3)):
        w = p.make("Parameter", f"s{len(shape)}", shape=shape, stype="row_sparse")
        p.call(w, "initialize", init="ones")
        p.state(w)


def gradients_hold_only_pushed_rows(p: Program) -> None:
    for stype in ("default", "row_sparse"):
        w = _table(p, f"w_{stype}", stype=stype, ctx=[cpu(0), cpu(1)])
        p.call(w, "grad", cpu(0))
        g = p.call(w, "grad", cpu(1))
        p.put(g, _ALL, row_sparse([[1, 1], [2, 2]], [1, 3], (6, 2)))
        p.state(w)
        p.get(g, "indices")
        p.put(g, _ALL, dense([[0, 0], [1, 1], [0, 0], [0, 2], [0, 0], [0, 0]]))
        p.state(w)
        p.put(g, _ALL, 3)
        p.state(w)
        p.call(w, "zero_grad")
        p.state(w)
        p.call(w, "list_grad")


def attributes_of_row_sparse(p: Program) -> None:
    w = _table(p)
    g = p.call(w, "grad")
    p.put(g, _ALL, row_sparse([[1, 1]], [4], (6, 2)))
    p.call(w, "cast", "float64")
    p.state(w)
    p.set(w, "grad_req", "add")
    p.state(w)
    p.set(w, "grad_req", "null")
    p.call(w, "grad")
    d = p.make("Parameter", "d", shape=(4, 2), stype="row_sparse")
    p.call(d, "initialize", init="ones")
    p.get(p.call(d, "grad"), "stype")
    p.state(d)


def reset_ctx_and_files(p: Program) -> None:
    w = _table(p, ctx=[cpu(0), cpu(1)])
    p.call(w, "reset_ctx", [cpu(2)])
    p.state(w)
    params = p.make("ParameterDict")
    p.call(params, "update", {"w": w})
    p.call(params, "load_dict", {"w": dense(_TABLE)})
    p.state(w)
    p.call(params, "load_dict", {"w": row_sparse([[7, 7], [8, 8]], [0, 3], (6, 2))})
    p.state(w)
    dense_one = p.make("ParameterDict")
    v = p.call(dense_one, "get", "v", shape=(6, 2))
    p.call(dense_one, "load_dict", {"v": row_sparse([[7, 7], [8, 8]], [0, 3], (6, 2))})
    p.state(v)


def csr_where_mxnet_takes_it(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(4, 4), stype="csr")
    p.apply("repr", w)
    p.call(w, "data")
    p.call(w, "list_data")
    p.call(w, "row_sparse_data", dense([1], "int64"))
    p.call(w, "list_ctx")
    with p.loosely("class"):
        p.call(w, "initialize", init="zeros")
    p.call(w, "list_ctx")
    p.call(w, "initialize", init=init("Uniform"))
    p.call(w, "list_ctx")
    p.call(w, "data")
    v = p.make("Parameter", "v", shape=(4, 4), grad_stype="csr")
    p.call(v, "initialize", init="ones")
    p.call(v, "data")
    p.call(v, "zero_grad")


def _table(p: Program, name: str = "w", ctx: object = None, **kwargs: Any) -> Ref:
    kwargs = {"stype": "row_sparse", "grad_stype": "row_sparse", **kwargs}
    w = p.make("Parameter", name, shape=(6, 2), **kwargs)
    p.call(w, "initialize", init="ones", ctx=ctx)
    p.call(w, "set_data", dense(_TABLE))
    return w


CASES = (
    Case(data_names_the_call_to_use, ("row_sparse.1a",)),
    Case(row_sparse_data_of_a_dense_parameter, ("row_sparse.1b",)),
    Case(only_the_rows_asked_for, ("row_sparse.2a",)),
    Case(any_order_and_number_of_ids, ("row_sparse.2b",)),
    Case(dtypes_of_ids, ("row_sparse.2c",)),
    Case(ids_of_several_dimensions, ("row_sparse.2d",)),
    Case(copy_on_the_context_of_the_ids, ("row_sparse.4a", "row_sparse.4c")),
    Case(rows_of_uninitialized_and_deferred_parameters, ("row_sparse.1a",)),
    Case(set_data_takes_both, ("row_sparse.5a",)),
    Case(initializers_of_row_sparse, ("row_sparse.2a", "initialize.5a")),
    Case(gradients_hold_only_pushed_rows, ("row_sparse.5b",)),
    Case(attributes_of_row_sparse, ("row_sparse.5b",)),
    Case(reset_ctx_and_files, ("row_sparse.5a", "values.6a")),
    Case(csr_where_mxnet_takes_it, ("row_sparse.6",)),
)
