"""`Parameter`: Gluon's parameter as a proxy of one that a server holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar, overload

import numpy as np

from paramd.access import check_gradient, initialized, resolve, rows_readable, seen_in_place
from paramd.context import Context
from paramd.declaration import (
    check_grad_req,
    check_new_shape,
    check_stype,
    contexts_of,
    multiplier_of,
    one_of,
    shape_of,
)
from paramd.errors import DeferredInitializationError, NotInitializedError, ParamdError
from paramd.initializer import Uniform, create
from paramd.initializing import initialize, warn_repeated
from paramd.link import (
    InitializerLike,
    Link,
    attach,
    describe,
    perform,
    session_of,
    set_attribute,
)
from paramd.ndarray import NDArray, RowSparseNDArray
from paramd.ndarray.remote import handle, value_handle
from paramd.ndarray.row_pulls import pull_rows_into
from paramd.rows import pull_rows, write_rows
from paramd.session import Session
from paramd.spec import ParameterSpec, Shape, StoredInfo, check_name
from paramd.symbol import Symbol, var
from paramd.tensor_values import to_write
from paramd.wire.dtypes import dtype_of

__all__ = ["DeferredInitializationError", "Parameter", "tensor_types"]

Out = TypeVar("Out")

tensor_types = (Symbol, NDArray)
"""What MXNet's layers accept as tensors."""


class Parameter:
    """A named tensor that a server holds, with the members of Gluon's Parameter.

    Making one sends nothing. The first call that needs the server creates the parameter there, or
    attaches to the one of that name; the attributes stated here must then agree with those that
    were declared first. From then on attributes that can change are the server's: reading one asks
    it, assigning to one changes it for everybody.

    Args:
        name: its identity on the cluster, 1 to 1024 bytes of UTF-8.
        grad_req: 'write', 'add' or 'null': what a push does to the gradient buffers.
        shape: None if nothing is known; 0 and -1 are unknown dimensions; a number is one dimension.
        dtype: a NumPy dtype or its name, or 'bfloat16'.
        lr_mult: learning rate multiplier.
        wd_mult: weight decay multiplier.
        init: initializer, an object or a name; None for the default of the call that initializes.
        allow_deferred_init: whether `initialize` may come before the shape is known.
        differentiable: False forces grad_req to 'null'.
        stype: storage type of the value: 'default', 'row_sparse' or 'csr'.
        grad_stype: storage type of the gradient.
        session: the session that it belongs to; None for the current one at each use.

    Raises:
        AssertionError: for a grad_req, stype or grad_stype that does not exist.
        TypeError: for a dtype that does not exist.
        ValueError: for a name or a shape that no parameter can have.
    """

    def __init__(
        self,
        name: str = "weight",
        grad_req: str = "write",
        shape: int | Sequence[int] | None = None,
        dtype: Any = np.float32,
        lr_mult: float = 1.0,
        wd_mult: float = 1.0,
        init: InitializerLike | None = None,
        allow_deferred_init: bool = False,
        differentiable: bool = True,
        stype: str = "default",
        grad_stype: str = "default",
        *,
        session: Session | None = None,
    ) -> None:
        spec = ParameterSpec(
            name=check_name(name),
            shape=shape_of(shape),
            dtype=dtype_of(dtype),
            stype=check_stype(name, "stype", stype),
            grad_stype=check_stype(name, "grad_stype", grad_stype),
            grad_req=check_grad_req(grad_req) if differentiable else "null",
            lr_mult=multiplier_of(name, "lr_mult", lr_mult),
            wd_mult=multiplier_of(name, "wd_mult", wd_mult),
            allow_deferred_init=bool(allow_deferred_init),
            differentiable=bool(differentiable),
        )
        check_grad_req(grad_req)
        self._dtype_as_given = np.float32 if dtype is None else dtype
        self._link = Link(spec, init, session=session)
        self._var: Symbol | None = None

    @classmethod
    def _from_info(cls, session: Session, info: StoredInfo) -> Parameter:
        """A proxy of what a session's server holds already."""
        parameter = cls(info.declared.name, session=session)
        parameter._adopt(session, info)
        return parameter

    def _adopt(self, session: Session, info: StoredInfo) -> None:
        self._link = Link(info.declared, None, session=session, stated=frozenset())
        self._link.note(session, info)
        self._dtype_as_given = info.declared.dtype.type

    # Attributes

    @property
    def name(self) -> str:
        """Its identity on the cluster. Assigning makes this the proxy of another parameter."""
        return self._link.name

    @name.setter
    def name(self, name: str) -> None:
        self._link.spec = replace(self._link.spec, name=check_name(name))
        self._link.forget()

    @property
    def shape(self) -> Shape | None:
        """The shape, None if nothing is known. Assigning fills unknown dimensions.

        Raises:
            AssertionError: on assignment, where a rank or a known dimension differs.
        """
        return self._current().shape

    @shape.setter
    def shape(self, shape: int | Sequence[int]) -> None:
        stored = self._current().shape
        new = check_new_shape(self.name, stored, shape)
        self._change("shape", new)

    @property
    def dtype(self) -> Any:
        """The element type, in the spelling in which it was given. Assigning casts."""
        return self._spelled(self._current().dtype)

    @dtype.setter
    def dtype(self, dtype: Any) -> None:
        self.cast(dtype)

    @property
    def grad_req(self) -> str:
        """'write', 'add' or 'null'. Another value gives zeroed gradient buffers, or none.

        Raises:
            AssertionError: on assignment of anything else.
        """
        return self._current().grad_req

    @grad_req.setter
    def grad_req(self, grad_req: str) -> None:
        checked = check_grad_req(grad_req)
        self._change("grad_req", checked)

    @property
    def lr_mult(self) -> float:
        """Learning rate multiplier."""
        return self._current().lr_mult

    @lr_mult.setter
    def lr_mult(self, lr_mult: float) -> None:
        self._change("lr_mult", multiplier_of(self.name, "lr_mult", lr_mult))

    @property
    def wd_mult(self) -> float:
        """Weight decay multiplier."""
        return self._current().wd_mult

    @wd_mult.setter
    def wd_mult(self, wd_mult: float) -> None:
        self._change("wd_mult", multiplier_of(self.name, "wd_mult", wd_mult))

    @property
    def init(self) -> InitializerLike | None:
        """The declared initializer; None also where only another client holds it."""
        spec = self._current().init
        if not self._link.was_attached:
            return self._link.init
        own = self._link.own_init(spec)
        if own is not None or spec is None or spec.client_side:
            return own
        return create(spec)

    @init.setter
    def init(self, init: InitializerLike | None) -> None:
        self._change("init", init)

    @property
    def stype(self) -> str:
        """Storage type of the value, which never changes."""
        return self._link.known_spec().stype

    @property
    def grad_stype(self) -> str:
        """Storage type of the gradient, which never changes."""
        return self._link.known_spec().grad_stype

    def __repr__(self) -> str:
        try:
            spec = self._current()
        except ParamdError:
            spec = self._link.spec  # A repr is for looking into things, broken ones too.
        return self._show(spec)

    def _show(self, spec: ParameterSpec) -> str:
        dtype = self._spelled(spec.dtype)
        return f"{type(self).__name__} {self.name} (shape={spec.shape}, dtype={dtype})"

    # Values

    def initialize(
        self,
        init: InitializerLike | None = None,
        ctx: Context | Sequence[Context] | None = None,
        default_init: InitializerLike = Uniform(),  # noqa: B008  # never changed, and in the signature
        force_reinit: bool = False,
        *,
        device: Context | Sequence[Context] | None = None,
    ) -> None:
        """Gives it its first value, the same on each context, unless it has one.

        Of several workers that initialize, the first wins; the others adopt its value. A second
        call for the same proxy warns. With an unknown shape it is deferred, where that is allowed.

        Args:
            init: initializer, before the declared one.
            ctx: the context or contexts that get a copy; None for the current context.
            default_init: for a parameter without a declared initializer.
            force_reinit: replaces a value that is there.
            device: MXNet 2's name of `ctx`.

        Raises:
            ValueError: where the shape is unknown and may not be deferred, or the initializer
                cannot fill it.
            AssertionError: for an initializer that does not exist.
        """
        contexts = contexts_of(one_of("initialize", ctx, device))
        repeated = initialize([self._link], init, contexts, default_init, force_reinit=force_reinit)
        warn_repeated(repeated, stacklevel=3)

    def data(self, ctx: Context | None = None, *, device: Context | None = None) -> NDArray:
        """The value on one context, as a live handle.

        Args:
            ctx: which; None for the only copy, or of several the one on the current context.
            device: MXNet 2's name of `ctx`.

        Raises:
            RuntimeError: where it is not initialized, not on that context, or row_sparse.
            DeferredInitializationError: where its shape or value is not known yet.
        """
        context = one_of("data", ctx, device)
        seen = seen_in_place(self._link, context)
        if seen is not None:
            return value_handle(*seen)
        session, info = initialized(self._link, call="data()", stype="default", context=context)
        return handle(session, info, resolve(info, context))

    def list_data(self) -> list[NDArray]:
        """The values on all contexts, in order of creation, as live handles.

        Raises:
            RuntimeError, DeferredInitializationError: as `data`.
        """
        session, info = initialized(self._link, call="list_data()", stype="default")
        return [handle(session, info, context) for context in info.contexts]

    def grad(self, ctx: Context | None = None, *, device: Context | None = None) -> NDArray:
        """The gradient buffer on one context, as a live handle.

        Args:
            ctx: which; None for the only one, or of several the one on the current context.
            device: MXNet 2's name of `ctx`.

        Raises:
            RuntimeError: where it is not initialized, not on that context, or grad_req is 'null'.
            DeferredInitializationError: where its shape or value is not known yet.
        """
        context = one_of("grad", ctx, device)
        session, info = initialized(self._link, call="grad()")
        check_gradient(info)
        return handle(session, info, resolve(info, context), gradient=True)

    def list_grad(self) -> list[NDArray]:
        """The gradient buffers on all contexts, in order of creation, as live handles.

        Raises:
            RuntimeError, DeferredInitializationError: as `grad`.
        """
        session, info = initialized(self._link, call="list_grad()")
        check_gradient(info)
        return [handle(session, info, context, gradient=True) for context in info.contexts]

    @overload
    def row_sparse_data(self, row_id: Any) -> RowSparseNDArray: ...

    @overload
    def row_sparse_data(self, row_id: Any, *, out: Out) -> Out: ...

    def row_sparse_data(self, row_id: Any, *, out: Any = None) -> Any:
        """Some rows of a row_sparse parameter, as the caller's own value.

        Args:
            row_id: n ids of rows, an array or a list: any order, repeated or not, any number of
                dimensions. An NDArray's context says which copy is read; with others it is the
                only one, or of several the one on the current context.
            out: an array of shape (n, *shape[1:]) and the parameter's dtype, to receive into: one
                row for each id, in their order. MXNet has no such argument. It is best contiguous,
                and the ids sorted and each once: the rows are then received in place. Of a call
                that fails, the contents are undefined.

        Returns:
            The rows asked for, each once, sorted; the full logical shape. With `out`, that.

        Raises:
            IndexError: for ids out of range, or no whole numbers; nothing is fetched then.
            RuntimeError, DeferredInitializationError: as `data`; also where it is not row_sparse.
            ShapeMismatchError, DTypeMismatchError, InvalidArgumentError: where `out` does not fit,
                or cannot be written to.
        """
        wanted = row_id.context if isinstance(row_id, NDArray) else None
        session, context = rows_readable(self._link, wanted, call="row_sparse_data()")
        if out is not None:
            return pull_rows_into(session, self._link, row_id, context, out)
        return pull_rows(session, self._link, row_id, context)

    def list_row_sparse_data(self, row_id: Any) -> list[RowSparseNDArray]:
        """Some rows of a row_sparse parameter, from each of its contexts in order of creation.

        Args:
            row_id: as in `row_sparse_data`; its context does not matter.

        Raises:
            IndexError, RuntimeError, DeferredInitializationError: as `row_sparse_data`.
        """
        session, info = initialized(self._link, call="list_row_sparse_data()", stype="row_sparse")
        return [pull_rows(session, self._link, row_id, context) for context in info.contexts]

    def set_row_sparse_data(self, row_id: Any, data: Any) -> None:
        """Sets some rows on all contexts and leaves the others. MXNet has no such call.

        Args:
            row_id: ids of rows, as in `row_sparse_data`, but each once.
            data: their values, shape (number of ids, *shape[1:]), cast to the parameter's dtype.

        Raises:
            IndexError: for ids out of range, or no whole numbers.
            ValueError: for ids that repeat.
            AssertionError: where the shape of `data` differs.
            RuntimeError, DeferredInitializationError: where it has no value.
        """
        session, _ = initialized(self._link, call="set_row_sparse_data()")
        write_rows(session, self._link, row_id, data)

    def set_data(self, data: Any) -> None:
        """Sets the value on all contexts, cast to the parameter's dtype; leaves gradients alone.

        A deferred parameter gets its shape and its value.

        Args:
            data: an array of any library on any device, an NDArray of any storage type, or nested
                lists.

        Raises:
            AssertionError: where the shape differs, or it was never initialized.
        """
        session = session_of([self._link])
        attach(session, [self._link])
        write = to_write(self.name, data, dense=self._link.known_spec().stype != "row_sparse")
        perform(session, [self._link], lambda calls: calls.set_data([write]))
        self._link.note_value(session)

    def zero_grad(self) -> None:
        """Clears the gradient buffers of all contexts; without any it does nothing."""
        session = session_of([self._link])
        perform(session, [self._link], lambda calls: calls.zero_grad([self.name]))

    def reset_ctx(self, ctx: Context | Sequence[Context] | None) -> None:
        """Moves it to other contexts: each new copy is the mean over the old ones.

        Gradients are zeroed. Of a deferred parameter only the contexts change.

        Args:
            ctx: the new context or contexts; None for the current context.

        Raises:
            ValueError: where it was never initialized, or the server lacks a context.
        """
        contexts = contexts_of(ctx)
        session = session_of([self._link])
        perform(session, [self._link], lambda calls: calls.reset_ctx([self.name], contexts))

    def reset_device(self, device: Context | Sequence[Context] | None) -> None:
        """MXNet 2's name of `reset_ctx`."""
        self.reset_ctx(device)

    def list_ctx(self) -> list[Context]:
        """The contexts of the copies, in order of creation; those to come if it is deferred.

        Raises:
            RuntimeError: where it was never initialized.
        """
        (info,) = describe(session_of([self._link]), [self._link])
        if info.state == "declared":
            raise NotInitializedError(
                f"Parameter '{self.name}' has not been initialized", parameter=self.name
            )
        return list(info.contexts)

    def list_device(self) -> list[Context]:
        """MXNet 2's name of `list_ctx`."""
        return self.list_ctx()

    def cast(self, dtype: Any) -> None:
        """Casts values and gradients to another dtype; of a deferred parameter those to come.

        Args:
            dtype: a NumPy dtype or its name, or 'bfloat16'.

        Raises:
            TypeError: where no parameter can have it.
        """
        new = dtype_of(dtype)
        session = self._link.attached_session()
        if session is None:
            self._link.change("dtype", new)
        else:
            perform(session, [self._link], lambda calls: calls.cast([self.name], new))
        self._dtype_as_given = new.type if dtype is None else dtype

    def var(self) -> Symbol:
        """A symbol of its name, shape, dtype, multipliers and initializer, as they are at first."""
        if self._var is None:
            spec = self._current()
            self._var = var(
                self.name,
                shape=spec.shape,
                dtype=spec.dtype,
                lr_mult=spec.lr_mult,
                wd_mult=spec.wd_mult,
                init=self.init,
                stype=spec.stype,
            )
        return self._var

    def _current(self) -> ParameterSpec:
        session = self._link.attached_session()
        return self._link.spec if session is None else describe(session, [self._link])[0].current

    def _change(self, attribute: str, value: Any) -> None:
        session = self._link.attached_session()
        if session is None:
            self._link.change(attribute, value)
        else:
            set_attribute(session, [self._link], attribute, value)

    def _spelled(self, dtype: np.dtype[np.generic]) -> Any:
        """A dtype as the user wrote it, where it is the same."""
        return self._dtype_as_given if dtype_of(self._dtype_as_given) == dtype else dtype.type

    # Pickling: name, declaration, and the session where it has one of its own.

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in vars(self).items() if key not in ("_link", "_var")}
        link = self._link
        state["_declaration"] = (link.spec, link.init, link.session, link.stated)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        spec, init, session, stated = state.pop("_declaration")
        vars(self).update(state)
        self._link = Link(spec, init, session=session, stated=stated)
        self._var = None
