"""The symbol that stands for a parameter in MXNet's graphs: what `Parameter.var()` returns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np

from paramd.wire.dtypes import dtype_of

__all__ = ["Symbol", "var"]

# Type flags and storage types as MXNet numbers them in its files and graphs.
_TYPE_FLAGS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "float32": 0,
        "float64": 1,
        "float16": 2,
        "uint8": 3,
        "int32": 4,
        "int8": 5,
        "int64": 6,
        "bool": 7,
        "bfloat16": 12,
    }
)
_STORAGE_TYPES: Final[Mapping[str, int]] = MappingProxyType(
    {"default": 0, "row_sparse": 1, "csr": 2}
)
_MULTIPLIERS: Final = ("__lr_mult__", "__wd_mult__")
# MXNet 1.9.1, as its graphs write it.
_FORMAT_VERSION: Final = 10901


@runtime_checkable
class _Dumps(Protocol):
    def dumps(self) -> str: ...


class Symbol:
    """A variable of a graph, with the attributes of a parameter. It computes nothing.

    Args:
        name: of the parameter.
        shape: 0 and -1 are unknown dimensions; None if nothing is known.
        dtype: element type.
        lr_mult: learning rate multiplier.
        wd_mult: weight decay multiplier.
        init: an initializer, or its name or `dumps()`.
        stype: 'default', 'row_sparse' or 'csr'.

    Raises:
        TypeError: where the name is no string, `init` no initializer, or `dtype` none that a
            parameter can have.
        ValueError: for an unknown storage type.
    """

    def __init__(
        self,
        name: str,
        *,
        shape: tuple[int, ...] | None = None,
        dtype: Any = None,
        lr_mult: float | None = None,
        wd_mult: float | None = None,
        init: Any = None,
        stype: str | None = None,
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(f"expect a string for variable `name`, but got {name!r}")
        if stype is not None and stype not in _STORAGE_TYPES:
            raise ValueError(f"stype is one of {', '.join(_STORAGE_TYPES)}, but got {stype!r}")
        if init is not None and not isinstance(init, (str, _Dumps)):
            raise TypeError(f"init is an initializer or its name, but got {init!r}")
        self._name = name
        self._shape = None if shape is None else tuple(int(size) for size in shape)
        self._dtype = None if dtype is None else dtype_of(dtype)
        self._lr_mult = lr_mult
        self._wd_mult = wd_mult
        self._init = init
        self._stype = stype

    @property
    def name(self) -> str:
        """Name of the parameter."""
        return self._name

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the parameter, None if nothing is known."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """Element type."""
        return self._dtype

    @property
    def lr_mult(self) -> float | None:
        """Learning rate multiplier."""
        return self._lr_mult

    @property
    def wd_mult(self) -> float | None:
        """Weight decay multiplier."""
        return self._wd_mult

    @property
    def init(self) -> Any:
        """The initializer, as it was given."""
        return self._init

    @property
    def stype(self) -> str | None:
        """Storage type."""
        return self._stype

    def list_attr(self) -> dict[str, str]:
        """The attributes as text. The multipliers come under two names, as in MXNet."""
        stored = self._stored()
        short = {key.strip("_"): stored[key] for key in _MULTIPLIERS if key in stored}
        return {**stored, **short}

    def attr(self, key: str) -> str | None:
        """One of the attributes, such as '__shape__', as text; None if there is none."""
        return self.list_attr().get(key)

    def attr_dict(self) -> dict[str, dict[str, str]]:
        """The attributes by the name of the variable; empty where there are none."""
        attributes = self.list_attr()
        return {self._name: attributes} if attributes else {}

    def list_arguments(self) -> list[str]:
        """The name."""
        return [self._name]

    def list_inputs(self) -> list[str]:
        """The name."""
        return [self._name]

    def list_outputs(self) -> list[str]:
        """The name."""
        return [self._name]

    def list_auxiliary_states(self) -> list[str]:
        """Nothing."""
        return []

    def tojson(self) -> str:
        """The graph of this one variable, as `mxnet.sym.load_json` reads it."""
        node: dict[str, Any] = {"op": "null", "name": self._name}
        stored = self._stored()
        if stored:
            node["attrs"] = dict(sorted(stored.items()))
        node["inputs"] = []
        graph = {
            "nodes": [node],
            "arg_nodes": [0],
            "node_row_ptr": [0, 1],
            "heads": [[0, 0, 0]],
            "attrs": {"mxnet_version": ["int", _FORMAT_VERSION]},
        }
        # MXNet's reader knows only some escapes, and takes UTF-8 as it is.
        return json.dumps(graph, indent=2, ensure_ascii=False)

    def __repr__(self) -> str:
        return f"<Symbol {self._name}>"

    def _stored(self) -> dict[str, str]:
        init = self._init.dumps() if isinstance(self._init, _Dumps) else self._init
        flag = None if self._dtype is None else _TYPE_FLAGS[self._dtype.name]
        storage = None if self._stype is None else _STORAGE_TYPES[self._stype]
        values = {
            "__shape__": self._shape,
            "__lr_mult__": self._lr_mult,
            "__wd_mult__": self._wd_mult,
            "__dtype__": flag,
            "__init__": init,
            "__storage_type__": storage,
        }
        return {key: str(value) for key, value in values.items() if value is not None}


def var(
    name: str,
    *,
    shape: tuple[int, ...] | None = None,
    dtype: Any = None,
    lr_mult: float | None = None,
    wd_mult: float | None = None,
    init: Any = None,
    stype: str | None = None,
) -> Symbol:
    """A variable: see `Symbol`."""
    return Symbol(
        name,
        shape=shape,
        dtype=dtype,
        lr_mult=lr_mult,
        wd_mult=wd_mult,
        init=init,
        stype=stype,
    )
