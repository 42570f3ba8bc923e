"""Pulling rows of row_sparse parameters by id."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from paramd.context import Context, current_context
from paramd.errors import RowIdError
from paramd.files import RowSparseRows
from paramd.link import Link, describe, perform
from paramd.ndarray import RowSparseNDArray
from paramd.session import Session
from paramd.tensor_values import ids_of

__all__ = ["pull_rows"]

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
    ids = _unique(_checked_ids(session, link, row_id))
    current = current_context()
    head, rows = perform(
        session, [link], lambda calls: calls.pull_rows(link.name, ids, context, current)
    )
    return RowSparseNDArray(RowSparseRows(ids, rows, head.shape), head.context or current)


def _unique(ids: Ids) -> Ids:
    if bool(np.all(ids[1:] > ids[:-1])):
        return ids
    found: Ids = np.unique(ids)
    return found


def _checked_ids(session: Session, link: Link, row_id: Any) -> Ids:
    known = link.attachment(session)
    if known is not None and known.info.state == "initialized" and known.info.current.shape:
        with suppress(RowIdError):
            return ids_of(link.name, row_id, known.info.current.shape[0])
    # Not known, or another parameter may have taken the name since.
    (info,) = describe(session, [link])
    shape = info.current.shape if info.state == "initialized" else None
    return ids_of(link.name, row_id, shape[0] if shape else None)
