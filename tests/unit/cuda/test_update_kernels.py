"""Kernels that update weights, on the host, against those of the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from paramd.wire.dtypes import BFLOAT16
from paramd_server.arrays.cuda.source import LANES, PARTIALS
from paramd_server.arrays.update_kernels import update_array
from paramd_server.arrays.updates import UPDATES
from tests.support.host_kernels import Array, address, launch, needs_compiler, same

pytestmark = needs_compiler

SEED = 22
Dtype = np.dtype[Any]
F2, F4, F8 = (np.dtype(each) for each in ("f2", "f4", "f8"))
ROWS, WIDTH = 40, 37

USUAL = {
    "rescale": 0.25,
    "clip": 1.5,
    "lr": 0.03,
    "wd": 0.01,
    "momentum": 0.9,
    "decoupled_wd": 0.02,
    "beta1": 0.9,
    "beta2": 0.999,
    "epsilon": 1e-6,
    "count": 7,
    "decay": 0.95,
    "clip_weights": 2.0,
    "lamda1": 0.4,
    "beta": 1.0,
    "lower_bound": 0.1,
    "upper_bound": 5.0,
    "lamda": 0.04,
}
UNBOUNDED = {"clip": math.inf, "count": math.inf, "clip_weights": math.inf, "wd": 0.0}


@dataclass(frozen=True)
class Dtypes:
    """Of a weight, of what it is rounded to, where that is another, and of its states."""

    weight: Dtype
    rounded: Dtype | None
    state: Dtype

    @property
    def gradient(self) -> Dtype:
        return self.rounded or self.weight

    @property
    def types(self) -> dict[str, Dtype]:
        return {
            "WEIGHT": self.weight,
            "ROUNDED": self.gradient,
            "GRADIENT": self.gradient,
            "STATE": self.state,
        }


CASES = {
    "float64": Dtypes(F8, None, F8),
    "float32 and float16": Dtypes(F4, F2, F4),
    "float16": Dtypes(F2, None, F2),
    "bfloat16": Dtypes(BFLOAT16, None, F4),
}
MORE_CASES = {
    "float32": Dtypes(F4, None, F4),
    "float32 and bfloat16": Dtypes(F4, BFLOAT16, F4),
    "float16, wide states": Dtypes(F2, None, F4),
    "bfloat16, short states": Dtypes(BFLOAT16, None, BFLOAT16),
}


class Operands:
    """A weight with its states and a gradient for some rows, or for all.

    Args:
        dtypes: of them.
        states: how many.
        rows: how many rows have a gradient; None for all of the weight.
        odd: whether NaN, infinity and numbers below the smallest normal one are among them.
    """

    def __init__(self, dtypes: Dtypes, states: int, rows: int | None, *, odd: bool = True) -> None:
        rng = np.random.default_rng(SEED)
        shape = (ROWS, WIDTH)

        def drawn(rows: int, dtype: Dtype, *, positive: bool = False) -> Array:
            values = rng.standard_normal((rows, WIDTH)) * 2.0 ** rng.integers(-8, 2, (rows, WIDTH))
            values = np.abs(values) if positive else values
            if odd:
                tiny = 2.0**-135 if dtype in (F4, BFLOAT16) else 2.0**-1060
                places = rng.permutation(values.size)[:60].reshape(6, -1)
                few = (0.0, np.nan, np.inf, 3e4, tiny, 2.0**-20)
                for place, number in zip(places, few, strict=True):
                    values.reshape(-1)[place] = number
            return values.astype(dtype)

        self.dtypes = dtypes
        self.weight = drawn(ROWS, dtypes.weight)
        self.rounded = None if dtypes.rounded is None else np.zeros(shape, dtypes.rounded)
        # Most states are means of squares.
        self.states = [drawn(ROWS, dtypes.state, positive=True) for _ in range(states)]
        self.ids = None if rows is None else np.sort(rng.permutation(ROWS)[:rows])
        self.gradient = drawn(ROWS if rows is None else rows, dtypes.gradient)

    @property
    def results(self) -> list[Array]:
        """What an update changes."""
        return [self.weight, *([] if self.rounded is None else [self.rounded]), *self.states]

    @np.errstate(all="ignore")
    def update_on_cpu(self, name: str, constants: Sequence[float]) -> None:
        update_array(
            *(name, self.weight, self.gradient, self.states, constants),
            rounded=self.rounded,
            ids=self.ids,
            lazy=True,
        )

    def launch(
        self,
        kernel: str,
        constants: Sequence[float],
        begin: int,
        end: int,
        *more: np.uintp,
        gradient: bool = True,
        rounded: bool = True,
        ids: bool = True,
        **options: Any,
    ) -> None:
        """Updates elements begin to end of the packed rows, or of the weight."""
        number = np.float64 if self.dtypes.weight == F8 else np.float32
        first = begin // WIDTH
        launch(
            *(kernel, self.dtypes.types, address(self.weight)),
            address(self.rounded if rounded else None),
            address(self.gradient, begin) if gradient else np.uintp(0),
            address(self.ids if ids else None, first if ids and self.ids is not None else 0),
            *(np.int64(first), np.int64(WIDTH), np.int64(begin), np.int64(end - begin)),
            *(address(state) for state in self.states),
            *(number(each) for each in constants),
            *more,
            **options,
        )


def constants_of(name: str, **others: float) -> list[float]:
    numbers = {**USUAL, **others}
    return [numbers[each] for each in UPDATES[name].constants]


def check_update(name: str, dtypes: Dtypes) -> None:
    states = len(UPDATES[name].states)
    for rows in (None, 11):
        for others in ({}, UNBOUNDED):
            constants = constants_of(name, **others)
            expected, given = (Operands(dtypes, states, rows) for _ in range(2))
            # Twice, so that the states are what the first made of them.
            for _ in range(2):
                expected.update_on_cpu(name, constants)
                size = given.gradient.size
                for begin, end in ((0, size // 3), (size // 3, size)):
                    given.launch(name, constants, begin, end, order=begin)
            for want, have in zip(expected.results, given.results, strict=True):
                assert same(have, want), (name, dtypes, rows, others, SEED)


SIMPLE = [name for name in UPDATES if name != "lamb"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SIMPLE)
def test_an_update_gives_the_bits_of_the_cpu(name: str, case: str) -> None:
    check_update(name, CASES[case])


@pytest.mark.parametrize("case", MORE_CASES)
@pytest.mark.parametrize("name", ["sgd_momentum", "adamw"])
def test_states_and_rounded_weights_of_other_types_have_the_bits_too(name: str, case: str) -> None:
    check_update(name, MORE_CASES[case])


@pytest.mark.parametrize("rows", [None, 11])
def test_a_gradient_that_is_missing_is_zero(rows: int | None) -> None:
    dtypes, constants = CASES["float32 and float16"], constants_of("sgd_momentum")
    expected, given = (Operands(dtypes, 1, rows) for _ in range(2))
    expected.gradient[:] = 0
    size = given.gradient.size
    expected.launch("sgd_momentum", constants, 0, size)
    given.launch("sgd_momentum", constants, 0, size, gradient=False)
    for want, have in zip(expected.results, given.results, strict=True):
        assert same(have, want), SEED


def test_a_weight_need_not_be_rounded() -> None:
    dtypes, constants = CASES["float32 and float16"], constants_of("adam")
    expected, given = (Operands(dtypes, 2, None) for _ in range(2))
    expected.launch("adam", constants, 0, given.weight.size)
    given.launch("adam", constants, 0, given.weight.size, rounded=False)
    assert same(given.weight, expected.weight), SEED
    assert given.rounded is not None
    assert not given.rounded.any()


def test_only_the_elements_of_a_launch_change() -> None:
    for rows in (None, 11):
        before, given = (Operands(MORE_CASES["float32"], 1, rows) for _ in range(2))
        given.launch("sgd_momentum", constants_of("sgd_momentum", wd=0.5), 50, 200)
        places = np.arange(ROWS * WIDTH).reshape(ROWS, WIDTH)
        touched = places.reshape(-1) if given.ids is None else places[given.ids].reshape(-1)
        rest = np.delete(places.reshape(-1), touched[50:200])
        for old, new in zip(before.results, given.results, strict=True):
            assert same(new.reshape(-1)[rest], old.reshape(-1)[rest]), SEED
            assert not same(new, old)


def test_no_elements_are_no_work() -> None:
    before, given = (Operands(MORE_CASES["float32"], 0, 11) for _ in range(2))
    given.launch("sgd", constants_of("sgd"), 0, 0)
    assert same(given.weight, before.weight)


def update_lamb(given: Operands, constants: Sequence[float], threads: int) -> Array:
    """All kernels of lamb, in pieces. Returns the squares of the weight and of the step."""
    size, middle = given.gradient.size, given.gradient.size // 3
    pieces = ((0, middle), (middle, size))
    for begin, end in pieces:
        given.launch("lamb_moments", constants, begin, end, threads=threads)
    sums = np.zeros(2)
    for which, mode in enumerate(("weight", "step")):
        partials = np.zeros(PARTIALS)
        rows = mode == "step"
        for begin, end in pieces if rows else [(0, given.weight.size)]:
            given.launch(
                *("lamb_squares", constants, begin, end, address(partials)),
                mode=mode,
                gradient=False,
                ids=rows,
                threads=threads,
            )
        for source, size, lanes, target in (
            (address(partials), PARTIALS, LANES, address(partials)),
            (address(partials), LANES, 1, address(sums, which)),
        ):
            launch(
                *("sum_partials", {}, source, np.int64(size), np.int64(lanes), target),
                threads=threads,
            )
    for begin, end in pieces:
        given.launch("lamb_apply", constants, begin, end, address(sums), threads=threads)
    return sums


@pytest.mark.parametrize("rows", [None, 11])
@pytest.mark.parametrize("case", CASES)
def test_lamb_is_that_of_the_cpu(case: str, rows: int | None) -> None:
    dtypes = CASES[case]
    # One step of the last bit, since the sums of squares are made in another order.
    tolerance = {F8: 1e-13, F4: 2e-7, F2: 2e-3, BFLOAT16: 1.6e-2}
    for others in ({}, UNBOUNDED, {"lower_bound": 3.0, "upper_bound": 3.0}):
        constants = constants_of("lamb", **others)
        expected, given = (Operands(dtypes, 2, rows, odd=False) for _ in range(2))
        expected.update_on_cpu("lamb", constants)
        sums = update_lamb(given, constants, threads=96)
        assert (sums > 0).all()
        for want, have in zip(expected.results, given.results, strict=True):
            np.testing.assert_allclose(
                *(have.astype(np.float64), want.astype(np.float64)),
                rtol=tolerance[want.dtype],
                atol=tolerance[want.dtype],
                err_msg=f"{others}, seed {SEED}",
            )
        # The moments need no sums.
        assert all(map(same, given.states, expected.states))


def test_lamb_gives_the_same_bits_whatever_the_launch() -> None:
    results = []
    for threads in (32, 4096, 100_000 // 32 * 32):
        given = Operands(MORE_CASES["float32"], 2, None, odd=False)
        sums = update_lamb(given, constants_of("lamb"), threads)
        results.append([sums, *given.results])
    for other in results[1:]:
        assert all(map(same, other, results[0]))


def test_many_squares_are_added() -> None:
    weight = np.random.default_rng(SEED).standard_normal(3 * PARTIALS + 1234).astype(np.float32)
    partials, nothing = np.zeros(PARTIALS), np.uintp(0)
    numbers = [np.float32(each) for each in constants_of("lamb")]
    for begin, end in ((0, 2 * PARTIALS + 7), (2 * PARTIALS + 7, weight.size)):
        launch(
            *("lamb_squares", {"WEIGHT": F4, "GRADIENT": F4}, address(weight), nothing, nothing),
            *(nothing, np.int64(0), np.int64(0), np.int64(begin), np.int64(end - begin)),
            *(nothing, nothing, *numbers, address(partials)),
            mode="weight",
        )
    np.testing.assert_allclose(
        partials.sum(), np.sum(weight.astype(np.float64) ** 2), rtol=1e-12, err_msg=f"seed {SEED}"
    )


def test_lamb_of_zeros_is_no_division_by_zero() -> None:
    given = Operands(MORE_CASES["float32"], 2, None, odd=False)
    for array in (given.weight, given.gradient, *given.states):
        array[:] = 0
    update_lamb(given, constants_of("lamb"), threads=96)
    assert not given.weight.any()
