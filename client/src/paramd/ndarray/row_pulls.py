"""Rows that are received into the caller's own array, one for each id asked for."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from paramd.context import Context, current_context
from paramd.errors import RowIdError
from paramd.link import Link, perform
from paramd.ndarray.row_sparse import distinct
from paramd.out_arrays import OutArrays
from paramd.rows import pull_rows
from paramd.session import Session
from paramd.tensor_values import ids_of
from paramd.transport.receiving import OutArray

__all__ = ["pull_rows_into"]

Out = TypeVar("Out")


def pull_rows_into(
    session: Session, link: Link, row_id: Any, context: Context | None, out: Out
) -> Out:
    """Pulls rows into an array, in the order of their ids; a row that is asked for twice, twice.

    Sorted ids, each once, are received in place; others by way of new memory.

    Args:
        session: serves the parameter.
        link: its proxy.
        row_id: n ids, as in `Parameter.row_sparse_data`.
        context: of the copy; None for the only one, or the one on the current context.
        out: an array of any library, of shape (n, *shape[1:]) and the parameter's dtype. Of a call
            that fails, the contents are undefined.

    Returns:
        `out`.

    Raises:
        RowIdError: for ids that are out of range or no whole numbers.
        ShapeMismatchError, DTypeMismatchError: where `out` does not fit.
        InvalidArgumentError: where it is no array, or cannot be written to.
    """
    name = link.name
    arrays = OutArrays({name: out})
    host = arrays.hosts[name]
    ids = _known_ids(session, link, row_id)
    if ids is not None and distinct(ids) is ids:
        sent, current = ids, current_context()
        perform(
            session,
            [link],
            lambda calls: calls.pull_rows(name, sent, context, current, out=host),
        )
    else:
        wanted = row_id if ids is None else distinct(ids)
        found = pull_rows(session, link, wanted, context).rows
        ids = ids_of(name, row_id, found.shape[0]) if ids is None else ids
        target = OutArray(name, host)
        target.open((len(ids), *found.shape[1:]), found.rows.dtype)
        # mode='clip' spares a second check of every place and a buffer.
        places = np.searchsorted(found.ids, ids)
        np.take(found.rows, places, axis=0, out=target.target, mode="clip")
        target.complete()
    arrays.deliver({name: host})
    return out


def _known_ids(session: Session, link: Link, row_id: Any) -> npt.NDArray[np.int64] | None:
    """The ids, where they are right for what the parameter was when it was seen last.

    Where not, it may be another one by now, and a pull has to ask.
    """
    known = link.attachment(session)
    if known is None or known.info.state != "initialized" or not known.info.current.shape:
        return None
    with suppress(RowIdError):
        return ids_of(link.name, row_id, known.info.current.shape[0])
    return None
