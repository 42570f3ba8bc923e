"""A trainer's optimizer states, rate and counts, and how a step changes them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramd.context import Context
from paramd.errors import ScheduledLearningRateError, StaleGradientError, TrainerNotFoundError
from paramd.trainer_spec import StepOptions, TrainerInfo, TrainerSpec, TrainerWorker
from paramd_server.arrays.backend import Buffer
from paramd_server.core.registry import Registry
from paramd_server.core.shared_copies import changing
from paramd_server.core.stored_parameter import StoredParameter
from paramd_server.core.training.gradients import Contribution, GradientSource, prepare_sum
from paramd_server.core.training.pushes import Push
from paramd_server.core.training.updates import ParameterRate, Plan, Updates
from paramd_server.core.writing import Action

__all__ = ["Tally", "TrainerState", "check_complete"]


@dataclass
class Tally:
    """What has happened in a trainer."""

    num_steps: int = 0
    num_non_finite: int = 0
    num_skipped: int = 0
    num_lost_steps: int = 0


class TrainerState:
    """What every server keeps of a trainer.

    Its lock is taken before those of parameters.

    Args:
        spec: as declared.
    """

    def __init__(self, spec: TrainerSpec) -> None:
        self.spec = spec
        digest = hashlib.blake2b(spec.name.encode(), digest_size=8).digest()
        self._mark = int.from_bytes(digest, "little")
        self.condition = threading.Condition(threading.RLock())
        # All that follow are guarded by `condition`.
        # Its parameters of which this server holds nothing.
        self.elsewhere: frozenset[str] = frozenset()
        # The other shards that hold something of them.
        self.shards: frozenset[int] = frozenset()
        self.updates = Updates(spec.optimizer)
        self.learning_rate: float | None = None
        self.clock = 0
        self.deleted = False
        # What 2-bit compression of the gradient buffers left over, by parameter and context.
        self.residuals: dict[tuple[str, Context], Buffer] = {}
        self.tally = Tally()

    def place(self, elsewhere: Iterable[str], shards: Iterable[int]) -> None:
        """Notes where its parameters are. Called with the lock held.

        Args:
            elsewhere: those of which this server holds nothing.
            shards: the other shards that hold something of them.
        """
        self.elsewhere = frozenset(elsewhere)
        self.shards = frozenset(shards)

    def placement(self) -> dict[str, Any]:
        """What a snapshot keeps of where its parameters are: plain JSON values."""
        return {"elsewhere": sorted(self.elsewhere), "shards": sorted(self.shards)}

    @property
    def local_parameters(self) -> tuple[str, ...]:
        """Its parameters of which this server holds something, in its order."""
        return tuple(name for name in self.spec.parameters if name not in self.elsewhere)

    def describe(self, workers: tuple[TrainerWorker, ...]) -> TrainerInfo:
        """The trainer, described. Called with the lock held."""
        return TrainerInfo(
            spec=self.spec,
            learning_rate=self.rate(self.updates.num_update),
            num_update=self.updates.num_update,
            num_steps=self.tally.num_steps,
            workers=workers,
            num_non_finite=self.tally.num_non_finite,
            num_skipped=self.tally.num_skipped,
            state_bytes=self.updates.state_bytes,
            num_lost_steps=self.tally.num_lost_steps,
        )

    def set_learning_rate(self, learning_rate: float) -> None:
        """Changes the rate. Raises ScheduledLearningRateError where a scheduler sets it."""
        with self.condition:
            self.check_there()
            if self.spec.optimizer.lr_scheduler is not None:
                raise ScheduledLearningRateError(
                    f"trainer {self.spec.name!r} has a learning rate scheduler, which sets the "
                    "rate: pass learning_rate= to step() for one step of another rate"
                )
            self.learning_rate = learning_rate

    def delete(self) -> None:
        """Marks it as gone, and wakes those who wait in it."""
        with self.condition:
            self.deleted = True
            self.residuals.clear()
            self.updates.forget()
            self.condition.notify_all()

    def forget_deleted(self, name: str) -> None:
        """Lets go of what is kept of a parameter that has been deleted."""
        with self.condition:
            self.updates.forget_deleted(name)
            for key in [key for key in self.residuals if key[0] == name]:
                del self.residuals[key]

    def check_there(self) -> None:
        """Raises TrainerNotFoundError where it has been deleted."""
        if self.deleted:
            raise TrainerNotFoundError(f"trainer {self.spec.name!r} has been deleted")

    # Steps. All that follow are called with the lock held.

    def rate(self, num_update: int) -> float:
        """The learning rate at a number of updates."""
        if self.learning_rate is not None:
            return self.learning_rate
        return self.spec.optimizer.rate(num_update)

    def rescale(self, batch_size: float) -> float:
        """What the gradients of a batch are multiplied by."""
        return self.spec.optimizer.rescale_grad / batch_size

    def plan(
        self,
        parameters: Sequence[StoredParameter],
        elsewhere: Collection[str],
        options: StepOptions,
    ) -> Plan:
        """The rates of a step.

        Args:
            parameters: those that it updates here, locked.
            elsewhere: those that it updates on other shards; some may be here, too.
            options: of the step.
        """
        here = {parameter.name: parameter for parameter in parameters}
        num_update = self.updates.num_update
        rates: dict[str, ParameterRate] = {}
        for name in self.spec.parameters:
            if name in here:
                count = self.updates.next_count(here[name])
            elif name in elsewhere:
                count = self.updates.next_count_elsewhere(name)
            else:
                continue
            num_update = max(num_update, count)
            own = options.learning_rate
            rates[name] = ParameterRate(self.rate(num_update) if own is None else own, num_update)
        return rates

    def prepare_pushes(
        self,
        parameters: Sequence[StoredParameter],
        pushes: Sequence[Push],
        batch_size: float,
        plan: Plan,
    ) -> list[Action]:
        """Makes ready to update locked parameters by the sum of pushes.

        Args:
            parameters: of which at least one push has a gradient.
            pushes: in the order in which they are added.
            batch_size: to which the others are scaled.
            plan: of the step.

        Raises:
            MemoryLimitError.
        """
        sources = []
        for parameter in parameters:
            contributions = [
                Contribution(push.gradients[parameter.name], batch_size / push.options.batch_size)
                for push in pushes
                if parameter.name in push.gradients
            ]
            sources.append({next(iter(parameter.copies)): prepare_sum(parameter, contributions)})
        return self.prepare_updates(parameters, sources, plan, self.rescale(batch_size))

    def prepare_updates(
        self,
        parameters: Sequence[StoredParameter],
        sources: Sequence[Mapping[Context, GradientSource]],
        plan: Plan,
        rescale: float,
    ) -> list[Action]:
        """Makes ready to update locked parameters, each by its sources. Raises MemoryLimitError."""
        return [
            self.updates.prepare(parameter, gradients, plan[parameter.name], rescale)
            for parameter, gradients in zip(parameters, sources, strict=True)
        ]

    @property
    def whole_steps(self) -> bool:
        """Whether its steps are to be whole on all shards: unless it is asynchronous."""
        return not self.spec.distributed or self.spec.staleness is not None

    def mark(self, parameters: Iterable[StoredParameter], num_steps: int) -> None:
        """Notes on locked parameters which step their values are of, for readers to compare."""
        if self.shards and self.whole_steps:
            for parameter in parameters:
                parameter.step = (self._mark, num_steps)

    def mark_restored(self, registry: Registry) -> None:
        """Notes on its parameters which step they are of, as far as they are there."""
        there = set(registry.names())
        names = [name for name in self.local_parameters if name in there]
        with registry.hold(names) as parameters, changing(parameters):
            self.mark(parameters, self.tally.num_steps)

    def mark_first(self, registry: Registry) -> None:
        """Notes on the parameters here which step their values are of, where they do not say.

        Without that a reader could not tell the first step that one shard has carried out from
        values that no trainer steps on another one.
        """
        there = set(registry.names())
        names = [name for name in self.local_parameters if name in there]
        with registry.hold(names) as parameters, changing(parameters):
            unmarked = [each for each in parameters if (each.step or (0, 0))[0] != self._mark]
            self.mark(unmarked, self.tally.num_steps)

    def skips(self, push: Push) -> bool:
        """Whether a push is left out because a gradient is NaN or infinite."""
        return self.spec.non_finite == "skip" and bool(self.non_finite(push))

    def non_finite(self, push: Push) -> str:
        """A parameter whose gradient is NaN or infinite somewhere, on any shard; or ''."""
        wrong = [push.non_finite, *(part.non_finite for part in push.parts)]
        return next((name for name in wrong if name), "")


def check_complete(trainer: TrainerState, registry: Registry, gradients: Collection[str]) -> None:
    """Checks that a push has a gradient of every parameter that is here and has one.

    Raises:
        StaleGradientError: naming one that is missing.
    """
    with registry.hold(trainer.local_parameters) as parameters:
        for parameter in parameters:
            if parameter.name not in gradients and parameter.has_gradient:
                raise StaleGradientError(
                    f"trainer {trainer.spec.name!r}: the push has no gradient of Parameter "
                    f"'{parameter.name}'; say ignore_stale_grad=True to pass it over",
                    parameter=parameter.name,
                )
