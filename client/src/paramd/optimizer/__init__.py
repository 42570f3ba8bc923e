"""Optimizers, declared as data. The server has the arithmetic.

Names, arguments and defaults are those of `mxnet.optimizer` 1.9.1; AdamW, which it lacks, is its
paper's.
"""

from paramd.optimizer.base import Hyperparameter, Optimizer
from paramd.optimizer.builtin import (
    DCASGD,
    LAMB,
    NAG,
    SGD,
    AdaDelta,
    AdaGrad,
    Adam,
    AdamW,
    Ftrl,
    RMSProp,
    Signum,
)
from paramd.optimizer.registry import NAMES, create, from_arguments, register

__all__ = [
    "DCASGD",
    "LAMB",
    "NAG",
    "NAMES",
    "SGD",
    "AdaDelta",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Ftrl",
    "Hyperparameter",
    "Optimizer",
    "RMSProp",
    "Signum",
    "create",
    "from_arguments",
    "register",
]
