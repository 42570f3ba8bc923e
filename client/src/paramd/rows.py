"""Rows of parameters by id: pulling and setting them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from paramd.context import Context, current_context
from paramd.errors import InvalidArgumentError, RowIdError, ShapeMismatchError
from paramd.files import RowSparseRows
from paramd.link import Link, describe, perform
from paramd.ndarray import RowSparseNDArray, distinct
from paramd.session import Session
from paramd.tensor_values import dense_value, ids_of
from paramd.transport.calls import TensorWrite

__all__ = ["pull_rows", "write_rows"]

Ids = np.ndarray[Any, np.dtype[np.int64]]


def pull_rows(
    session: Session, link: Link, row_id: Any, context: Context | None
) -> RowSparseNDArray:
    """Pulls rows.

    Args:
        session: serves the parameter.
        link: its proxy.
        row_id: ids, as in `Parameter.row_sparse_data`.
        context: of the copy; None for the only one, or the one on the current context.

    Raises:
        RowIdError: for ids that are out of range or no whole numbers, before anything is fetched.
    """
    ids = distinct(_checked_ids(session, link, row_id))
    current = current_context()
    head, rows = perform(
        session, [link], lambda calls: calls.pull_rows(link.name, ids, context, current)
    )
    return RowSparseNDArray(RowSparseRows(ids, rows, head.shape), head.context or current)


def write_rows(session: Session, link: Link, row_id: Any, data: Any) -> None:
    """Sets rows, on every copy in one step.

    Args:
        session: serves the parameter.
        link: its proxy, which knows that it is initialized.
        row_id: ids, as in `Parameter.set_row_sparse_data`.
        data: the rows.

    Raises:
        RowIdError: for ids that are out of range or no whole numbers.
        InvalidArgumentError: for ids that repeat.
        ShapeMismatchError: for rows of another shape, or not as many as ids.
    """
    (info,) = describe(session, [link])
    shape = info.current.shape or ()
    ids, rows = ids_of(link.name, row_id, shape[0]), dense_value(link.name, data)
    expected = (len(ids), *shape[1:])
    if rows.shape != expected:
        raise ShapeMismatchError(
            f"parameter '{link.name}' of shape {shape}: {len(ids)} rows have the shape {expected}, "
            f"but got {rows.shape}",
            parameter=link.name,
        )
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if len(repeated):
        raise InvalidArgumentError(
            f"parameter '{link.name}': row {repeated[0]} is set more than once", parameter=link.name
        )
    write = TensorWrite(link.name, RowSparseRows(ids, rows[order], shape), mode="assign_rows")
    perform(session, [link], lambda calls: calls.set_data([write]))


def _checked_ids(session: Session, link: Link, row_id: Any) -> Ids:
    known = link.attachment(session)
    if known is not None and known.info.state == "initialized" and known.info.current.shape:
        with suppress(RowIdError):
            return ids_of(link.name, row_id, known.info.current.shape[0])
    # Not known, or another parameter may have taken the name since.
    (info,) = describe(session, [link])
    shape = info.current.shape if info.state == "initialized" else None
    return ids_of(link.name, row_id, shape[0] if shape else None)
