"""Initial values of the parts of a parameter that a server holds.

The arithmetic is `paramd.initial_values`, which the client shares. Here are the two kinds of part:
a range of elements (a dense parameter, or its share of axis 0) and a choice of rows (row_sparse).
Who reads a parameter in several parts calls `resolve` once, which keeps a matrix that can only be
computed whole (Orthogonal), and tells how much memory computing takes.
"""

from paramd.initial_values import InitialValues, check, check_arguments, is_zero, resolve
from paramd_server.core.initializers.parts import fill_range, fill_rows

__all__ = [
    "InitialValues",
    "check",
    "check_arguments",
    "fill_range",
    "fill_rows",
    "is_zero",
    "resolve",
]
