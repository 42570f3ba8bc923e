"""The names of MXNet's `gluon` that paramd has, for scripts that come from there."""

from paramd import parameter
from paramd.constant import Constant
from paramd.errors import DeferredInitializationError
from paramd.parameter import Parameter, tensor_types
from paramd.parameter_dict import ParameterDict
from paramd.trainer import Trainer

__all__ = [
    "Constant",
    "DeferredInitializationError",
    "Parameter",
    "ParameterDict",
    "Trainer",
    "parameter",
    "tensor_types",
]
