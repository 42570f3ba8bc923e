"""The initializers that the server knows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from paramd.errors import BroadcastError, InitializerError
from paramd.initializer.base import Fillable, Initializer, as_numpy, fill_array
from paramd.initializer.registry import alias, register
from paramd.spec import InitializerSpec

__all__ = [
    "Bilinear",
    "BuiltIn",
    "Constant",
    "LSTMBias",
    "MSRAPrelu",
    "Normal",
    "One",
    "Orthogonal",
    "Uniform",
    "Xavier",
    "Zero",
    "from_spec",
]


class BuiltIn(Initializer):
    """An initializer that the server knows: a spec says all of it."""

    def _spec(self) -> InitializerSpec:
        """The spec, from the attributes as they are now: users may have assigned to them."""
        raise NotImplementedError

    def _init_weight(self, name: str, arr: Fillable) -> None:
        fill_array(self._spec(), name, arr)


@register
@alias("zeros")
class Zero(BuiltIn):
    """Zeros."""

    def __init__(self) -> None:
        super().__init__()

    def _spec(self) -> InitializerSpec:
        return InitializerSpec("zero")


@register
@alias("ones")
class One(BuiltIn):
    """Ones."""

    def __init__(self) -> None:
        super().__init__()

    def _spec(self) -> InitializerSpec:
        return InitializerSpec("one")


@register
class Constant(BuiltIn):
    """A given value.

    Args:
        value: a number, or an array that broadcasts to the shape.
    """

    def __init__(self, value: Any) -> None:
        super().__init__(value=value)
        self.value = value

    def dumps(self) -> str:
        """Class name and value as JSON, arrays as lists."""
        value = self._kwargs["value"]
        plain = value if np.isscalar(value) else as_numpy(value).tolist()
        return json.dumps(["constant", {"value": plain}])

    def _spec(self) -> InitializerSpec:
        if not np.isscalar(self.value):
            return InitializerSpec(client_side=True)
        return _make_spec("constant", {"value": self.value})

    def _init_weight(self, name: str, arr: Fillable) -> None:
        if np.isscalar(self.value):
            super()._init_weight(name, arr)
            return
        value = as_numpy(self.value)
        try:
            arr[:] = np.broadcast_to(value, arr.shape)
        except ValueError as err:
            raise BroadcastError(
                f"parameter {name!r}: a constant of shape {value.shape} does not broadcast to "
                f"{tuple(arr.shape)}",
                parameter=name,
            ) from err


@register
class Uniform(BuiltIn):
    """Uniform in [-scale, scale].

    Args:
        scale: the bound, not negative.
    """

    def __init__(self, scale: float = 0.07) -> None:
        super().__init__(scale=scale)
        self.scale = scale

    def _spec(self) -> InitializerSpec:
        return _make_spec("uniform", {"scale": self.scale})


@register
class Normal(BuiltIn):
    """Normal with mean 0.

    Args:
        sigma: standard deviation, positive.
    """

    def __init__(self, sigma: float = 0.01) -> None:
        super().__init__(sigma=sigma)
        self.sigma = sigma

    def _spec(self) -> InitializerSpec:
        return _make_spec("normal", {"sigma": self.sigma})


@register
class Orthogonal(BuiltIn):
    """A random matrix whose rows or columns (whichever are fewer) are orthogonal.

    Saxe et al., arXiv:1312.6120. Axis 0 gives the rows, all other axes the columns.

    Args:
        scale: norm of each of them.
        rand_type: 'uniform' or 'normal', the numbers that the matrix is made from.
    """

    def __init__(self, scale: float = 1.414, rand_type: str = "uniform") -> None:
        super().__init__(scale=scale, rand_type=rand_type)
        self.scale = scale
        self.rand_type = rand_type

    def _spec(self) -> InitializerSpec:
        return _make_spec("orthogonal", {"scale": self.scale, "rand_type": self.rand_type})


@register
class Xavier(BuiltIn):
    """Random with a scale of sqrt(magnitude / fan).

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks",
    AISTATS 2010. For a shape (out, in, kernel...), the fans are in x kernel and out x kernel.

    Args:
        rnd_type: 'uniform' (the scale is the bound) or 'gaussian' (the standard deviation).
        factor_type: which fan: 'in', 'out', or 'avg' for their mean.
        magnitude: positive.
    """

    def __init__(
        self, rnd_type: str = "uniform", factor_type: str = "avg", magnitude: float = 3
    ) -> None:
        super().__init__(rnd_type=rnd_type, factor_type=factor_type, magnitude=magnitude)
        self.rnd_type = rnd_type
        self.factor_type = factor_type
        self.magnitude = float(magnitude)

    def _spec(self) -> InitializerSpec:
        arguments = {
            "rnd_type": self.rnd_type,
            "factor_type": self.factor_type,
            "magnitude": self.magnitude,
        }
        return _make_spec("xavier", arguments)


@register
class MSRAPrelu(Xavier):
    """Normal with a variance of 2 / ((1 + slope²) fan), for layers before a (P)ReLU.

    He et al., "Delving deep into rectifiers", arXiv:1502.01852.

    Args:
        factor_type: which fan: 'in', 'out', or 'avg' for their mean.
        slope: of the negative part of the PReLU.
    """

    def __init__(self, factor_type: str = "avg", slope: float = 0.25) -> None:
        super().__init__("gaussian", factor_type, 2.0 / (1 + slope**2))
        self._kwargs = {"factor_type": factor_type, "slope": slope}

    def _spec(self) -> InitializerSpec:
        slope = self._kwargs["slope"]
        if self.rnd_type != "gaussian" or self.magnitude != 2.0 / (1 + slope**2):
            return super()._spec()  # somebody assigned to what only Xavier has
        return _make_spec("msraprelu", {"factor_type": self.factor_type, "slope": slope})


@register
class Bilinear(BuiltIn):
    """The kernel of bilinear upsampling, for shapes (out, in, height, width)."""

    def __init__(self) -> None:
        super().__init__()

    def _spec(self) -> InitializerSpec:
        return InitializerSpec("bilinear")


@register
class LSTMBias(BuiltIn):
    """Biases of an LSTM cell: zero, except for the forget gate, the second of four.

    Args:
        forget_bias: of the forget gate. Jozefowicz et al. 2015 recommend 1.
    """

    def __init__(self, forget_bias: float = 1.0) -> None:
        super().__init__(forget_bias=forget_bias)
        self.forget_bias = forget_bias

    def _spec(self) -> InitializerSpec:
        return _make_spec("lstmbias", {"forget_bias": self.forget_bias})


_CLASSES = {
    "zero": Zero,
    "zeros": Zero,
    "one": One,
    "ones": One,
    "constant": Constant,
    "uniform": Uniform,
    "normal": Normal,
    "orthogonal": Orthogonal,
    "xavier": Xavier,
    "msraprelu": MSRAPrelu,
    "bilinear": Bilinear,
    "lstmbias": LSTMBias,
}


def from_spec(spec: InitializerSpec) -> BuiltIn:
    """The initializer that a spec describes, whatever classes users have registered.

    Raises:
        InitializerError: where the spec is `client_side`, or not one of ours.
    """
    klass: Callable[..., BuiltIn] | None = None if spec.client_side else _CLASSES.get(spec.name)
    if klass is None:
        what = "a client's own" if spec.client_side else repr(spec.name)
        raise InitializerError(f"no initializer can be made from a spec of {what}")
    try:
        return klass(**spec.arguments)
    except (TypeError, ValueError) as err:
        raise InitializerError(f"initializer {spec.name!r} refuses its arguments: {err}") from err


def _make_spec(name: str, arguments: Mapping[str, Any]) -> InitializerSpec:
    return InitializerSpec(name, {key: _plain(name, key, arguments[key]) for key in arguments})


def _plain(name: str, key: str, value: Any) -> float | str:
    """An argument as the wire has it. Words and numbers stay what they are.

    Raises:
        InitializerError: for anything else.
    """
    if isinstance(value, str) and key.endswith("_type"):
        return value
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as err:
        raise InitializerError(f"initializer {name!r} cannot have {key}={value!r}") from err
