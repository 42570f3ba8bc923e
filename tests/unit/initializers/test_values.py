"""What each initializer gives: formulas, distributions, dtypes, and what it refuses."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from paramd import initializer
from paramd.errors import InitializerError, UnknownShapeError
from paramd.initial_values import ARGUMENTS, check, check_arguments, fill, is_zero
from paramd.spec import InitializerSpec
from paramd.wire.dtypes import BFLOAT16, DTYPES

# One test in a million would fail by chance if the seeds were not fixed.
ALPHA = 1e-6
F32 = np.dtype(np.float32)
F64 = np.dtype(np.float64)


def _values(
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any] = F32,
    *,
    seed: int = 11,
    **arguments: Any,
) -> npt.NDArray[Any]:
    return fill(InitializerSpec(name, arguments), "w", shape, dtype, seed=seed, draw=0)


def _assert_distributed(
    values: npt.NDArray[Any], cdf: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
) -> None:
    """Kolmogorov and Smirnov's test at ALPHA, with the asymptotic bound."""
    ordered = np.sort(values.astype(np.float64).reshape(-1))
    ranks = np.arange(ordered.size + 1) / ordered.size
    expected = cdf(ordered)
    distance = max(np.abs(expected - ranks[:-1]).max(), np.abs(expected - ranks[1:]).max())
    assert distance < math.sqrt(-math.log(ALPHA / 2) / 2 / ordered.size)


def _uniform_cdf(bound: float) -> Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    return lambda x: np.clip((x + bound) / (2 * bound), 0, 1)


def _normal_cdf(sigma: float) -> Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    return lambda x: 0.5 + 0.5 * np.vectorize(math.erf)(x / (sigma * math.sqrt(2)))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("seed", [0, 11, 2**64 - 1])
def test_uniform_is_uniform(dtype: np.dtype[Any], seed: int) -> None:
    values = _values("uniform", (300, 500), dtype, seed=seed, scale=0.3)
    assert np.abs(values).max() <= 0.3 * (1 + 1e-7)
    _assert_distributed(values, _uniform_cdf(0.3))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("seed", [0, 11, 2**64 - 1])
def test_normal_is_normal(dtype: np.dtype[Any], seed: int) -> None:
    values = _values("normal", (300, 500), dtype, seed=seed, sigma=2.0)
    _assert_distributed(values, _normal_cdf(2.0))


@pytest.mark.parametrize("name", ["uniform", "normal"])
def test_neighbours_blocks_and_draws_are_not_correlated(name: str) -> None:
    values = _values(name, (4, 65_536)).astype(np.float64)
    pairs = [(values[0, 1:], values[0, :-1]), (values[0], values[1]), (values[2], values[3])]
    again = fill(InitializerSpec(name), "w", (65_536,), F32, seed=11, draw=1)
    pairs.append((values[0], again.astype(np.float64)))
    for left, right in pairs:
        # The correlation of n independent pairs has a deviation of 1 / sqrt(n).
        assert abs(np.corrcoef(left, right)[0, 1]) < 5 / math.sqrt(left.size)


# (out, in, kernel...) and its fans: kernel size times channels.
FANS = [((100, 400), 400, 100), ((64, 32, 3, 5), 480, 960), ((40, 30, 7), 210, 280)]


@pytest.mark.parametrize(("shape", "fan_in", "fan_out"), FANS)
@pytest.mark.parametrize("factor_type", ["in", "out", "avg"])
@pytest.mark.parametrize("magnitude", [3.0, 0.5])
def test_xavier_scales_by_the_fan(
    shape: tuple[int, ...], fan_in: int, fan_out: int, factor_type: str, magnitude: float
) -> None:
    fan = {"in": fan_in, "out": fan_out, "avg": (fan_in + fan_out) / 2}[factor_type]
    scale = math.sqrt(magnitude / fan)
    arguments: dict[str, Any] = {"factor_type": factor_type, "magnitude": magnitude}
    uniform = _values("xavier", shape, **arguments)
    assert np.abs(uniform).max() <= scale * (1 + 1e-6)
    _assert_distributed(uniform, _uniform_cdf(scale))
    gaussian = _values("xavier", shape, rnd_type="gaussian", **arguments)
    _assert_distributed(gaussian, _normal_cdf(scale))


@pytest.mark.parametrize(("shape", "fan_in", "fan_out"), FANS)
@pytest.mark.parametrize("slope", [0.0, 0.25, 1.0])
def test_msra_prelu_scales_by_the_fan_and_the_slope(
    shape: tuple[int, ...], fan_in: int, fan_out: int, slope: float
) -> None:
    for factor_type, fan in (("in", fan_in), ("out", fan_out), ("avg", (fan_in + fan_out) / 2)):
        values = _values("msraprelu", shape, factor_type=factor_type, slope=slope)
        _assert_distributed(values, _normal_cdf(math.sqrt(2 / (1 + slope**2) / fan)))


@pytest.mark.parametrize("rand_type", ["uniform", "normal"])
@pytest.mark.parametrize("shape", [(30, 30), (20, 70), (70, 20), (1, 9), (9, 1), (6, 5, 4, 3)])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_orthogonal_is_orthogonal(
    rand_type: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    values = _values("orthogonal", shape, dtype, scale=3.0, rand_type=rand_type)
    matrix = values.reshape(shape[0], -1).astype(np.float64)
    product = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, 9.0 * np.eye(len(product)), atol=1e-4)


def test_orthogonal_prefers_no_direction() -> None:
    # The entry of a random rotation has mean 0 and mean square scale² / n.
    matrices = np.stack(
        [_values("orthogonal", (4, 4), F64, seed=seed, scale=1.0) for seed in range(2000)]
    )
    np.testing.assert_allclose(matrices.mean(0), 0, atol=5 * 0.5 / math.sqrt(2000))
    np.testing.assert_allclose((matrices**2).mean(0), 0.25, atol=0.03)


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (2, 3, 5, 6), (1, 2, 9, 3), (1, 1, 3, 1)])
def test_bilinear_is_the_formula(shape: tuple[int, int, int, int]) -> None:
    height, width = shape[2:]
    factor = math.ceil(width / 2)
    center = (2 * factor - 1 - factor % 2) / (2 * factor)
    expected = np.zeros(shape, np.float32)
    for y in range(height):
        for x in range(width):
            expected[:, :, y, x] = (1 - abs(x / factor - center)) * (1 - abs(y / factor - center))
    np.testing.assert_array_equal(_values("bilinear", shape), expected)


def test_bilinear_of_four_by_four_is_the_known_kernel() -> None:
    expected = np.outer([0.25, 0.75, 0.75, 0.25], [0.25, 0.75, 0.75, 0.25])
    np.testing.assert_array_equal(_values("bilinear", (1, 1, 4, 4))[0, 0], expected)


@pytest.mark.parametrize("shape", [(8,), (8, 3)])
def test_lstm_bias_sets_the_second_quarter(shape: tuple[int, ...]) -> None:
    values = _values("lstmbias", shape, forget_bias=2.5)
    assert (values[2:4] == 2.5).all()
    assert not values[:2].any()
    assert not values[4:].any()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (InitializerSpec("zero"), 0),
        (InitializerSpec("zeros"), 0),
        (InitializerSpec("one"), 1),
        (InitializerSpec("ones"), 1),
        (InitializerSpec("constant", {"value": 2.0}), 2),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_dtype_can_be_filled(
    spec: InitializerSpec, expected: int, dtype: np.dtype[Any]
) -> None:
    values = fill(spec, "w", (3, 4), dtype, seed=0, draw=0)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, np.full((3, 4), expected).astype(dtype))


@pytest.mark.parametrize("name", ["uniform", "normal", "xavier", "msraprelu", "orthogonal"])
@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
def test_narrow_floats_are_rounded_float32(name: str, dtype: np.dtype[Any]) -> None:
    np.testing.assert_array_equal(
        _values(name, (40, 50), dtype), _values(name, (40, 50)).astype(dtype)
    )


@pytest.mark.parametrize("name", ["uniform", "normal", "xavier", "msraprelu", "orthogonal"])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "i8", "?"])
def test_integers_cannot_be_drawn(name: str, dtype: str) -> None:
    with pytest.raises(InitializerError, match=r"'w'.*draws floating point"):
        _values(name, (4, 4), np.dtype(dtype))


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("i4", 2.7, 2),
        ("i4", -2.7, -2),
        ("i1", 300, 44),
        ("u1", -1, 255),
        ("?", 0.5, True),
        ("f2", 1e6, math.inf),
        ("f4", -math.inf, -math.inf),
        ("f8", 0.1, 0.1),
    ],
)
def test_constants_are_cast_as_in_mxnet(dtype: str, value: float, expected: float) -> None:
    assert _values("constant", (2,), np.dtype(dtype), value=value).tolist() == [expected] * 2


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e19])
def test_integers_refuse_constants_beyond_them(value: float) -> None:
    with pytest.raises(InitializerError, match=r"'w'.*int64 can hold"):
        _values("constant", (2,), np.dtype(np.int64), value=value)


BAD: list[tuple[str, Mapping[str, Any], tuple[int, ...], str]] = [
    ("", {}, (4, 4), "does not exist"),
    ("nope", {}, (4, 4), "does not exist"),
    ("Uniform", {}, (4, 4), "does not exist"),
    ("zero", {"scale": 1.0}, (4, 4), "no argument 'scale'"),
    ("constant", {}, (4, 4), "needs the argument 'value'"),
    ("constant", {"value": "1"}, (4, 4), "needs a number as value"),
    ("constant", {"value": True}, (4, 4), "needs a number as value"),
    ("constant", {"value": [1.0]}, (4, 4), "needs a number as value"),
    ("constant", {"value": None}, (4, 4), "needs the argument 'value'"),
    ("constant", {"value": 10**400}, (4, 4), "beyond the range"),
    ("uniform", {"scale": -1.0}, (4, 4), "0 or more"),
    ("uniform", {"scale": math.inf}, (4, 4), "finite"),
    ("uniform", {"scale": math.nan}, (4, 4), "finite"),
    ("uniform", {"scale": 1e300}, (4, 4), "cannot hold"),
    ("normal", {"sigma": 0.0}, (4, 4), "above 0"),
    ("normal", {"sigma": math.nan}, (4, 4), "finite"),
    ("orthogonal", {}, (4,), "at least 2 dimensions"),
    ("orthogonal", {"rand_type": "x"}, (4, 4), "'uniform' or 'normal'"),
    ("orthogonal", {"scale": math.inf}, (4, 4), "finite"),
    ("xavier", {}, (4,), "at least 2 dimensions"),
    ("xavier", {"rnd_type": "normal"}, (4, 4), "'uniform' or 'gaussian'"),
    ("xavier", {"factor_type": 1.0}, (4, 4), "'avg' or 'in' or 'out'"),
    ("xavier", {"magnitude": -1.0}, (4, 4), "magnitude above 0"),
    ("xavier", {"magnitude": 0.0, "rnd_type": "gaussian"}, (4, 4), "magnitude above 0"),
    ("msraprelu", {}, (4,), "at least 2 dimensions"),
    ("msraprelu", {"slope": 1e200}, (4, 4), "magnitude above 0"),
    ("bilinear", {}, (4, 4, 4), "at least 4 dimensions"),
    ("lstmbias", {"forget_bias": math.inf}, (8,), "finite"),
    ("uniform", {}, (2**40, 2**40), "too many elements"),
    ("xavier", {}, (2**62,) * 32, "too many elements"),
]


@pytest.mark.parametrize(("name", "arguments", "shape", "message"), BAD)
def test_bad_initializers_are_refused_by_name(
    name: str, arguments: Mapping[str, Any], shape: tuple[int, ...], message: str
) -> None:
    spec = InitializerSpec(name, arguments)
    with pytest.raises(InitializerError, match=f"'net_w'.*{message}") as caught:
        check(spec, "net_w", shape, F32)
    assert caught.value.parameter == "net_w"
    with pytest.raises(InitializerError, match=message):
        fill(spec, "net_w", shape, F32, seed=0, draw=0)


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - {"constant"}))
def test_huge_shapes_are_checked_without_allocating(name: str) -> None:
    check(InitializerSpec(name), "w", (2**20, 2**14, 2**10, 2**10), F32)


@pytest.mark.parametrize("shape", [None, (), (0, 3), (-1, 3)])
def test_unknown_shapes_are_not_filled_but_arguments_are_checked(
    shape: tuple[int, ...] | None,
) -> None:
    with pytest.raises(UnknownShapeError, match="'w'"):
        fill(InitializerSpec("xavier"), "w", shape, F32, seed=0, draw=0)
    check(InitializerSpec("xavier"), "w", shape, F32)
    with pytest.raises(InitializerError, match="magnitude"):
        check(InitializerSpec("xavier", {"magnitude": -1.0}), "w", shape, F32)


def test_declared_arguments_are_checked_alone() -> None:
    check_arguments(InitializerSpec(client_side=True), "w")
    for name in set(ARGUMENTS) - {"constant"}:
        check_arguments(InitializerSpec(name), "w")
    with pytest.raises(InitializerError, match=r"'w'.*does not exist"):
        check_arguments(InitializerSpec("nope"), "w")


def test_client_side_values_are_not_computed_from_a_spec() -> None:
    with pytest.raises(InitializerError, match=r"'w'.*by the client"):
        fill(InitializerSpec(client_side=True), "w", (2,), F32, seed=0, draw=0)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (InitializerSpec("zero"), True),
        (InitializerSpec("zeros"), True),
        (InitializerSpec("constant", {"value": 0.0}), True),
        (InitializerSpec("constant", {"value": -0.0}), False),
        (InitializerSpec("constant", {"value": 1.0}), False),
        (InitializerSpec("one"), False),
        (InitializerSpec("uniform"), False),
        (InitializerSpec(client_side=True), False),
    ],
)
def test_zero_is_known_without_computing(spec: InitializerSpec, expected: bool) -> None:
    assert is_zero(spec) is expected


def test_names_and_defaults_are_those_of_the_classes() -> None:
    for name, arguments in ARGUMENTS.items():
        klass = type(initializer.create(name, *([1.0] if name == "constant" else [])))
        signature = inspect.signature(klass).parameters.values()
        empty = inspect.Parameter.empty
        defaults = {
            parameter.name: None if parameter.default is empty else parameter.default
            for parameter in signature
        }
        assert arguments == defaults, name
