"""Differences in values, gradients, dtypes and contexts of a parameter."""

from __future__ import annotations

from tests.conformance.differences.entry import OnPurpose, Raises, ones
from tests.conformance.program import Program, Ref, cpu, dense, numpy

__all__ = ["ENTRIES"]

_ALL = slice(None)


def _refused_shape(p: Program) -> None:
    w = p.make("Parameter", "w")
    p.call(w, "set_data", dense([1, 2]))
    p.get(w, "shape")


def _mean_of_float16(p: Program) -> None:
    w = ones(p, dtype="float16", ctx=[cpu(0), cpu(1)])
    p.call(w, "set_data", dense([60000, -60000], "float16"))
    p.call(w, "reset_ctx", cpu(0))
    p.call(w, "data")


def _mean_rounds(p: Program) -> None:
    w = ones(p, dtype="int32", shape=(4,), ctx=[cpu(0), cpu(1)])
    p.put(p.call(w, "data", cpu(0)), _ALL, dense([1, 2, -3, -4], "int32"))
    p.put(p.call(w, "data", cpu(1)), _ALL, dense([2, 3, -4, -5], "int32"))
    p.call(w, "reset_ctx", cpu(0))
    p.call(w, "data")


def _mean_of_uint8(p: Program) -> None:
    w = ones(p, dtype="uint8", ctx=[cpu(0), cpu(1)])
    p.call(w, "set_data", dense([200, 255], "uint8"))
    p.call(w, "reset_ctx", cpu(0))
    p.call(w, "data")


def _bfloat16(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(2,), dtype="bfloat16")
    p.call(w, "initialize", init="ones")


def _cast_to_nonsense(p: Program) -> None:
    w = ones(p)
    with p.loosely("class"):
        p.call(w, "cast", "bogus")
    p.get(w, "dtype")


def _views(p: Program) -> None:
    w = ones(p, shape=(2, 2))
    p.put(p.item(p.call(w, "data"), (_ALL, 1)), _ALL, 5)
    p.call(w, "data")


def _handles_follow(p: Program) -> None:
    w = ones(p)
    held = p.call(w, "data")
    p.call(w, "initialize", init="zeros", force_reinit=True)
    p.call(held, "asnumpy")


def _float_of_an_array(p: Program) -> None:
    w = ones(p, shape=(1,))
    p.apply("float", p.call(w, "data"))


def _exact_scalars(p: Program) -> None:
    w = ones(p, dtype="int64")
    p.put(p.call(w, "data"), _ALL, 2**53 + 1)
    p.call(w, "data")


def _value_as_list(p: Program) -> Ref:
    w = ones(p)
    written = p.call(w, "set_data", [3, 4])
    p.call(w, "data")
    return written


def _index_arrays(p: Program) -> None:
    w = ones(p)
    p.put(p.call(w, "data"), [1], 7)


def _gradient_of_an_array(p: Program) -> None:
    w = ones(p)
    p.get(p.call(w, "data"), "grad")


def _part_of_booleans(p: Program) -> None:
    w = ones(p, dtype="bool")
    p.put(p.call(w, "data"), 0, numpy([0], "bool"))


def _mean_of_booleans(p: Program) -> Ref:
    w = ones(p, dtype="bool", ctx=[cpu(0), cpu(1)])
    moved = p.call(w, "reset_ctx", cpu(0))
    p.call(w, "data")
    return moved


def _whole_multiplier(p: Program) -> None:
    w = p.make("Parameter", "w", lr_mult=2)
    p.call(w, "var")


ENTRIES: tuple[OnPurpose, ...] = (
    OnPurpose(
        "shape of a refused set_data",
        (),
        "is kept, although the call failed",
        "nothing changes",
        "a failed call leaves the state alone",
        _refused_shape,
        None,
    ),
    OnPurpose(
        "mean of float16",
        ("values.6e",),
        "overflows to infinity",
        "is the mean",
        "an accident of MXNet",
        _mean_of_float16,
        [60000, -60000],
    ),
    OnPurpose(
        "mean of integers",
        ("values.6f",),
        "truncates",
        "rounds half to even",
        "unbiased, and what NumPy's rint does",
        _mean_rounds,
        [2, 2, -4, -4],
    ),
    OnPurpose(
        "mean of uint8",
        ("values.6f",),
        "the sum wraps",
        "is the mean",
        "an accident of MXNet",
        _mean_of_uint8,
        [200, 255],
    ),
    OnPurpose(
        "bfloat16",
        (),
        "TypeError",
        "a dtype like the others",
        "MXNet stores it but NumPy 1.23 does not know it",
        _bfloat16,
        None,
    ),
    OnPurpose(
        "cast to a dtype that does not exist",
        (),
        "fails, and dtype is changed",
        "fails, and nothing changes",
        "a failed call leaves the state alone",
        _cast_to_nonsense,
        {"kind": "dtype"},
    ),
    OnPurpose(
        "views that are not contiguous",
        ("values.1c",),
        "are copies, writing to them is lost",
        "write through like all views",
        "one rule for all basic indices",
        _views,
        [[1, 5], [1, 5]],
    ),
    OnPurpose(
        "handles held over a new initialization",
        ("values.1a",),
        "keep the old array",
        "follow the parameter",
        "a handle is resolved by name and context at each use",
        _handles_follow,
        [0, 0],
    ),
    OnPurpose(
        "float() of an array with one element",
        (),
        "TypeError",
        "its value",
        "what every array library does",
        _float_of_an_array,
        1.0,
    ),
    OnPurpose(
        "assigning large integers",
        (),
        "pass through float64",
        "are exact",
        "an accident of MXNet",
        _exact_scalars,
        [2**53 + 1, 2**53 + 1],
    ),
    OnPurpose(
        "set_data of a list",
        (),
        "AttributeError",
        "taken",
        "every array library takes lists",
        _value_as_list,
        [3, 4],
    ),
    OnPurpose(
        "assignment through index arrays",
        (),
        "done",
        "refused: write slices, or assign all of the value",
        "a handle writes regions in one message",
        _index_arrays,
        Raises("ParamdError"),
    ),
    OnPurpose(
        "data().grad",
        (),
        "the gradient buffer",
        "does not exist: there is Parameter.grad()",
        "paramd has no autograd",
        _gradient_of_an_array,
        Raises("AttributeError"),
    ),
    OnPurpose(
        "parts of booleans",
        (),
        "cannot be assigned",
        "can",
        "an accident of MXNet",
        _part_of_booleans,
        None,
    ),
    OnPurpose(
        "mean of booleans",
        (),
        "fails in the engine",
        "is the mean, rounded like that of integers",
        "an accident of MXNet",
        _mean_of_booleans,
        [True, True],
    ),
    OnPurpose(
        "multipliers that are whole numbers",
        (),
        "var() writes '2'",
        "var() writes '2.0'",
        "multipliers are floats on the wire",
        _whole_multiplier,
        {"kind": "symbol"},
    ),
)
