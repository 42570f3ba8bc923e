"""`Trainer`: steps the optimizer, which runs on the server."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from paramd import optimizer as optimizers
from paramd.compression import parse_compression_params
from paramd.link import session_of
from paramd.optimizer import Optimizer
from paramd.out_arrays import OutArrays
from paramd.parameter import Parameter
from paramd.parameter_dict import ParameterDict
from paramd.session import Session
from paramd.spec import StoredInfo
from paramd.stepping import Stepper, check_contexts
from paramd.trainer_spec import (
    NON_FINITE_POLICIES,
    WORKER_LOSS_POLICIES,
    TrainerInfo,
    TrainerSpec,
)
from paramd.trainer_states import load_states, save_states

__all__ = ["Trainer"]

_LOCAL: Final = ("local", "device", "nccl")
_SYNCHRONOUS: Final = ("dist_sync", "dist_device_sync")
_ASYNCHRONOUS: Final = ("dist_async",)


class Trainer:
    """Applies an optimizer, which runs on the server, to parameters, as Gluon's Trainer does.

    Every worker makes the same trainer: the first creates it on the server, the others attach.
    There are two ways to a gradient: `step(batch_size)` takes what the server's gradient buffers
    hold, for one stepping client; `step(batch_size, grads=...)` sends this worker's gradients, and
    is the only way of `kvstore='dist_...'`.

    Args:
        params: ParameterDict, mapping or sequence of initialized parameters, all on the same
            contexts. Those of a mapping are ordered by key.
        optimizer: name or Optimizer; see `paramd.optimizer`.
        optimizer_params: arguments for the optimizer, where a name is given.
        kvstore: 'local', 'device' or 'nccl' for one stepping client; None for one whose gradient
            buffers are not summed: each copy is updated by its own; 'dist_sync' or
            'dist_device_sync' for workers whose gradients are summed, round by round; 'dist_async'
            for workers that do not wait for each other.
        compression_params: None, or {'type': '2bit', 'threshold': t}: pushed gradients go with two
            bits for each element; what is lost is carried to the next push.
        update_on_kvstore: None or True: one copy is updated and written to the other contexts.
            False: each copy is updated by itself, and `allreduce_grads` and `update` can be called
            one by one.
        staleness: with 'dist_async', how many steps a worker may be ahead of the slowest one;
            None for any number.
        num_workers: the first synchronous round waits until that many workers have joined, and
            with `staleness` those that are to come count like the slowest; without it nobody waits.
            None: that of `connect`, else `PARAMD_NUM_WORKERS`, else nobody is waited for.
        non_finite: what becomes of a step in which a gradient is NaN or infinite: 'apply', 'skip'
            (it counts as one without gradients) or 'error'. Each is counted.
        on_worker_loss: what happens when the lease of a worker ends: 'continue' lets the others go
            on, with 'error' their steps raise WorkerLostError until it is back under its name, or
            another has its rank.
        name: of the trainer on the cluster; by default made of the parameters' names.
        session: None for that of the parameters.

    Raises:
        ValueError: for what no trainer has, or settings that exclude each other.
        TypeError: for arguments of the wrong type, or that the optimizer does not take.
        RuntimeError: where a parameter is not initialized; TrainerMismatchError where a trainer of
            that name has other settings, or another one steps one of the parameters.
        AssertionError: where the parameters are on different contexts.
    """

    def __init__(
        self,
        params: ParameterDict | Mapping[str, Parameter] | Sequence[Parameter],
        optimizer: str | Optimizer,
        optimizer_params: Mapping[str, Any] | None = None,
        kvstore: str | None = "device",
        compression_params: Mapping[str, Any] | None = None,
        update_on_kvstore: bool | None = None,
        *,
        staleness: int | None = None,
        num_workers: int | None = None,
        non_finite: str = "apply",
        on_worker_loss: str = "continue",
        name: str = "",
        session: Session | None = None,
    ) -> None:
        parameters = _parameters(params)
        links = [parameter._link for parameter in parameters]
        self._session = session_of(links) if session is None else session
        self._optimizer = _optimizer(optimizer, optimizer_params)
        distributed, staleness = _synchrony(kvstore, staleness)
        codec = parse_compression_params(compression_params)
        infos = check_contexts(self._session, links)
        self._reduces = kvstore is not None
        self._updates_on_kvstore = _updates_on_kvstore(
            infos, kvstore, distributed=distributed, asked=update_on_kvstore
        )
        names = tuple(link.name for link in links)
        self._spec = TrainerSpec(
            name=name or _default_name(names),
            parameters=names,
            optimizer=self._optimizer,
            distributed=distributed,
            staleness=staleness,
            num_workers=self._session.expected_workers(num_workers) if distributed else 0,
            non_finite=_one_of("non_finite", non_finite, NON_FINITE_POLICIES),
            worker_loss=_one_of("on_worker_loss", on_worker_loss, WORKER_LOSS_POLICIES),
            two_bit_threshold=0.0 if codec is None else codec.threshold,
            update_each_copy=self._updates_on_kvstore is not True and not distributed,
        )
        self._calls = self._session.calls.training
        self._calls.declare(self._spec)
        self._stepper = Stepper(self._session, self._spec, links, infos, codec)

    def __repr__(self) -> str:
        return (
            f"<paramd.Trainer {self.name!r} {self._optimizer.name} of "
            f"{len(self._spec.parameters)} parameters>"
        )

    @property
    def name(self) -> str:
        """The trainer's name on the cluster."""
        return self._spec.name

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer, as it was declared."""
        return self._optimizer

    @property
    def learning_rate(self) -> float:
        """The rate of the next update, as the server has it."""
        return self.info().learning_rate

    def set_learning_rate(self, lr: float) -> None:
        """Sets the learning rate, for all workers.

        Raises:
            UserWarning: where a scheduler sets it.
        """
        self._calls.set_learning_rate(self.name, float(lr))

    def info(self) -> TrainerInfo:
        """What the server says of it: rate, counts, workers with their clocks."""
        (found,) = self._calls.describe([self.name])
        return found

    # Steps

    def step(
        self,
        batch_size: float,
        ignore_stale_grad: bool = False,
        *,
        grads: Mapping[str, Any] | None = None,
        pull: bool | str | Iterable[str] = False,
        out: Mapping[str, Any] | None = None,
        learning_rate: float | None = None,
        zero_grad: bool = False,
    ) -> dict[str, Any] | None:
        """Makes one step: all parameters are updated, or none.

        Args:
            batch_size: the gradients are divided by it.
            ignore_stale_grad: whether parameters whose gradient is not there, or has not been
                written since the last step, are passed over; else that is an error.
            grads: gradients by name of the parameter: arrays of any library on any device, or
                (ids, rows), where rows of one id add up. None takes what the gradient buffers hold.
            pull: whether to bring the new values back: True for all dense parameters, or names.
            out: with pull, arrays to receive into, by name, of the values' shapes and dtypes: of
                NumPy, or of PyTorch or CuPy on any device.
            learning_rate: of this step alone. In a synchronous round all workers give the same.
            zero_grad: whether the gradient buffers are cleared in the same step.

        Returns:
            With pull the values by name, else None.

        Raises:
            UserWarning: for a stale gradient (StaleGradientError).
            What stands at Step in the server's documentation; nothing has changed then.
        """
        into = OutArrays(out or {})
        hosts = None if out is None else into.hosts
        if grads is None:
            self._check_buffers()
            self._stepper.update(
                batch_size,
                ignore_stale_grad=ignore_stale_grad,
                learning_rate=learning_rate,
                zero_grad=zero_grad,
                reduced=not self._reduces,
            )
            return into.deliver(self._stepper.pull(pull, hosts)) if pull else None
        if zero_grad:
            raise ValueError("zero_grad= is about the gradient buffers, which grads= passes by")
        values = self._stepper.step(
            batch_size,
            grads,
            ignore_stale_grad=ignore_stale_grad,
            learning_rate=learning_rate,
            pull=pull,
            out=hosts,
        )
        return into.deliver(values) if pull else None

    def allreduce_grads(self) -> None:
        """Writes the sum of the gradient buffers over the contexts into each of them.

        With `kvstore=None` there is no sum, and nothing happens.

        Raises:
            AssertionError: where parameters are updated on the key-value store.
        """
        self._check_split("allreduce_grads()")
        if not self._reduces:
            return
        self._calls.allreduce_grads(self.name)

    def update(self, batch_size: float, ignore_stale_grad: bool = False) -> None:
        """Updates each copy by its gradient buffer, after `allreduce_grads`.

        Raises:
            AssertionError: where parameters are updated on the key-value store.
        """
        self._check_split("update()")
        self._stepper.update(batch_size, ignore_stale_grad=ignore_stale_grad, reduced=True)

    def _check_buffers(self) -> None:
        if self._spec.distributed:
            raise ValueError(
                f"trainer {self.name!r} is distributed: step() needs grads=, because the gradient "
                "buffers belong to the cluster and not to one worker"
            )

    def _check_split(self, call: str) -> None:
        assert self._updates_on_kvstore is not True, (
            f"{call} when parameters are updated on kvstore is not supported. Try setting "
            "`update_on_kvstore` to False when creating trainer."
        )

    # States

    def save_states(self, fname: str | os.PathLike[str]) -> None:
        """Writes the optimizer's states to a file, atomically.

        Args:
            fname: any name; the file is of the safetensors format.
        """
        save_states(self._calls, self.name, fname)

    def load_states(self, fname: str | os.PathLike[str]) -> None:
        """Replaces the optimizer's states, and the numbers of updates, by those of a file.

        Raises:
            FileFormatError: where the file is none that `save_states` wrote. MXNet's files are
                pickles, which are never read.
            StatesMismatchError: where it is of another optimizer, or of other parameters.
        """
        load_states(self._calls, self.name, fname)

    # Workers

    @property
    def clock(self) -> int | None:
        """Steps that this worker has committed; None before it has joined."""
        return self._stepper.clock

    @property
    def rank(self) -> int:
        """This worker's number, from 0. Joins where it has not yet."""
        return self._session.rank

    @property
    def num_workers(self) -> int:
        """How many workers of this trainer hold their leases now."""
        return len(self.info().workers)

    def join(self) -> int:
        """Makes this session a worker of the trainer. The first step does so by itself.

        After the lease has ended it is the way to come back.

        Returns:
            The clock: the current one of the trainer where the worker is new or has come back.
        """
        self._session.join()
        return self._stepper.join()

    def leave(self) -> None:
        """Takes this worker out: the others do not wait for it any more."""
        self._stepper.leave()

    def delete(self) -> None:
        """Removes the trainer from the cluster, with its optimizer states. The parameters stay."""
        self._calls.delete(self.name)


def _parameters(
    params: ParameterDict | Mapping[str, Parameter] | Sequence[Parameter],
) -> list[Parameter]:
    if isinstance(params, ParameterDict | Mapping):
        params = [params[key] for key in sorted(params.keys())]
    if not isinstance(params, list | tuple):
        raise ValueError(
            f"First argument must be a list or dict of Parameters, got {type(params)}."
        )
    for parameter in params:
        if not isinstance(parameter, Parameter):
            raise ValueError(
                f"First argument must be a list or dict of Parameters, got list of "
                f"{type(parameter)}."
            )
    if not params:
        raise ValueError("a trainer has at least one parameter, but got none")
    names: set[str] = set()
    for parameter in params:
        if parameter.name in names:
            raise ValueError(f"parameter '{parameter.name}' is given to one trainer twice")
        names.add(parameter.name)
    return list(params)


def _optimizer(optimizer: str | Optimizer, arguments: Mapping[str, Any] | None) -> Optimizer:
    if not isinstance(optimizer, str):
        assert not arguments, (
            "optimizer_params must be None if optimizer is an instance of Optimizer instead of str"
        )
    return optimizers.create(optimizer, **dict(arguments or {}))


def _synchrony(kvstore: str | None, staleness: int | None) -> tuple[bool, int | None]:
    """Whether a trainer is distributed, and its staleness."""
    if kvstore is not None and not isinstance(kvstore, str):
        raise TypeError(f"kvstore is a name or None, but got {type(kvstore).__name__}")
    if staleness is not None and (isinstance(staleness, bool) or not isinstance(staleness, int)):
        raise TypeError(f"staleness is a whole number or None, but got {staleness!r}")
    if kvstore is None or kvstore in _LOCAL:
        if staleness is not None:
            raise ValueError(f"staleness is for kvstore='dist_async', but kvstore is {kvstore!r}")
        return False, None
    if kvstore in _SYNCHRONOUS:
        if staleness not in (None, 0):
            raise ValueError(
                f"kvstore={kvstore!r} is synchronous, which is staleness 0, but got {staleness}: "
                "use kvstore='dist_async' for workers that may be ahead"
            )
        return True, 0
    if kvstore in _ASYNCHRONOUS:
        if staleness is not None and staleness < 1:
            raise ValueError(
                f"staleness is 1 or more with kvstore='dist_async', but got {staleness}: use "
                "kvstore='dist_sync' for workers that wait for each other"
            )
        return True, staleness
    known = ", ".join(repr(each) for each in (*_LOCAL, *_SYNCHRONOUS, *_ASYNCHRONOUS))
    raise ValueError(f"unknown kvstore {kvstore!r}: expected one of {known}, or None")


def _updates_on_kvstore(
    infos: Sequence[StoredInfo],
    kvstore: str | None,
    *,
    distributed: bool,
    asked: bool | None,
) -> bool | None:
    """Where updates happen: None without a key-value store, as MXNet chooses it.

    Raises:
        ValueError, TypeError: for what MXNet forbids.
    """
    if any(info.current.stype != "default" for info in infos):
        if kvstore is None:
            raise TypeError(
                "row_sparse parameters are updated on a key-value store: kvstore cannot be None"
            )
        if asked is False:
            raise ValueError("Cannot set update_on_kvstore=False when sparse weights are present.")
        return True
    sparse_gradients = any(info.current.grad_stype != "default" for info in infos)
    if distributed:
        if asked is False and sparse_gradients:
            raise ValueError(
                "Cannot set update_on_kvstore=False on dist kvstore when sparse gradients are "
                "present."
            )
        if asked is False:
            raise ValueError(
                f"Please set update_on_kvstore=True with kvstore={kvstore!r}: the server updates"
            )
        return True
    if kvstore is None or len(infos[0].contexts) == 1:
        return None
    return (not sparse_gradients) if asked is None else asked


def _one_of(argument: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        known = ", ".join(repr(each) for each in allowed)
        raise ValueError(f"{argument} is one of {known}, but got {value!r}")
    return value


def _default_name(names: Sequence[str]) -> str:
    digest = hashlib.blake2b("\0".join(sorted(names)).encode(), digest_size=8).hexdigest()
    return f"trainer-{digest}"
