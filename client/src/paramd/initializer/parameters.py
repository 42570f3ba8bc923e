"""What becomes of an initializer that a parameter has: a spec for the server, or a value."""

from __future__ import annotations

from typing import Any

import numpy as np

from paramd.context import cpu
from paramd.initial_values import fill
from paramd.initializer.base import AnyInitializer, Chooser, KeyedDesc, apply
from paramd.initializer.builtin import BuiltIn, Constant, Uniform
from paramd.initializer.choosing import Load, Mixed
from paramd.initializer.registry import create
from paramd.spec import InitializerSpec, Shape

__all__ = ["compute", "to_spec"]

_OURS = (BuiltIn._init_weight, Constant._init_weight)


def to_spec(initializer: AnyInitializer | InitializerSpec | str, name: str) -> InitializerSpec:
    """What the server is told of an initializer.

    Args:
        initializer: an initializer, or what `create` makes one of.
        name: of the parameter.

    Returns:
        Name and arguments where the server can compute the values; else `client_side=True`, for
        classes that compute by code of their own, constant arrays and loaded values.

    Raises:
        InitializerError: where its arguments are no numbers, or no pattern of a Mixed matches.
        ParameterMissingError: where a Load has neither a value nor a default.
        InvalidInitializerError: where it is no initializer.
    """
    if isinstance(initializer, InitializerSpec):
        return initializer
    chosen = _choose(create(initializer), name)
    if isinstance(chosen, BuiltIn) and type(chosen)._init_weight in _OURS:
        return chosen._spec()
    return InitializerSpec(client_side=True)


def compute(
    initializer: AnyInitializer | str,
    name: str,
    shape: Shape,
    dtype: np.dtype[Any],
    seed: int,
    draw: int,
) -> np.ndarray[Any, np.dtype[Any]]:
    """Computes initial values in this process.

    As in MXNet's Gluon, `_init_weight` does it, whatever the name. What it draws through our
    classes comes from the key; what it draws elsewhere does not.

    Args:
        initializer: an initializer, or what `create` makes one of.
        name: of the parameter.
        shape: of the parameter.
        dtype: of the parameter.
        seed: as `paramd.random.next_key` gave it.
        draw: as `paramd.random.next_key` gave it.

    Returns:
        A new array of that shape and dtype.

    Raises:
        InitializerError: where it cannot fill such a parameter.
        BroadcastError: for a constant array of another shape.
        ShapeMismatchError: for a loaded value of another shape.
    """
    chosen = _choose(create(initializer), name)
    spec = to_spec(chosen, name)
    if not spec.client_side:
        return fill(spec, name, shape, dtype, seed=seed, draw=draw)
    # Here, since the package's other modules (and the server) need no arrays of the client's.
    from paramd.ndarray import wrap

    desc = KeyedDesc(name, {"__init__": chosen}, Uniform())
    desc.seed, desc.draw = seed, draw
    values = np.zeros(shape, dtype)
    apply(chosen, desc, wrap(values, cpu()))
    return values


def _choose(initializer: AnyInitializer, name: str) -> AnyInitializer:
    """Goes through Mixed and Load to the initializer that they choose for a name.

    A subclass with a `__call__` of its own is left to that.
    """
    ours = (Mixed.__call__, Load.__call__)
    while isinstance(initializer, Chooser) and type(initializer).__call__ in ours:
        chosen = initializer.choose(name)
        if chosen is initializer:
            break
        initializer = chosen
    return initializer
