"""Differences in ParameterDict, Constant and files."""

from __future__ import annotations

from tests.conformance.differences.entry import OnPurpose, Raises
from tests.conformance.program import Program, Ref, cpu, dense, numpy

__all__ = ["ENTRIES"]


def _constant_as_symbol(p: Program) -> None:
    c = p.make("Constant", "c", dense([1, 2]))
    p.call(c, "var")


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


ENTRIES: tuple[OnPurpose, ...] = (
    OnPurpose(
        "var() of a Constant",
        (),
        "names an initializer that exists in its process only",
        "names none that others know",
        "the value is not in a symbol",
        _constant_as_symbol,
        {"kind": "symbol"},
    ),
    OnPurpose(
        "get_constant with the same list",
        ("constant.1f",),
        "AttributeError",
        "taken",
        "an accident of MXNet",
        _constant_list_again,
        True,
    ),
    OnPurpose(
        "len of a ParameterDict",
        ("dict.1c",),
        "TypeError",
        "the number of parameters",
        "what every mapping has",
        _length,
        1,
    ),
    OnPurpose(
        "get with a number as shape",
        ("dict.2e",),
        "TypeError when the parameter exists",
        "means one dimension",
        "an accident of MXNet",
        _int_shape_again,
        [5],
    ),
    OnPurpose(
        "get with shape=None",
        (),
        "TypeError when the parameter exists",
        "asks for nothing, like the other attributes",
        "an accident of MXNet",
        _none_shape_again,
        [5],
    ),
    OnPurpose(
        "get with another stype",
        ("dict.2d",),
        "silently accepted",
        "AssertionError",
        "the caller would use the wrong calls",
        _other_stype,
        Raises("AssertionError"),
    ),
    OnPurpose(
        "get with another grad_stype",
        ("dict.2d",),
        "silently accepted",
        "AssertionError",
        "the caller would use the wrong calls",
        _other_grad_stype,
        Raises("AssertionError"),
    ),
    OnPurpose(
        "verbose with an initializer's name",
        (),
        "AttributeError",
        "logs",
        "an accident of MXNet",
        _verbose_name,
        None,
    ),
    OnPurpose(
        "zero_grad of a dictionary with integer gradients",
        (),
        "fails in the engine",
        "zeroes them",
        "an accident of MXNet",
        _zero_integers,
        None,
    ),
    OnPurpose(
        "load that fails",
        ("dict.5g",),
        "stops half-way",
        "changes nothing",
        "a failed call leaves the state alone",
        _half_a_load,
        [1, 1],
    ),
    OnPurpose(
        "load that fails on a deferred parameter",
        ("dict.5g",),
        "has taken over the shape",
        "changes nothing",
        "a failed call leaves the state alone",
        _load_elsewhere,
        [0],
    ),
    OnPurpose(
        "load of a longer rank",
        ("dict.5h",),
        "compares only the dimensions that both have",
        "AssertionError",
        "an accident of MXNet",
        _longer_rank,
        Raises("AssertionError"),
    ),
    OnPurpose(
        "shape after a load",
        (),
        "stays None when it was None",
        "is that of the value",
        "an accident of MXNet",
        _load_tells_the_shape,
        [2],
    ),
    OnPurpose(
        "load_dict of NumPy arrays",
        (),
        "AssertionError",
        "taken",
        "values that workers have",
        _numpy_values_to_load,
        None,
    ),
)
