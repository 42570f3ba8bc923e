"""Learning rates that follow the number of updates, declared as data.

The server computes the rate of each step, so a schedule is a value: what it gives depends on the
number of updates and on nothing else. It is what MXNet 1.9.1 gives to one who counts 1, 2, 3 ...
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from types import MappingProxyType
from typing import Any, ClassVar, Final

from paramd.hyperparameter import (
    CHECK,
    check_fields,
    check_names,
    check_whole,
    one_of,
    real,
    whole,
)

__all__ = [
    "CosineScheduler",
    "FactorScheduler",
    "LRScheduler",
    "MultiFactorScheduler",
    "PolyScheduler",
    "Schedule",
    "ScheduleArgument",
    "check_schedule",
    "from_arguments",
]

ScheduleArgument = float | int | str | list[int]

# Changes of the rate that are multiplied one by one, which rounds as MXNet does; what lies beyond
# is one power, since a rate at any number of updates takes a bounded time.
_EXACT_FACTORS: Final = 10_000
_MAX_STEPS: Final = 10_000

_OWN_SCHEDULE: Final = (
    "a schedule is declared as data, since the server computes the rate: give one of {known}, or "
    "compute the rate yourself and give it to trainer.set_learning_rate(rate) or "
    "trainer.step(..., learning_rate=rate)"
)


class LRScheduler:
    """Base of all schedules.

    A class of the user's own can build on it as in MXNet, and computes rates on the client: no
    optimizer takes it.

    Args:
        base_lr: rate to start with, after the warm-up.
        warmup_steps: number of updates of the warm-up.
        warmup_begin_lr: rate at its begin, at most `base_lr`.
        warmup_mode: 'linear' (from `warmup_begin_lr` to `base_lr` in equal steps) or 'constant'.

    Raises:
        TypeError: for an argument of the wrong type.
        ValueError: for one out of range.
    """

    base_lr: float
    warmup_steps: int
    warmup_begin_lr: float
    warmup_mode: str
    warmup_final_lr: float | None

    def __init__(
        self,
        base_lr: float = 0.01,
        warmup_steps: int = 0,
        warmup_begin_lr: float = 0.0,
        warmup_mode: str = "linear",
    ) -> None:
        # The checks are those of the schedules below.
        checked = PolyScheduler(
            2**53,
            base_lr,
            warmup_steps=warmup_steps,
            warmup_begin_lr=warmup_begin_lr,
            warmup_mode=warmup_mode,
        )
        self.base_lr = self.warmup_final_lr = checked.base_lr
        self.warmup_steps = checked.warmup_steps
        self.warmup_begin_lr = checked.warmup_begin_lr
        self.warmup_mode = checked.warmup_mode

    def get_warmup_lr(self, num_update: int) -> float:
        """The rate of an update of the warm-up.

        Args:
            num_update: below `warmup_steps`.
        """
        if self.warmup_mode == "constant":
            return self.warmup_begin_lr
        end = self.base_lr if self.warmup_final_lr is None else self.warmup_final_lr
        increase = (end - self.warmup_begin_lr) * float(num_update) / float(self.warmup_steps)
        return self.warmup_begin_lr + increase

    def __call__(self, num_update: int) -> float:
        """The rate of an update.

        Args:
            num_update: how many updates there were, this one included: the most of any parameter.
        """
        raise NotImplementedError(f"{type(self).__name__} must override __call__")


@dataclass(frozen=True)
class Schedule(LRScheduler):
    """Base of the schedules that optimizers take.

    Args:
        warmup_final_lr: rate at the end of the warm-up; `base_lr` if None. They differ where the
            learning rate of an optimizer replaced `base_lr`, which leaves the warm-up as it was.
    """

    name: ClassVar[str]
    # Whether the learning rate of an optimizer takes the place of base_lr, as MXNet has it.
    follows_learning_rate: ClassVar[bool]

    warmup_final_lr: float | None = field(
        default=None, kw_only=True, metadata=real(at_least=0.0, optional=True)
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.warmup_final_lr is None:
            object.__setattr__(self, "warmup_final_lr", self.base_lr)
        final = self.warmup_final_lr
        if final is not None and self.warmup_begin_lr > final:
            raise ValueError(
                f"{type(self).__name__}: warmup_begin_lr: expected at most the rate at the end of "
                f"the warm-up, {final!r}, but got {self.warmup_begin_lr!r}"
            )

    def __call__(self, num_update: int) -> float:
        """The rate of an update, a pure function.

        Args:
            num_update: how many updates there were, this one included: the most of any parameter.
        """
        if num_update < self.warmup_steps:
            return self.get_warmup_lr(num_update)
        return self._rate(num_update)

    def _rate(self, num_update: int) -> float:
        raise NotImplementedError

    def with_base_lr(self, base_lr: float) -> Schedule:
        """This schedule with another rate to start with; the warm-up stays as it is.

        Raises:
            ValueError: where it is out of range.
        """
        maker: Callable[..., Schedule] = type(self)
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return maker(**{**values, "base_lr": base_lr})

    def arguments(self) -> Mapping[str, ScheduleArgument]:
        """All arguments as numbers, strings, and lists of ints, for `from_arguments`."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return MappingProxyType(
            {name: list(one) if isinstance(one, tuple) else one for name, one in values.items()}
        )


@dataclass(frozen=True)
class FactorScheduler(Schedule):
    """Multiplies the rate by a factor after each so many updates.

    base_lr * factor ** ((num_update - 1) // step), and at least `stop_factor_lr` from the first
    change on: as `mxnet.lr_scheduler.FactorScheduler`, which changes it after update `step`, not
    with it. The product is rounded factor by factor, up to 10,000 of them.

    Args:
        step: number of updates between changes, at least 1.
        factor: 0 to 1.
        stop_factor_lr: smallest rate.
        base_lr: rate to start with, after the warm-up.
        warmup_steps: number of updates of the warm-up. Changes are counted from the first update.
        warmup_begin_lr: rate at its begin, at most `base_lr`.
        warmup_mode: 'linear' or 'constant'.
    """

    name = "factor"
    follows_learning_rate = True

    step: int = field(metadata=whole(at_least=1))
    factor: float = field(default=1.0, metadata=real(at_least=0.0, at_most=1.0))
    stop_factor_lr: float = field(default=1e-8, metadata=real(at_least=0.0))
    base_lr: float = field(default=0.01, metadata=real(at_least=0.0))
    warmup_steps: int = field(default=0, metadata=whole(at_least=0))
    warmup_begin_lr: float = field(default=0.0, metadata=real(at_least=0.0))
    warmup_mode: str = field(default="linear", metadata=one_of("linear", "constant"))

    def _rate(self, num_update: int) -> float:
        changes = max(0, num_update - 1) // self.step
        if changes == 0:
            return self.base_lr
        return max(_times_factor(self.base_lr, self.factor, changes), self.stop_factor_lr)


def _check_steps(where: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{where}: expected a list of ints, but got {type(value).__name__}")
    if not 1 <= len(value) <= _MAX_STEPS:
        raise ValueError(f"{where}: expected 1 to {_MAX_STEPS} ints, but got {len(value)}")
    steps = tuple(check_whole(1, f"{where}[{index}]", one) for index, one in enumerate(value))
    for index, (before, after) in enumerate(pairwise(steps)):
        if after <= before:
            raise ValueError(
                f"{where}: expected increasing ints, but got {before} and then {after} at "
                f"{index + 1}"
            )
    return steps


@dataclass(frozen=True)
class MultiFactorScheduler(Schedule):
    """Multiplies the rate by a factor after each of some numbers of updates.

    base_lr * factor ** k, where k of `step` are below num_update: as
    `mxnet.lr_scheduler.MultiFactorScheduler`. The product is rounded factor by factor.

    Args:
        step: increasing numbers of updates, 1 to 10,000 of them, each at least 1.
        factor: 0 to 1.
        base_lr: rate to start with, after the warm-up.
        warmup_steps: number of updates of the warm-up. Changes are counted from the first update.
        warmup_begin_lr: rate at its begin, at most `base_lr`.
        warmup_mode: 'linear' or 'constant'.
    """

    name = "multi_factor"
    follows_learning_rate = True

    step: list[int] | tuple[int, ...] = field(metadata={CHECK: _check_steps})
    factor: float = field(default=1.0, metadata=real(at_least=0.0, at_most=1.0))
    base_lr: float = field(default=0.01, metadata=real(at_least=0.0))
    warmup_steps: int = field(default=0, metadata=whole(at_least=0))
    warmup_begin_lr: float = field(default=0.0, metadata=real(at_least=0.0))
    warmup_mode: str = field(default="linear", metadata=one_of("linear", "constant"))

    def _rate(self, num_update: int) -> float:
        return _times_factor(self.base_lr, self.factor, bisect_left(self.step, num_update))


@dataclass(frozen=True)
class PolyScheduler(Schedule):
    """Lets the rate fall as a power of what is left.

    final_lr + (base_lr - final_lr) * (1 - x) ** pwr, where x goes from 0 at the end of the warm-up
    to 1 at `max_update` and stays there: as `mxnet.lr_scheduler.PolyScheduler`.

    Args:
        max_update: number of updates at which `final_lr` is reached, more than `warmup_steps`.
        base_lr: rate to start with, after the warm-up. The learning rate of an optimizer does not
            replace it.
        pwr: the power, at least 0.
        final_lr: rate at the end.
        warmup_steps: number of updates of the warm-up.
        warmup_begin_lr: rate at its begin, at most `base_lr`.
        warmup_mode: 'linear' or 'constant'.
    """

    name = "poly"
    follows_learning_rate = False

    max_update: int = field(metadata=whole(at_least=1))
    base_lr: float = field(default=0.01, metadata=real(at_least=0.0))
    pwr: float = field(default=2.0, metadata=real(at_least=0.0))
    final_lr: float = field(default=0.0, metadata=real(at_least=0.0))
    warmup_steps: int = field(default=0, metadata=whole(at_least=0))
    warmup_begin_lr: float = field(default=0.0, metadata=real(at_least=0.0))
    warmup_mode: str = field(default="linear", metadata=one_of("linear", "constant"))

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_max_update(self, self.max_update)

    def _rate(self, num_update: int) -> float:
        steps = self.max_update - self.warmup_steps
        left = 1 - float(min(num_update, self.max_update) - self.warmup_steps) / float(steps)
        return float(self.final_lr + (self.base_lr - self.final_lr) * left**self.pwr)


@dataclass(frozen=True)
class CosineScheduler(Schedule):
    """Lets the rate fall as half a cosine.

    final_lr + (base_lr - final_lr) * (1 + cos(pi x)) / 2, where x goes from 0 at the end of the
    warm-up to 1 at `max_update` and stays there: as `mxnet.lr_scheduler.CosineScheduler`, after
    Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017), eq. 5.

    Args:
        max_update: number of updates at which `final_lr` is reached, more than `warmup_steps`.
        base_lr: rate to start with, after the warm-up. The learning rate of an optimizer does not
            replace it.
        final_lr: rate at the end.
        warmup_steps: number of updates of the warm-up.
        warmup_begin_lr: rate at its begin, at most `base_lr`.
        warmup_mode: 'linear' or 'constant'.
    """

    name = "cosine"
    follows_learning_rate = False

    max_update: int = field(metadata=whole(at_least=1))
    base_lr: float = field(default=0.01, metadata=real(at_least=0.0))
    final_lr: float = field(default=0.0, metadata=real(at_least=0.0))
    warmup_steps: int = field(default=0, metadata=whole(at_least=0))
    warmup_begin_lr: float = field(default=0.0, metadata=real(at_least=0.0))
    warmup_mode: str = field(default="linear", metadata=one_of("linear", "constant"))

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_max_update(self, self.max_update)

    def _rate(self, num_update: int) -> float:
        steps = self.max_update - self.warmup_steps
        angle = math.pi * (min(num_update, self.max_update) - self.warmup_steps) / steps
        return self.final_lr + (self.base_lr - self.final_lr) * (1 + math.cos(angle)) / 2


_SCHEDULES: Final[Mapping[str, type[Schedule]]] = MappingProxyType(
    {
        klass.name: klass
        for klass in (FactorScheduler, MultiFactorScheduler, PolyScheduler, CosineScheduler)
    }
)


def check_schedule(value: object) -> Schedule:
    """The value itself, if it is a schedule that the server knows.

    Raises:
        TypeError: for another, with what to do instead.
    """
    known = ", ".join(klass.__name__ for klass in _SCHEDULES.values())
    klass = type(value)
    if isinstance(value, Schedule) and klass in _SCHEDULES.values():
        return value
    if klass.__module__.partition(".")[0] == "mxnet":
        raise TypeError(
            f"lr_scheduler: expected a schedule of paramd.lr_scheduler, but got MXNet's "
            f"{klass.__name__}: make one of {known} with the same arguments"
        )
    shown = value.__name__ if isinstance(value, type) else f"{klass.__name__} object"
    raise TypeError(f"lr_scheduler: got {shown}: {_OWN_SCHEDULE.format(known=known)}")


def from_arguments(name: str, arguments: Mapping[str, Any]) -> Schedule:
    """Makes a schedule from its name and its `arguments`, which may come from anywhere.

    Raises:
        ValueError: for an unknown name, or an argument out of range.
        TypeError: for an argument of the wrong type, one that the schedule does not take, or a
            missing one.
    """
    klass = _SCHEDULES.get(name)
    if klass is None:
        raise ValueError(f"unknown schedule {name[:80]!r}: expected one of {', '.join(_SCHEDULES)}")
    check_names(klass.__name__, [one.name for one in fields(klass)], arguments)
    maker: Callable[..., Schedule] = klass
    return maker(**arguments)


def _check_max_update(schedule: Schedule, max_update: int) -> None:
    if max_update <= schedule.warmup_steps:
        raise ValueError(
            f"{type(schedule).__name__}: max_update: expected more than the warmup_steps, "
            f"{schedule.warmup_steps}, but got {max_update}"
        )


def _times_factor(rate: float, factor: float, times: int) -> float:
    if factor == 1.0:
        return rate
    for _ in range(min(times, _EXACT_FACTORS)):
        rate *= factor
    if times > _EXACT_FACTORS:
        rate *= factor ** (times - _EXACT_FACTORS)
    return rate
