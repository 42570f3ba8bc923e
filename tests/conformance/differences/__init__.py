"""What paramd does differently on purpose: the one list. Everything else must agree.

Each entry has a program that shows the difference; `test_differences.py` runs it on both, and fails
when nothing differs any more, when another step differs first, or when paramd's last step does not
give what the entry says.
"""

from __future__ import annotations

from tests.conformance.differences import (
    dictionary,
    numbers,
    row_sparse,
    settings,
    starting,
    trainer,
    training,
    values,
)
from tests.conformance.differences.entry import OnPurpose, Raises

__all__ = ["DIFFERENCES", "OnPurpose", "Raises"]

DIFFERENCES: tuple[OnPurpose, ...] = (
    *starting.ENTRIES,
    *values.ENTRIES,
    *row_sparse.ENTRIES,
    *dictionary.ENTRIES,
    *trainer.ENTRIES,
    *settings.ENTRIES,
    *training.ENTRIES,
    *numbers.ENTRIES,
)
