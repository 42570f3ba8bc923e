"""PyTorch modules whose parameters a server holds.

remote = paramd.torch.attach(model, "sgd", {"learning_rate": 0.1}, prefix="net_")
for x, y in batches:
    remote.pull_rows({"embedding": x})  # only where the model has sparse embeddings
    loss_fn(model(x), y).backward()
    remote.step(len(x))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final, NoReturn

import numpy as np
import torch
from torch.autograd.graph import increment_version

from paramd.adoption import Array, Leaf, adopt, check_reading, without_axes
from paramd.dlpack import host_array
from paramd.errors import InvalidArgumentError, NotInitializedError
from paramd.initializer import Normal
from paramd.link import InitializerLike
from paramd.ndarray.arithmetic import as_values
from paramd.optimizer import Optimizer
from paramd.parameter import Parameter
from paramd.parameter_dict import ParameterDict
from paramd.session import Session, current_session
from paramd.trainer import Trainer
from paramd.wire.dtypes import BFLOAT16

__all__ = ["Embedding", "RemoteModule", "attach"]

_TABLES: Final = (torch.nn.Embedding, torch.nn.EmbeddingBag)


class Embedding(torch.nn.Module):  # type: ignore[misc]
    """Looks up rows of a table that is on the server alone, however large it is.

    `forward` pulls the rows that the ids name, and the backward pass gives a gradient for those
    rows only, which `RemoteModule.step` pushes. The module has no local weight, so its state_dict
    has none either; `RemoteModule.parameters` saves the table under the name `weight`, as
    torch.nn.Embedding would. For bags, sum or average the result over the axis of a bag.

    Args:
        num_embeddings: rows of the table.
        embedding_dim: elements of a row.
        init: how the server fills the table; None for the standard normal distribution, as in
            torch.nn.Embedding.
        dtype: of the table.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        init: InitializerLike | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.init: InitializerLike = Normal(1.0) if init is None else init
        self.dtype = dtype
        self._parameter: Parameter | None = None
        self._gradients: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows of some ids.

        Args:
            ids: whole numbers, of any shape.

        Returns:
            Tensor of shape (*ids.shape, embedding_dim), on the device of `ids`.

        Raises:
            NotInitializedError: before `attach`.
            RowIdError: for ids out of range. It is an IndexError.
        """
        if self._parameter is None:
            raise NotInitializedError(
                f"{self} has no table yet: attach() the module that contains it"
            )
        unique, places = torch.unique(ids, return_inverse=True)
        pulled = self._parameter.row_sparse_data(unique)
        rows = _tensor(pulled.data.asnumpy()).to(ids.device)
        if torch.is_grad_enabled():
            # Held by the graph alone: rows that are looked up and never used for a gradient,
            # in an evaluation, are gone with it.
            rows.requires_grad_()
            rows.register_hook(partial(self._collect, unique))
        return torch.nn.functional.embedding(places, rows)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.num_embeddings}, {self.embedding_dim}, on the server"

    def _collect(self, ids: torch.Tensor, gradient: torch.Tensor) -> None:
        self._gradients.append((ids, gradient.detach()))

    def _gradient(self) -> tuple[Array, Array] | None:
        """What the backward passes have given since the last step."""
        if not self._gradients:
            return None
        ids, rows = zip(*self._gradients, strict=True)
        return _array(torch.cat(ids)), _array(torch.cat(rows))

    def _declare(self, params: ParameterDict, name: str) -> None:
        parameter = params.get(
            name,
            shape=(self.num_embeddings, self.embedding_dim),
            dtype=_array(torch.empty(0, dtype=self.dtype)).dtype,
            stype="row_sparse",
            grad_stype="row_sparse",
            init=self.init,
        )
        parameter.initialize()
        self._parameter, self._gradients = parameter, []


class RemoteModule:
    """A module, and the parameters that a server holds for it. `attach` makes it.

    Attributes:
        module: the module.
        parameters: what the server holds, by prefix and name of the state_dict.
        trainer: steps those that require a gradient; None where none was asked for.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        parameters: ParameterDict,
        trainer: Trainer | None,
        trained: Iterable[str],
    ) -> None:
        self.module = module
        self.parameters = parameters
        self.trainer = trainer
        self._trained = frozenset(trained)

    def __repr__(self) -> str:
        return (
            f"<paramd.torch.RemoteModule {type(self.module).__name__} of "
            f"{len(self.parameters)} parameters, {self.trainer or 'which it only reads'}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a RemoteModule belongs to its process and is neither copied nor pickled: copy its "
            "module, and attach() that where it is used"
        )

    def pull(self) -> None:
        """Brings the server's dense values into the module's tensors, all of one moment.

        The tensors stay the same objects. Between a forward pass and its backward pass PyTorch
        reports it as any other change in place. Of a call that fails, the values are undefined
        until the next one.
        """
        self._receive(self._tensors(), self.parameters.pull)

    def pull_rows(self, ids: Mapping[str, Any]) -> None:
        """Brings rows of sparse embeddings into the module's tensors; the other rows stay stale.

        Args:
            ids: by name of the embedding in the module, such as 'encoder.words', ids in any
                shape, repeated or not; None for all rows.

        Raises:
            KeyError: for a name that is no sparse embedding of the module.
            RowIdError: for ids out of range. It is an IndexError.
        """
        tables = self._tensors(stype="row_sparse")
        wanted = {name: self._full_name(name, tables) for name in ids}
        for name, full in wanted.items():
            table = tables[full].detach()
            places = np.arange(len(table)) if ids[name] is None else as_values(ids[name])
            rows = self.parameters[full].row_sparse_data(places)
            device = table.device
            where = torch.from_numpy(rows.indices.asnumpy()).to(device)
            table.index_copy_(0, where, _tensor(rows.data.asnumpy()).to(device))

    def step(
        self,
        batch_size: float,
        *,
        pull: bool = True,
        ignore_stale_grad: bool = True,
        learning_rate: float | None = None,
    ) -> None:
        """Pushes the gradients, clears them, and brings the new dense values in the same call.

        Where it fails the gradients are still there.

        Args:
            batch_size: the gradients, summed over the workers, are divided by it: the size of the
                joint batch for a loss that is a sum, the number of workers for one that is a mean.
            pull: whether the new values of trained dense parameters are brought.
            ignore_stale_grad: whether parameters without a gradient are passed over, as in
                torch.optim; else that is an error.
            learning_rate: of this step alone. In a synchronous round all workers give the same.

        Raises:
            InvalidArgumentError: where the module was attached without an optimizer.
            What stands at `paramd.Trainer.step`.
        """
        trainer = self.trainer
        if trainer is None:
            raise InvalidArgumentError(
                "step() needs an optimizer: attach() got none, so this module only reads"
            )
        tensors = self._tensors(stype=None)
        grads = self._gradients(tensors)
        call = partial(
            trainer.step,
            batch_size,
            ignore_stale_grad,
            grads=grads,
            learning_rate=learning_rate,
        )
        if pull:
            dense = self._tensors()
            trained = {name: dense[name] for name in dense if name in self._trained}
            self._receive(trained, lambda out: call(pull=list(out), out=out))
        else:
            call()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Clears the gradients of the module, those of `Embedding`s included."""
        self.module.zero_grad(set_to_none=True)
        for _, table in _lookups(self.module):
            table._gradients.clear()

    def pull_buffers(self) -> None:
        """Brings the buffers (such as BatchNorm's running statistics) that `push_buffers` set.

        Raises:
            InvalidArgumentError: where the module was attached without `buffers=True`.
        """
        self._receive(self._buffers(), self.parameters.pull)

    def push_buffers(self) -> None:
        """Makes this worker's buffers the server's. One of the workers does so.

        Raises:
            InvalidArgumentError: where the module was attached without `buffers=True`.
        """
        buffers = self._buffers()
        self.parameters.set_data({name: _array(each) for name, each in buffers.items()})

    def _tensors(self, *, stype: str | None = "default") -> dict[str, torch.Tensor]:
        """The module's parameters, as it has them now, by their names on the server.

        Args:
            stype: of those that are wanted; None for all.

        Raises:
            InvalidArgumentError: where the module has others than when it was attached.
        """
        found = {}
        for name, tensor in self.module.named_parameters():
            full = self.parameters.prefix + name
            if full not in self.parameters:
                raise InvalidArgumentError(
                    f"the module has a parameter '{name}' that it had not when it was attached: "
                    "attach() it again",
                    parameter=full,
                )
            if stype is None or self.parameters[full].stype == stype:
                found[full] = tensor
        return found

    def _buffers(self) -> dict[str, torch.Tensor]:
        named = {
            self.parameters.prefix + name: tensor
            for name, tensor in _persistent_buffers(self.module).items()
        }
        missing = [name for name in named if name not in self.parameters]
        if missing:
            raise InvalidArgumentError(
                f"buffer '{missing[0]}' is this worker's own: attach(..., buffers=True) gives "
                "buffers to the server",
                parameter=missing[0],
            )
        return named

    def _full_name(self, name: str, tables: Mapping[str, torch.Tensor]) -> str:
        full = self.parameters.prefix + (f"{name}.weight" if name else "weight")
        if full not in tables:
            prefix = self.parameters.prefix
            known = [each.removeprefix(prefix).removesuffix(".weight") for each in tables]
            raise KeyError(
                f"{name!r} is no sparse embedding of the module, which has "
                f"{', '.join(map(repr, known)) or 'none'}"
            )
        return full

    def _gradients(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        grads: dict[str, Any] = {}
        for name, tensor in tensors.items():
            if tensor.grad is None:
                continue
            if name not in self._trained:
                raise InvalidArgumentError(
                    f"'{name}' has a gradient, but it required none when the module was attached: "
                    "freeze it, or delete the trainer and attach() again",
                    parameter=name,
                )
            grads[name] = _gradient(tensor.grad, self.parameters[name].stype)
        for name, table in _lookups(self.module):
            collected = table._gradient()
            if collected is not None:
                grads[self.parameters.prefix + name] = collected
        return grads

    def _receive(self, tensors: Mapping[str, torch.Tensor], pull: Any) -> None:
        """Receives into tensors: into their own memory where that is the CPU's."""
        for tensor in tensors.values():
            increment_version(tensor)
        # A number has the shape (1,) on the server.
        pull(out={name: each.detach().view(each.shape or (1,)) for name, each in tensors.items()})


def attach(
    module: torch.nn.Module,
    optimizer: str | Optimizer | None = None,
    optimizer_params: Mapping[str, Any] | None = None,
    *,
    prefix: str = "",
    kvstore: str = "dist_sync",
    buffers: bool = False,
    session: Session | None = None,
    **trainer_options: Any,
) -> RemoteModule:
    """Gives a module's parameters to the server, and trains them there.

    Every worker attaches its module. The values of the first become the server's; the modules of
    the others take them over. Parameters are called `prefix` + their name in the state_dict; one
    that has several names (tied weights) goes by the first. A number without axes is one of shape
    (1,). Those with requires_grad=False get no gradient. `Embedding(sparse=True)` and
    `EmbeddingBag(sparse=True)` are row_sparse: of these `pull_rows` brings what a batch needs.
    Buffers stay with each worker.

    Args:
        module: the module, on any device. It is not changed but for its values.
        optimizer: name or Optimizer, which runs on the server; None for a module that only reads.
        optimizer_params: arguments for it, where a name is given.
        prefix: in front of each name.
        kvstore: as in `paramd.Trainer`.
        buffers: whether the server gets the state_dict's buffers too, for `push_buffers` and
            `pull_buffers`.
        session: None for the current one.
        trainer_options: further arguments of `paramd.Trainer`, such as `staleness`, `num_workers`.

    Raises:
        TypeError: for a dtype that no parameter has, or an unknown option.
        ValueError: for a parameter without elements or storage, an embedding with max_norm, an
            option that does not exist; also a module without anything to train.
        AssertionError: where a parameter of that name is another one: shape, dtype, storage type.
        RuntimeError: TrainerMismatchError where others train it with other settings.
    """
    check_reading(optimizer, {"optimizer_params": optimizer_params, **trainer_options})
    session = current_session() if session is None else session
    leaves = _leaves(module, buffers=buffers)
    params = adopt(session, prefix, leaves, trains=optimizer is not None)
    tables = _lookups(module)
    for name, table in tables:
        table._declare(params, name)
    trainer, trained = None, []
    if optimizer is not None:
        names = [name for name, leaf in leaves.items() if leaf.trained]
        trained = [params[prefix + name] for name in [*names, *(name for name, _ in tables)]]
        trainer = Trainer(
            trained, optimizer, optimizer_params, kvstore, session=session, **trainer_options
        )
    remote = RemoteModule(module, params, trainer, [each.name for each in trained])
    remote.pull()
    if buffers:
        remote.pull_buffers()
    return remote


def _leaves(module: torch.nn.Module, *, buffers: bool) -> dict[str, Leaf]:
    sparse = _sparse_weights(module)
    leaves = {}
    for name, tensor in module.named_parameters():
        stype = "row_sparse" if id(tensor) in sparse else "default"
        leaves[name] = Leaf(_value(name, tensor), trained=tensor.requires_grad, stype=stype)
    if buffers:
        for name, tensor in _persistent_buffers(module).items():
            leaves[name] = Leaf(_value(name, tensor), trained=False)
    return leaves


def _sparse_weights(module: torch.nn.Module) -> set[int]:
    """The ids of the tensors that are weights of sparse embeddings, and of nothing else."""
    sparse: set[int] = set()
    other: set[int] = set()
    for path, part in module.named_modules():
        is_table = isinstance(part, _TABLES)
        if is_table and part.max_norm is not None:
            raise InvalidArgumentError(
                f"embedding '{path}' has max_norm, which changes local rows behind the server's "
                "back: use it without"
            )
        for tensor in part.parameters(recurse=False):
            (sparse if is_table and part.sparse else other).add(id(tensor))
    return sparse - other


def _persistent_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    state = module.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in module.named_buffers() if name in state}


def _lookups(module: torch.nn.Module) -> list[tuple[str, Embedding]]:
    """The module's `Embedding`s, with the names of their tables."""
    return [
        (f"{path}.weight" if path else "weight", part)
        for path, part in module.named_modules()
        if isinstance(part, Embedding)
    ]


def _value(name: str, tensor: torch.Tensor) -> Array:
    if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
        raise InvalidArgumentError(
            f"parameter '{name}' has no shape yet: give the lazy module a first batch, then attach"
        )
    if tensor.is_meta:
        raise InvalidArgumentError(f"parameter '{name}' is on the meta device: it has no value")
    return _array(tensor)


def _gradient(grad: torch.Tensor, stype: str) -> Array | tuple[Array, Array]:
    grad = grad.detach().cpu()
    if stype == "row_sparse" and grad.layout == torch.sparse_coo and grad.sparse_dim() == 1:
        summed = grad.coalesce()
        return _array(summed.indices()[0]), _array(summed.values())
    return _array(grad if grad.layout == torch.strided else grad.to_dense())


def _array(tensor: torch.Tensor) -> Array:
    """A tensor's values: a CPU tensor's memory itself; a number as one of shape (1,)."""
    return without_axes(host_array(tensor))


def _tensor(array: Array) -> torch.Tensor:
    """An array's memory as a tensor."""
    if array.dtype == BFLOAT16:
        # PyTorch does not know ml_dtypes' type.
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
