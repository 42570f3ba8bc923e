"""What arrays compute of themselves: elementwise functions and reductions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from paramd.ndarray.arithmetic import reduce_values, unary
from paramd.ndarray.operators import Operators

if TYPE_CHECKING:
    from paramd.ndarray.base import NDArray

__all__ = ["Functions"]

_Values = npt.NDArray[Any]
_Axis = int | tuple[int, ...] | list[int] | None


class Functions(Operators):
    """Functions that fetch and give local arrays."""

    @abstractmethod
    def _read(self) -> _Values:
        """The values, only to be read."""

    @abstractmethod
    def _local(self, values: _Values) -> NDArray:
        """A local array over NumPy's, with the context of this one."""

    @abstractmethod
    def _operand(self, other: Any) -> Any:
        """Another operand as a NumPy array or a number."""

    def __neg__(self) -> NDArray:
        return self._elementwise(np.negative)

    def __abs__(self) -> NDArray:
        return self.abs()

    def __matmul__(self, other: Any) -> NDArray:
        values = np.matmul(self._read(), self._operand(other))
        return self._local(values.reshape(values.shape or (1,)))

    def __rmatmul__(self, other: Any) -> NDArray:
        values = np.matmul(self._operand(other), self._read())
        return self._local(values.reshape(values.shape or (1,)))

    def _elementwise(self, function: Callable[[_Values], _Values]) -> NDArray:
        return self._local(unary(function, self._read()))

    def abs(self) -> NDArray:
        """Absolute values."""
        return self._elementwise(np.abs)

    def square(self) -> NDArray:
        """Squares."""
        return self._elementwise(np.square)

    def sqrt(self) -> NDArray:
        """Square roots; for integers cut off."""
        return self._elementwise(np.sqrt)

    def clip(self, a_min: float, a_max: float) -> NDArray:
        """Values below `a_min` become `a_min`, those above `a_max` become `a_max`."""
        return self._elementwise(lambda values: np.clip(values, a_min, a_max))

    def sum(self, axis: _Axis = None, keepdims: bool = False) -> NDArray:
        """Sum over axes, all of them by default. The dtype stays."""
        return self._local(reduce_values(np.sum, self._read(), axis, keepdims))

    def mean(self, axis: _Axis = None, keepdims: bool = False) -> NDArray:
        """Mean over axes, all of them by default. The dtype stays; for integers it is cut off."""
        return self._local(reduce_values(np.mean, self._read(), axis, keepdims))

    def max(self, axis: _Axis = None, keepdims: bool = False) -> NDArray:
        """Maximum over axes, all of them by default."""
        return self._local(reduce_values(np.max, self._read(), axis, keepdims))

    def min(self, axis: _Axis = None, keepdims: bool = False) -> NDArray:
        """Minimum over axes, all of them by default."""
        return self._local(reduce_values(np.min, self._read(), axis, keepdims))

    def norm(self, ord: int = 2, axis: _Axis = None, keepdims: bool = False) -> NDArray:
        """Norm of the elements over axes: L1 or L2.

        Raises:
            ValueError: for any other `ord` than 1 and 2.
        """
        if ord not in (1, 2):
            raise ValueError(f"norm has the orders 1 and 2, but got {ord!r}")

        def norm(values: _Values, **options: Any) -> Any:
            if ord == 1:
                return np.sum(np.abs(values), **options)
            exact = values.astype(np.float64) if values.dtype.kind in "iub" else values
            return np.sqrt(np.sum(np.square(exact), **options))

        return self._local(reduce_values(norm, self._read(), axis, keepdims))
