"""What is done with gradients before an update, compiled."""

from __future__ import annotations

from typing import Any

from paramd_server.arrays.compiled_elements import compiled, load, store

__all__ = ["add", "all_finite"]


@compiled
def all_finite(bits: Any, exponent: Any) -> bool:
    """Tells whether no element has all bits of the exponent, as infinity and NaN do.

    Args:
        bits: floats as unsigned integers, of shape (n,).
        exponent: the bits of infinity.
    """
    found = False
    for i in range(bits.size):
        found |= (bits[i] & exponent) == exponent
    return not found


@compiled
def add(target: Any, value: Any) -> None:
    """Adds in place, as kernels do: (n,) to (n,), 16-bit floats as their stand-ins."""
    for i in range(target.size):
        store(target, i, load(target, i) + load(value, i))
