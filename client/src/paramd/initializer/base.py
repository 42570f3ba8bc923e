"""The base of all initializers, and the rules that choose its methods by name."""

from __future__ import annotations

import abc
import json
import logging
import math
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from paramd import random
from paramd.dlpack import host_array
from paramd.errors import InitializerError
from paramd.initial_values import fill
from paramd.spec import InitializerSpec
from paramd.wire.dtypes import dtype_of

__all__ = [
    "AnyInitializer",
    "Chooser",
    "Fillable",
    "InitDesc",
    "Initializer",
    "InvalidInitializerError",
    "KeyedDesc",
    "apply",
    "as_numpy",
    "fill_array",
]

_LOGGER = logging.getLogger(__name__)


class Fillable(Protocol):
    """An array that an initializer can fill: a `paramd.nd` array, a live handle, a NumPy array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions."""

    @property
    def dtype(self) -> Any:
        """The element type."""

    def __setitem__(self, key: Any, value: Any, /) -> None: ...


class InvalidInitializerError(InitializerError, AssertionError):
    """Something that makes no initializer: an unknown name, arguments that do not fit together.

    MXNet raises AssertionError there.
    """


class InitDesc(str):
    """The name of an array that is to be initialized, with what is known of it.

    Args:
        name: of the array.
        attrs: attributes; '__init__' is an initializer that precedes the one that is called.
        global_init: the initializer to fall back to.
    """

    attrs: dict[str, Any]
    global_init: Initializer | None

    def __new__(
        cls,
        name: str,
        attrs: dict[str, Any] | None = None,
        global_init: Initializer | None = None,
    ) -> InitDesc:
        """A string with attributes."""
        desc = super().__new__(cls, name)
        desc.attrs = attrs or {}
        desc.global_init = global_init
        return desc


class KeyedDesc(InitDesc):
    """A description that brings the random key of the parameter that is computed.

    So a user's class that builds on one of ours draws from the parameter's key and not from
    another, and draws something new each time.
    """

    seed: int
    draw: int
    uses: int = 0

    def next_key(self) -> tuple[int, int]:
        """Seed and draw for the next values."""
        # The first use is the plain key: a subclass that only calls ours gives its values.
        use, self.uses = self.uses, self.uses + 1
        return (self.seed + use * 0x9E3779B97F4A7C15) % 2**64, self.draw


class Chooser(abc.ABC):
    """What chooses an initializer, or a value of its own, by name."""

    @abc.abstractmethod
    def choose(self, name: str) -> AnyInitializer:
        """The initializer for a name; itself where it has the value."""

    @abc.abstractmethod
    def __call__(self, name: str, arr: Fillable) -> None:
        """Initializes a local array."""


class Initializer:
    """Base of all initializers. A class of the user's own overrides `_init_weight`.

    Args:
        kwargs: what `dumps` writes: the arguments of the constructor.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._kwargs = kwargs
        self._verbose = False
        self._print_func: Callable[[Any], str] | None = None

    def set_verbosity(
        self, verbose: bool = False, print_func: Callable[[Any], str] | None = None
    ) -> Initializer:
        """Sets whether each array that is initialized by a call is logged.

        Args:
            verbose: whether.
            print_func: what to log of an array; its root mean square if None.

        Returns:
            Itself.
        """
        self._verbose = verbose
        self._print_func = print_func or root_mean_square
        return self

    def dumps(self) -> str:
        """Class name and arguments as JSON, for `create`."""
        return json.dumps([type(self).__name__.lower(), self._kwargs])

    def __call__(self, desc: str, arr: Fillable) -> None:
        """Initializes a local array, by the rules that MXNet has for names.

        Args:
            desc: an `InitDesc`. Its '__init__' attribute comes first, else the end of the name
                decides: weight, bias, gamma, beta, min, max. A plain string is deprecated.
            arr: what to fill.

        Raises:
            ValueError: where no rule is for the name.
            NotImplementedError: where the class has no `_init_weight`.
        """
        if not isinstance(desc, InitDesc):
            self._legacy_init(desc, arr)
            return
        if desc.global_init is None:
            desc.global_init = self
        declared = desc.attrs.get("__init__", "")
        if declared:
            # Here, because the registry is one of subclasses of this class.
            from paramd.initializer.registry import create

            apply(create(declared), desc, arr)
            self._verbose_print(desc, declared, arr)
            return
        for suffix, method in _RULES:
            if desc.endswith(suffix):
                getattr(self, method)(desc, arr)
                self._verbose_print(desc, suffix, arr)
                return
        self._init_default(desc, arr)

    def _verbose_print(self, desc: str, init: object, arr: Fillable) -> None:
        if self._verbose and self._print_func is not None:
            _LOGGER.info("Initialized %s as %s: %s", desc, init, self._print_func(arr))

    def _legacy_init(self, name: str, arr: Fillable) -> None:
        warnings.warn(
            "calling an initializer with a plain name is deprecated: give it an InitDesc",
            DeprecationWarning,
            stacklevel=3,
        )
        if not isinstance(name, str):
            raise TypeError(f"name must be string, but got {name!r}")
        for prefix, suffix, method in _LEGACY_RULES:
            if name.startswith(prefix) and name.endswith(suffix):
                getattr(self, method)(name, arr)
                return
        self._init_default(name, arr)

    def _init_weight(self, name: str, arr: Fillable) -> None:
        raise NotImplementedError(f"{type(self).__name__} must override _init_weight")

    def _init_bilinear(self, name: str, arr: Fillable) -> None:
        fill_array(InitializerSpec("bilinear"), name, arr)

    def _init_loc_bias(self, name: str, arr: Fillable) -> None:
        # The identity as an affine map of the plane, for spatial transformers.
        if tuple(arr.shape) != (6,):
            raise InvalidInitializerError(
                f"array {name!r}: expected shape (6,), but got {tuple(arr.shape)}", parameter=name
            )
        arr[:] = np.array([1, 0, 0, 0, 1, 0], np.float32)

    def _init_zero(self, name: str, arr: Fillable) -> None:
        arr[:] = 0.0

    def _init_one(self, name: str, arr: Fillable) -> None:
        arr[:] = 1.0

    def _init_bias(self, name: str, arr: Fillable) -> None:
        arr[:] = 0.0

    def _init_gamma(self, name: str, arr: Fillable) -> None:
        arr[:] = 1.0

    def _init_beta(self, name: str, arr: Fillable) -> None:
        arr[:] = 0.0

    def _init_quantized_bias(self, name: str, arr: Fillable) -> None:
        arr[:] = 0

    def _init_quantized_weight(self, name: str, arr: Fillable) -> None:
        whole = np.empty(tuple(arr.shape), np.float32)
        fill_array(InitializerSpec("uniform", {"scale": 127.0}), name, whole)
        arr[:] = whole.astype(np.int8)

    def _init_default(self, name: str, arr: Fillable) -> None:
        raise InitializerError(
            f"no rule initializes {name!r}: names end in 'weight', 'bias', 'gamma', 'beta', 'min' "
            "or 'max'; else give an initializer with InitDesc(name, {'__init__': ...})",
            parameter=name,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Initializer):
            return NotImplemented
        return type(self) is type(other) and same_arguments(self._kwargs, other._kwargs)

    __hash__ = None  # type: ignore[assignment]  # mutable, as in MXNet

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self._kwargs.items())
        return f"{type(self).__name__}({arguments})"


AnyInitializer = Initializer | Chooser

# End of the name and method, in MXNet's order.
_RULES = (
    ("weight", "_init_weight"),
    ("bias", "_init_bias"),
    ("gamma", "_init_gamma"),
    ("beta", "_init_beta"),
    ("min", "_init_zero"),
    ("max", "_init_one"),
    ("weight_quantize", "_init_quantized_weight"),
    ("bias_quantize", "_init_quantized_bias"),
)

# Start, end and method.
_LEGACY_RULES = (
    ("upsampling", "", "_init_bilinear"),
    ("stn_loc", "weight", "_init_zero"),
    ("stn_loc", "bias", "_init_loc_bias"),
    ("", "bias", "_init_bias"),
    ("", "gamma", "_init_gamma"),
    ("", "beta", "_init_beta"),
    ("", "weight", "_init_weight"),
    ("", "moving_mean", "_init_zero"),
    ("", "moving_var", "_init_one"),
    ("", "moving_inv_var", "_init_zero"),
    ("", "moving_avg", "_init_zero"),
    ("", "min", "_init_zero"),
    ("", "max", "_init_one"),
)


def apply(initializer: AnyInitializer, desc: InitDesc, arr: Fillable) -> None:
    """Fills a local array as a parameter is: by `_init_weight`, whatever the name."""
    if isinstance(initializer, Initializer):
        initializer._init_weight(desc, arr)
    else:
        initializer(desc, arr)


def fill_array(spec: InitializerSpec, name: str, arr: Fillable) -> None:
    """Fills a local array by a spec.

    The random key is that of a `KeyedDesc`, else the next one of the name.

    Raises:
        InitializerError: where the initializer cannot fill such an array.
    """
    seed, draw = name.next_key() if isinstance(name, KeyedDesc) else random.next_key(str(name))
    arr[:] = fill(spec, str(name), tuple(arr.shape), dtype_of(arr.dtype), seed=seed, draw=draw)


def as_numpy(value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """An array of any library on any device, MXNet's included, or a list, as a NumPy array."""
    return host_array(value.asnumpy() if hasattr(value, "asnumpy") else value)


def root_mean_square(arr: Any) -> str:
    """The root of the mean square of an array's elements, as text."""
    values = as_numpy(arr)
    return str(np.float32(np.linalg.norm(values.astype(np.float64)) / math.sqrt(values.size)))


def same_arguments(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether two initializers have the same arguments, of which some may be arrays."""
    if left.keys() != right.keys():
        return False
    return all(np.array_equal(as_numpy(value), as_numpy(right[key])) for key, value in left.items())
