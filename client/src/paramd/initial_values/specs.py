"""From specs, of which nothing is trusted, to values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np

from paramd.errors import InitializerError, UnknownShapeError
from paramd.initial_values.values import (
    Bilinear,
    Filled,
    InitialValues,
    Orthogonal,
    Random,
    stream_key,
)
from paramd.spec import InitializerSpec, Shape, shape_is_known
from paramd.wire.dtypes import BFLOAT16

__all__ = ["ARGUMENTS", "check", "check_arguments", "fill", "is_zero", "resolve"]

_MAX_ELEMENTS: Final = 2**63 - 1
# Suits every initializer: enough dimensions for Bilinear, four gates for LSTMBias.
_STAND_IN_SHAPE: Final = (4, 4, 4, 4)
_ALIASES: Final = {"zeros": "zero", "ones": "one"}

# Names and arguments with their defaults, those of MXNet 1.9.1; None: it must be given.
ARGUMENTS: Final[Mapping[str, Mapping[str, float | str | None]]] = {
    "zero": {},
    "one": {},
    "constant": {"value": None},
    "uniform": {"scale": 0.07},
    "normal": {"sigma": 0.01},
    "orthogonal": {"scale": 1.414, "rand_type": "uniform"},
    "xavier": {"rnd_type": "uniform", "factor_type": "avg", "magnitude": 3.0},
    "msraprelu": {"factor_type": "avg", "slope": 0.25},
    "bilinear": {},
    "lstmbias": {"forget_bias": 1.0},
}

_Array = np.ndarray[Any, np.dtype[Any]]
# NumPy's does not know bfloat16, and ml_dtypes' has no annotations.
_finfo: Callable[[np.dtype[Any]], Any] = ml_dtypes.finfo


@dataclass(frozen=True)
class _Target:
    """The parameter that is to be filled, with its initializer's arguments, names checked."""

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    initializer: str
    arguments: Mapping[str, object]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def drawn_dtype(self) -> np.dtype[Any]:
        """The dtype that random values have before they are cast."""
        return np.dtype(np.float64 if self.dtype.itemsize == 8 else np.float32)

    def error(self, problem: str) -> InitializerError:
        return InitializerError(
            f"parameter {self.name!r}: initializer {self.initializer!r} {problem}",
            parameter=self.name,
        )

    def number(self, key: str) -> float:
        """A numeric argument.

        Raises:
            InitializerError: where it is no number.
        """
        value = self.arguments[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"needs a number as {key}, but got {value!r}")
        try:
            return float(value)
        except OverflowError as err:
            raise self.error(f"got a {key} beyond the range of float64") from err

    def finite(self, key: str) -> float:
        """A numeric argument that is neither infinite nor NaN."""
        value = self.number(key)
        if not math.isfinite(value):
            raise self.error(f"needs a finite {key}, but got {value}")
        return value

    def choice(self, key: str, *choices: str) -> str:
        """An argument that is one of some words."""
        value = self.arguments[key]
        if not isinstance(value, str) or value not in choices:
            expected = " or ".join(map(repr, choices))
            raise self.error(f"needs {expected} as {key}, but got {value!r}")
        return value

    def demand_rank(self, rank: int) -> None:
        """Refuses shapes of fewer dimensions."""
        if len(self.shape) < rank:
            raise self.error(
                f"cannot be applied to shape {self.shape}: it needs at least {rank} dimensions"
            )

    def demand_floating(self, scale: float) -> None:
        """Refuses dtypes that random values do not fit in, and a scale that overflows."""
        if self.dtype.kind != "f" and self.dtype != BFLOAT16:
            # MXNet refuses to draw integers too; truncated, they would nearly all be 0.
            raise self.error(f"draws floating point numbers, and the dtype is {self.dtype}")
        if abs(scale) > float(_finfo(self.dtype).max):
            raise self.error(f"has a scale of {scale}, which {self.dtype} cannot hold")


def resolve(
    spec: InitializerSpec,
    name: str,
    shape: Shape | None,
    dtype: np.dtype[Any],
    *,
    seed: int,
    draw: int,
) -> InitialValues:
    """Checks everything and gives the values, of which nothing is computed yet.

    Args:
        spec: an initializer of ours, not `client_side`. Nothing of it is trusted.
        name: of the parameter.
        shape: of the whole parameter, also where only a part of it is to be read.
        dtype: of the parameter.
        seed: key of the random stream, 0 to 2**64 - 1.
        draw: how often the name was initialized before under that seed, same range.

    Raises:
        InitializerError: for an unknown initializer, or arguments, a shape or a dtype that it
            cannot work with.
        UnknownShapeError: where the shape is not known.
    """
    initializer = _ALIASES.get(spec.name, spec.name)
    target = _Target(name, shape or (), np.dtype(dtype), initializer, spec.arguments)
    if spec.client_side:
        raise InitializerError(
            f"parameter {name!r}: its initializer can only be computed by the client that has it",
            parameter=name,
        )
    defaults = ARGUMENTS.get(initializer)
    if defaults is None:
        raise target.error(f"does not exist; expected one of {', '.join(sorted(ARGUMENTS))}")
    given = {**defaults, **spec.arguments}
    if unknown := sorted(set(given) - set(defaults)):
        raise target.error(f"has no argument {unknown[0]!r}")
    if missing := [key for key, value in given.items() if value is None]:
        raise target.error(f"needs the argument {missing[0]!r}")
    if not shape_is_known(shape):
        raise UnknownShapeError(
            f"parameter {name!r} cannot be initialized: its shape {shape} is not known",
            parameter=name,
        )
    if target.size > _MAX_ELEMENTS:
        raise target.error(f"cannot fill shape {shape}: it has too many elements")
    for label, part in (("seed", seed), ("draw", draw)):
        if not 0 <= part < 2**64:
            raise target.error(f"needs a {label} from 0 to 2**64 - 1, but got {part}")
    target = _Target(name, target.shape, target.dtype, initializer, given)
    return _BUILDERS[initializer](target, stream_key(seed, draw, name))


def check(spec: InitializerSpec, name: str, shape: Shape | None, dtype: np.dtype[Any]) -> None:
    """Raises what filling such a parameter would raise, and computes nothing.

    Where the shape is not known yet, it checks all but the shape. A `client_side` initializer
    passes.

    Raises:
        InitializerError: as `resolve`.
    """
    if not spec.client_side:
        known = shape if shape_is_known(shape) else _STAND_IN_SHAPE
        resolve(spec, name, known, dtype, seed=0, draw=0)


def check_arguments(spec: InitializerSpec, name: str) -> None:
    """Checks an initializer that is declared but may never be used: its name and arguments.

    Raises:
        InitializerError: as `resolve`.
    """
    check(spec, name, None, np.dtype(np.float64))


def is_zero(spec: InitializerSpec) -> bool:
    """Whether all values are zero, so that fresh zeroed memory need not be touched."""
    if spec.name == "constant":
        value = spec.arguments.get("value")
        # Not -0.0, whose bits are not all zero.
        return isinstance(value, int | float) and value == 0 and math.copysign(1, value) > 0
    return _ALIASES.get(spec.name, spec.name) == "zero"


def fill(
    spec: InitializerSpec,
    name: str,
    shape: Shape | None,
    dtype: np.dtype[Any],
    *,
    seed: int,
    draw: int,
    out: _Array | None = None,
    begin: int = 0,
) -> _Array:
    """Computes a parameter's initial values, or a contiguous range of them.

    Args:
        spec: an initializer of ours.
        name: of the parameter.
        shape: of the whole parameter.
        dtype: of the parameter.
        seed: key of the random stream.
        draw: how often the name was initialized before under that seed.
        out: C-contiguous array of that dtype, of any shape, which takes `out.size` elements;
            None for a new array of the whole shape.
        begin: index in C order of the first element.

    Returns:
        `out`, or the new array.

    Raises:
        InitializerError: as `resolve`.
        UnknownShapeError: as `resolve`.
        ValueError: where `out` is not contiguous, of another dtype, or beyond the shape.
    """
    values = resolve(spec, name, shape, dtype, seed=seed, draw=draw)
    size = math.prod(shape or ())
    if out is None:
        if begin:
            raise ValueError(f"begin={begin} needs an array to fill")
        if is_zero(spec):
            return np.zeros(shape or (), dtype)
        out = np.empty(shape or (), dtype)
    if not out.flags.c_contiguous or out.dtype != dtype:
        raise ValueError(f"expected a C-contiguous array of {dtype}, but got one of {out.dtype}")
    if not 0 <= begin <= size - out.size:
        raise ValueError(f"elements {begin} to {begin + out.size} are not in shape {shape}")
    values.read(begin, out.reshape(-1))
    return out


def _scalar(target: _Target, key: str) -> _Array:
    """A numeric argument as the parameter's dtype holds it, of shape ()."""
    value = target.number(key)
    if target.dtype.kind not in "iu":
        with np.errstate(over="ignore"):  # float16 of 1e6 is inf, as in MXNet
            return np.asarray(value).astype(target.dtype)
    if not -(2.0**63) <= value < 2.0**63:
        raise target.error(f"needs a {key} that {target.dtype} can hold, but got {value}")
    # MXNet truncates towards zero and keeps the low bits: 300 in int8 is 44, -1 in uint8 is 255.
    return np.asarray(int(value), np.int64).astype(target.dtype)


def _zero(target: _Target, key: int) -> InitialValues:
    zero = np.zeros((), target.dtype)
    return Filled(zero, zero, 0, 0)


def _one(target: _Target, key: int) -> InitialValues:
    one = np.ones((), target.dtype)
    return Filled(one, one, 0, 0)


def _constant(target: _Target, key: int) -> InitialValues:
    value = _scalar(target, "value")
    return Filled(value, value, 0, 0)


def _lstm_bias(target: _Target, key: int) -> InitialValues:
    # The forget gate is the second of four; as in MXNet, what is left over belongs to the last.
    target.finite("forget_bias")
    quarter = target.shape[0] // 4 * (target.size // target.shape[0])
    forget = _scalar(target, "forget_bias")
    return Filled(np.zeros((), target.dtype), forget, quarter, 2 * quarter)


def _bilinear(target: _Target, key: int) -> InitialValues:
    target.demand_rank(4)
    height, width = target.shape[2:4]
    return Bilinear(height, width)


def _random(target: _Target, distribution: str, scale: float, key: int) -> Random:
    target.demand_floating(scale)
    return Random(
        scale,
        key,
        is_uniform=distribution == "uniform",
        size=target.size,
        drawn_dtype=target.drawn_dtype,
    )


def _uniform(target: _Target, key: int) -> InitialValues:
    scale = target.finite("scale")
    if scale < 0:
        raise target.error(f"needs a scale of 0 or more, but got {scale}")
    return _random(target, "uniform", scale, key)


def _normal(target: _Target, key: int) -> InitialValues:
    sigma = target.finite("sigma")
    if sigma <= 0:
        raise target.error(f"needs a sigma above 0, but got {sigma}")
    return _random(target, "normal", sigma, key)


def _orthogonal(target: _Target, key: int) -> InitialValues:
    target.demand_rank(2)
    scale = target.finite("scale")
    distribution = target.choice("rand_type", "uniform", "normal")
    target.demand_floating(scale)
    rows = target.shape[0]
    entries = _random(target, distribution, 1.0, key)
    return Orthogonal(rows, target.size // rows, entries, scale)


def _xavier(target: _Target, key: int) -> InitialValues:
    distribution = target.choice("rnd_type", "uniform", "gaussian")
    return _by_fan(target, key, distribution, target.finite("magnitude"))


def _msra_prelu(target: _Target, key: int) -> InitialValues:
    # He et al., "Delving deep into rectifiers" (arXiv:1502.01852), equation 15.
    slope = target.finite("slope")
    return _by_fan(target, key, "gaussian", 2 / (1 + slope * slope))


def _by_fan(target: _Target, key: int, distribution: str, magnitude: float) -> InitialValues:
    """Scale sqrt(magnitude / fan): Glorot and Bengio, AISTATS 2010.

    The shape is (out, in, kernel...): each input feeds, and each output takes, a whole kernel.
    """
    target.demand_rank(2)
    kernel = math.prod(target.shape[2:])
    fan_out, fan_in = target.shape[0] * kernel, target.shape[1] * kernel
    fans = {"avg": (fan_in + fan_out) / 2, "in": fan_in, "out": fan_out}
    fan = fans[target.choice("factor_type", *fans)]
    # A deviation of 0 is refused as in MXNet, bounds of 0 are not.
    if magnitude < 0 or (magnitude == 0 and distribution != "uniform"):
        raise target.error(f"needs a magnitude above 0, but got {magnitude}")
    return _random(target, distribution, math.sqrt(magnitude / fan), key)


_BUILDERS: Final[Mapping[str, Callable[[_Target, int], InitialValues]]] = {
    "zero": _zero,
    "one": _one,
    "constant": _constant,
    "uniform": _uniform,
    "normal": _normal,
    "orthogonal": _orthogonal,
    "xavier": _xavier,
    "msraprelu": _msra_prelu,
    "bilinear": _bilinear,
    "lstmbias": _lstm_bias,
}
