"""What must hold before a value or a gradient is read, asked in one round trip."""

from __future__ import annotations

from typing import Any

import numpy as np

from paramd.context import Context, current_context
from paramd.errors import (
    ContextWithoutCopyError,
    DeferredInitializationError,
    NoGradientError,
    NotInitializedError,
    WrongStorageTypeError,
)
from paramd.link import Link, describe, session_of, supply
from paramd.session import Session
from paramd.spec import Selector, StoredInfo, TensorHead, shape_is_known

__all__ = [
    "check_gradient",
    "initialized",
    "not_initialized",
    "resolve",
    "rows_readable",
    "seen_in_place",
]


def initialized(
    link: Link, *, call: str, stype: str | None = None, context: Any = None
) -> tuple[Session, StoredInfo]:
    """Makes sure that a parameter has a value, and describes it.

    Where it waits for an initializer that the proxy holds, or for its first access after the shape
    became known, it is finished.

    Args:
        link: its proxy.
        call: the call that reads, for messages.
        stype: the storage type that the call is for; None for any.
        context: the one that was asked for, for messages.

    Raises:
        WrongStorageTypeError: where the storage type is another.
        NotInitializedError, DeferredInitializationError: where there is no value.
    """
    session = session_of([link])
    (info,) = describe(session, [link])
    found = info.current.stype
    if stype is not None and found != stype:
        other = "data()" if stype == "row_sparse" else "row_sparse_data()"
        raise WrongStorageTypeError(
            f"Cannot return a copy of Parameter '{link.name}' on ctx {context} via {call} because "
            f"its storage type is {found}. Please use {other} instead.",
            parameter=link.name,
        )
    if info.state == "deferred":
        if info.awaits_client_value:
            supply(session, [link], [info])
        elif shape_is_known(info.current.shape):
            _finish(session, link, info)
        (info,) = describe(session, [link])
    if info.state != "initialized":
        raise not_initialized(info)
    return session, info


def seen_in_place(link: Link, context: Any) -> tuple[Session, TensorHead] | None:
    """A dense value, where it is seen in shared memory that there is one; None: it is to be asked.

    Args:
        link: the parameter's proxy.
        context: of the copy; None for the only one, or the one on the current context.
    """
    session = session_of([link])
    if link.attachment(session) is None or not isinstance(context, Context | None):
        return None
    head = session.calls.seen_in_place(Selector(link.name, context), current_context())
    return None if head is None else (session, head)


def rows_readable(link: Link, context: Any, *, call: str) -> tuple[Session, Context | None]:
    """Makes sure that rows can be pulled; no round trip where that was seen before.

    What it knows from then may be old, but the server judges: a context that is gone raises there.

    Args:
        link: the proxy.
        context: of the copy; None for the only one, or the one on the current context.
        call: the call that reads, for messages.

    Raises:
        ContextWithoutCopyError: and as `initialized`.
    """
    session = session_of([link])
    known = link.attachment(session)
    if known is not None and known.info.state == "initialized":
        info = known.info
        if info.current.stype == "row_sparse" and (context is None or context in info.contexts):
            return session, context
    session, info = initialized(link, call=call, stype="row_sparse")
    return session, None if context is None else resolve(info, context)


def not_initialized(info: StoredInfo) -> NotInitializedError | DeferredInitializationError:
    """The error for a parameter without a value."""
    name = info.current.name
    if info.state == "declared":
        return NotInitializedError(
            f"Parameter '{name}' has not been initialized: call initialize() first", parameter=name
        )
    why = (
        "its initializer is a client's own, and no client that holds it has computed the value"
        if info.awaits_client_value
        else f"its shape {info.current.shape} is not known"
    )
    return DeferredInitializationError(
        f"Parameter '{name}' has not been initialized yet because initialization was deferred: "
        f"{why}",
        parameter=name,
    )


def resolve(info: StoredInfo, context: Any) -> Context:
    """The context of the copy that is meant.

    Args:
        info: of a parameter with a value.
        context: a context; None for the only copy, or the one on the current context.

    Raises:
        ContextWithoutCopyError: where there is no copy.
        TypeError: where it is no context.
    """
    if context is None:
        if len(info.contexts) == 1:
            return info.contexts[0]
        context = current_context()
    if not isinstance(context, Context):
        raise TypeError(f"expected a context such as cpu(0), but got {context!r}")
    if context in info.contexts:
        return context
    for known in info.contexts:
        # As in MXNet, the kinds of main memory stand for one another.
        same_kind = known.device_typeid & 1 == context.device_typeid & 1
        if same_kind and known.device_id == context.device_id:
            return known
    raise ContextWithoutCopyError(
        f"Parameter '{info.current.name}' was not initialized on context {context}. It was only "
        f"initialized on {list(info.contexts)}.",
        parameter=info.current.name,
    )


def check_gradient(info: StoredInfo) -> None:
    """Checks that there are gradient buffers.

    Raises:
        NoGradientError: where grad_req is 'null'.
    """
    if info.current.grad_req == "null":
        name = info.current.name
        raise NoGradientError(
            f"Cannot get gradient array for Parameter '{name}' because grad_req='null'",
            parameter=name,
        )


def _finish(session: Session, link: Link, info: StoredInfo) -> None:
    """Has the server finish a deferred initialization, by reading nothing of the value."""
    context = info.contexts[0]
    if info.current.stype == "row_sparse":
        session.calls.pull_rows(link.name, np.zeros(0, np.int64), context, context)
        return
    assert info.current.shape is not None
    nothing = tuple((0, 0, 1) for _ in info.current.shape)
    session.calls.get_data([Selector(link.name, context, nothing)], context)
