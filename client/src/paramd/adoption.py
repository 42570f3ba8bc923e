"""Models of other frameworks as parameters: declared by name, with the first worker's values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paramd.errors import InvalidArgumentError
from paramd.initializer import Load
from paramd.link import session_of, set_attribute
from paramd.parameter import Parameter
from paramd.parameter_dict import ParameterDict
from paramd.session import Session

__all__ = ["Array", "Leaf", "adopt", "check_reading", "without_axes"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Leaf:
    """One array of a model.

    Attributes:
        value: as it is in this process.
        trained: whether it gets gradients.
        stype: storage type of value and gradient.
    """

    value: Array
    trained: bool = True
    stype: str = "default"


def without_axes(array: Array) -> Array:
    """An array as a parameter holds it: a single number has the shape (1,), the rest stays."""
    return array if array.ndim else array.reshape(1)


def check_reading(optimizer: object, given: Mapping[str, Any]) -> None:
    """Raises where what only training needs is given without an optimizer.

    Args:
        optimizer: what `attach` got.
        given: the other arguments, by name.

    Raises:
        TypeError: names them.
    """
    names = [name for name, value in given.items() if value is not None]
    if optimizer is None and names:
        raise TypeError(f"{', '.join(names)}: without an optimizer nothing is trained")


def adopt(
    session: Session, prefix: str, leaves: Mapping[str, Leaf], *, trains: bool
) -> ParameterDict:
    """Makes parameters of a model's arrays, whose values become those of the first worker.

    Args:
        session: serves them.
        prefix: in front of each name.
        leaves: the arrays by name.
        trains: whether a trainer is to step those that are trained; else what others have said
            of gradients counts.

    Returns:
        The parameters, all with a value: this worker's, or that of whoever came first.

    Raises:
        InvalidArgumentError: for an array without elements.
        AttributeMismatchError: where a parameter of that name is another one.
        TypeError: for a dtype that no parameter has.
    """
    params = ParameterDict(prefix, session=session)
    values: dict[str, Array] = {}
    for name, leaf in leaves.items():
        value = without_axes(leaf.value)
        if not value.size:
            raise InvalidArgumentError(
                f"'{prefix}{name}' of shape {value.shape} has no elements, which no parameter "
                "can be",
                parameter=prefix + name,
            )
        parameter = params.get(
            name,
            shape=value.shape,
            dtype=value.dtype,
            stype=leaf.stype,
            grad_stype=leaf.stype,
            grad_req="write" if leaf.trained or not trains else "null",
        )
        # What is frozen may change from one training to the next, and readers do not know it. Of
        # workers that disagree, the trainer reports it.
        parameter._link.stated -= {"grad_req"}
        values[parameter.name] = value
    if values:
        # One at a time, so that the values are one worker's, and those that lose compute nothing.
        # It is `initialize` that never replaces a value: the claim is remembered longer than
        # parameters that are deleted.
        with session.once(f"first-values-{_digest(values)}"):
            params.initialize(Load(values))
    if trains:
        _give_gradients([params[prefix + name] for name in leaves if leaves[name].trained])
    return params


def _give_gradients(parameters: Sequence[Parameter]) -> None:
    """Ends that parameters are frozen."""
    # As `initialize` has just been told.
    frozen = [
        parameter._link
        for parameter in parameters
        if parameter._link.known_spec().grad_req == "null"
    ]
    if frozen:
        set_attribute(session_of(frozen), frozen, "grad_req", "write")


def _digest(names: Mapping[str, Array]) -> str:
    return hashlib.blake2b("\0".join(names).encode(), digest_size=16).hexdigest()
