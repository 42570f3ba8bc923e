"""`ParameterDict`: parameters by name, and calls about all of them in one round trip."""

from __future__ import annotations

import copy
import os
from collections.abc import (
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    ValuesView,
)
from typing import Any

from paramd import bulk
from paramd.attributes import merge_attributes, set_everywhere
from paramd.constant import Constant
from paramd.context import Context
from paramd.declaration import contexts_of, one_of
from paramd.initializer import Initializer, Uniform, create
from paramd.initializing import initialize, warn_repeated
from paramd.link import InitializerLike, Link, perform, session_of
from paramd.parameter import Parameter
from paramd.parameter_files import LoadRules, load_file, load_values, save_file
from paramd.session import Session
from paramd.spec import StoredInfo

__all__ = ["ParameterDict"]


class ParameterDict:
    """Parameters by name, in order of insertion, with the members of Gluon's ParameterDict.

    Calls about all of them are one round trip, and change all of them or none.

    Args:
        prefix: put in front of the name of each parameter that `get` finds or makes.
        shared: where `get` looks before it makes a new one.
        session: the session of the parameters that `get` makes; None for the current one at each
            use.
    """

    def __init__(
        self,
        prefix: str = "",
        shared: ParameterDict | None = None,
        *,
        session: Session | None = None,
    ) -> None:
        self._prefix = prefix
        self._shared = shared
        self._session = session
        self._params: dict[str, Parameter] = {}

    @classmethod
    def _from_infos(
        cls, session: Session, prefix: str, infos: Iterable[StoredInfo]
    ) -> ParameterDict:
        """What a session's server holds under a prefix."""
        found = cls(prefix, session=session)
        for info in infos:
            kind = Constant if info.declared.constant else Parameter
            found._params[info.declared.name] = kind._from_info(session, info)
        return found

    # The mapping.

    @property
    def prefix(self) -> str:
        """Put in front of the name of each parameter that `get` finds or makes."""
        return self._prefix

    def __getitem__(self, key: str) -> Parameter:
        return self._params[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)

    def __contains__(self, key: object) -> bool:
        return key in self._params

    def keys(self) -> KeysView[str]:
        """The names, prefixes included."""
        return self._params.keys()

    def values(self) -> ValuesView[Parameter]:
        """The parameters."""
        return self._params.values()

    def items(self) -> ItemsView[str, Parameter]:
        """The names, prefixes included, with the parameters."""
        return self._params.items()

    def __repr__(self) -> str:
        lines = "\n".join(f"  {line}" for line in bulk.show(list(self.values())))
        name = f"{self._prefix} " if self._prefix else ""
        return f"{name}(\n{lines}\n)"

    def get(self, name: str, **kwargs: Any) -> Parameter:
        """Finds a parameter here or in `shared`, or makes one.

        Args:
            name: without the prefix.
            kwargs: arguments of `Parameter`. Those of a parameter that is found must agree:
                shapes are merged, with 0 and -1 as wildcards; None agrees with everything.

        Raises:
            AssertionError: where one does not agree.
            TypeError: for an argument that Parameter does not have.
        """
        full = self._prefix + name
        found = self._find(full)
        if found is not None:
            merge_attributes(found, kwargs)
            return found
        kwargs.setdefault("session", self._session)
        parameter = Parameter(full, **kwargs)
        parameter._link.stated = frozenset(
            key for key, value in kwargs.items() if value is not None and key != "session"
        )
        self._params[full] = parameter
        return parameter

    def get_constant(self, name: str, value: Any = None) -> Parameter:
        """Finds a constant here or in `shared`, or makes one.

        Args:
            name: without the prefix.
            value: as in `Constant`; None takes what is there.

        Raises:
            KeyError: where there is none, and no value is given.
            AssertionError: where it has another value, or is no constant.
        """
        full = self._prefix + name
        found = self._find(full)
        if found is None:
            if value is None:
                raise KeyError(
                    f"No constant named '{full}'. Please specify value if you want to create a "
                    "new constant."
                )
            found = self._params[full] = Constant(full, value, session=self._session)
        elif value is not None:
            if not isinstance(found, Constant):
                raise AssertionError(f"Parameter '{full}' already exists but it is not a constant.")
            if not found._equals(value):
                raise AssertionError(
                    f"Constant '{full}' already exists, of shape {found.shape}, but its value "
                    "does not match the new one"
                )
        return found

    def update(self, other: ParameterDict | Mapping[str, Parameter]) -> None:
        """Takes over the parameters of another dict, the very same objects.

        Raises:
            AssertionError: where another object has one of the names; nothing changes then.
        """
        for name, parameter in other.items():
            if self._params.get(name, parameter) is not parameter:
                raise AssertionError(
                    "Cannot update self with other because they have different Parameters with "
                    f"the same name '{name}'"
                )
        self._params.update(other.items())

    def _find(self, full: str) -> Parameter | None:
        found = self._params.get(full)
        if found is None and self._shared is not None:
            found = self._shared._params.get(full)
            if found is not None:
                self._params[full] = found
        return found

    @property
    def _links(self) -> list[Link]:
        return [parameter._link for parameter in self.values()]

    # All of them at once.

    def initialize(
        self,
        init: InitializerLike = Uniform(),  # noqa: B008  # never changed, and in the signature
        ctx: Context | Sequence[Context] | None = None,
        verbose: bool = False,
        force_reinit: bool = False,
        *,
        device: Context | Sequence[Context] | None = None,
    ) -> None:
        """Gives all of them their first values: see `Parameter.initialize`.

        Args:
            init: for those without a declared initializer.
            ctx: the context or contexts that get copies; None for the current context.
            verbose: logs each parameter that is initialized.
            force_reinit: replaces values that are there.
            device: MXNet 2's name of `ctx`.

        Raises:
            ValueError, AssertionError: as `Parameter.initialize`; none is initialized then.
        """
        contexts = contexts_of(one_of("initialize", ctx, device))
        default = create(init)
        if verbose and isinstance(default, Initializer):
            # A copy: the argument's default is one object for all calls.
            default = copy.copy(default).set_verbosity(True, default._print_func)
        repeated = initialize(self._links, None, contexts, default, force_reinit=force_reinit)
        warn_repeated(repeated, stacklevel=3)

    def zero_grad(self) -> None:
        """Clears all gradient buffers."""
        names = list(self.keys())
        self._perform(lambda calls: calls.zero_grad(names))

    def reset_ctx(self, ctx: Context | Sequence[Context] | None) -> None:
        """Moves all of them to other contexts: see `Parameter.reset_ctx`.

        Args:
            ctx: the new context or contexts; None for the current context.

        Raises:
            ValueError: where one was never initialized; none is moved then.
        """
        contexts = contexts_of(ctx)
        names = list(self.keys())
        self._perform(lambda calls: calls.reset_ctx(names, contexts))

    def reset_device(self, device: Context | Sequence[Context] | None) -> None:
        """MXNet 2's name of `reset_ctx`."""
        self.reset_ctx(device)

    def list_ctx(self) -> list[Context]:
        """All contexts on which one of them is, each once.

        Raises:
            RuntimeError: where one was never initialized.
        """
        return bulk.contexts(self._links)

    def list_device(self) -> list[Context]:
        """MXNet 2's name of `list_ctx`."""
        return self.list_ctx()

    def setattr(self, name: str, value: Any) -> None:
        """Sets an attribute of all of them, such as 'grad_req' or 'lr_mult'.

        Raises:
            AssertionError: where the value does not fit one of them; none is changed then.
        """
        set_everywhere(list(self.values()), name, value)

    def pull(
        self,
        out: Mapping[str, Any] | None = None,
        ctx: Context | None = None,
        *,
        device: Context | None = None,
    ) -> dict[str, Any]:
        """Fetches values, all of one moment, in one stream.

        Args:
            out: arrays by name to fetch into, of the parameters' shapes and dtypes: of NumPy, or
                of PyTorch or CuPy on any device; only these are fetched then. Of a call that
                fails, their contents are undefined.
            ctx: which copies; None for the only ones, or those on the current context.
            device: MXNet 2's name of `ctx`.

        Returns:
            The arrays by name; those of `out` themselves.

        Raises:
            KeyError: for a name that is not here.
            RuntimeError, DeferredInitializationError: as `Parameter.data`.
        """
        return bulk.pull(self._params, out, one_of("pull", ctx, device))

    def push(
        self,
        grads: Mapping[str, Any],
        ctx: Context | None = None,
        *,
        device: Context | None = None,
    ) -> None:
        """Puts gradients into the buffers, all in one step and one stream.

        grad_req 'write' overwrites what is there, 'add' accumulates.

        Args:
            grads: by name an array of any library on any device, an NDArray, or a pair (ids,
                rows), in which rows of one id add up.
            ctx: which buffers; None for the only ones, or those on the current context.
            device: MXNet 2's name of `ctx`.

        Raises:
            KeyError: for a name that is not here.
            AssertionError: for a gradient of another shape or kind of dtype.
            RuntimeError, DeferredInitializationError: as `Parameter.grad`.
        """
        bulk.push(self._params, grads, one_of("push", ctx, device))

    def set_data(self, values: Mapping[str, Any]) -> None:
        """Sets values on all their contexts, all in one step and one stream.

        Args:
            values: by name what `Parameter.set_data` takes.

        Raises:
            KeyError: for a name that is not here.
            AssertionError: as `Parameter.set_data`; none is changed then.
        """
        bulk.set_data(self._params, values)

    # Files.

    def save(self, filename: str | os.PathLike[str], strip_prefix: str = "") -> None:
        """Writes all of them to a file, atomically: of each the mean over its copies.

        Args:
            filename: the suffix selects the format: .params, .safetensors or .npz. A file on the
                caller's side; after 'server:' one below the server's snapshot directory.
            strip_prefix: taken away from the front of each name.

        Raises:
            ValueError: where a name does not start with `strip_prefix`, or the format is unknown.
            RuntimeError, DeferredInitializationError: where one has no value.
            FileFailedError: where writing fails; the file is then as it was. It is an OSError.
        """
        save_file(self._links, filename, strip_prefix)

    def load(
        self,
        filename: str | os.PathLike[str],
        ctx: Context | Sequence[Context] | None = None,
        allow_missing: bool = False,
        ignore_extra: bool = False,
        restore_prefix: str = "",
        cast_dtype: bool = False,
        dtype_source: str = "current",
        *,
        device: Context | Sequence[Context] | None = None,
    ) -> None:
        """Loads all of them from a file, or none. Names lose a leading 'arg:' or 'aux:'.

        Args:
            filename: as in `save`.
            ctx: where uninitialized ones go, `cpu(0)` by default; for others where they are.
            allow_missing: leaves parameters that the file lacks as they are.
            ignore_extra: passes over what is in the file only.
            restore_prefix: put in front of each name of the file.
            cast_dtype: allows other dtypes than the parameters'.
            dtype_source: which dtype counts then, the parameter's ('current') or the file's
                ('saved').
            device: MXNet 2's name of `ctx`.

        Raises:
            AssertionError: where names, shapes, dtypes or contexts do not fit.
            FileFormatError: where the file is malformed.
            FileFailedError: where it cannot be read. It is an OSError.
        """
        rules = LoadRules(
            _load_contexts(one_of("load", ctx, device)),
            allow_missing,
            ignore_extra,
            restore_prefix,
            cast_dtype,
            dtype_source,
        )
        load_file(self._links, filename, rules)

    def load_dict(
        self,
        param_dict: Mapping[str, Any] | Iterable[tuple[str, Any]],
        ctx: Context | Sequence[Context] | None = None,
        allow_missing: bool = False,
        ignore_extra: bool = False,
        restore_prefix: str = "",
        filename: str | os.PathLike[str] | None = None,
        cast_dtype: bool = False,
        dtype_source: str = "current",
        *,
        device: Context | Sequence[Context] | None = None,
    ) -> None:
        """Loads all of them from arrays, or none.

        Args:
            param_dict: arrays by name, which lose a leading 'arg:' or 'aux:'; or (name, array)
                pairs, whose names are taken as they are.
            ctx: as in `load`.
            allow_missing: as in `load`.
            ignore_extra: as in `load`.
            restore_prefix: as in `load`.
            filename: where they come from, for messages.
            cast_dtype: as in `load`.
            dtype_source: as in `load`.
            device: MXNet 2's name of `ctx`.

        Raises:
            AssertionError: as in `load`.
        """
        rules = LoadRules(
            _load_contexts(one_of("load_dict", ctx, device)),
            allow_missing,
            ignore_extra,
            restore_prefix,
            cast_dtype,
            dtype_source,
        )
        source = None if filename is None else os.fspath(filename)
        load_values(self._links, param_dict, source, rules)

    def _perform(self, call: bulk.Call) -> None:
        links = self._links
        if links:
            perform(session_of(links), links, call)


def _load_contexts(value: Any) -> tuple[Context, ...]:
    return () if value is None else contexts_of(value)
