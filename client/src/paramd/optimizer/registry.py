"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any, Final, NoReturn

from paramd.hyperparameter import check_names
from paramd.lr_scheduler import LRScheduler
from paramd.optimizer.base import Optimizer
from paramd.optimizer.builtin import (
    DCASGD,
    LAMB,
    NAG,
    SGD,
    AdaDelta,
    AdaGrad,
    Adam,
    AdamW,
    Ftrl,
    RMSProp,
    Signum,
)

__all__ = ["NAMES", "create", "from_arguments", "register"]

_OPTIMIZERS: Final[Mapping[str, type[Optimizer]]] = MappingProxyType(
    {
        klass.name: klass
        for klass in (
            *(SGD, NAG, Signum, Adam, AdamW, AdaGrad, RMSProp, AdaDelta, Ftrl, LAMB),
            DCASGD,
        )
    }
)

NAMES: Final = tuple(_OPTIMIZERS)

# What MXNet 1.9.1 has and paramd has not.
_LACKING: Final = frozenset(
    (
        *("adamax", "ccsgd", "ftml", "groupadagrad", "lars", "lbsgd", "nadam", "sgld"),
        "test",
    )
)

# Arguments of MXNet's constructors that only its own engine has a use for.
_OF_MXNET: Final[Mapping[str, str]] = MappingProxyType(
    {
        "param_idx2name": "parameters have names here",
        "param_dict": "multipliers are the parameters' lr_mult and wd_mult",
        "sym": "multipliers are the parameters' lr_mult and wd_mult",
    }
)


def create(optimizer: str | Optimizer, **kwargs: Any) -> Optimizer:
    """Makes an optimizer.

    Args:
        optimizer: its name in any case, such as 'sgd'; or one, which is returned as it is.
        kwargs: arguments for the constructor, where a name is given.

    Raises:
        ValueError: for a name that is none of ours, with a list of ours; or a value out of range.
        TypeError: for an argument that the optimizer does not take, or of the wrong type; and for
            an object that is no optimizer of ours, with what to do instead.
    """
    if not isinstance(optimizer, str):
        checked = _check_instance(optimizer)
        if kwargs:
            raise TypeError(
                f"{type(checked).__name__} is complete, but got {', '.join(kwargs)} for it: use "
                "dataclasses.replace(optimizer, ...), or give its name"
            )
        return checked
    klass = _find(optimizer.lower())
    for name, reason in _OF_MXNET.items():
        if name in kwargs:
            raise TypeError(f"{klass.__name__} does not take {name}: {reason}")
    return _make(klass, kwargs)


def from_arguments(
    name: str, arguments: Mapping[str, Any], scheduler: LRScheduler | None = None
) -> Optimizer:
    """Makes an optimizer from its name and its `arguments`, which may come from anywhere.

    Args:
        name: its `Optimizer.name`.
        arguments: numbers and bools; those that are missing are as by default.
        scheduler: its schedule.

    Raises:
        ValueError: for an unknown name, or a value out of range.
        TypeError: for an argument that the optimizer does not take, or of the wrong type.
    """
    klass = _find(name)
    if "lr_scheduler" in arguments:
        raise TypeError(f"{klass.__name__}: lr_scheduler is no plain argument")
    return _make(klass, {**arguments, "lr_scheduler": scheduler})


def register(klass: type) -> NoReturn:
    """Refuses a class of the user's own, which MXNet's decorator of this name would take.

    Raises:
        TypeError: always, with what to do instead.
    """
    _check_instance(klass)
    raise TypeError(f"{klass!r} is an optimizer already")


def _find(name: str) -> type[Optimizer]:
    klass = _OPTIMIZERS.get(name)
    if klass is not None:
        return klass
    ours = ", ".join(NAMES)
    if name in _LACKING:
        raise ValueError(f"paramd has no optimizer {name!r}, which MXNet has; it has {ours}")
    raise ValueError(f"unknown optimizer {name[:80]!r}: expected one of {ours}")


def _make(klass: type[Optimizer], arguments: Mapping[str, Any]) -> Optimizer:
    check_names(klass.__name__, [one.name for one in fields(klass)], arguments)
    maker: Callable[..., Optimizer] = klass
    return maker(**arguments)


def _check_instance(value: object) -> Optimizer:
    klass = type(value)
    if isinstance(value, Optimizer) and klass in _OPTIMIZERS.values():
        return value
    of_class = value if isinstance(value, type) else klass
    ours = ", ".join(NAMES)
    if of_class.__module__.partition(".")[0] == "mxnet":
        raise TypeError(
            f"expected an optimizer of paramd, but got MXNet's {of_class.__name__}: name one of "
            f"{ours}, with the same arguments"
        )
    if of_class in _OPTIMIZERS.values():
        raise TypeError(
            f"expected an optimizer or its name, but got the class {of_class.__name__}: make one "
            f"of it, {of_class.__name__}(...)"
        )
    shown = of_class.__name__ if isinstance(value, type) else f"{of_class.__name__} object"
    raise TypeError(
        f"expected an optimizer of paramd or its name, but got {shown}: an optimizer is data and "
        f"its arithmetic runs on the server: choose one of {ours}, or compute the update yourself "
        "and write it with set_data"
    )
