"""Checked fields of what is declared as data: optimizers, learning rate schedules.

A field of a frozen dataclass names its check in its metadata; `check_fields` runs them all, and
stores what they return: plain floats, ints and bools whatever numbers came.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, Final

import numpy as np

__all__ = ["CHECK", "check_fields", "check_names", "check_whole", "flag", "one_of", "real", "whole"]

# Key of a field's check in its metadata: a function of (where it is, the value).
CHECK: Final = "check"
# The wire has doubles, which hold every int up to here.
_MAX_WHOLE: Final = 2**53

Metadata = Mapping[str, Callable[[str, object], object]]


def real(
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    optional: bool = False,
) -> Metadata:
    """Metadata of a field that holds a finite number, which is stored as a float.

    Args:
        at_least: smallest value.
        above: what the value exceeds.
        at_most: largest value.
        below: what exceeds the value.
        optional: whether None is a value too.
    """
    bounds = [
        (text, limit)
        for text, limit in (
            (">=", at_least),
            (">", above),
            ("<=", at_most),
            ("<", below),
        )
        if limit is not None
    ]
    return {CHECK: partial(_check_real, bounds, optional)}


def whole(*, at_least: int) -> Metadata:
    """Metadata of a field that holds an int of at least so much."""
    return {CHECK: partial(check_whole, at_least)}


def flag() -> Metadata:
    """Metadata of a field that holds True or False."""
    return {CHECK: _check_flag}


def one_of(*values: str) -> Metadata:
    """Metadata of a field that holds one of some strings."""
    return {CHECK: partial(_check_one_of, values)}


def check_fields(declared: Any) -> None:
    """Checks the fields of a frozen dataclass and stores them as plain numbers, bools, strings.

    Args:
        declared: the instance, from its `__post_init__`.

    Raises:
        TypeError: for a value of the wrong type. It names class and field.
        ValueError: for one out of range, infinite, or not a number.
    """
    owner = type(declared).__name__
    for one in fields(declared):
        check = one.metadata.get(CHECK)
        if check is not None:
            value = check(f"{owner}: {one.name}", getattr(declared, one.name))
            object.__setattr__(declared, one.name, value)


def check_names(owner: str, known: list[str], given: Mapping[str, object]) -> None:
    """Checks that arguments have names that something takes.

    Raises:
        TypeError: names the owner, what it does not take, and what it takes.
    """
    unknown = sorted(repr(name) for name in given if name not in known)
    if unknown:
        raise TypeError(f"{owner} does not take {', '.join(unknown)}; it takes {', '.join(known)}")


def _check_real(
    bounds: list[tuple[str, float]], optional: bool, where: str, value: object
) -> float | None:
    expected = " and ".join(f"{text} {limit:g}" for text, limit in bounds)
    expected = f"a finite number{expected and ' '}{expected}{' or None' if optional else ''}"
    if value is None and optional:
        return None
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{where}: expected {expected}, but got {_shown(value)}")
    try:
        number = float(value)
    except OverflowError as err:
        raise ValueError(f"{where}: expected {expected}, but got one beyond 1e308") from err
    if not math.isfinite(number) or not all(_holds(number, *bound) for bound in bounds):
        raise ValueError(f"{where}: expected {expected}, but got {number!r}")
    return number


def _holds(number: float, text: str, limit: float) -> bool:
    match text:
        case ">=":
            return number >= limit
        case ">":
            return number > limit
        case "<=":
            return number <= limit
        case _:
            return number < limit


def check_whole(at_least: int, where: str, value: object) -> int:
    """The value as an int, if it is one up to 2**53, and no bool.

    Args:
        at_least: smallest value.
        where: for messages.
        value: what came.

    Raises:
        TypeError: for another type.
        ValueError: for one out of range.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{where}: expected an int >= {at_least}, but got {_shown(value)}")
    number = int(value)
    if not at_least <= number <= _MAX_WHOLE:
        shown = number if abs(number) <= _MAX_WHOLE else "one beyond 2**53"
        raise ValueError(f"{where}: expected an int >= {at_least}, but got {shown}")
    return number


def _check_flag(where: str, value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{where}: expected True or False, but got {_shown(value)}")
    return bool(value)


def _check_one_of(values: tuple[str, ...], where: str, value: object) -> str:
    expected = " or ".join(map(repr, values))
    if not isinstance(value, str):
        raise TypeError(f"{where}: expected {expected}, but got {_shown(value)}")
    if value not in values:
        raise ValueError(f"{where}: expected {expected}, but got {value[:80]!r}")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
