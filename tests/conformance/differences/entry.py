"""What an entry of the list of differences is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.conformance.program import Program, Ref

__all__ = ["OnPurpose", "Raises", "deferred", "ones"]


@dataclass(frozen=True)
class Raises:
    """The outcome of a step that fails.

    Attributes:
        error: name of the exception's class, or of one of its bases.
    """

    error: str


@dataclass(frozen=True)
class OnPurpose:
    """One difference.

    Attributes:
        name: what to call it.
        lines: the lines that ask for it, see `lines.py`; none where the reason is ours alone.
        mxnet: what MXNet does.
        paramd: what paramd does.
        reason: why.
        write: writes the program, and returns the step that differs first if not the last one.
        gives: what paramd's last step gives: `Raises`, or the value (arrays as nested lists).
        as_is: run MXNet without the forward pass and the Trainer that programs get otherwise.
    """

    name: str
    lines: tuple[str, ...]
    mxnet: str
    paramd: str
    reason: str
    write: Callable[[Program], Ref | None]
    gives: Any
    as_is: bool = False

    def __str__(self) -> str:
        return self.name


def ones(p: Program, name: str = "w", **kwargs: Any) -> Ref:
    """Makes a parameter and initializes it with ones, on `ctx` if given."""
    initialize = {key: kwargs.pop(key) for key in ("ctx",) if key in kwargs}
    w = p.make("Parameter", name, **{"shape": (2,), **kwargs})
    p.call(w, "initialize", init="ones", **initialize)
    return w


def deferred(p: Program, name: str = "w", **kwargs: Any) -> Ref:
    """Makes a parameter of unknown length whose initialization is deferred."""
    w = p.make("Parameter", name, shape=(0,), allow_deferred_init=True, **kwargs)
    p.call(w, "initialize", init="ones")
    return w
