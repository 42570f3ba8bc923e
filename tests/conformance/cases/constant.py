"""Cases for the section on Constant."""

from __future__ import annotations

from tests.conformance.cases.case import Case
from tests.conformance.program import Program, cpu, dense, numpy

__all__ = ["CASES"]

_FOUR = [[1, 2], [3, 4]]


def value_as_given(p: Program) -> None:
    for index, value in enumerate(
        (_FOUR, dense(_FOUR), dense(_FOUR, "int32"), numpy(_FOUR), [1.5, 2], dense([True], "bool"))
    ):
        c = p.make("Constant", f"c{index}", value)
        p.get(c, "value")
        p.call(c, "initialize", ctx=[cpu(0), cpu(1)])
        p.state(c)


def value_is_the_initial_value(p: Program) -> None:
    c = p.make("Constant", "c", _FOUR)
    p.call(c, "data")
    p.call(c, "initialize", default_init="zeros")
    p.call(c, "data")
    p.call(c, "initialize")
    p.call(c, "initialize", init="zeros", force_reinit=True)
    p.state(c)


def scalar_values(p: Program) -> None:
    c = p.make("Constant", "c", 5)
    p.get(c, "shape")
    p.call(c, "initialize")
    p.make("Constant", "d", "abc")


def grad_req_is_null(p: Program) -> None:
    c = p.make("Constant", "c", _FOUR)
    for value in ("write", "add", "null", "bogus"):
        p.set(c, "grad_req", value)
        p.get(c, "grad_req")
    p.call(c, "initialize")
    p.call(c, "grad")
    p.call(c, "list_grad")
    p.call(c, "zero_grad")
    p.state(c)


def set_data_works(p: Program) -> None:
    c = p.make("Constant", "c", _FOUR)
    p.call(c, "set_data", dense(_FOUR))
    p.call(c, "initialize", ctx=[cpu(0), cpu(1)])
    p.call(c, "set_data", dense([[5, 6], [7, 8]]))
    p.state(c)
    p.get(c, "value")
    p.call(c, "set_data", dense([5, 6]))
    p.call(c, "cast", "float64")
    p.call(c, "reset_ctx", cpu(2))
    p.set(c, "shape", (2, 2))
    p.set(c, "shape", (2, 3))
    p.state(c)


def get_constant_compares(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    c = p.call(params, "get_constant", "c", dense(_FOUR))
    for value in (dense(_FOUR), numpy(_FOUR), None):
        p.apply("is", p.call(params, "get_constant", "c", value), c)
    for value in (numpy([[1, 2], [3, 5]]), numpy([1, 2]), dense([[0]])):
        p.call(params, "get_constant", "c", value)
    p.call(params, "get", "w", shape=(2,))
    p.call(params, "get_constant", "w", numpy([1, 1]))
    p.call(params, "get_constant", "w")
    p.apply("is", p.call(params, "get", "c"), c)
    p.apply("is", p.call(params, "get", "c", shape=(2, 2)), c)
    p.call(params, "get", "c", grad_req="write")
    p.call(params, "initialize")
    p.call(params, "setattr", "grad_req", "add")
    p.state(c)


def missing_constants(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    with p.loosely("class"):
        p.call(params, "get_constant", "zz")
    p.apply("list", params)


def lists_as_values(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    c = p.call(params, "get_constant", "c", _FOUR)
    p.get(c, "value")
    p.apply("is", p.call(params, "get_constant", "c", dense(_FOUR)), c)
    p.call(params, "initialize")
    p.state(c)


CASES = (
    Case(value_as_given, ("constant.1a",)),
    Case(value_is_the_initial_value, ("constant.1a",)),
    Case(scalar_values, ("constant.1a",)),
    Case(grad_req_is_null, ("constant.1b",)),
    Case(set_data_works, ("constant.1c",)),
    Case(get_constant_compares, ("constant.1d",)),
    Case(missing_constants, ("constant.1e",)),
    Case(lists_as_values, ("constant.1f",)),
)
