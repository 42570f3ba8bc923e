"""Arrays of any library that values are received into: what `out=` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from paramd.dlpack import in_host_memory, shared_array
from paramd.errors import InvalidArgumentError
from paramd.ndarray import NDArray

__all__ = ["OutArrays"]

Array = np.ndarray[Any, np.dtype[Any]]
_Target = tuple[Array, Callable[[], Any] | None]


class OutArrays:
    """Host memory to receive into, for arrays of any library on any device.

    Memory of the host is received into directly. For arrays of another device values are received
    into host memory, and their own library copies them: `copy_` of PyTorch, `set` of CuPy.

    Args:
        out: the arrays by name of the parameter.

    Attributes:
        hosts: the host memory by name.

    Raises:
        InvalidArgumentError: for what is no array, or cannot be written to.
    """

    def __init__(self, out: Mapping[str, Any]) -> None:
        self._out = dict(out)
        targets = {name: _target(name, array) for name, array in self._out.items()}
        self.hosts = {name: host for name, (host, _) in targets.items()}
        self._copies = [copy for _, copy in targets.values() if copy is not None]

    def deliver(self, received: Mapping[str, Array]) -> dict[str, Any]:
        """Copies what was received to the arrays that are not the host's.

        Args:
            received: values by name, those of `hosts` and others.

        Returns:
            The values by name; those of `out` themselves.
        """
        for copy in self._copies:
            copy()
        return {name: self._out.get(name, value) for name, value in received.items()}


def _target(name: str, out: Any) -> _Target:
    """The host memory for an array, and what copies it there once it is received."""
    if isinstance(out, np.ndarray):
        return out, None
    if not hasattr(out, "__dlpack__"):
        raise InvalidArgumentError(
            f"parameter {name!r}: out= takes arrays, but got {type(out).__name__}", parameter=name
        )
    shared = _shared(out)
    if shared is not None:
        return shared, None
    if hasattr(out, "copy_") and hasattr(out, "new_empty"):
        tensor = out.detach()
        staged = tensor.new_empty(tuple(tensor.shape), device="cpu")
        shared = shared_array(staged)
        if shared is not None:
            return shared, partial(tensor.copy_, staged)
    if hasattr(out, "set") and not in_host_memory(out):
        flags = out.flags
        if not (flags.c_contiguous or flags.f_contiguous):
            raise InvalidArgumentError(
                f"parameter {name!r}: out= takes contiguous arrays of {type(out).__name__}, which "
                f"copies to no others, but got one of strides {tuple(out.strides)}",
                parameter=name,
            )
        host = np.empty(tuple(out.shape), out.dtype)
        return host, partial(out.set, host)
    raise InvalidArgumentError(
        f"parameter {name!r}: the {type(out).__name__} given as out= cannot be written to: it is "
        "read-only, or on a device that it takes no values to",
        parameter=name,
    )


def _shared(out: Any) -> Array | None:
    """The memory of an array, where the host writes to it."""
    if isinstance(out, NDArray):
        try:
            return out.__array__(copy=False)
        except ValueError:
            return None  # A handle, or rows: their values are not in one place here.
    return shared_array(out) if in_host_memory(out) else None
