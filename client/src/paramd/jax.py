"""JAX pytrees whose arrays a server holds.

remote = paramd.jax.attach(tree, "adam", {"learning_rate": 1e-3}, prefix="net_")
tree = remote.pull()
for x, y in batches:
    tree = remote.step(len(x), jax.grad(loss)(tree, x, y))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from paramd.adoption import Array, Leaf, adopt, check_reading
from paramd.errors import InvalidArgumentError
from paramd.optimizer import Optimizer
from paramd.parameter_dict import ParameterDict
from paramd.session import Session, current_session
from paramd.trainer import Trainer
from paramd.wire.dtypes import BFLOAT16

__all__ = ["RemoteTree", "attach"]


class RemoteTree:
    """A pytree of arrays, and the parameters that a server holds for it. `attach` makes it.

    Attributes:
        parameters: what the server holds, by prefix and path in the tree.
        trainer: steps those of floating-point dtypes; None where none was asked for.
    """

    def __init__(self, tree: Any, parameters: ParameterDict, trainer: Trainer | None) -> None:
        self.parameters = parameters
        self.trainer = trainer
        self._like = _named_leaves(parameters.prefix, tree)
        self._structure = jax.tree_util.tree_structure(tree)
        # Shapes, dtypes and places are what is kept of them.
        for name, leaf in self._like.items():
            if isinstance(leaf, jax.Array):
                self._like[name] = jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=leaf.sharding
                )
            else:
                self._like[name] = np.broadcast_to(np.empty((), leaf.dtype), leaf.shape)

    def __repr__(self) -> str:
        return (
            f"<paramd.jax.RemoteTree of {len(self._like)} arrays, "
            f"{self.trainer or 'which it only reads'}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a RemoteTree belongs to its process and is neither copied nor pickled: attach() the "
            "tree where it is used"
        )

    def pull(self) -> Any:
        """The server's values, all of one moment, as a tree like the one that was attached.

        Returns:
            Arrays of JAX where they were, on their devices; else NumPy arrays of the caller's own.
        """
        return self._tree(self.parameters.pull())

    def step(
        self,
        batch_size: float,
        grads: Any,
        *,
        ignore_stale_grad: bool = False,
        learning_rate: float | None = None,
    ) -> Any:
        """Pushes gradients, and brings the new values in the same call.

        Args:
            batch_size: the gradients, summed over the workers, are divided by it: the size of the
                joint batch for a loss that is a sum, the number of workers for one that is a mean.
            grads: a tree like the one that was attached, as `jax.grad` gives it. None for a leaf
                is no gradient; what belongs to whole numbers is passed over.
            ignore_stale_grad: whether leaves without a gradient are passed over; else that is an
                error.
            learning_rate: of this step alone. In a synchronous round all workers give the same.

        Returns:
            The new values, as `pull`.

        Raises:
            InvalidArgumentError: where the tree was attached without an optimizer, or `grads` is
                another tree.
            What stands at `paramd.Trainer.step`.
        """
        if self.trainer is None:
            raise InvalidArgumentError(
                "step() needs an optimizer: attach() got none, so this tree only reads"
            )
        values = self.trainer.step(
            batch_size,
            ignore_stale_grad,
            grads=self._gradients(grads),
            learning_rate=learning_rate,
            pull=list(self._like),
        )
        assert values is not None
        return self._tree(values)

    def _gradients(self, grads: Any) -> dict[str, Array]:
        given = _named_leaves(self.parameters.prefix, grads, none_is_leaf=True)
        for name, gradient in given.items():
            if name not in self._like:
                raise InvalidArgumentError(
                    f"the gradients have a leaf '{name}', which is not in the tree that was "
                    f"attached: that has {', '.join(map(repr, list(self._like)[:10]))}",
                    parameter=name,
                )
            shape = self._like[name].shape
            if gradient is not None and np.shape(gradient) != shape:
                raise InvalidArgumentError(
                    f"the gradient of '{name}' is of shape {np.shape(gradient)}, but expected "
                    f"{shape}",
                    parameter=name,
                )
        return {
            name: np.asarray(gradient).reshape(np.shape(gradient) or (1,))
            for name, gradient in given.items()
            if gradient is not None and _is_floating(self._like[name].dtype)
        }

    def _tree(self, values: Mapping[str, Array]) -> Any:
        leaves = []
        for name, like in self._like.items():
            value = values[name].reshape(like.shape)
            is_jax = isinstance(like, jax.ShapeDtypeStruct)
            leaves.append(jax.device_put(value, like.sharding) if is_jax else value)
        return jax.tree_util.tree_unflatten(self._structure, leaves)


def attach(
    tree: Any,
    optimizer: str | Optimizer | None = None,
    optimizer_params: Mapping[str, Any] | None = None,
    *,
    prefix: str = "",
    kvstore: str = "dist_sync",
    session: Session | None = None,
    **trainer_options: Any,
) -> RemoteTree:
    """Gives a pytree's arrays to the server, and trains them there.

    Every worker attaches its tree. The values of the first become the server's; `pull` brings them
    to all. Parameters are called `prefix` + their path in the tree, with dots: 'dense.kernel',
    'layers.0.bias'. A number without axes is one of shape (1,) there. Whole numbers get no
    gradient.

    Args:
        tree: JAX or NumPy arrays.
        optimizer: name or Optimizer, which runs on the server; None for a tree that only reads.
        optimizer_params: arguments for it, where a name is given.
        prefix: in front of each name.
        kvstore: as in `paramd.Trainer`.
        session: None for the current one.
        trainer_options: further arguments of `paramd.Trainer`, such as `staleness`, `num_workers`.

    Raises:
        TypeError: for a leaf that is no array, a dtype that no parameter has, or an unknown option.
        ValueError: for an array without elements, two leaves of one name, an option that does not
            exist; also a tree without anything to train.
        AssertionError: where a parameter of that name is another one: shape or dtype.
        RuntimeError: TrainerMismatchError where others train it with other settings.
    """
    check_reading(optimizer, {"optimizer_params": optimizer_params, **trainer_options})
    session = current_session() if session is None else session
    leaves = {}
    for name, leaf in _named_leaves("", tree).items():
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise TypeError(f"'{prefix}{name}' is no array: {type(leaf).__name__}")
        leaves[name] = Leaf(np.asarray(leaf), trained=_is_floating(leaf.dtype))
    params = adopt(session, prefix, leaves, trains=optimizer is not None)
    trainer = None
    if optimizer is not None:
        trained = [params[prefix + name] for name, leaf in leaves.items() if leaf.trained]
        trainer = Trainer(
            trained, optimizer, optimizer_params, kvstore, session=session, **trainer_options
        )
    return RemoteTree(tree, params, trainer)


def _named_leaves(prefix: str, tree: Any, *, none_is_leaf: bool = False) -> dict[str, Any]:
    is_leaf = (lambda each: each is None) if none_is_leaf else None
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]:
        name = prefix + jax.tree_util.keystr(path, simple=True, separator=".")
        if name in leaves:
            raise InvalidArgumentError(f"two leaves of the tree have the name '{name}'")
        leaves[name] = leaf
    return leaves


def _is_floating(dtype: Any) -> bool:
    return dtype == BFLOAT16 or np.issubdtype(dtype, np.floating)
