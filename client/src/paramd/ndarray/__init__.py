"""Arrays: local ones over NumPy, and the base that the live handles of parameters share."""

from paramd.ndarray.base import NDArray
from paramd.ndarray.indexing import Range, View
from paramd.ndarray.local import LocalNDArray, wrap
from paramd.ndarray.operators import StoreMode
from paramd.ndarray.row_sparse import RowSparseNDArray, add_up, distinct, from_dense, row_ids

__all__ = [
    "NDArray",
    # Local values
    "LocalNDArray",
    "RowSparseNDArray",
    "from_dense",
    "add_up",
    "distinct",
    "row_ids",
    "wrap",
    # For subclasses
    "Range",
    "StoreMode",
    "View",
]
