"""What paramd does differently on purpose: the one list. Everything else must agree.

Each entry has a program whose last step shows the difference; `test_differences.py` runs it on both,
and fails when nothing differs any more, when another step differs first, or when paramd's last
step does not give what the entry says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.conformance.program import (
    Program,
    Ref,
    cpu,
    dense,
    gpu,
    init,
    numpy,
    row_sparse,
)

__all__ = ["DIFFERENCES", "OnPurpose", "Raises"]

_ALL = slice(None)


@dataclass(frozen=True)
class Raises:
    """The outcome of a step that fails.

    Attributes:
        error: name of the exception's class, or of one of its bases.
    """

    error: str


@dataclass(frozen=True)
class OnPurpose:
    """One difference.

    Attributes:
        name: what to call it.
        lines: the lines that ask for it, see `lines.py`; none where the reason is ours alone.
        mxnet: what MXNet does.
        paramd: what paramd does.
        reason: why.
        write: writes the program, and returns the step that differs first if not the last one.
        gives: what paramd's last step gives: `Raises`, or the value (arrays as nested lists).
        as_is: run MXNet without the forward pass and the Trainer that programs get otherwise.
    """

    name: str
    lines: tuple[str, ...]
    mxnet: str
    paramd: str
    reason: str
    write: Callable[[Program], Ref | None]
    gives: Any
    as_is: bool = False

    def __str__(self) -> str:
        return self.name


def _ones(p: Program, name: str = "w", **kwargs: Any) -> Ref:
    initialize = {key: kwargs.pop(key) for key in ("ctx",) if key in kwargs}
    w = p.make("Parameter", name, **{"shape": (2,), **kwargs})
    p.call(w, "initialize", init="ones", **initialize)
    return w


def _deferred(p: Program, name: str = "w", **kwargs: Any) -> Ref:
    w = p.make("Parameter", name, shape=(0,), allow_deferred_init=True, **kwargs)
    p.call(w, "initialize", init="ones")
    return w


def _from_string(p: Program) -> Ref:
    read = p.make("Context.from_string", "gpu(1)")
    p.apply("repr", read)
    return read


def _count_gpus(p: Program) -> None:
    p.make("num_gpus")


def _failed_reset_ctx(p: Program) -> None:
    w = _ones(p)
    with p.loosely("class"):
        p.call(w, "reset_ctx", gpu(7))
    p.call(w, "list_ctx")


def _minus_one(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(-1,), allow_deferred_init=True)
    p.call(w, "initialize", init="ones")


def _failed_force_reinit(p: Program) -> None:
    w = _ones(p)
    with p.loosely("class"):
        p.call(w, "initialize", init=init("Xavier"), force_reinit=True)
    p.call(w, "data")


def _first_access_finishes(p: Program) -> None:
    w = _deferred(p)
    p.set(w, "shape", (2,))
    p.call(w, "data")


def _deferred_dtype(p: Program) -> Ref:
    w = _deferred(p, dtype="float64")
    p.call(w, "set_data", dense([1, 2]))
    value = p.call(w, "data")
    p.get(value, "dtype")
    return value


def _deferred_rows(p: Program) -> Ref:
    w = p.make("Parameter", "w", shape=(0, 1), stype="row_sparse", allow_deferred_init=True)
    p.call(w, "initialize", init="ones")
    p.call(w, "set_data", dense([[1], [2]]))
    rows = p.call(w, "row_sparse_data", dense([1], "int64"))
    p.get(rows, "stype")
    return rows


def _deferred_numpy(p: Program) -> None:
    w = _deferred(p)
    p.call(w, "set_data", numpy([1, 2]))
    p.call(w, "data")


def _mixed(p: Program) -> None:
    w = p.make("Parameter", "w_bias", shape=(2,))
    mixed = init("Mixed", [".*bias", ".*"], [init("Zero"), init("One")])
    p.call(w, "initialize", init=mixed)


def _load(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(2,))
    p.call(w, "initialize", init=init("Load", {"w": dense([3, 4])}))


def _refused_shape(p: Program) -> None:
    w = p.make("Parameter", "w")
    p.call(w, "set_data", dense([1, 2]))
    p.get(w, "shape")


def _mean_of_float16(p: Program) -> None:
    w = _ones(p, dtype="float16", ctx=[cpu(0), cpu(1)])
    p.call(w, "set_data", dense([60000, -60000], "float16"))
    p.call(w, "reset_ctx", cpu(0))
    p.call(w, "data")


def _mean_rounds(p: Program) -> None:
    w = _ones(p, dtype="int32", shape=(4,), ctx=[cpu(0), cpu(1)])
    p.put(p.call(w, "data", cpu(0)), _ALL, dense([1, 2, -3, -4], "int32"))
    p.put(p.call(w, "data", cpu(1)), _ALL, dense([2, 3, -4, -5], "int32"))
    p.call(w, "reset_ctx", cpu(0))
    p.call(w, "data")


def _mean_of_uint8(p: Program) -> None:
    w = _ones(p, dtype="uint8", ctx=[cpu(0), cpu(1)])
    p.call(w, "set_data", dense([200, 255], "uint8"))
    p.call(w, "reset_ctx", cpu(0))
    p.call(w, "data")


def _bfloat16(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(2,), dtype="bfloat16")
    p.call(w, "initialize", init="ones")


def _cast_to_nonsense(p: Program) -> None:
    w = _ones(p)
    with p.loosely("class"):
        p.call(w, "cast", "bogus")
    p.get(w, "dtype")


def _views(p: Program) -> None:
    w = _ones(p, shape=(2, 2))
    p.put(p.item(p.call(w, "data"), (_ALL, 1)), _ALL, 5)
    p.call(w, "data")


def _handles_follow(p: Program) -> None:
    w = _ones(p)
    held = p.call(w, "data")
    p.call(w, "initialize", init="zeros", force_reinit=True)
    p.call(held, "asnumpy")


def _float_of_an_array(p: Program) -> None:
    w = _ones(p, shape=(1,))
    p.apply("float", p.call(w, "data"))


def _exact_scalars(p: Program) -> None:
    w = _ones(p, dtype="int64")
    p.put(p.call(w, "data"), _ALL, 2**53 + 1)
    p.call(w, "data")


def _sparse_value_for_dense(p: Program) -> Ref:
    w = _ones(p, shape=(3, 1))
    written = p.call(w, "set_data", row_sparse([[5]], [1], (3, 1)))
    p.call(w, "data")
    return written


def _rows(p: Program, ids: Any, **kwargs: Any) -> None:
    w = _ones(p, shape=(4, 1), stype="row_sparse", **kwargs)
    p.call(w, "row_sparse_data", ids)


def _bilinear_of_a_vector(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(4,))
    p.call(w, "initialize", init=init("Bilinear"))


def _value_as_list(p: Program) -> Ref:
    w = _ones(p)
    written = p.call(w, "set_data", [3, 4])
    p.call(w, "data")
    return written


def _context_as_text(p: Program) -> None:
    w = _ones(p)
    p.call(w, "data", "cpu(0)")


def _index_arrays(p: Program) -> None:
    w = _ones(p)
    p.put(p.call(w, "data"), [1], 7)


def _gradient_of_an_array(p: Program) -> None:
    w = _ones(p)
    p.get(p.call(w, "data"), "grad")


def _context_twice(p: Program) -> None:
    w = _ones(p, ctx=[cpu(0), cpu(0)])
    p.call(w, "list_ctx")


def _no_context(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(2,))
    p.call(w, "initialize", ctx=[])


def _list_device(p: Program) -> None:
    w = _ones(p, ctx=[cpu(1), cpu(0)])
    p.call(w, "list_device")


def _reset_device(p: Program) -> None:
    w = _ones(p)
    p.call(w, "reset_device", cpu(1))


def _data_of_device(p: Program) -> None:
    w = _ones(p)
    p.call(w, "data", device=cpu(0))


def _rows_of_float64(p: Program) -> Ref:
    w = _ones(p, shape=(3, 1), stype="row_sparse", dtype="float64")
    p.call(w, "reset_ctx", cpu(1))
    rows = p.call(w, "row_sparse_data", dense([1], "int64", cpu(1)))
    p.get(rows, "dtype")
    return rows


def _part_of_booleans(p: Program) -> None:
    w = _ones(p, dtype="bool")
    p.put(p.call(w, "data"), 0, numpy([0], "bool"))


def _mean_of_booleans(p: Program) -> Ref:
    w = _ones(p, dtype="bool", ctx=[cpu(0), cpu(1)])
    moved = p.call(w, "reset_ctx", cpu(0))
    p.call(w, "data")
    return moved


def _no_rows_at_all(p: Program) -> Ref:
    w = _ones(p, shape=(3, 1), stype="row_sparse")
    p.call(w, "set_data", dense([[0], [0], [0]]))
    rows = p.call(w, "row_sparse_data", dense([1], "int64"))
    p.get(rows, "indices")
    return rows


def _constant_as_symbol(p: Program) -> None:
    c = p.make("Constant", "c", dense([1, 2]))
    p.call(c, "var")


def _no_trainer(p: Program) -> None:
    _rows(p, dense([1], "int64"))


def _row_out_of_range(p: Program) -> None:
    _rows(p, dense([1, 4], "int64"))


def _negative_row(p: Program) -> None:
    _rows(p, dense([-1], "int64"))


def _fractional_row(p: Program) -> None:
    _rows(p, dense([1.5]))


def _numpy_ids(p: Program) -> None:
    _rows(p, numpy([1, 2], "int64"))


def _results_are_kept(p: Program) -> None:
    w = _ones(p, shape=(4, 1), stype="row_sparse")
    p.make("train", w)
    result = p.call(w, "row_sparse_data", dense([1], "int64"))
    p.call(w, "row_sparse_data", dense([2], "int64"))
    p.call(result, "asnumpy")


def _sparse_set_data_casts(p: Program) -> None:
    w = _ones(p, shape=(2, 1), stype="row_sparse", dtype="float64")
    p.call(w, "set_data", dense([[1], [2]]))


def _duplicate_rows(p: Program) -> None:
    w = _ones(p, shape=(4, 1), stype="row_sparse", grad_stype="row_sparse")
    g = p.call(w, "grad")
    p.put(g, _ALL, row_sparse([[1], [2]], [3, 3], (4, 1)))
    p.call(g, "asnumpy")


def _constant_list_again(p: Program) -> Ref:
    params = p.make("ParameterDict", "p_")
    c = p.call(params, "get_constant", "c", [1, 2])
    again = p.call(params, "get_constant", "c", [1, 2])
    p.apply("is", again, c)
    return again


def _length(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    p.call(params, "get", "w")
    p.apply("len", params)


def _int_shape_again(p: Program) -> Ref:
    params = p.make("ParameterDict", "p_")
    p.call(params, "get", "w", shape=5)
    again = p.call(params, "get", "w", shape=5)
    p.get(again, "shape")
    return again


def _none_shape_again(p: Program) -> Ref:
    params = p.make("ParameterDict", "p_")
    p.call(params, "get", "w", shape=(5,))
    again = p.call(params, "get", "w", shape=None)
    p.get(again, "shape")
    return again


def _other_stype(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    p.call(params, "get", "w", shape=(5, 2))
    p.call(params, "get", "w", stype="row_sparse")


def _other_grad_stype(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    p.call(params, "get", "w", shape=(5, 2))
    p.call(params, "get", "w", grad_stype="row_sparse")


def _verbose_name(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    p.call(params, "get", "w", shape=(2,))
    p.call(params, "initialize", init="ones", verbose=True)


def _zero_integers(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    p.call(params, "get", "w", shape=(2,), dtype="int32")
    p.call(params, "initialize", init="ones")
    p.call(params, "zero_grad")


def _two_of_one_name(p: Program) -> None:
    _ones(p)
    other = p.make("Parameter", "w", shape=(2,))
    p.call(other, "data")


def _half_a_load(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    a = p.call(params, "get", "a", shape=(2,))
    p.call(params, "get", "b", shape=(2,))
    p.call(params, "initialize", init="ones")
    p.call(params, "load_dict", {"p_a": dense([5, 6]), "p_b": dense([5, 6, 7])})
    p.call(a, "data")


def _load_elsewhere(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    a = p.call(params, "get", "a", shape=(0,), allow_deferred_init=True)
    p.call(params, "initialize", init="ones", ctx=[cpu(0), cpu(1)])
    p.call(params, "load_dict", {"p_a": dense([5, 6])}, cpu(2))
    p.get(a, "shape")


def _whole_multiplier(p: Program) -> None:
    w = p.make("Parameter", "w", lr_mult=2)
    p.call(w, "var")


def _longer_rank(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    p.call(params, "get", "a", shape=(2,))
    p.call(params, "load_dict", {"p_a": dense([[1, 2, 3], [4, 5, 6]])})


def _load_tells_the_shape(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    a = p.call(params, "get", "a")
    p.call(params, "load_dict", {"p_a": dense([1, 2])})
    p.get(a, "shape")


def _numpy_values_to_load(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    p.call(params, "get", "a", shape=(2,))
    p.call(params, "load_dict", {"p_a": numpy([1, 2])})


def _name_of_weight(p: Program) -> Ref:
    w = p.make("Parameter")
    p.get(w, "name")
    return w


def _device_spelling(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(2,))
    p.call(w, "initialize", device=cpu(1))


DIFFERENCES: tuple[OnPurpose, ...] = (
    OnPurpose(
        "Context.from_string", ("contexts.1b",),
        "has no such method", "reads 'gpu(1)'",
        "contexts come from configuration files and command lines", _from_string, "gpu(1)",
    ),
    OnPurpose(
        "num_gpus is exported", ("contexts.1e",),
        "`mx.context.num_gpus()` counts this machine's", "asks the server",
        "contexts are the server's", _count_gpus, 0,
    ),
    OnPurpose(
        "failed reset_ctx", ("contexts.3b",),
        "list_ctx() names the context that failed", "nothing changes",
        "a failed call leaves the state alone", _failed_reset_ctx, ["cpu(0)"],
    ),
    OnPurpose(
        "dimension -1", ("initialize.3c",),
        "AssertionError unless NumPy shapes are switched on", "unknown, like 0",
        "MXNet 2.0 writes unknown dimensions that way", _minus_one, None,
    ),
    OnPurpose(
        "failed force_reinit", ("initialize.3d",),
        "the old value is lost", "the old value stays",
        "a failed call leaves the state alone", _failed_force_reinit, [1, 1],
    ),
    OnPurpose(
        "deferred initialization finishes without a network", ("initialize.4f",),
        "only the first forward pass finishes", "the first access after the shape is known does",
        "there is no forward pass here", _first_access_finishes, [1, 1], as_is=True,
    ),
    OnPurpose(
        "set_data of a deferred parameter casts", ("values.2b",),
        "keeps the array's dtype, against Parameter.dtype", "casts as always",
        "an accident of MXNet", _deferred_dtype, "float64",
    ),
    OnPurpose(
        "set_data of a deferred parameter keeps the storage type", ("row_sparse.5a",),
        "takes over the array's, and then cannot read rows", "keeps the parameter's",
        "an accident of MXNet", _deferred_rows, "row_sparse",
    ),
    OnPurpose(
        "NumPy value for a deferred parameter", (),
        "AttributeError in the forward pass", "taken",
        "set_data takes NumPy arrays everywhere else", _deferred_numpy, [1, 2],
    ),
    OnPurpose(
        "Mixed on a Gluon parameter", ("initialize.5b",),
        "AssertionError", "works", "an accident of MXNet", _mixed, None,
    ),
    OnPurpose(
        "Load on a Gluon parameter", ("initialize.5b",),
        "AssertionError", "works", "an accident of MXNet", _load, None,
    ),
    OnPurpose(
        "shape of a refused set_data", (),
        "is kept, although the call failed", "nothing changes",
        "a failed call leaves the state alone", _refused_shape, None,
    ),
    OnPurpose(
        "mean of float16", ("values.6e",),
        "overflows to infinity", "is the mean",
        "an accident of MXNet", _mean_of_float16, [60000, -60000],
    ),
    OnPurpose(
        "mean of integers", ("values.6f",),
        "truncates", "rounds half to even",
        "unbiased, and what NumPy's rint does", _mean_rounds, [2, 2, -4, -4],
    ),
    OnPurpose(
        "mean of uint8", ("values.6f",),
        "the sum wraps", "is the mean", "an accident of MXNet", _mean_of_uint8, [200, 255],
    ),
    OnPurpose(
        "bfloat16", (),
        "TypeError", "a dtype like the others",
        "MXNet stores it but NumPy 1.23 does not know it", _bfloat16, None,
    ),
    OnPurpose(
        "cast to a dtype that does not exist", (),
        "fails, and dtype is changed", "fails, and nothing changes",
        "a failed call leaves the state alone", _cast_to_nonsense, {"kind": "dtype"},
    ),
    OnPurpose(
        "views that are not contiguous", ("values.1c",),
        "are copies, writing to them is lost", "write through like all views",
        "one rule for all basic indices", _views, [[1, 5], [1, 5]],
    ),
    OnPurpose(
        "handles held over a new initialization", ("values.1a",),
        "keep the old array", "follow the parameter",
        "a handle is resolved by name and context at each use", _handles_follow, [0, 0],
    ),
    OnPurpose(
        "float() of an array with one element", (),
        "TypeError", "its value", "what every array library does", _float_of_an_array, 1.0,
    ),
    OnPurpose(
        "assigning large integers", (),
        "pass through float64", "are exact",
        "an accident of MXNet", _exact_scalars, [2**53 + 1, 2**53 + 1],
    ),
    OnPurpose(
        "set_data of a dense parameter takes row_sparse values", ("row_sparse.5a",),
        "TypeError", "taken", "both storage types have the same logical value",
        _sparse_value_for_dense, [[0], [5], [0]],
    ),
    OnPurpose(
        "rows without a Trainer", ("row_sparse.3a",),
        "RuntimeError", "gives the rows",
        "the server owns the rows, not a key-value store", _no_trainer, [[0], [1], [0], [0]],
        as_is=True,
    ),
    OnPurpose(
        "Bilinear on a vector", (),
        "IndexError", "ValueError, as for other initializers", "an accident of MXNet",
        _bilinear_of_a_vector, Raises("ValueError"),
    ),
    OnPurpose(
        "set_data of a list", (),
        "AttributeError", "taken", "every array library takes lists", _value_as_list, [3, 4],
    ),
    OnPurpose(
        "context given as text", (),
        "AttributeError", "TypeError", "an accident of MXNet", _context_as_text,
        Raises("TypeError"),
    ),
    OnPurpose(
        "assignment through index arrays", (),
        "done", "refused: write slices, or assign all of the value",
        "a handle writes regions in one message", _index_arrays, Raises("ParamdError"),
    ),
    OnPurpose(
        "data().grad", (),
        "the gradient buffer", "does not exist: there is Parameter.grad()",
        "paramd has no autograd", _gradient_of_an_array, Raises("AttributeError"),
    ),
    OnPurpose(
        "a context given twice", (),
        "makes two copies, one of which no context finds", "makes one copy",
        "an accident of MXNet", _context_twice, ["cpu(0)"],
    ),
    OnPurpose(
        "an empty list of contexts", (),
        "makes a parameter without copies", "is refused", "an accident of MXNet",
        _no_context, Raises("ValueError"),
    ),
    OnPurpose(
        "list_device", (),
        "does not exist in 1.9.1", "is list_ctx", "as in MXNet 2.0", _list_device,
        ["cpu(1)", "cpu(0)"],
    ),
    OnPurpose(
        "reset_device", (),
        "does not exist in 1.9.1", "is reset_ctx", "as in MXNet 2.0", _reset_device, None,
    ),
    OnPurpose(
        "data(device=)", (),
        "TypeError in 1.9.1", "taken", "as in MXNet 2.0", _data_of_device, [1, 1],
    ),
    OnPurpose(
        "rows of other dtypes", (),
        "become float32 in reset_ctx and save", "keep their dtype",
        "an accident of MXNet", _rows_of_float64, "float64",
    ),
    OnPurpose(
        "parts of booleans", (),
        "cannot be assigned", "can", "an accident of MXNet", _part_of_booleans, None,
    ),
    OnPurpose(
        "mean of booleans", (),
        "fails in the engine", "is the mean, rounded like that of integers",
        "an accident of MXNet", _mean_of_booleans, [True, True],
    ),
    OnPurpose(
        "rows of a value without any", (),
        "are left out", "are zeros, like every row that is not stored",
        "the result holds the rows that were asked for", _no_rows_at_all, [1],
    ),
    OnPurpose(
        "var() of a Constant", (),
        "names an initializer that exists in its process only", "names none that others know",
        "the value is not in a symbol", _constant_as_symbol, {"kind": "symbol"},
    ),
    OnPurpose(
        "rows that were fetched before", ("row_sparse.3b",),
        "change with the next fetch", "stay",
        "the result is the caller's own", _results_are_kept, [[0], [1], [0], [0]], as_is=True,
    ),
    OnPurpose(
        "row ids beyond the last", ("row_sparse.2e",),
        "garbage", "IndexError", "an accident of MXNet", _row_out_of_range, Raises("IndexError"),
    ),
    OnPurpose(
        "negative row ids", ("row_sparse.2e",),
        "garbage", "IndexError", "an accident of MXNet", _negative_row, Raises("IndexError"),
    ),
    OnPurpose(
        "row ids that are not whole", ("row_sparse.2c",),
        "truncated", "refused", "a wrong id must not fetch another row",
        _fractional_row, Raises("IndexError"),
    ),
    OnPurpose(
        "NumPy row ids", ("row_sparse.4b",),
        "AttributeError", "taken", "workers compute ids with NumPy",
        _numpy_ids, [[0], [1], [1], [0]],
    ),
    OnPurpose(
        "set_data of a row_sparse parameter casts", ("values.2b",),
        "fails in the engine", "casts as always", "an accident of MXNet",
        _sparse_set_data_casts, None,
    ),
    OnPurpose(
        "duplicate ids in a gradient", ("row_sparse.5c",),
        "the last one counts", "they add up",
        "a batch may touch a row twice", _duplicate_rows, [[0], [0], [0], [3]],
    ),
    OnPurpose(
        "get_constant with the same list", ("constant.1f",),
        "AttributeError", "taken", "an accident of MXNet", _constant_list_again, True,
    ),
    OnPurpose(
        "len of a ParameterDict", ("dict.1c",),
        "TypeError", "the number of parameters", "what every mapping has", _length, 1,
    ),
    OnPurpose(
        "get with a number as shape", ("dict.2e",),
        "TypeError when the parameter exists", "means one dimension",
        "an accident of MXNet", _int_shape_again, [5],
    ),
    OnPurpose(
        "get with shape=None", (),
        "TypeError when the parameter exists", "asks for nothing, like the other attributes",
        "an accident of MXNet", _none_shape_again, [5],
    ),
    OnPurpose(
        "get with another stype", ("dict.2d",),
        "silently accepted", "AssertionError",
        "the caller would use the wrong calls", _other_stype, Raises("AssertionError"),
    ),
    OnPurpose(
        "get with another grad_stype", ("dict.2d",),
        "silently accepted", "AssertionError",
        "the caller would use the wrong calls", _other_grad_stype, Raises("AssertionError"),
    ),
    OnPurpose(
        "verbose with an initializer's name", (),
        "AttributeError", "logs", "an accident of MXNet", _verbose_name, None,
    ),
    OnPurpose(
        "zero_grad of a dictionary with integer gradients", (),
        "fails in the engine", "zeroes them", "an accident of MXNet", _zero_integers, None,
    ),
    OnPurpose(
        "two objects of one name", (),
        "are two parameters", "are one",
        "the name is the identity on the cluster", _two_of_one_name, [1, 1],
    ),
    OnPurpose(
        "load that fails", ("dict.5g",),
        "stops half-way", "changes nothing",
        "a failed call leaves the state alone", _half_a_load, [1, 1],
    ),
    OnPurpose(
        "load that fails on a deferred parameter", ("dict.5g",),
        "has taken over the shape", "changes nothing",
        "a failed call leaves the state alone", _load_elsewhere, [0],
    ),
    OnPurpose(
        "multipliers that are whole numbers", (),
        "var() writes '2'", "var() writes '2.0'",
        "multipliers are floats on the wire", _whole_multiplier, {"kind": "symbol"},
    ),
    OnPurpose(
        "load of a longer rank", ("dict.5h",),
        "compares only the dimensions that both have", "AssertionError",
        "an accident of MXNet", _longer_rank, Raises("AssertionError"),
    ),
    OnPurpose(
        "shape after a load", (),
        "stays None when it was None", "is that of the value",
        "an accident of MXNet", _load_tells_the_shape, [2],
    ),
    OnPurpose(
        "load_dict of NumPy arrays", (),
        "AssertionError", "taken", "values that workers have", _numpy_values_to_load, None,
    ),
    OnPurpose(
        "default name", (),
        "name is required in 1.9.1", "is 'weight'", "as in MXNet 2.0", _name_of_weight, "weight",
    ),
    OnPurpose(
        "device= instead of ctx=", (),
        "TypeError in 1.9.1", "taken", "as in MXNet 2.0", _device_spelling, None,
    ),
)
