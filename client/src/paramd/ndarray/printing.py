"""How arrays print: MXNet's form, the values and then what they are in."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from paramd.context import Context

__all__ = ["describe"]


def describe(
    values: npt.NDArray[Any] | None, name: str, shape: tuple[int, ...], context: Context
) -> str:
    """The repr of an array.

    Args:
        values: what it holds; None leaves them out, as for sparse arrays.
        name: of the class, as MXNet calls it.
        shape: of the array.
        context: of the array.
    """
    sizes = "x".join(str(size) for size in shape)
    shown = "" if values is None else f"\n{values!s}"
    return f"{shown}\n<{name} {sizes} @{context}>"
