"""Optimizer states out of a trainer and into one: for files and snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from paramd.context import Context
from paramd.errors import InvalidStreamError, StatesMismatchError
from paramd.spec import Shape, TensorHead
from paramd.trainer_spec import StatesManifest
from paramd_server.arrays.backend import Buffer, HostArray, Pieces
from paramd_server.core.registry import Registry
from paramd_server.core.stored_parameter import StoredParameter
from paramd_server.core.training.state import TrainerState
from paramd_server.core.training.updates import States
from paramd_server.core.writing import Action

__all__ = ["SavedStates", "StatesStage", "open_states"]


@dataclass(frozen=True)
class SavedStates:
    """The states of a trainer, of one moment.

    Attributes:
        manifest: describes them.
        arrays: the contents in the order of the manifest's.
    """

    manifest: StatesManifest
    arrays: tuple[Pieces, ...]


@contextmanager
def open_states(registry: Registry, trainer: TrainerState) -> Iterator[SavedStates]:
    """Opens a trainer's states for reading, for as long as the block runs.

    Where each copy has a state of its own, it is that of the first, as in MXNet.
    """
    heads: list[tuple[TensorHead, str]] = []
    arrays: list[Pieces] = []
    with ExitStack() as stack:
        with trainer.condition:
            trainer.check_there()
            updates = trainer.updates
            counts = updates.counts
            there = [name for name in trainer.spec.parameters if name in counts]
            with registry.hold(there) as parameters:
                for parameter in parameters:
                    states = next(iter(updates.states_of(parameter.name).values()), {})
                    for state, buffer in states.items():
                        heads.append((_head(parameter, buffer), state))
                        pieces = parameter.backend(buffer.context).pieces(buffer)
                        arrays.append(pieces)
                        buffer.readers += 1
                        stack.callback(_release, parameter, buffer)
                        stack.callback(pieces.close)
            manifest = StatesManifest(
                optimizer=trainer.spec.optimizer,
                learning_rate=trainer.learning_rate,
                num_updates={name: counts[name] for name in there},
                arrays=tuple(heads),
            )
        yield SavedStates(manifest, tuple(arrays))


def _head(parameter: StoredParameter, buffer: Buffer) -> TensorHead:
    return TensorHead(parameter.name, buffer.shape, buffer.dtype)


def _release(parameter: StoredParameter, buffer: Buffer) -> None:
    with parameter.lock:
        buffer.readers -= 1


class StatesStage:
    """States that are coming in, which replace those of a trainer when all are there.

    Args:
        registry: the parameters.
        trainer: whose states they become.
        manifest: what is coming.

    Raises:
        StatesMismatchError: where they are of another optimizer, or of parameters that the trainer
            does not step.
    """

    def __init__(self, registry: Registry, trainer: TrainerState, manifest: StatesManifest) -> None:
        self._registry = registry
        self._trainer = trainer
        self._manifest = manifest
        self._buffers: list[Buffer] = []
        mine = trainer.spec.optimizer.name
        if manifest.optimizer.name != mine:
            raise StatesMismatchError(
                f"trainer {trainer.spec.name!r} has the optimizer {mine!r}, but the states are of "
                f"{manifest.optimizer.name!r}"
            )
        if manifest.learning_rate is not None and trainer.spec.optimizer.lr_scheduler is not None:
            raise StatesMismatchError(
                f"trainer {trainer.spec.name!r} has a learning rate scheduler, but the states come "
                "with a rate that was set"
            )
        for name in manifest.num_updates:
            if name not in trainer.spec.parameters:
                raise StatesMismatchError(
                    f"Parameter '{name}' of the states is not one of trainer {trainer.spec.name!r}",
                    parameter=name,
                )
        for head, state in manifest.arrays:
            if head.name not in manifest.num_updates:
                raise StatesMismatchError(
                    f"the state {state!r} of Parameter '{head.name}' comes without its number of "
                    "updates",
                    parameter=head.name,
                )

    def place(self, head: TensorHead) -> Sequence[HostArray]:
        """Makes room for the next array. Raises InvalidStreamError, MemoryLimitError."""
        index = len(self._buffers)
        expected = self._manifest.arrays[index : index + 1]
        if not expected or replace(head, mode="") != replace(expected[0][0], mode=""):
            raise InvalidStreamError(
                f"Parameter '{head.name}': a state came that the manifest does not hold there",
                parameter=head.name,
            )
        devices = self._registry.devices
        self._buffers.append(devices.stage(head.shape, head.dtype))
        return [devices.staged_array(self._buffers[-1])]

    def check(self) -> None:
        """Checks the manifest against the parameters; the arrays need not have come.

        Raises:
            What `commit` does; nothing is changed in any case.
        """
        given: dict[str, dict[str, Shape]] = {name: {} for name in self._manifest.num_updates}
        for head, state in self._manifest.arrays:
            given[head.name][state] = head.shape
        trainer = self._trainer
        here = [name for name in given if name not in trainer.elsewhere]
        with trainer.condition, self._registry.hold(here) as parameters:
            trainer.check_there()
            for parameter in parameters:
                states, _ = self._prepare_states(parameter)
                for each in states.values():
                    _check_shapes(parameter, each, given[parameter.name])

    def commit(self) -> None:
        """Replaces the trainer's states, or nothing when it raises.

        Raises:
            StatesMismatchError: for a state that the optimizer does not have, or lacks.
            InvalidStreamError: where arrays are missing.
        """
        if len(self._buffers) < len(self._manifest.arrays):
            raise InvalidStreamError(
                f"{len(self._manifest.arrays)} states were announced, but {len(self._buffers)} came"
            )
        devices = self._registry.devices
        given: dict[str, dict[str, HostArray]] = {name: {} for name in self._manifest.num_updates}
        for (head, state), buffer in zip(self._manifest.arrays, self._buffers, strict=True):
            given[head.name][state] = devices.staged_array(buffer)
        trainer = self._trainer
        counts = self._manifest.num_updates
        elsewhere = {name: counts[name] for name in given if name in trainer.elsewhere}
        here = [name for name in given if name not in elsewhere]
        with trainer.condition, self._registry.hold(here) as parameters:
            trainer.check_there()
            actions = [self._prepare(parameter, given[parameter.name]) for parameter in parameters]
            trainer.updates.forget()
            for action in actions:
                action()
            trainer.updates.set_counts_elsewhere(elsewhere)
            trainer.learning_rate = self._manifest.learning_rate
            trainer.condition.notify_all()

    def _prepare_states(self, parameter: StoredParameter) -> tuple[dict[Context, States], Action]:
        """New states of a locked parameter, to be filled, and what puts them into use."""
        parameter.check_initialized()
        each_copy = self._trainer.spec.update_each_copy
        contexts = list(parameter.copies)[: None if each_copy else 1]
        return self._trainer.updates.prepare_load(
            parameter, self._manifest.num_updates[parameter.name], contexts
        )

    def _prepare(self, parameter: StoredParameter, given: Mapping[str, HostArray]) -> Action:
        states, put = self._prepare_states(parameter)
        fills = [_prepare_fill(parameter, each, given) for each in states.values()]

        def commit() -> None:
            for fill in fills:
                fill()
            put()

        return commit


def _check_shapes(parameter: StoredParameter, states: States, given: Mapping[str, Shape]) -> None:
    expected = {name: buffer.shape for name, buffer in states.items()}
    if expected != given:
        raise StatesMismatchError(
            f"Parameter '{parameter.name}': expected the states {expected}, but got {given}",
            parameter=parameter.name,
        )


def _prepare_fill(
    parameter: StoredParameter, states: States, given: Mapping[str, HostArray]
) -> Action:
    _check_shapes(parameter, states, {name: array.shape for name, array in given.items()})

    def fill() -> None:
        for name, buffer in states.items():
            backend = parameter.backend(buffer.context)
            backend.write(buffer, given[name], mode="assign")

    return fill
