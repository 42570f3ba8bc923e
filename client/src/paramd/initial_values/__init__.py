"""The arithmetic of initializers: a spec, a name, a shape and a seed in, values out.

It is in the client's package, because both sides compute with it: the server for the parameters
that it holds, the client for initializers of the user's own class that build on ours.

Random values come from NumPy's Philox, a counter-based generator (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011). The key is a hash of (seed, draw, name); each block of
`BLOCK` elements has a counter range of its own. So the value of an element depends on nothing but
seed, draw, name and the element's index, and any part of a tensor can be computed alone. NumPy
promises one stream for one of its versions only: the shards of a cluster need the same one.
"""

from paramd.initial_values.parts import values_of_part
from paramd.initial_values.specs import (
    ARGUMENTS,
    check,
    check_arguments,
    fill,
    is_zero,
    resolve,
)
from paramd.initial_values.values import BLOCK, InitialValues

__all__ = [
    "ARGUMENTS",
    "BLOCK",
    "InitialValues",
    "check",
    "check_arguments",
    "fill",
    "is_zero",
    "resolve",
    "values_of_part",
]
