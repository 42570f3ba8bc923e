"""paramd: Gluon's parameters as remote objects of a parameter server.

`connect` gives a session; `Parameter`, `Constant` and `ParameterDict` are proxies of what its
server holds; `data()` and `grad()` of them are live arrays.
"""

# isort: off
# gRPC reads its environment when it is first imported: nothing that imports it may come before.
from paramd.transport import fork_support as _fork_support  # noqa: F401

# isort: on
from paramd import errors, gluon, initializer, lr_scheduler, nd, optimizer, random
from paramd import initializer as init
from paramd.constant import Constant
from paramd.context import (
    Context,
    Device,
    cpu,
    cpu_pinned,
    current_context,
    current_device,
    gpu,
)
from paramd.errors import DeferredInitializationError, MXNetError, ParamdError
from paramd.ndarray import NDArray, RowSparseNDArray
from paramd.parameter import Parameter, tensor_types
from paramd.parameter_dict import ParameterDict
from paramd.session import Session, connect, current_session
from paramd.trainer import Trainer
from paramd.transport.credentials import TLS

__all__ = [
    # Sessions
    "connect",
    "current_session",
    "Session",
    "TLS",
    # Parameters
    "Parameter",
    "Constant",
    "ParameterDict",
    "tensor_types",
    # Training
    "Trainer",
    "optimizer",
    "lr_scheduler",
    # Arrays
    "NDArray",
    "RowSparseNDArray",
    "nd",
    # Contexts
    "Context",
    "Device",
    "cpu",
    "gpu",
    "cpu_pinned",
    "current_context",
    "current_device",
    "num_gpus",
    # First values
    "init",
    "initializer",
    "random",
    # MXNet's names
    "gluon",
    # Errors
    "errors",
    "ParamdError",
    "MXNetError",
    "DeferredInitializationError",
    # Version
    "__version__",
]

__version__ = "0.1.0"


def num_gpus() -> int:
    """The number of GPU contexts that the current session's server has.

    Raises:
        NoSessionError: where no session is the current one.
    """
    return current_session().num_gpus()
