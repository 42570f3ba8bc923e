"""Calls about many parameters in one round trip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from paramd.access import not_initialized
from paramd.context import Context, current_context
from paramd.errors import ParamdError, ParameterNotFoundError, WrongStorageTypeError
from paramd.files import RowSparseRows
from paramd.link import Link, attach, describe, perform, session_of
from paramd.out_arrays import OutArrays
from paramd.parameter import Parameter
from paramd.session import Session
from paramd.spec import Selector, Shape, StoredInfo
from paramd.tensor_values import gradient_value, to_write
from paramd.transport.calls import TensorWrite
from paramd.transport.protocols import SessionCalls

__all__ = ["Call", "contexts", "pull", "push", "set_data", "show"]

Array = np.ndarray[Any, np.dtype[Any]]
Call = Callable[[SessionCalls], Any]


def show(parameters: Sequence[Parameter]) -> list[str]:
    """The reprs of parameters, with one round trip for those that the session knows."""
    attached = []
    try:
        attached = [each for each in parameters if each._link.attached_session() is not None]
        infos = _describe([each._link for each in attached])
    except (ParamdError, ValueError):
        # A repr is for looking into things, broken ones too: one by one they show what they can.
        return [repr(each) for each in parameters]
    now = {id(each): info.current for each, info in zip(attached, infos, strict=True)}
    return [each._show(now.get(id(each), each._link.spec)) for each in parameters]


def contexts(links: Sequence[Link]) -> list[Context]:
    """All contexts on which one of them is or will be, each once, in order of creation.

    Raises:
        NotInitializedError: where one was never initialized.
    """
    found: dict[Context, None] = {}
    for info in _describe(links):
        if info.state == "declared":
            raise not_initialized(info)
        found.update(dict.fromkeys(info.contexts))
    return list(found)


def pull(
    parameters: Mapping[str, Parameter],
    out: Mapping[str, Any] | None,
    context: Context | None,
) -> dict[str, Any]:
    """Fetches values: see `ParameterDict.pull`."""
    names = list(parameters if out is None else out)
    links = _links(parameters, names)
    if not names:
        return {}
    session = session_of(links)
    selectors = [Selector(name, context) for name in names]
    into = None if out is None else OutArrays(out)
    arrays = None if into is None else [into.hosts[name] for name in names]
    current = current_context()
    received = perform(
        session, links, lambda calls: calls.get_values(selectors, current, out=arrays)
    )
    values: dict[str, Array] = {}
    for name, value in zip(names, received, strict=True):
        if isinstance(value, RowSparseRows):
            raise WrongStorageTypeError(
                f"parameter '{name}' is row_sparse: fetch its rows with row_sparse_data()",
                parameter=name,
            )
        values[name] = value
    return values if into is None else into.deliver(values)


def push(
    parameters: Mapping[str, Parameter], grads: Mapping[str, Any], context: Context | None
) -> None:
    """Puts gradients into the buffers: see `ParameterDict.push`."""
    links = _links(parameters, grads)
    if not links:
        return
    session = session_of(links)
    shapes = _table_shapes(session, [each for each in links if isinstance(grads[each.name], tuple)])
    writes = [
        TensorWrite(
            name,
            gradient_value(name, grads[name], shapes.get(name, ())),
            context=context,
            mode="by_grad_req",
        )
        for name in [link.name for link in links]
    ]
    current = current_context()
    perform(session, links, lambda calls: calls.set_grad(writes, current))


def set_data(parameters: Mapping[str, Parameter], values: Mapping[str, Any]) -> None:
    """Sets values: see `ParameterDict.set_data`."""
    links = _links(parameters, values)
    if not links:
        return
    session = session_of(links)
    attach(session, links)
    writes = [
        to_write(link.name, values[link.name], dense=link.known_spec().stype != "row_sparse")
        for link in links
    ]
    perform(session, links, lambda calls: calls.set_data(writes))
    for link in links:
        link.note_value(session)


def _describe(links: Sequence[Link]) -> list[StoredInfo]:
    return describe(session_of(links), links) if links else []


def _links(parameters: Mapping[str, Parameter], names: Iterable[str]) -> list[Link]:
    links = []
    for name in names:
        parameter = parameters.get(name)
        if parameter is None:
            raise ParameterNotFoundError(
                f"no parameter '{name}' is in this ParameterDict, which has "
                f"{', '.join(map(repr, list(parameters)[:10])) or 'none'}",
                parameter=name,
            )
        links.append(parameter._link)
    return links


def _table_shapes(session: Session, tables: Sequence[Link]) -> dict[str, Shape]:
    """The shapes of parameters that rows are pushed to; asked for once, since they stay.

    Raises:
        NotInitializedError: where one has no value.
    """
    attach(session, tables)
    infos = [_known_info(session, each) for each in tables]
    unknown = [
        link for link, info in zip(tables, infos, strict=True) if info.state != "initialized"
    ]
    if unknown:
        for info in describe(session, unknown):
            if info.state != "initialized":
                raise not_initialized(info)
        infos = [_known_info(session, each) for each in tables]
    return {info.current.name: info.current.shape or () for info in infos}


def _known_info(session: Session, link: Link) -> StoredInfo:
    known = link.attachment(session)
    assert known is not None, "it has been attached"
    return known.info
