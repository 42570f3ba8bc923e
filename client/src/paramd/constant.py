"""`Constant`: a parameter that keeps the value that it was given."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from paramd.initializer import Fillable, Initializer
from paramd.link import Link
from paramd.ndarray import NDArray, wrap
from paramd.ndarray.creation import array
from paramd.parameter import Parameter
from paramd.session import Session
from paramd.spec import ParameterSpec, StoredInfo, check_name
from paramd.wire.dtypes import dtype_of

__all__ = ["Constant"]


class Constant(Parameter):
    """A parameter without gradient that a trainer does not change; `set_data` does.

    Args:
        name: its identity on the cluster.
        value: its first value: an NDArray, whose dtype it gets, or anything that `nd.array` takes,
            which makes it float32.
        session: the session that it belongs to; None for the current one at each use.

    Raises:
        TypeError: where the value is no array of numbers.
    """

    def __init__(self, name: str, value: Any, *, session: Session | None = None) -> None:
        given = value if isinstance(value, NDArray) else array(value)
        self._value: NDArray | None = given
        spec = ParameterSpec(
            name=check_name(name),
            shape=tuple(given.shape),
            dtype=dtype_of(given.dtype),
            grad_req="null",
            constant=True,
        )
        self._dtype_as_given = spec.dtype.type
        self._link = Link(spec, _GivenValue(given), session=session)
        self._var = None

    @classmethod
    def _from_info(cls, session: Session, info: StoredInfo) -> Constant:
        """A proxy of a constant that a session's server holds already."""
        constant = cls.__new__(cls)
        constant._value = None
        constant._var = None
        constant._adopt(session, info)
        return constant

    @property
    def value(self) -> NDArray:
        """The value that it was given; of a constant that another client made, a copy of what is.

        Raises:
            RuntimeError: where it is another client's and not initialized.
        """
        if self._value is None:
            fetched = self.data()
            self._value = wrap(fetched.asnumpy(), fetched.context)
        return self._value

    @property
    def grad_req(self) -> str:
        """Always 'null'. Assigning anything else warns and does nothing."""
        return "null"

    @grad_req.setter
    def grad_req(self, grad_req: str) -> None:
        if grad_req != "null":
            warnings.warn(
                f'Constant parameter "{self.name}" does not support grad_req other than "null", '
                f'and new value "{grad_req}" is ignored.',
                stacklevel=2,
            )

    def _equals(self, value: Any) -> bool:
        """Whether it was given this value, in shape and in every element."""
        wanted = value if isinstance(value, NDArray) else array(value)
        return bool(np.array_equal(self.value.asnumpy(), wanted.asnumpy()))


class _GivenValue(Initializer):
    """Initializes with a constant's value, as it is at that moment."""

    def __init__(self, value: NDArray) -> None:
        super().__init__()
        self._value = value

    def _init_weight(self, name: str, arr: Fillable) -> None:
        arr[:] = self._value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _GivenValue):
            return NotImplemented
        return bool(np.array_equal(self._value.asnumpy(), other._value.asnumpy()))

    __hash__ = None  # as that of all initializers
