"""What the user of a proxy stated about a parameter, checked and in one spelling."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Final

from paramd.context import Context, current_context
from paramd.errors import AttributeMismatchError, InvalidArgumentError, ShapeMismatchError
from paramd.spec import GRAD_REQS, STYPES, ParameterSpec, Shape, merge_shapes

__all__ = [
    "check_grad_req",
    "check_new_shape",
    "check_stype",
    "contexts_of",
    "different_from_default",
    "merged_shape",
    "mismatch",
    "multiplier_of",
    "one_of",
    "shape_of",
]

# No attributes that two declarations of one parameter could agree or disagree on.
_NOT_STATED: Final = frozenset({"name", "constant"})


def shape_of(value: Any) -> Shape | None:
    """The shape that a user means: a number is one dimension, None is nothing known.

    Raises:
        TypeError: where it holds something else than whole numbers.
        InvalidArgumentError: for a dimension below -1.
    """
    if value is None:
        return None
    dimensions: Iterable[Any] = value if isinstance(value, Iterable) else (value,)
    shape = tuple(operator.index(dimension) for dimension in dimensions)
    if any(dimension < -1 for dimension in shape):
        raise InvalidArgumentError(
            f"a dimension is positive, or 0 or -1 where it is not known, but the shape is {shape}"
        )
    return shape


def check_grad_req(value: Any) -> str:
    """The grad_req itself.

    Raises:
        AssertionError: where it is none.
    """
    if not isinstance(value, str) or value not in GRAD_REQS:
        raise AssertionError(
            f"grad_req must be one of 'write', 'add', or 'null', but got {value!r}"
        )
    return value


def check_stype(name: str, attribute: str, value: Any) -> str:
    """The storage type itself.

    Raises:
        AssertionError: where it is none.
    """
    if not isinstance(value, str) or value not in STYPES:
        raise AssertionError(
            f"{attribute} of parameter '{name}' must be one of 'default', 'row_sparse', or 'csr', "
            f"but got {value!r}"
        )
    return value


def multiplier_of(name: str, attribute: str, value: Any) -> float:
    """A multiplier as a float.

    Raises:
        TypeError: where it is no number.
        InvalidArgumentError: where it is not finite.
    """
    try:
        number = float(value)
    except (TypeError, ValueError) as err:
        raise TypeError(
            f"{attribute} of parameter '{name}' is a number, but got {value!r}"
        ) from err
    if not math.isfinite(number):
        raise InvalidArgumentError(
            f"{attribute} of parameter '{name}' is a finite number, but got {number}",
            parameter=name,
        )
    return number


def check_new_shape(name: str, stored: Shape | None, new: Any) -> Shape:
    """The shape that a parameter gets: of the same rank, its known dimensions unchanged.

    Raises:
        ShapeMismatchError: where it contradicts the stored one.
        TypeError: where it is no shape.
    """
    shape = shape_of(new)
    if shape is None:
        raise TypeError(f"the shape of parameter '{name}' cannot be set to None")
    if stored is not None and (
        len(stored) != len(shape)
        or any(old not in (0, -1, size) for old, size in zip(stored, shape, strict=True))
    ):
        raise ShapeMismatchError(
            f"parameter '{name}': expected shape {shape} is incompatible with given shape {stored}",
            parameter=name,
        )
    return shape


def merged_shape(name: str, desired: Any, stored: Shape | None) -> Shape | None:
    """The shape that a parameter has after `ParameterDict.get`, with 0 and -1 as wildcards.

    Raises:
        AttributeMismatchError: where the two contradict one another.
    """
    wanted = shape_of(desired)
    try:
        return merge_shapes(stored, wanted)
    except ValueError as err:
        raise mismatch(name, "shape", wanted, stored) from err


def mismatch(name: str, attribute: str, desired: Any, stored: Any) -> AttributeMismatchError:
    """The error for an attribute that is declared in two ways."""
    return AttributeMismatchError(
        f"cannot retrieve parameter '{name}' because its attribute '{attribute}' does not match: "
        f"desired '{desired}' against stored '{stored}'",
        parameter=name,
    )


def different_from_default(spec: ParameterSpec, *, has_init: bool) -> frozenset[str]:
    """The attributes of a declaration that say something.

    Args:
        spec: as declared.
        has_init: whether an initializer is declared, which the spec may not hold yet.
    """
    default = ParameterSpec(spec.name)
    stated = {
        field.name
        for field in fields(ParameterSpec)
        if field.name not in _NOT_STATED
        and getattr(spec, field.name) != getattr(default, field.name)
    }
    if not spec.differentiable or spec.constant:
        # It follows from the other attribute.
        stated.discard("grad_req")
    if has_init:
        stated.add("init")
    return frozenset(stated)


def one_of(call: str, ctx: Any, device: Any) -> Any:
    """The value of an argument that has two names, those of MXNet 1 and 2.

    Raises:
        TypeError: where both are given.
    """
    if ctx is not None and device is not None:
        raise TypeError(f"{call}: ctx and device are two names of one argument, but both are given")
    return device if ctx is None else ctx


def contexts_of(value: Any) -> tuple[Context, ...]:
    """The contexts that a user means: one, several, or None for the current one.

    Raises:
        TypeError: where it holds something else than contexts.
    """
    if value is None:
        return (current_context(),)
    contexts = (value,) if isinstance(value, Context) else value
    if isinstance(contexts, str) or not isinstance(contexts, Iterable):
        raise TypeError(f"expected a context such as cpu(0), or a list of them, but got {value!r}")
    found = tuple(contexts)
    for context in found:
        if not isinstance(context, Context):
            raise TypeError(f"expected contexts such as cpu(0), but got {context!r}")
    return found
