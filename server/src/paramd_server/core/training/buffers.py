"""Steps by what the gradient buffers hold: the way of one stepping client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from paramd.compression import TwoBit, expand, residual_dtype
from paramd.context import Context
from paramd.errors import (
    InvalidArgumentError,
    StaleGradientError,
)
from paramd.trainer_spec import StagedPart, StepOptions
from paramd_server.arrays.backend import Buffer, HostArray, Values, host_array
from paramd_server.arrays.update_kernels import add_into
from paramd_server.core.attributes import prepare_zero_gradient
from paramd_server.core.operations import Operation
from paramd_server.core.registry import Registry
from paramd_server.core.row_sparse import IntArray, RowSparseGradient
from paramd_server.core.shared_copies import changing
from paramd_server.core.stored_parameter import StoredParameter
from paramd_server.core.training.followed import FollowedTrainer
from paramd_server.core.training.gradients import GradientSource, check_trainable, non_finite_error
from paramd_server.core.training.records import UpdateRecord
from paramd_server.core.training.state import TrainerState
from paramd_server.core.training.trainer import StoredTrainer
from paramd_server.core.training.updates import Plan
from paramd_server.core.writing import Action, naming

__all__ = ["BufferSteps"]

# Elements that are summed at a time.
_BLOCK: Final = 1 << 18


class BufferSteps:
    """Steps trainers by the server's gradient buffers.

    Args:
        registry: the parameters.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def update(
        self,
        trainer: StoredTrainer,
        options: StepOptions,
        operation: Operation,
        parts: Sequence[StagedPart] = (),
    ) -> tuple[bool, int]:
        """Sums the buffers over the contexts, updates, and writes every copy, all in one step.

        Args:
            trainer: whose step it is.
            options: how it is made.
            operation: identifies it.
            parts: what the other shards said that they will update.

        Returns:
            Whether the step was skipped, because a gradient is NaN or infinite; and its place in
            the cluster's log.

        Raises:
            What stands at Update in training_service.proto; nothing is changed then.
        """
        spec = trainer.spec
        if spec.distributed:
            raise InvalidArgumentError(
                f"trainer {spec.name!r} is distributed: its steps come with their gradients "
                "(grads=), since the buffers belong to the cluster and not to a worker"
            )
        with trainer.condition, self._registry.hold(trainer.local_parameters) as parameters:
            trainer.check_there()
            stepped = [each for each in parameters if each.current.grad_req != "null"]
            fresh = [each for each in stepped if _check_fresh(trainer, each, options)]
            here = next((name for each in fresh if (name := _non_finite(each))), "")
            wrong = next((name for name in (here, *(p.non_finite for p in parts)) if name), "")
            if wrong and spec.non_finite == "error":
                trainer.count_refused()
                raise non_finite_error(wrong)
            trainer.check_parts(operation, parts)
            skipped = bool(wrong) and spec.non_finite == "skip"
            names = set() if skipped else {name for part in parts for name in part.names}
            plan = trainer.plan([] if skipped else fresh, names, options)
            updated = [] if skipped else fresh
            actions = self._prepare(trainer, stepped, updated, options, plan)
            with changing(parameters):
                for action in actions:
                    action()
                trainer.mark(parameters, trainer.tally.num_steps + 1)
            for parameter in fresh:
                parameter.fresh_gradients.clear()
            trainer.updates.count_elsewhere(plan, plan.keys() - {each.name for each in fresh})
            trainer.count_step(non_finite=bool(wrong), skipped=skipped)
            position = trainer.tell_update(operation, options, plan, skipped=skipped)
            return skipped, position

    def stage(self, trainer: FollowedTrainer, options: StepOptions) -> StagedPart:
        """What a step would update on this shard, which another one commits. Changes nothing.

        Raises:
            What stands at Update in training_service.proto.
        """
        with trainer.condition, self._registry.hold(trainer.local_parameters) as parameters:
            trainer.check_there()
            stepped = [each for each in parameters if each.current.grad_req != "null"]
            fresh = [each for each in stepped if _check_fresh(trainer, each, options)]
            wrong = next((name for each in fresh if (name := _non_finite(each))), "")
            return trainer.part_of([each.name for each in fresh], wrong)

    def carry_out(self, trainer: FollowedTrainer, record: UpdateRecord, position: int) -> None:
        """Applies a step by the gradient buffers that the coordinator has committed."""
        options = StepOptions(
            record.trainer,
            record.batch_size,
            zero_grad=record.zero_grad,
            reduced=record.reduced,
        )
        with trainer.condition:
            if trainer.deleted:
                return
            there = set(self._registry.names())
            names = [name for name in trainer.local_parameters if name in there]
            with self._registry.hold(names) as parameters:
                stepped = [each for each in parameters if each.has_gradient]
                updated = [each for each in stepped if each.name in record.rates]
                with self._registry.devices.committed():
                    actions = self._prepare(trainer, stepped, updated, options, record.rates)
                    with changing(parameters):
                        for action in actions:
                            action()
                        trainer.mark(parameters, record.num_steps)
                for parameter in updated:
                    parameter.fresh_gradients.clear()
            trainer.count(record.num_steps, non_finite=False)
            trainer.answer_update(record, position)

    def _prepare(
        self,
        trainer: TrainerState,
        stepped: Sequence[StoredParameter],
        updated: Sequence[StoredParameter],
        options: StepOptions,
        plan: Plan,
    ) -> list[Action]:
        """Makes ready to update locked parameters, and to clear the buffers of all stepped ones."""
        sources = [self._sources(trainer, each, options) for each in updated]
        rescale = trainer.rescale(options.batch_size)
        actions = trainer.prepare_updates(updated, sources, plan, rescale)
        if options.zero_grad:
            devices = self._registry.devices
            actions += [prepare_zero_gradient(each, devices) for each in stepped]
        return actions

    def allreduce(self, trainer: TrainerState) -> None:
        """Writes the sum over the contexts into the buffers of every context, all in one step.

        Raises:
            What stands at AllreduceGrads in training_service.proto; nothing is changed then.
        """
        with trainer.condition, self._registry.hold(trainer.local_parameters) as parameters:
            trainer.check_there()
            actions = [
                self._prepare_allreduce(trainer, parameter)
                for parameter in parameters
                if parameter.current.grad_req != "null"
            ]
            for action in actions:
                action()

    def _sources(
        self, trainer: TrainerState, parameter: StoredParameter, options: StepOptions
    ) -> Mapping[Context, GradientSource]:
        if not trainer.spec.update_each_copy:
            return {next(iter(parameter.copies)): self._prepare_sum(trainer, parameter)}
        if options.reduced or len(parameter.copies) == 1:
            return {context: _buffer(parameter, context) for context in parameter.copies}
        total = self._prepare_sum(trainer, parameter)
        write = _prepare_spread(parameter, total)
        # The sum goes into the buffers first, as in MXNet, and then each copy uses its own.
        first, *others = parameter.copies

        def summed() -> tuple[IntArray | None, Values]:
            write()
            return _buffer(parameter, first)()

        return {first: summed, **{context: _buffer(parameter, context) for context in others}}

    def _prepare_allreduce(self, trainer: TrainerState, parameter: StoredParameter) -> Action:
        check_trainable(parameter)
        if len(parameter.copies) == 1:
            return _nothing
        return _prepare_spread(parameter, self._prepare_sum(trainer, parameter))

    def _prepare_sum(self, trainer: TrainerState, parameter: StoredParameter) -> GradientSource:
        """The sum over the contexts. Raises MemoryLimitError."""
        contexts = list(parameter.copies)
        if len(contexts) == 1:
            return _buffer(parameter, contexts[0])
        if parameter.sparse_gradients:
            return _sparse_total(parameter)
        with naming(parameter.name):
            buffer = parameter.stage(parameter.shape, parameter.current.dtype)
        total = parameter.staged_array(buffer)
        if trainer.spec.two_bit_threshold:
            return self._compressed_total(trainer, parameter, buffer)

        def add() -> tuple[None, HostArray]:
            _add_up(parameter, contexts, total.reshape(-1))
            _keep(buffer)
            return None, total

        return add

    def _compressed_total(
        self, trainer: TrainerState, parameter: StoredParameter, buffer: Buffer
    ) -> GradientSource:
        """The sum of what 2-bit compression makes of each context's gradient."""
        threshold = trainer.spec.two_bit_threshold
        codec = TwoBit(threshold)
        total = parameter.staged_array(buffer)
        dtype = residual_dtype(total.dtype)
        residuals: dict[Context, Buffer] = {}
        with naming(parameter.name):
            for context in parameter.copies:
                known = trainer.residuals.get((parameter.name, context))
                if known is None or known.shape != total.shape or known.dtype != dtype:
                    known = parameter.stage(parameter.shape, dtype)
                    parameter.staged_array(known)[...] = 0
                else:
                    # What a snapshot is reading stays as it is.
                    known = parameter.unread(known, keep=True)
                residuals[context] = known

        def add() -> tuple[None, HostArray]:
            total[...] = 0
            for context, residual in residuals.items():
                left = parameter.staged_array(residual)
                gradient = host_array(parameter.backend(context), parameter.gradients[context])
                packed, after = codec.compress(gradient, left)
                np.copyto(left, after)
                add_into(total, expand(packed, total.shape, total.dtype, threshold))
                trainer.residuals[parameter.name, context] = residual
            _keep(buffer)
            return None, total

        return add


def _check_fresh(trainer: TrainerState, parameter: StoredParameter, options: StepOptions) -> bool:
    """Whether a parameter is stepped. Raises StaleGradientError, and what check_trainable does."""
    check_trainable(parameter)
    stale = [each for each in parameter.copies if each not in parameter.fresh_gradients]
    if not stale:
        return True
    if options.ignore_stale_grad:
        return False
    raise StaleGradientError(
        f"Gradient of Parameter `{parameter.name}` on context {stale[0]} has not been written "
        f"since the last step of trainer {trainer.spec.name!r}. If only some of the parameters "
        "are stepped on purpose, call step with ignore_stale_grad=True: the others are passed over",
        parameter=parameter.name,
    )


def _non_finite(parameter: StoredParameter) -> str:
    """The parameter's name where its gradient is NaN or infinite somewhere, else ''."""
    for context in parameter.copies:
        if not parameter.backend(context).all_finite(_values(parameter, context)):
            return parameter.name
    return ""


def _values(parameter: StoredParameter, context: Context) -> Buffer:
    """A gradient: all of it, or its rows."""
    if parameter.sparse_gradients:
        return parameter.sparse_gradients[context].rows
    return parameter.gradients[context]


def _buffer(parameter: StoredParameter, context: Context) -> GradientSource:
    def read() -> tuple[IntArray | None, Buffer]:
        if parameter.sparse_gradients:
            return parameter.sparse_gradients[context].ids, _values(parameter, context)
        return None, _values(parameter, context)

    return read


def _add_up(parameter: StoredParameter, contexts: Sequence[Context], total: HostArray) -> None:
    """Fills a flat array with the sum of the gradients of some contexts."""
    gradients = [(parameter.backend(each), parameter.gradients[each]) for each in contexts]
    for begin in range(0, total.size, _BLOCK):
        block = total[begin : begin + _BLOCK]
        first, *others = [
            backend.flat(gradient, begin, begin + block.size) for backend, gradient in gradients
        ]
        np.copyto(block, first)
        for other in others:
            add_into(block, other)


def _sparse_total(parameter: StoredParameter) -> GradientSource:
    gradients: Sequence[RowSparseGradient] = [
        parameter.sparse_gradients[context] for context in parameter.copies
    ]
    total = gradients[0]
    for gradient in gradients[1:]:
        devices = parameter.devices
        staged = devices.on_host(gradient.rows)
        total = total.merged(gradient.ids, devices.staged_array(staged), devices, mode="add")

    def read() -> tuple[IntArray, Buffer]:
        return total.ids, total.rows

    return read


def _prepare_spread(parameter: StoredParameter, total: GradientSource) -> Action:
    """Makes ready to write a sum into every buffer. Raises MemoryLimitError."""
    if parameter.sparse_gradients:
        ids, rows = total()
        assert ids is not None
        replaced = {
            context: gradient.replaced(ids, rows, parameter.devices)
            for context, gradient in parameter.sparse_gradients.items()
        }

        def publish() -> None:
            parameter.sparse_gradients.update(replaced)
            parameter.gradient_counter += 1

        return publish
    targets = {
        context: parameter.writable(parameter.gradients, context, keep=False)
        for context in parameter.gradients
    }

    def spread() -> None:
        _, value = total()
        assert isinstance(value, np.ndarray)
        for context, target in targets.items():
            parameter.backend(context).write(target, value, mode="assign")
            parameter.gradients[context] = target
        parameter.gradient_counter += 1

    return spread


def _keep(_buffer: Buffer) -> None:
    """Nothing to do: the caller's closure has kept the buffer, and so its memory, until now."""


def _nothing() -> None:
    """The buffers hold the sum already."""
