"""Initializers that choose by name: a pattern's, or a value from a file."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paramd.errors import InitializerError, ParameterMissingError, ShapeMismatchError
from paramd.files import RowSparseRows, load_arrays
from paramd.initializer.base import (
    AnyInitializer,
    Chooser,
    Fillable,
    InvalidInitializerError,
    as_numpy,
)
from paramd.initializer.registry import create

__all__ = ["Load", "Mixed"]

_LOGGER = logging.getLogger(__name__)


class Mixed(Chooser):
    """The initializer whose pattern matches the name, the first of several.

    Args:
        patterns: regular expressions, which match at the start of the name.
        initializers: as many initializers, or names of them.

    Raises:
        InvalidInitializerError: where they are not as many.
    """

    def __init__(
        self, patterns: Sequence[str], initializers: Sequence[AnyInitializer | str]
    ) -> None:
        if len(patterns) != len(initializers):
            raise InvalidInitializerError(
                f"{len(patterns)} patterns cannot go with {len(initializers)} initializers"
            )
        compiled = [re.compile(pattern) for pattern in patterns]
        self.map = [*zip(compiled, map(create, initializers), strict=True)]

    def choose(self, name: str) -> AnyInitializer:
        """The initializer for a name.

        Raises:
            InitializerError: where no pattern matches. It is a ValueError, as in MXNet.
        """
        for pattern, initializer in self.map:
            if pattern.match(name):
                return initializer
        raise InitializerError(
            f"parameter name {name!r} did not match any pattern of "
            f"{[pattern.pattern for pattern, _ in self.map]}: add '.*' as the last one",
            parameter=name,
        )

    def __call__(self, name: str, arr: Fillable) -> None:
        """Initializes a local array with the initializer for its name.

        Args:
            name: an `InitDesc`.
            arr: what to fill.

        Raises:
            InitializerError: where no pattern matches.
        """
        self.choose(name)(name, arr)

    def __repr__(self) -> str:
        patterns = [pattern.pattern for pattern, _ in self.map]
        return f"Mixed({patterns!r}, {[initializer for _, initializer in self.map]!r})"


class Load(Chooser):
    """Values from a file or a dict, by name; another initializer for all other names.

    Args:
        param: path of a file that `save` wrote, or name to array. The prefixes 'arg:' and 'aux:'
            of names are dropped.
        default_init: the other initializer, or its name.
        verbose: whether to log where each value came from.

    Raises:
        InvalidInitializerError: where `param` is neither.
        FileFormatError: for a malformed file.
    """

    def __init__(
        self,
        param: str | Mapping[str, Any],
        default_init: AnyInitializer | str | None = None,
        verbose: bool = False,
    ) -> None:
        values = load_arrays(param) if isinstance(param, str) else param
        if not isinstance(values, Mapping):
            raise InvalidInitializerError(
                f"expected a path, or a dict of names and arrays, but got {type(param).__name__}"
            )
        self.param = {
            name[4:] if name.startswith(("arg:", "aux:")) else name: value
            for name, value in values.items()
        }
        self.default_init = None if default_init is None else create(default_init)
        self.verbose = verbose

    def choose(self, name: str) -> AnyInitializer:
        """Itself where it has a value of that name, else the default.

        Raises:
            ParameterMissingError: where there is neither. It is an AssertionError, as in MXNet.
        """
        if name in self.param:
            return self
        if self.default_init is None:
            raise ParameterMissingError(
                f"cannot initialize {name!r}: the loaded values do not have it, and there is no "
                "default_init",
                parameter=name,
            )
        return self.default_init

    def value(self, name: str, shape: Sequence[int]) -> np.ndarray[Any, np.dtype[Any]]:
        """The loaded value of a name.

        Raises:
            ShapeMismatchError: where its shape is another. It is an AssertionError, as in MXNet.
        """
        stored = self.param[name]
        value = stored.todense() if isinstance(stored, RowSparseRows) else as_numpy(stored)
        if value.shape != tuple(shape):
            raise ShapeMismatchError(
                f"parameter {name!r} cannot be initialized by loading: its shape is "
                f"{tuple(shape)}, but the loaded value's is {value.shape}",
                parameter=name,
            )
        return value

    def __call__(self, name: str, arr: Fillable) -> None:
        """Initializes a local array.

        Args:
            name: an `InitDesc`.
            arr: what to fill.

        Raises:
            ParameterMissingError: as `choose`.
            ShapeMismatchError: as `value`.
        """
        chosen = self.choose(name)
        if chosen is self:
            arr[:] = self.value(name, arr.shape)
        else:
            chosen(name, arr)
        if self.verbose:
            how = "loading" if chosen is self else "default"
            _LOGGER.info("Initialized %s by %s", name, how)

    def __repr__(self) -> str:
        return f"Load({len(self.param)} values, default_init={self.default_init!r})"
