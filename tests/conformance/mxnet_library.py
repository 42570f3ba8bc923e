"""MXNet 1.9.1 as a `Library`, and the loop that answers the tests from inside its environment.

Run by that environment's interpreter: `python -m tests.conformance.mxnet_library FOLDER`. Each line
of standard input is a request, `{"program": [...], "as_is": false}`, each line of standard output
the outcomes. `{"inspect": true}` asks for the members and signatures instead.

Two things stand between a program and MXNet, unless the request says `as_is`: a deferred parameter
of known shape is finished before it is read, as the forward pass of a network would, and a
row_sparse parameter without a Trainer gets one while its rows are read, because MXNet refuses to
read them otherwise. Both are on the list of differences, with a program that runs as it is.

Programs say `backward_wrote` where they have written a gradient that counts as new.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

import mxnet as mx
import numpy as np

from tests.conformance.interpreter import Interpreter
from tests.conformance.signatures import describe_members

_READS = frozenset(
    ("data", "list_data", "grad", "list_grad", "row_sparse_data", "list_row_sparse_data")
)
_READS_ROWS = frozenset(("row_sparse_data", "list_row_sparse_data"))
_REDUCES = frozenset(("reset_ctx", "save"))
_INSIDES = ("is not efficient", "overriding existing", "unclosed file")


class MXNetLibrary:
    """The oracle.

    Args:
        as_is: call MXNet without the forward pass and without the Trainer.
    """

    array_types: tuple[type, ...] = (mx.nd.NDArray,)
    parameter_types: tuple[type, ...] = (mx.gluon.Parameter,)
    initializer_types: tuple[type, ...] = (mx.init.Initializer,)

    def __init__(self, *, as_is: bool) -> None:
        self._as_is = as_is
        self._trainers: list[Any] = []

    def resolve(self, name: str) -> Any:
        """Gives what MXNet offers under a dotted name."""
        own = {
            "LinearInitializer": LinearInitializer,
            "train": self._train,
            "backward_wrote": _backward_wrote,
            "ClusterTrainer": ClusterTrainer,
        }
        if name in own:
            return own[name]
        owner: Any = mx.gluon if hasattr(mx.gluon, name.split(".")[0]) else mx
        for part in name.split("."):
            owner = getattr(owner, part)
        return owner

    def dense(self, values: np.ndarray[Any, Any], context: Any) -> Any:
        """Makes an NDArray of the values' own dtype."""
        return mx.nd.array(values, ctx=context, dtype=values.dtype)

    def row_sparse(
        self, rows: np.ndarray[Any, Any], ids: np.ndarray[Any, Any], shape: Any, context: Any
    ) -> Any:
        """Makes a RowSparseNDArray of the rows' own dtype."""
        return mx.nd.sparse.row_sparse_array(
            (rows, ids), shape=shape, ctx=context, dtype=rows.dtype
        )

    def call(self, target: Any, member: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Calls a member, after what a network and a Trainer would have done before it."""
        bound = getattr(target, member)
        if self._as_is:
            return bound(*args, **kwargs)
        parameters = self._parameters(target)
        # Those of a program's own Trainer stay with it.
        free = [parameter for parameter in parameters if parameter._trainer is None]
        if member in _READS or member == "save":
            for parameter in parameters:
                _forward(parameter)
        if member in _READS_ROWS:
            return _read_rows(target, lambda: bound(*args, **kwargs))
        if member in _REDUCES:
            for parameter in free:
                _train(parameter)
        try:
            return bound(*args, **kwargs)
        finally:
            for parameter in free:
                parameter._trainer = None

    def settle(self) -> None:
        """Waits for MXNet's engine."""
        mx.nd.waitall()

    def concerns(self, warning: warnings.WarningMessage) -> bool:
        """Drops warnings about MXNet's own slowness, registry of initializers and open files."""
        text = str(warning.message)
        return not any(part in text for part in _INSIDES)

    def _train(self, parameter: Any) -> None:
        self._trainers.append(mx.gluon.Trainer([parameter], "sgd", kvstore="local"))

    @staticmethod
    def _parameters(target: Any) -> list[Any]:
        if isinstance(target, mx.gluon.ParameterDict):
            return [value for value in target.values() if isinstance(value, mx.gluon.Parameter)]
        return [target] if isinstance(target, mx.gluon.Parameter) else []


class LinearInitializer(mx.init.Initializer):  # type: ignore[misc]
    """An initializer that users could have written: 0, 1, 2, ... times a step."""

    def __init__(self, step: float = 1.0) -> None:
        super().__init__(step=step)
        self.step = step

    def _init_weight(self, _: str, array: Any) -> None:
        array[:] = (np.arange(array.size) * self.step).reshape(array.shape)


mx.init.register(LinearInitializer)

_save = mx.nd.save


def _save_what_has_settled(*args: Any, **kwargs: Any) -> None:
    """MXNet's save, once nothing is under way.

    Its own is in a race: of a row_sparse value that its key-value store is still pulling it may
    write the ids with the storage shape of before, a file that MXNet cannot read either.
    """
    mx.nd.waitall()
    _save(*args, **kwargs)


mx.nd.save = _save_what_has_settled


def _forward(parameter: Any) -> None:
    shape = parameter.shape
    if parameter._deferred_init and shape and all(size > 0 for size in shape):
        parameter._finish_deferred_init()


def _train(parameter: Any) -> None:
    if parameter._stype == "row_sparse" and parameter._data:
        mx.gluon.Trainer([parameter], "sgd", kvstore="local")


def _read_rows(parameter: Any, read: Any) -> Any:
    """Reads rows with a Trainer, and gives back what the reading overwrote."""
    if parameter._stype != "row_sparse":
        return read()
    if parameter._trainer is not None:
        result = read()
        return [array.copy() for array in result] if isinstance(result, list) else result.copy()
    if not parameter._data:
        parameter._trainer = object()  # Lets MXNet find out by itself that there is no value.
        try:
            return read()
        finally:
            parameter._trainer = None
    held = [copy.copy() for copy in parameter._data]
    _train(parameter)
    try:
        result = read()
        return [array.copy() for array in result] if isinstance(result, list) else result.copy()
    finally:
        mx.nd.waitall()
        parameter._data = held
        parameter._trainer = None


def _backward_wrote(*parameters: Any, context: Any = None) -> None:
    """Marks gradients as written since the last step, which only MXNet's autograd does."""
    for parameter in parameters:
        _forward(parameter)
        if parameter.grad_req != "null":
            for array in parameter._data or ():
                if context is None or array.context == context:
                    array._fresh_grad = True


class _WithoutServers(mx.kvstore.KVStore):  # type: ignore[misc]
    """A distributed key-value store without servers: local, under another name."""

    @property
    def type(self) -> str:
        return "dist_sync"

    def set_optimizer(self, optimizer: Any) -> None:
        self._set_updater(mx.optimizer.get_updater(optimizer))


class ClusterTrainer:
    """A distributed Trainer with as many workers as its parameters have contexts.

    Its store has no servers: it adds up over contexts, and says that it is distributed.
    """

    def __init__(
        self, parameters: Any, *args: Any, kvstore: str, workers: int = 1, **kwargs: Any
    ) -> None:
        assert kvstore.startswith("dist")
        store = mx.kv.create("local")
        store.__class__ = _WithoutServers
        self._parameters = parameters
        self._trainer = mx.gluon.Trainer(parameters, *args, kvstore=store, **kwargs)
        assert all(len(parameter.list_ctx()) == workers for parameter in parameters)

    def step(self, batch_size: Any, gradients: Any) -> None:
        """A step by the gradients of each worker, by name."""
        for place, of_worker in enumerate(gradients):
            for parameter in self._parameters:
                if parameter.name in of_worker:
                    parameter.list_grad()[place][:] = of_worker[parameter.name]
                    _backward_wrote(parameter)
        self._trainer.step(batch_size)

    def step_by_buffers(self, batch_size: Any) -> None:
        self._trainer.step(batch_size)

    def allreduce_grads(self) -> None:
        self._trainer.allreduce_grads()

    def update(self, batch_size: Any) -> None:
        self._trainer.update(batch_size)


def main() -> None:
    """Answers requests until standard input ends."""
    folder = sys.argv[1]
    # MXNet writes to standard output by itself: keep the answers on a descriptor of their own.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            if request.get("inspect"):
                answer: Any = describe_members(mx.gluon, mx)
            else:
                library = MXNetLibrary(as_is=request["as_is"])
                answer = Interpreter(library, folder).run(request["program"])
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
