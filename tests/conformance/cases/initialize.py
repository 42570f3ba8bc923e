"""Cases for the section on initialize."""

from __future__ import annotations

from typing import Any

from tests.conformance.cases.case import Case
from tests.conformance.program import New, Program, cpu, dense, dtype, init

__all__ = ["CASES"]

_SAMPLE = (40, 50)


def second_initialize_is_ignored(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(2, 3))
    p.call(w, "initialize", init="ones", ctx=cpu(0))
    p.call(w, "initialize", init="zeros", ctx=[cpu(1), cpu(2)])
    p.state(w)
    p.call(w, "initialize", init="zeros", ctx=[cpu(1), cpu(2)], force_reinit=True)
    p.state(w)
    p.call(w, "initialize")


def second_initialize_moves_a_deferred_parameter(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(0, 3), allow_deferred_init=True)
    p.call(w, "initialize", init="ones", ctx=cpu(0))
    p.call(w, "initialize", init="zeros", ctx=[cpu(1), cpu(2)])
    p.call(w, "list_ctx")
    p.set(w, "shape", (2, 3))
    p.state(w)


def precedence_of_initializers(p: Program) -> None:
    for name, own, given in (
        ("a", None, None),
        ("b", "zeros", None),
        ("c", None, "zeros"),
        ("d", "zeros", init("Constant", 3)),
        ("e", init("Constant", 4), None),
    ):
        w = p.make("Parameter", name, shape=(2,), init=own)
        p.call(w, "initialize", init=given, default_init="ones")
        p.state(w)
    params = p.make("ParameterDict", "p_")
    p.call(params, "get", "own", shape=(2,), init="zeros")
    p.call(params, "get", "none", shape=(2,))
    p.call(params, "initialize", init("One"))
    p.state(p.item(params, "p_own"), p.item(params, "p_none"))


def default_is_uniform(p: Program) -> None:
    p.make("random.seed", 11)
    w = p.make("Parameter", "w", shape=_SAMPLE)
    p.call(w, "initialize")
    params = p.make("ParameterDict")
    v = p.call(params, "get", "v", shape=_SAMPLE)
    p.call(params, "initialize")
    with p.loosely("distribution"):
        p.call(w, "data")
        p.call(v, "data")


def endings_of_the_name_choose_nothing(p: Program) -> None:
    p.make("random.seed", 12)
    endings = ("bias", "gamma", "beta", "weight", "running_mean", "moving_var")
    for name in endings:
        w = p.make("Parameter", f"x_{name}", shape=_SAMPLE)
        p.call(w, "initialize")
        with p.loosely("distribution"):
            p.call(w, "data")
    ones = p.make("Parameter", "y_bias", shape=(3,))
    p.call(ones, "initialize", default_init=init("One"))
    p.call(ones, "data")


def xavier_wants_two_dimensions(p: Program) -> None:
    for index, initializer in enumerate((init("Xavier"), "xavier", init("MSRAPrelu"))):
        w = p.make("Parameter", f"w{index}", shape=(4,))
        p.call(w, "initialize", init=initializer)
        p.call(w, "data")


def shapes_that_are_refused(p: Program) -> None:
    for name, shape in (("a", ()), ("b", (0, 3)), ("c", None), ("d", 0), ("e", (2, 0, 4))):
        w = p.make("Parameter", name, shape=shape)
        p.call(w, "initialize", init="ones")
        p.call(w, "data")
        p.call(w, "list_ctx")


def zero_is_unknown(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(0, 3), allow_deferred_init=True)
    p.call(w, "initialize", init="ones")
    p.get(w, "shape")
    p.set(w, "shape", (0, 3))
    p.call(w, "data")
    p.set(w, "shape", (4, 3))
    p.call(w, "data")


def scalar_shape_can_only_be_deferred(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(), allow_deferred_init=True)
    p.call(w, "initialize", init="ones")
    p.call(w, "list_ctx")
    p.set(w, "shape", (2,))
    p.call(w, "data")


def same_value_on_every_context(p: Program) -> None:
    w = p.make("Parameter", "w", shape=_SAMPLE)
    p.call(w, "initialize", init=init("Uniform", 1), ctx=[cpu(0), cpu(1), cpu(2)])
    with p.loosely("distribution"):
        first = p.call(w, "data", cpu(0))
        copies = p.call(w, "list_data")
    for index in (0, 1, 2):
        with p.loosely("distribution"):
            copy = p.item(copies, index)
            here = p.call(copy, "copyto", cpu(0))
        p.apply("-", here, first)


def unknown_shapes(p: Program) -> None:
    for name, shape in (("a", None), ("b", (0,)), ("c", (3, 0))):
        w = p.make("Parameter", name, shape=shape)
        p.call(w, "initialize", init="ones")
        v = p.make("Parameter", f"{name}_deferred", shape=shape, allow_deferred_init=True)
        p.call(v, "initialize", init="ones", ctx=[cpu(1), cpu(2)])
        p.state(v)


def deferred_parameters_cannot_be_read(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(0, 3), allow_deferred_init=True)
    p.call(w, "initialize", init="ones", ctx=[cpu(1), cpu(2)])
    for member in ("data", "grad", "list_data", "list_grad", "zero_grad", "list_ctx"):
        p.call(w, member)
    p.call(w, "data", cpu(1))
    p.call(w, "grad", cpu(0))
    uninitialized = p.make("Parameter", "v", shape=(2, 3), allow_deferred_init=True)
    for member in ("data", "grad", "list_data", "list_grad", "zero_grad", "list_ctx"):
        p.call(uninitialized, member)


def shape_finishes(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(0, 3), allow_deferred_init=True, grad_req="add")
    p.call(w, "initialize", init=init("Constant", 7), ctx=[cpu(1), cpu(2)])
    p.set(w, "shape", (2, 4))
    p.set(w, "shape", (2, 3))
    p.state(w)


def set_data_finishes(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(0, 3), allow_deferred_init=True)
    p.call(w, "initialize", init="ones", ctx=[cpu(1), cpu(2)])
    p.call(w, "set_data", dense([[1, 2, 3], [4, 5, 6]]))
    p.get(w, "shape")
    p.state(w)


def load_finishes(p: Program) -> None:
    params = p.make("ParameterDict", "p_")
    w = p.call(params, "get", "w", shape=(0, 3), allow_deferred_init=True)
    p.call(params, "initialize", init="ones", ctx=[cpu(1), cpu(2)])
    p.call(params, "load_dict", {"p_w": dense([[1, 2, 3], [4, 5, 6]])})
    p.state(w)


def initializer_fails_when_it_finishes(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(0,), allow_deferred_init=True)
    p.call(w, "initialize", init=init("Xavier"))
    p.set(w, "shape", (3,))
    p.call(w, "data")


_EXACT: tuple[tuple[tuple[int, ...], Any], ...] = (
    ((3, 4), init("Zero")),
    ((3, 4), init("One")),
    ((3, 4), init("Constant", 2.5)),
    ((2, 2), init("Constant", [[1, 2], [3, 4]])),
    ((4,), init("LSTMBias")),
    ((6,), init("LSTMBias", 2.0)),
    ((8,), init("LSTMBias", forget_bias=3)),
    ((8, 3), init("LSTMBias", 2.0)),
    ((1, 1, 4, 4), init("Bilinear")),
    ((2, 3, 3, 4), init("Bilinear")),
    ((2, 1, 5, 5), init("Bilinear")),
)


def exact_initializers(p: Program) -> None:
    for index, (shape, initializer) in enumerate(_EXACT):
        w = p.make("Parameter", f"w{index}", shape=shape)
        p.call(w, "initialize", init=initializer, ctx=[cpu(0), cpu(1)])
        p.state(w)


def deterministic_initializers_for_every_dtype(p: Program) -> None:
    names = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool")
    for name in names:
        for value, initializer in enumerate((init("Zero"), init("One"), init("Constant", 3))):
            w = p.make("Parameter", f"{name}_{value}", shape=(2,), dtype=name)
            p.call(w, "initialize", init=initializer)
            p.state(w)


_RANDOM: tuple[tuple[tuple[int, ...], Any], ...] = (
    (_SAMPLE, init("Uniform")),
    (_SAMPLE, init("Uniform", 0.5)),
    (_SAMPLE, init("Normal")),
    (_SAMPLE, init("Normal", sigma=2.0)),
    (_SAMPLE, init("Xavier")),
    (_SAMPLE, init("Xavier", "gaussian", "in", 2)),
    (_SAMPLE, init("Xavier", rnd_type="uniform", factor_type="out", magnitude=2.24)),
    ((20, 5, 4, 5), init("Xavier")),
    ((20, 5, 4, 5), init("Xavier", "gaussian", "in", 2)),
    (_SAMPLE, init("MSRAPrelu")),
    (_SAMPLE, init("MSRAPrelu", "in", 0.1)),
    ((20, 5, 4, 5), init("MSRAPrelu", factor_type="out", slope=0.5)),
    (_SAMPLE, init("Orthogonal")),
    (_SAMPLE, init("Orthogonal", scale=2.0, rand_type="normal")),
    ((20, 5, 4, 5), init("Orthogonal")),
)


def random_initializers(p: Program) -> None:
    p.make("random.seed", 13)
    for index, (shape, initializer) in enumerate(_RANDOM):
        w = p.make("Parameter", f"w{index}", shape=shape)
        p.call(w, "initialize", init=initializer)
        with p.loosely("distribution"):
            p.call(w, "data")


def random_initializers_in_other_dtypes(p: Program) -> None:
    p.make("random.seed", 14)
    for name in ("float16", "float64"):
        for index, initializer in enumerate((init("Uniform", 1), init("Normal", 1))):
            w = p.make("Parameter", f"{name}_{index}", shape=_SAMPLE, dtype=dtype(name))
            p.call(w, "initialize", init=initializer)
            with p.loosely("distribution"):
                p.call(w, "data")


def wrong_arguments_of_initializers(p: Program) -> None:
    for index, initializer in enumerate(
        (init("Xavier", rnd_type="bogus"), init("Xavier", factor_type="bogus"), 5)
    ):
        w = p.make("Parameter", f"w{index}", shape=(2, 2))
        with p.loosely("class"):
            p.call(w, "initialize", init=initializer)
        p.call(w, "data")
    for index, initializer in enumerate(("bogus", "constant")):
        v = p.make("Parameter", f"v{index}", shape=(2, 2))
        p.call(v, "initialize", init=initializer)
        p.call(v, "list_ctx")


def initializers_that_do_not_fit(p: Program) -> None:
    for index, (shape, dtype_name, initializer) in enumerate(
        (
            ((2, 2), "int32", init("Uniform")),
            ((2, 2), "bool", init("Normal")),
            ((4,), "float32", init("Orthogonal")),
            ((3, 1), "float32", init("Constant", [1, 2])),
        )
    ):
        w = p.make("Parameter", f"w{index}", shape=shape, dtype=dtype_name)
        with p.loosely("class"):
            p.call(w, "initialize", init=initializer)
        p.state(w)


def initializers_by_name(p: Program) -> None:
    p.make("random.seed", 15)
    for name in ("zeros", "zero", "Zero", "ones", "one", "ONE"):
        w = p.make("Parameter", f"by_{name}", shape=(8, 8))
        p.call(w, "initialize", init=name)
        p.call(w, "data")
    lstm = p.make("Parameter", "lstm", shape=(8, 2))
    p.call(lstm, "initialize", init="lstmbias")
    p.call(lstm, "data")
    names = ("uniform", "normal", "gaussian", "xavier", "Xavier", "msraprelu", "orthogonal")
    for name in names:
        w = p.make("Parameter", f"random_by_{name}", shape=_SAMPLE)
        p.call(w, "initialize", init=name)
        with p.loosely("distribution"):
            p.call(w, "data")
    bilinear = p.make("Parameter", "bilinear", shape=(1, 1, 4, 4))
    p.call(bilinear, "initialize", init="bilinear")
    p.call(bilinear, "data")


def initializers_as_json(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(2,))
    p.call(w, "initialize", init='["constant", {"value": 3}]')
    p.call(w, "data")
    for initializer in (
        init("Zero"),
        init("Constant", 2),
        init("Uniform", 0.5),
        init("Normal"),
        init("Xavier"),
        init("MSRAPrelu"),
        init("Orthogonal"),
        init("Bilinear"),
        init("LSTMBias"),
    ):
        made = p.make(initializer.member, *initializer.args)
        p.call(made, "dumps")
        p.apply("==", made, initializer)
        p.apply("==", made, init("One"))


def initializers_of_users(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(2, 3))
    p.call(w, "initialize", init=New("LinearInitializer", (2.0,)), ctx=[cpu(0), cpu(1)])
    p.state(w)
    params = p.make("ParameterDict", "p_")
    v = p.call(params, "get", "v", shape=(0, 2), allow_deferred_init=True)
    u = p.call(params, "get", "u", shape=(3,), init=New("LinearInitializer"))
    p.call(params, "initialize", New("LinearInitializer", (), (("step", 0.5),)))
    p.set(v, "shape", (2, 2))
    p.state(u, v)


CASES = (
    Case(second_initialize_is_ignored, ("initialize.1a",)),
    Case(second_initialize_moves_a_deferred_parameter, ("initialize.1b",)),
    Case(precedence_of_initializers, ("initialize.2a",)),
    Case(default_is_uniform, ("initialize.2b",)),
    Case(endings_of_the_name_choose_nothing, ("initialize.2c",)),
    Case(xavier_wants_two_dimensions, ("initialize.2d",)),
    Case(shapes_that_are_refused, ("initialize.2e", "initialize.3b")),
    Case(scalar_shape_can_only_be_deferred, ("initialize.2e",)),
    Case(zero_is_unknown, ("initialize.2f", "initialize.4b")),
    Case(same_value_on_every_context, ("initialize.3a",)),
    Case(unknown_shapes, ("initialize.3b", "initialize.4a", "initialize.4e")),
    Case(deferred_parameters_cannot_be_read, ("initialize.4a", "initialize.4e")),
    Case(shape_finishes, ("initialize.4b",)),
    Case(set_data_finishes, ("initialize.4c", "values.2d")),
    Case(load_finishes, ("initialize.4d",)),
    Case(initializer_fails_when_it_finishes, ("initialize.4b", "initialize.2d")),
    Case(exact_initializers, ("initialize.5a",)),
    Case(deterministic_initializers_for_every_dtype, ("initialize.5a",)),
    Case(random_initializers, ("initialize.5a",)),
    Case(random_initializers_in_other_dtypes, ("initialize.5a",)),
    Case(wrong_arguments_of_initializers, ("initialize.5a",)),
    Case(initializers_that_do_not_fit, ("initialize.5a",)),
    Case(initializers_by_name, ("initialize.5c",)),
    Case(initializers_as_json, ("initialize.5c",)),
    Case(initializers_of_users, ("initialize.5d",)),
)
