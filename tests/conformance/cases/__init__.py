"""The fixed table: programs for each line of `lines.py`."""

from __future__ import annotations

from tests.conformance.cases import (
    constant,
    contexts,
    dictionary,
    files,
    handles,
    initialize,
    row_sparse,
    trainer,
    training,
    values,
)
from tests.conformance.cases.case import Case

__all__ = ["CASES", "Case"]

CASES: tuple[Case, ...] = (
    *contexts.CASES,
    *initialize.CASES,
    *handles.CASES,
    *values.CASES,
    *row_sparse.CASES,
    *constant.CASES,
    *dictionary.CASES,
    *files.CASES,
    *trainer.CASES,
    *training.CASES,
)
