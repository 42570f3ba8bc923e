"""The base of all optimizers: what is declared, and how learning rate and schedule meet."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import ClassVar, Final

from paramd.hyperparameter import check_fields, flag, real, whole
from paramd.lr_scheduler import Schedule, check_schedule

__all__ = ["Hyperparameter", "Optimizer"]

Hyperparameter = float | int | bool

# MXNet's, where neither a learning rate nor a schedule is given.
_LEARNING_RATE: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Base of all optimizers: a name and numbers, since the arithmetic runs on the server.

    In the formulas of the subclasses w is the weight, lr the learning rate of the update times the
    parameter's lr_mult, wd the weight decay times its wd_mult, t the number of updates of the
    parameter, this one included, and g the gradient: clip(rescale_grad * gradient).

    Args:
        learning_rate: rate where there is no schedule, at least 0. With a schedule that starts
            from another rate it takes the place of the schedule's `base_lr`, with a warning, as in
            MXNet; `PolyScheduler` and `CosineScheduler` keep theirs. None: the schedule's, or 0.01
            without one. After construction it is a number: with a schedule its `base_lr`.
        wd: weight decay, at least 0.
        rescale_grad: what gradients are multiplied by, before all else.
        clip_gradient: largest magnitude of an element of a gradient; None for any.
        lr_scheduler: a schedule of `paramd.lr_scheduler`, or None.
        begin_num_update: number of updates to count from.
        multi_precision: whether float16 weights are updated as float32 copies of them.

    Raises:
        TypeError: for a value of the wrong type; it names the argument.
        ValueError: for one out of range.
    """

    name: ClassVar[str]
    # Whether learning_rate takes the place of a schedule's base_lr, as with MXNet's class.
    _replaces_base_lr: ClassVar[bool] = True

    learning_rate: float | None = field(default=None, metadata=real(at_least=0.0, optional=True))
    wd: float = field(default=0.0, metadata=real(at_least=0.0))
    rescale_grad: float = field(default=1.0, metadata=real())
    clip_gradient: float | None = field(default=None, metadata=real(above=0.0, optional=True))
    lr_scheduler: Schedule | None = None
    begin_num_update: int = field(default=0, metadata=whole(at_least=0))
    multi_precision: bool = field(default=False, metadata=flag())

    def __post_init__(self) -> None:
        if type(self) is Optimizer:
            raise TypeError("Optimizer is the base of the optimizers: make one of them")
        check_fields(self)
        self._check_together()
        if self.lr_scheduler is not None:
            object.__setattr__(self, "lr_scheduler", self._schedule(self.lr_scheduler))
        if self.lr_scheduler is not None:
            object.__setattr__(self, "learning_rate", self.lr_scheduler.base_lr)
        elif self.learning_rate is None:
            object.__setattr__(self, "learning_rate", _LEARNING_RATE)

    def _check_together(self) -> None:
        """Checks what no argument shows alone. Raises ValueError."""

    def _schedule(self, given: object) -> Schedule:
        schedule = check_schedule(given)
        rate = self.learning_rate
        if rate is None or rate == schedule.base_lr or not self._replaces_base_lr:
            return schedule
        replaced = schedule.follows_learning_rate
        warnings.warn(
            f"{type(self).__name__}: learning_rate {rate!r} "
            + ("replaces" if replaced else "has no effect: the schedule keeps its own")
            + f" base_lr {schedule.base_lr!r} of {type(schedule).__name__}",
            UserWarning,
            # Through _schedule, __post_init__ and the dataclass's __init__.
            stacklevel=4,
        )
        return schedule.with_base_lr(rate) if replaced else schedule

    def rate(self, num_update: int) -> float:
        """The learning rate of an update.

        Args:
            num_update: how many updates there were, this one included: the most of any parameter.
        """
        if self.lr_scheduler is not None:
            return self.lr_scheduler(num_update)
        # A number after construction.
        return _LEARNING_RATE if self.learning_rate is None else self.learning_rate

    def arguments(self) -> Mapping[str, Hyperparameter]:
        """All arguments that are not None, without the schedule, for `from_arguments`."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return MappingProxyType(
            {
                name: value
                for name, value in values.items()
                if value is not None and name != "lr_scheduler"
            }
        )
