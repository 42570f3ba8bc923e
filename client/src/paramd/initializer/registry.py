"""Initializers by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from paramd.initializer.base import (
    AnyInitializer,
    Chooser,
    Initializer,
    InvalidInitializerError,
)
from paramd.spec import InitializerSpec

__all__ = ["alias", "create", "register"]

_Class = TypeVar("_Class", bound=type[Initializer])

# Filled by `register` and `alias`: like MXNet's registry it belongs to the process.
_registry: dict[str, type[Initializer]] = {}


def _register(klass: _Class, name: str) -> _Class:
    given: object = klass  # by users without a type checker
    if not (isinstance(given, type) and issubclass(given, Initializer)):
        raise InvalidInitializerError(f"can only register subclasses of Initializer, not {klass!r}")
    name = name.lower()
    known = _registry.get(name)
    if known is not None:
        warnings.warn(
            f"initializer {klass.__module__}.{klass.__name__} takes the name {name!r} from "
            f"{known.__module__}.{known.__name__}",
            UserWarning,
            stacklevel=3,
        )
    _registry[name] = klass
    return klass


def register(klass: _Class) -> _Class:
    """Makes a subclass of `Initializer` known to `create` by its name in lower case.

    Args:
        klass: the class.

    Returns:
        The class, so that it serves as a decorator. A name that is taken warns and changes hands.

    Raises:
        InvalidInitializerError: where it is no subclass.
    """
    return _register(klass, getattr(klass, "__name__", ""))


def alias(*aliases: str) -> Callable[[_Class], _Class]:
    """A decorator that makes a class known to `create` by further names."""

    def decorate(klass: _Class) -> _Class:
        for name in aliases:
            _register(klass, name)
        return klass

    return decorate


def create(*args: Any, **kwargs: Any) -> AnyInitializer:
    """Makes an initializer.

    Args:
        args: first a registered name in any case; or JSON, as `Initializer.dumps` writes it; or a
            mapping {'initializer': name, argument: value ...}; or an `InitializerSpec`; or an
            initializer, which is returned as it is. Then arguments for the constructor.
        kwargs: arguments for the constructor, and 'initializer' where `args` is empty.

    Raises:
        InvalidInitializerError: where that is none. It is an AssertionError, as in MXNet.
        InitializerError: for a spec that is `client_side`, or not one of ours.
        TypeError: where the constructor refuses the arguments.
    """
    name, *rest = args or (kwargs.pop("initializer", None),)
    if isinstance(name, Mapping):
        return create(*rest, **name, **kwargs)
    if not isinstance(name, str):
        return _check_instance(name, rest, kwargs)
    if name.startswith(("[", "{")):
        return _from_json(name, rest, kwargs)
    klass = _registry.get(name.lower())
    if klass is None:
        raise InvalidInitializerError(
            f"initializer {name!r} is not registered; expected one of "
            f"{', '.join(sorted(_registry))}, or decorate your class with init.register"
        )
    return klass(*rest, **kwargs)


def _check_instance(value: object, args: list[Any], kwargs: dict[str, Any]) -> AnyInitializer:
    if not isinstance(value, Initializer | Chooser | InitializerSpec):
        raise InvalidInitializerError(f"expected an initializer or its name, but got {value!r}")
    if args or kwargs:
        raise InvalidInitializerError(f"{value!r} is complete: no further arguments fit")
    if isinstance(value, InitializerSpec):
        # Here, because our classes are made with `register`.
        from paramd.initializer.builtin import from_spec

        return from_spec(value)
    return value


def _from_json(text: str, args: list[Any], kwargs: dict[str, Any]) -> AnyInitializer:
    if args or kwargs:
        raise InvalidInitializerError(f"{text} has its arguments already")
    try:
        value = json.loads(text)
    except ValueError as err:
        raise InvalidInitializerError(f"expected an initializer as JSON, but got {text}") from err
    match value:
        case dict():
            return create(value)
        case [str(name), dict(arguments)]:
            return create(name, **arguments)
    raise InvalidInitializerError(f"expected '[name, {{arguments}}]' as JSON, but got {text}")
