"""Cases for the section on values: live handles and what can be done with arrays."""

from __future__ import annotations

from typing import Any

from tests.conformance.cases.case import Case
from tests.conformance.program import Program, Ref, cpu, dense, numpy

__all__ = ["CASES"]

_ALL = slice(None)
_SIX = [[0, 1, 2], [3, 4, 5]]


def data_is_live(p: Program) -> None:
    w = _ones(p, ctx=[cpu(0), cpu(1)])
    held = p.call(w, "data", cpu(0))
    p.call(w, "set_data", dense(_SIX))
    p.call(held, "asnumpy")
    p.put(held, _ALL, 7)
    p.state(w)
    copies = p.call(w, "list_data")
    p.put(p.item(copies, 1), _ALL, numpy(_SIX))
    p.state(w)


def gradients_are_live(p: Program) -> None:
    w = _ones(p, ctx=[cpu(0), cpu(1)])
    held = p.call(w, "grad", cpu(1))
    p.put(held, _ALL, dense(_SIX))
    p.put(p.item(p.call(w, "list_grad"), 0), _ALL, 3)
    p.state(w)
    p.call(w, "zero_grad")
    p.call(held, "asnumpy")
    p.state(w)


def parts_write_through(p: Program) -> None:
    w = _ones(p)
    h = p.call(w, "data")
    for key, value in (
        (0, 5),
        (-1, [1, 2, 3]),
        ((0, 1), 8),
        ((_ALL, 1), [9, 10]),
        (slice(0, 1), 11),
        ((slice(0, 2), slice(1, None)), numpy([[1, 2], [3, 4]])),
        ((Ellipsis, 0), -1),
        (Ellipsis, dense(_SIX)),
        (1, numpy([[7, 8, 9]])),
        (slice(None, None, 2), 4),
    ):
        p.put(h, key, value)
        p.call(w, "data")
    p.put(p.item(h, 0), _ALL, 12)
    p.put(p.item(p.item(h, 1), slice(0, 2)), 1, 13)
    p.state(w)
    g = p.call(w, "grad")
    p.put(p.item(g, 1), _ALL, numpy([1, 2, 3]))
    p.put(g, (0, slice(0, 2)), 6)
    p.state(w)


def parts_can_be_read(p: Program) -> None:
    w = _ones(p)
    p.call(w, "set_data", dense(_SIX))
    h = p.call(w, "data")
    inside: list[Any] = [
        0,
        -1,
        slice(1, 2),
        (0, slice(1, 3)),
        (_ALL, 2),
        ...,
        slice(None, None, -1),
    ]
    for key in inside:
        p.item(h, key)
    outside: list[Any] = [2, -3, (0, 3), (0, 0, 0)]
    for key in outside:
        with p.loosely("class"):
            p.item(h, key)
    p.apply("len", h)
    for name in ("shape", "dtype", "size", "ndim", "context", "ctx", "stype"):
        p.get(h, name)
    for name, args in (
        ("asnumpy", ()),
        ("copy", ()),
        ("copyto", (cpu(1),)),
        ("as_in_context", (cpu(2),)),
        ("astype", ("int32",)),
        ("reshape", ((3, 2),)),
        ("wait_to_read", ()),
        ("tostype", ("row_sparse",)),
    ):
        p.call(h, name, *args)


def more_of_arrays(p: Program) -> None:
    w = _ones(p)
    p.call(w, "set_data", dense(_SIX))
    h = p.call(w, "data")
    one = p.make("Parameter", "one", shape=(1,))
    p.call(one, "initialize", init="ones")
    p.call(p.call(one, "data"), "asscalar")
    p.call(h, "asscalar")
    p.apply("bool", p.call(one, "data"))
    p.apply("bool", h)
    p.apply("list", h)
    for name in ("sum", "mean", "max", "min", "detach"):
        p.call(h, name)
    p.get(h, "T")
    p.item(h, [0, 1])
    p.item(h, dense([1, 0], "int32"))
    p.item(h, None)
    p.item(h, "a")


def broadcasting(p: Program) -> None:
    w = _ones(p)
    h = p.call(w, "data")
    for value in (numpy([1, 2, 3]), numpy([[1], [2]]), dense([[4, 5, 6]]), 3, [1, 2, 3], True):
        p.put(h, _ALL, value)
        p.call(w, "data")
    for value in (numpy([1, 2]), dense([[1, 2], [3, 4], [5, 6]]), numpy(range(5))):
        with p.loosely("class"):
            p.put(h, _ALL, value)
    p.put(h, _ALL, "abc")
    p.state(w)


def fetched_is_a_copy(p: Program) -> None:
    w = _ones(p)
    fetched = p.call(p.call(w, "data"), "asnumpy")
    p.put(fetched, _ALL, 9)
    copy = p.call(p.call(w, "data"), "copy")
    p.put(copy, _ALL, 8)
    p.state(w)
    p.call(w, "set_data", dense(_SIX))
    p.apply("repr", fetched)
    p.call(copy, "asnumpy")


def assignment_overwrites_under_add(p: Program) -> None:
    w = _ones(p, grad_req="add")
    g = p.call(w, "grad")
    p.put(g, _ALL, 2)
    p.put(p.call(w, "grad"), _ALL, 3)
    p.state(w)


def in_place_operators(p: Program) -> None:
    w = _ones(p)
    for member in ("data", "grad"):
        h = p.call(w, member)
        for op, value in (("+=", 3), ("-=", 1), ("*=", 4), ("/=", 2), ("+=", dense(_SIX))):
            p.apply(op, h, value)
            p.call(w, member)
        p.call(h, "asnumpy")
    p.state(w)


def operators_make_new_arrays(p: Program) -> None:
    w = _ones(p)
    h = p.call(w, "data")
    for op, value in (("+", 3), ("-", dense(_SIX)), ("*", 2), ("/", 4), ("==", dense(_SIX))):
        p.apply(op, h, value)
    p.state(w)


def _ones(p: Program, name: str = "w", ctx: object = None, **kwargs: Any) -> Ref:
    w = p.make("Parameter", name, shape=(2, 3), **kwargs)
    p.call(w, "initialize", init="ones", ctx=ctx)
    return w


CASES = (
    Case(data_is_live, ("values.1a",)),
    Case(gradients_are_live, ("values.1b",)),
    Case(parts_write_through, ("values.1c",)),
    Case(parts_can_be_read, ("values.1c",)),
    Case(more_of_arrays, ("values.1c",)),
    Case(broadcasting, ("values.1c",)),
    Case(fetched_is_a_copy, ("values.1d",)),
    Case(assignment_overwrites_under_add, ("values.1e",)),
    Case(in_place_operators, ("values.1f",)),
    Case(operators_make_new_arrays, ("values.1d",)),
)
