"""What a step does to parameters: the optimizer's states, and updates of every copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paramd.context import Context
from paramd.optimizer import Optimizer
from paramd_server.arrays.backend import Buffer
from paramd_server.core.optimizers import UpdateRule, rule_for
from paramd_server.core.stored_parameter import StoredParameter
from paramd_server.core.training.gradients import GradientSource
from paramd_server.core.writing import Action, naming

__all__ = ["ParameterRate", "Plan", "States", "SteppedParameter", "Updates"]

# The arrays of one optimizer state, by name.
States = dict[str, Buffer]


@dataclass
class SteppedParameter:
    """What a trainer keeps of one parameter that has been stepped.

    Attributes:
        parameter: itself; another one of its name would begin anew.
        dtype: of the weight when the states were made.
        count: how many updates it has had, begin_num_update included.
        counter: of the parameter's version after the last of them.
        states: by context: one, or where each copy is updated by itself one for each copy.
    """

    parameter: StoredParameter
    dtype: np.dtype[Any]
    count: int
    counter: int
    states: dict[Context, States] = field(default_factory=dict)


@dataclass(frozen=True)
class ParameterRate:
    """By what one parameter is updated in one step.

    Attributes:
        learning_rate: before the parameter's own multiplier.
        num_update: the largest number of updates of one parameter so far, this one included.
    """

    learning_rate: float
    num_update: int


# The parameters that one step updates, on all shards, in the trainer's order.
Plan = Mapping[str, ParameterRate]


class Updates:
    """The optimizer of one trainer, with its states. Guarded by the trainer's lock.

    Args:
        optimizer: how it updates.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.rule: UpdateRule = rule_for(optimizer)
        self.num_update = optimizer.begin_num_update
        self._entries: dict[str, SteppedParameter] = {}
        # Counts of parameters of which this server holds nothing; the coordinator keeps them.
        self._elsewhere: dict[str, int] = {}

    @property
    def state_bytes(self) -> int:
        """The size of all states."""
        return sum(
            buffer.nbytes
            for entry in self._entries.values()
            for states in entry.states.values()
            for buffer in states.values()
        )

    @property
    def counts(self) -> dict[str, int]:
        """How many updates each stepped parameter has had, begin_num_update included."""
        return {name: entry.count for name, entry in self._entries.items()}

    @property
    def counts_elsewhere(self) -> dict[str, int]:
        """The counts of parameters of which this server holds nothing."""
        return dict(self._elsewhere)

    def states_of(self, name: str) -> Mapping[Context, States]:
        """The states of a parameter by context; none where it has not been stepped."""
        entry = self._entries.get(name)
        return {} if entry is None else entry.states

    def stepped(self) -> dict[str, SteppedParameter]:
        """What is kept, by name of the parameter."""
        return dict(self._entries)

    def take_up(self, stepped: SteppedParameter) -> None:
        """Puts into use what a snapshot kept."""
        self._entries[stepped.parameter.name] = stepped

    def next_count(self, parameter: StoredParameter) -> int:
        """The number of the next update of a parameter, from begin_num_update."""
        entry = self._entry(parameter)
        return (self.optimizer.begin_num_update if entry is None else entry.count) + 1

    def next_count_elsewhere(self, name: str) -> int:
        """The number of the next update of a parameter of which this server holds nothing."""
        return self._elsewhere.get(name, self.optimizer.begin_num_update) + 1

    def count_elsewhere(self, plan: Plan, names: Iterable[str]) -> None:
        """Counts updates of parameters of which this server holds nothing."""
        for name in names:
            self._elsewhere[name] = self.next_count_elsewhere(name)
            self.num_update = max(self.num_update, plan[name].num_update)

    def set_counts_elsewhere(self, counts: Mapping[str, int]) -> None:
        """Puts into use the counts of parameters of which this server holds nothing."""
        self._elsewhere = dict(counts)
        self.num_update = max([self.num_update, *counts.values()])

    def prepare(
        self,
        parameter: StoredParameter,
        gradients: Mapping[Context, GradientSource],
        rate: ParameterRate,
        rescale: float,
    ) -> Action:
        """Makes ready to update a parameter.

        Args:
            parameter: locked.
            gradients: one source, by which the first copy is updated and then written to the
                others; or one for each copy.
            rate: of the parameter in this step.
            rescale: what the gradients are multiplied by.

        Returns:
            What updates, counts, and cannot fail.

        Raises:
            MemoryLimitError: where a state or a buffer does not fit.
        """
        count = self.next_count(parameter)
        known = self._entry(parameter)
        # By set_data, a load and the like: else float32 copies of before would come back.
        was_written = known is not None and known.counter != parameter.counter
        states: dict[Context, States] = {}
        targets: dict[Context, Buffer] = {}
        with naming(parameter.name):
            for context in gradients:
                targets[context] = parameter.writable(
                    parameter.copies, context, keep=True, told=True
                )
                states[context] = self._fitting(parameter, targets[context], context)
            others = [context for context in parameter.copies if context not in gradients]
            further = {
                context: parameter.writable(parameter.copies, context, keep=True)
                for context in others
            }
        learning_rate = rate.learning_rate * parameter.current.lr_mult
        weight_decay = self.optimizer.wd * parameter.current.wd_mult

        def update() -> None:
            for context, source in gradients.items():
                ids, gradient = source()
                backend = parameter.backend(context)
                target = targets[context]
                some_rows = self.rule.lazy and not was_written
                written = [target, *states[context].values()]
                parameter.before_write(written, ids if some_rows else None)
                if was_written:
                    self.rule.follow(backend, target, states[context])
                self.rule.update(
                    backend,
                    target,
                    gradient,
                    states[context],
                    ids=ids,
                    count=count,
                    learning_rate=learning_rate,
                    weight_decay=weight_decay,
                    rescale=rescale,
                )
                parameter.copies[context] = target
            for context, target in further.items():
                parameter.devices.copy(next(iter(targets.values())), target)
                parameter.copies[context] = target
            parameter.counter += 1
            self._entries[parameter.name] = SteppedParameter(
                parameter, parameter.current.dtype, count, parameter.counter, states
            )
            self.num_update = max(self.num_update, rate.num_update)

        return update

    def prepare_load(
        self, parameter: StoredParameter, count: int, contexts: list[Context]
    ) -> tuple[dict[Context, States], Action]:
        """Makes ready to replace the states of a parameter.

        Args:
            parameter: locked.
            count: how many updates it has had.
            contexts: of its states; empty where it has none.

        Returns:
            The new states, to be filled, and what puts them into use.

        Raises:
            MemoryLimitError: where they do not fit.
        """
        with naming(parameter.name):
            states = {
                context: self.rule.create_states(
                    parameter.copies[context], parameter.backend(context)
                )
                for context in contexts
            }

        def replace() -> None:
            self._entries[parameter.name] = SteppedParameter(
                parameter, parameter.current.dtype, count, parameter.counter, states
            )
            self.num_update = max(self.num_update, count)

        return states, replace

    def forget_deleted(self, name: str) -> None:
        """Lets go of the state of a parameter that has been deleted."""
        entry = self._entries.get(name)
        if entry is not None and entry.parameter.deleted:
            del self._entries[name]

    def forget(self) -> None:
        """Lets go of all states and counts."""
        self._entries.clear()
        self._elsewhere.clear()
        self.num_update = self.optimizer.begin_num_update

    def _entry(self, parameter: StoredParameter) -> SteppedParameter | None:
        entry = self._entries.get(parameter.name)
        # One that was deleted, and made anew under its name, begins anew.
        return entry if entry is not None and entry.parameter is parameter else None

    def _fitting(self, parameter: StoredParameter, weight: Buffer, context: Context) -> States:
        """States for a weight: those that there are, unless the parameter was cast or moved."""
        entry = self._entry(parameter)
        if entry is None or not entry.states:
            return self.rule.create_states(weight, parameter.backend(context))
        # Its own, or after a move the one that there was.
        known = entry.states.get(context) or next(iter(entry.states.values()))
        here = all(buffer.context == context for buffer in known.values())
        if here and entry.dtype == weight.dtype:
            # What is being saved now stays as it is.
            return {
                name: parameter.unread(each, keep=True, told=True) for name, each in known.items()
            }
        backend = parameter.backend(context)
        fresh = self.rule.create_states(weight, backend)
        for name, buffer in fresh.items():
            old = known.get(name)
            if old is not None and old.shape == buffer.shape:
                parameter.devices.copy(old, buffer)
        return fresh
