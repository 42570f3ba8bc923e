"""Pushes that have come in whole, and the form of their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from paramd.errors import ParamdError
from paramd.trainer_spec import StagedPart, StepOptions, StepResult
from paramd_server.core.operations import Operation
from paramd_server.core.stored_parameter import StoredParameter
from paramd_server.core.training.gradients import PushedGradient

__all__ = ["Answers", "MisfitError", "Push", "check_fits"]


@dataclass(frozen=True)
class Answers:
    """How the result of a step is kept in the window of operations.

    Attributes:
        encode: to bytes.
        decode: from bytes.
    """

    encode: Callable[[StepResult], bytes]
    decode: Callable[[bytes], StepResult]


@dataclass(frozen=True)
class Push:
    """One worker's part of a step.

    Attributes:
        operation: identifies it; its identity is the worker's incarnation.
        options: how the step is made.
        gradients: by name of the parameter; empty of a push that is skipped.
        non_finite: the name of a gradient that is NaN or infinite somewhere, or ''.
        parts: what the other shards have of it.
        on_commit: called, with the trainer's lock held, directly after the step that it was in: its
            worker wants to read just that state.
    """

    operation: Operation
    options: StepOptions
    gradients: Mapping[str, PushedGradient]
    non_finite: str = ""
    parts: tuple[StagedPart, ...] = ()
    on_commit: Callable[[], None] | None = None

    @property
    def identity(self) -> bytes:
        """Of the worker that sends it."""
        return self.operation.identity


class MisfitError(Exception):
    """A push that does not fit its parameters any more, since they were made anew.

    Args:
        push: the push.
        error: what its worker is told.
    """

    def __init__(self, push: Push, error: ParamdError) -> None:
        super().__init__(str(error))
        self.push = push
        self.error = error


def check_fits(parameter: StoredParameter, push: Push) -> None:
    """Checks a push against a locked parameter. Raises MisfitError."""
    gradient = push.gradients.get(parameter.name)
    if gradient is None:
        return
    try:
        gradient.check_fits(parameter)
    except ParamdError as err:
        raise MisfitError(push, err) from err
