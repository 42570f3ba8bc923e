"""The operators of arrays, each named once; what they do is `_binary` and `_update`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from paramd.ndarray.base import NDArray

__all__ = ["Operators", "StoreMode"]

# How a written value meets what is stored: WriteMode of tensor.proto.
StoreMode = Literal["assign", "add", "subtract", "multiply", "divide"]


class Operators(ABC):
    """Operators that fetch and give local arrays, and in-place operators that write.

    `+= -= *= /=` are one atomic update each. `%= //= **=` read, compute and assign, and what is
    written meanwhile is lost.
    """

    # In front of NumPy arrays, so that `numpy_array + x` comes to `x.__radd__`.
    __array_priority__ = 1000.0

    @abstractmethod
    def _binary(self, name: str, other: Any, *, reflected: bool = False) -> NDArray:
        """Computes with another operand, which is on the left if reflected."""

    @abstractmethod
    def _update(self, mode: StoreMode, value: Any) -> Self:
        """Writes in place."""

    def __add__(self, other: Any) -> NDArray:
        return self._binary("add", other)

    def __radd__(self, other: Any) -> NDArray:
        return self._binary("add", other, reflected=True)

    def __sub__(self, other: Any) -> NDArray:
        return self._binary("subtract", other)

    def __rsub__(self, other: Any) -> NDArray:
        return self._binary("subtract", other, reflected=True)

    def __mul__(self, other: Any) -> NDArray:
        return self._binary("multiply", other)

    def __rmul__(self, other: Any) -> NDArray:
        return self._binary("multiply", other, reflected=True)

    def __truediv__(self, other: Any) -> NDArray:
        return self._binary("divide", other)

    def __rtruediv__(self, other: Any) -> NDArray:
        return self._binary("divide", other, reflected=True)

    def __floordiv__(self, other: Any) -> NDArray:
        return self._binary("floor_divide", other)

    def __rfloordiv__(self, other: Any) -> NDArray:
        return self._binary("floor_divide", other, reflected=True)

    def __mod__(self, other: Any) -> NDArray:
        return self._binary("remainder", other)

    def __rmod__(self, other: Any) -> NDArray:
        return self._binary("remainder", other, reflected=True)

    def __pow__(self, other: Any) -> NDArray:
        return self._binary("power", other)

    def __rpow__(self, other: Any) -> NDArray:
        return self._binary("power", other, reflected=True)

    # Comparisons give arrays of 0 and 1, as in MXNet.
    def __eq__(self, other: object) -> NDArray:  # type: ignore[override]
        return self._binary("equal", other)

    def __ne__(self, other: object) -> NDArray:  # type: ignore[override]
        return self._binary("not_equal", other)

    def __lt__(self, other: Any) -> NDArray:
        return self._binary("less", other)

    def __le__(self, other: Any) -> NDArray:
        return self._binary("less_equal", other)

    def __gt__(self, other: Any) -> NDArray:
        return self._binary("greater", other)

    def __ge__(self, other: Any) -> NDArray:
        return self._binary("greater_equal", other)

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __iadd__(self, other: Any) -> Self:
        return self._update("add", other)

    def __isub__(self, other: Any) -> Self:
        return self._update("subtract", other)

    def __imul__(self, other: Any) -> Self:
        return self._update("multiply", other)

    def __itruediv__(self, other: Any) -> Self:
        return self._update("divide", other)

    def __imod__(self, other: Any) -> Self:
        return self._update("assign", self._binary("remainder", other))

    def __ifloordiv__(self, other: Any) -> Self:
        return self._update("assign", self._binary("floor_divide", other))

    def __ipow__(self, other: Any) -> Self:
        return self._update("assign", self._binary("power", other))
