"""Initializers, with the names, arguments and defaults of MXNet 1.9.1.

They are declarations: a parameter's server computes the values from a spec (`to_spec`). Called on a
local array, or built on by a class of the user's own, they compute here, with the same arithmetic
(`paramd.initial_values`).
"""

from paramd.initializer.base import (
    AnyInitializer,
    Fillable,
    InitDesc,
    Initializer,
    InvalidInitializerError,
)
from paramd.initializer.builtin import (
    Bilinear,
    Constant,
    LSTMBias,
    MSRAPrelu,
    Normal,
    One,
    Orthogonal,
    Uniform,
    Xavier,
    Zero,
    from_spec,
)
from paramd.initializer.choosing import Load, Mixed
from paramd.initializer.parameters import compute, to_spec
from paramd.initializer.registry import alias, create, register

__all__ = [
    # Initializers
    "Initializer",
    "Zero",
    "One",
    "Constant",
    "Uniform",
    "Normal",
    "Orthogonal",
    "Xavier",
    "MSRAPrelu",
    "Bilinear",
    "LSTMBias",
    "Mixed",
    "Load",
    "InitDesc",
    # By name
    "register",
    "alias",
    "create",
    "InvalidInitializerError",
    # For parameters
    "AnyInitializer",
    "Fillable",
    "compute",
    "from_spec",
    "to_spec",
]
