"""The model that is trained end to end: an embedding table and two dense layers.

Eight ids a sample, of a table of 200,000 rows of 32 float32, which is row_sparse; 256 to 64 with
relu, 64 to 1, the mean of the binary cross-entropy of its sigmoid; sgd; batches of 1024 whose ids
are Zipf-distributed, so that few rows are in every batch and most in none. Two workers,
`dist_async`.

NumPy and the standard library only: MXNet's program uses it in its own environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

__all__ = [
    "BATCH",
    "CASE",
    "FIELDS",
    "HIDDEN",
    "LEARNING_RATE",
    "SHAPES",
    "TABLE_ROWS",
    "WIDTH",
    "WORKERS",
    "DistinctIds",
    "batches",
    "gradients",
    "loss",
    "steps",
]

Array = np.ndarray[Any, np.dtype[Any]]
Ids = np.ndarray[Any, np.dtype[np.int64]]
Places = np.ndarray[Any, np.dtype[np.uint16]]

WORKERS: Final = 2
CASE: Final = f"embedding model, {WORKERS} workers"
TABLE_ROWS: Final = 200_000
WIDTH: Final = 32
FIELDS: Final = 8
HIDDEN: Final = 64
BATCH: Final = 1024
LEARNING_RATE: Final = 0.05
SHAPES: Final[Mapping[str, tuple[int, ...]]] = {
    "hidden_weight": (HIDDEN, FIELDS * WIDTH),
    "hidden_bias": (HIDDEN,),
    "output_weight": (1, HIDDEN),
    "output_bias": (1,),
}
"""Of the dense parameters."""

_BATCHES: Final = 20
_ZIPF: Final = 1.2


def steps(*, quick: bool) -> tuple[int, int]:
    """How many steps are not counted, and how many are."""
    return (2, 10) if quick else (20, 400)


def batches(worker: int) -> list[tuple[Ids, Array]]:
    """The batches that a worker repeats: ids of the shape (BATCH, FIELDS), and labels."""
    random = np.random.RandomState(worker)
    found = []
    for _ in range(_BATCHES):
        ids = (random.zipf(_ZIPF, size=(BATCH, FIELDS)) % TABLE_ROWS).astype(np.int64)
        found.append((ids, (ids.sum(1) % 2).astype(np.float32)))
    return found


class DistinctIds:
    """Finds the distinct ids of a batch and adds up what belongs to one, without a sort of ids.

    Args:
        num_rows: ids are below.
    """

    def __init__(self, num_rows: int) -> None:
        self._present = np.zeros(num_rows, bool)
        # A batch has fewer distinct ids than 2**16, whose stable sort is a radix sort.
        self._place = np.zeros(num_rows, np.uint16)

    def find(self, ids: Ids) -> tuple[Ids, Places]:
        """The distinct ids, sorted, and for each id, in the shape of `ids`, its place there."""
        self._present[ids] = True
        distinct = np.flatnonzero(self._present)
        self._present[distinct] = False
        self._place[distinct] = np.arange(len(distinct), dtype=np.uint16)
        return distinct, self._place[ids]

    def add_up(self, places: Places, rows: Array) -> Array:
        """Sums of rows of one place.

        Args:
            places: (n,), each of 0 to m - 1 at least once.
            rows: (n, width), float32, width even.

        Returns:
            (m, width).
        """
        order = np.argsort(places, kind="stable")
        counts = np.bincount(places)
        sums: Array = np.take(rows, order[np.cumsum(counts) - counts], axis=0)
        repeated = counts > 1
        if repeated.any():
            terms = np.take(rows, order[np.repeat(repeated, counts)], axis=0)
            counts = counts[repeated]
            # As complex numbers, two columns are added up at a time.
            pairs = np.add.reduceat(terms.view(np.complex64), np.cumsum(counts) - counts, axis=0)
            sums[repeated] = pairs.view(np.float32)
        return sums


def _forward(embedded: Array, dense: Mapping[str, Array]) -> tuple[Array, Array]:
    hidden = embedded @ dense["hidden_weight"].T
    hidden += dense["hidden_bias"]
    np.maximum(hidden, 0, out=hidden)
    logits = (hidden @ dense["output_weight"].T + dense["output_bias"])[:, 0]
    return hidden, logits


def loss(embedded: Array, labels: Array, dense: Mapping[str, Array]) -> float:
    """The mean loss of a batch.

    Args:
        embedded: (batch, FIELDS * WIDTH), the rows of its ids.
        labels: (batch,), 0 or 1.
        dense: the other parameters by name.
    """
    _, logits = _forward(embedded, dense)
    return float(np.mean(np.logaddexp(0, logits) - labels * logits))


def gradients(
    embedded: Array, labels: Array, dense: Mapping[str, Array]
) -> tuple[Array, dict[str, Array]]:
    """The gradients of `loss`, whose arguments it has.

    Returns:
        That of `embedded`, of its shape, and those of the dense parameters by name.
    """
    hidden, logits = _forward(embedded, dense)
    of_logits = ((1 / (1 + np.exp(-logits)) - labels) / len(labels))[:, None]
    of_hidden = of_logits * dense["output_weight"]
    of_hidden *= hidden > 0
    return of_hidden @ dense["hidden_weight"], {
        "hidden_weight": of_hidden.T @ embedded,
        "hidden_bias": of_hidden.sum(0),
        "output_weight": of_logits.T @ hidden,
        "output_bias": of_logits.sum(0),
    }
