"""What a step is made of: gradients as they are sent, the worker's clock, values that come back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from paramd.access import not_initialized
from paramd.compression import TwoBit
from paramd.context import current_context
from paramd.errors import (
    InvalidArgumentError,
    LeaseEndedError,
    RolledBackError,
    WorkerNotJoinedError,
)
from paramd.files import RowSparseRows
from paramd.link import Link, describe, perform
from paramd.session import Session
from paramd.spec import Selector, StoredInfo
from paramd.tensor_values import gradient_value
from paramd.trainer_spec import StepOptions, TrainerSpec
from paramd.transport.calls import TensorWrite
from paramd.transport.receiving import OutArray
from paramd.transport.records import PackedGradient

__all__ = ["Array", "Stepper", "check_contexts"]

Array = np.ndarray[Any, np.dtype[Any]]

# How a gradient meets a trainer: there is no other way.
_PUSH: Final = "by_grad_req"


def check_contexts(session: Session, links: Sequence[Link]) -> list[StoredInfo]:
    """Describes the parameters of a trainer.

    Raises:
        NotInitializedError: where one was never initialized.
        AssertionError: where they are on different contexts.
    """
    infos = describe(session, links)
    first = infos[0]
    for info in infos:
        if info.state == "declared":
            raise not_initialized(info)
        assert info.contexts == first.contexts, (
            f"All Parameters must be initialized on the same set of contexts, but Parameter "
            f"{info.current.name} is initialized on {list(info.contexts)} while previous "
            f"Parameters are initialized on {list(first.contexts)}."
        )
    return infos


class Stepper:
    """Makes the steps of one trainer in one session.

    Args:
        session: serves the trainer.
        spec: of the trainer.
        links: of its parameters.
        infos: what the server says of them.
        codec: compresses gradients; None sends them as they are.

    Attributes:
        clock: steps that this worker has committed; None where that has to be asked for.
    """

    def __init__(
        self,
        session: Session,
        spec: TrainerSpec,
        links: Sequence[Link],
        infos: Sequence[StoredInfo],
        codec: TwoBit | None,
    ) -> None:
        self.clock: int | None = None
        # What it was before a step of which nobody knows whether it was committed.
        self._clock_before: int | None = None
        self._session = session
        self._calls = session.calls.training
        self._spec = spec
        self._links = {link.name: link for link in links}
        self._codec = codec
        self._residuals: dict[str, Array] = {}
        self._infos: dict[str, StoredInfo] = {}
        self._note(infos)

    def join(self) -> int:
        """Joins the trainer, and asks for the clock."""
        self.clock = self._calls.join(self._spec.name).clock
        self._clock_before = None
        return self.clock

    def leave(self) -> None:
        """Leaves the trainer: its clock is nothing to this worker any more."""
        self._calls.leave(self._spec.name)
        self.clock = self._clock_before = None

    def step(
        self,
        batch_size: float,
        grads: Mapping[str, Any],
        *,
        ignore_stale_grad: bool,
        learning_rate: float | None,
        pull: bool | str | Iterable[str],
        out: Mapping[str, Array] | None,
    ) -> dict[str, Array]:
        """Sends gradients: see `Trainer.step`."""
        session, links = self._session, list(self._links.values())
        residuals: dict[str, Array] = {}
        writes = [self._write(name, value, residuals) for name, value in grads.items()]
        selectors = [Selector(name) for name in self._names_to_pull(pull)]
        arrays = self._outs(selectors, out)
        options = StepOptions(
            trainer=self._spec.name,
            batch_size=_positive(batch_size),
            clock=self._current_clock(),
            learning_rate=learning_rate,
            ignore_stale_grad=ignore_stale_grad,
        )
        current = current_context()
        clock, self.clock = self.clock, None
        self._clock_before = clock
        try:
            result, received = perform(
                session,
                links,
                lambda calls: calls.training.step(options, writes, selectors, current, out=arrays),
            )
        except (LeaseEndedError, RolledBackError):
            # The worker says itself when it comes back.
            self.clock = clock
            raise
        except WorkerNotJoinedError as err:
            if clock is None or not session.joined:
                raise
            self.clock = clock
            raise self._forgotten() from err
        self.clock, self._clock_before = result.clock, None
        if not result.skipped:
            self._residuals.update(residuals)
        if selectors and not received:
            received = session.calls.get_data(selectors, current, out=arrays)
        return {head.name: value for head, value in received if isinstance(value, np.ndarray)}

    def update(
        self,
        batch_size: float,
        *,
        ignore_stale_grad: bool,
        learning_rate: float | None = None,
        zero_grad: bool = False,
        reduced: bool = False,
    ) -> None:
        """Steps by the gradient buffers."""
        options = StepOptions(
            trainer=self._spec.name,
            batch_size=_positive(batch_size),
            learning_rate=learning_rate,
            ignore_stale_grad=ignore_stale_grad,
            zero_grad=zero_grad,
            reduced=reduced,
        )
        links = list(self._links.values())
        perform(self._session, links, lambda calls: calls.training.update(options))

    def pull(
        self, pull: bool | str | Iterable[str], out: Mapping[str, Array] | None
    ) -> dict[str, Array]:
        """Fetches values."""
        selectors = [Selector(name) for name in self._names_to_pull(pull)]
        arrays = self._outs(selectors, out)
        received = self._session.calls.get_data(selectors, current_context(), out=arrays)
        return {head.name: value for head, value in received if isinstance(value, np.ndarray)}

    def _current_clock(self) -> int:
        if not self._spec.distributed:
            return 0
        if self.clock is not None:
            return self.clock
        if self._session.joined:
            try:
                return self._clock_again()
            except WorkerNotJoinedError as err:
                if self._clock_before is not None:
                    raise self._forgotten() from err
                # The servers have begun anew since, and this worker expects nothing of them.
        self._session.join()
        return self._clock_again()

    def _clock_again(self) -> int:
        """Asks for the clock, which is not to be one of before the last step was tried."""
        clock, before = self._calls.join(self._spec.name).clock, self._clock_before
        if before is not None and clock < before:
            raise RolledBackError(
                f"trainer {self._spec.name!r}: this worker's clock was {before}, and the servers "
                f"are at {clock}: they went back to a snapshot. trainer.join() tells the clock to "
                "go on from"
            )
        self.clock = clock
        return clock

    def _forgotten(self) -> RolledBackError:
        return RolledBackError(
            f"trainer {self._spec.name!r}: this worker had joined, and the servers do not know it "
            "any more: they went back to a snapshot of before, or began anew. trainer.join() joins "
            "again, and tells the clock to go on from"
        )

    def _write(self, name: str, value: Any, residuals: dict[str, Array]) -> TensorWrite:
        info = self._info(name)
        gradient = gradient_value(name, value, info.current.shape or ())
        if self._codec is None or isinstance(gradient, RowSparseRows):
            # As in MXNet, only dense gradients are compressed.
            return TensorWrite(name, gradient, mode=_PUSH)
        dense = gradient.astype(info.current.dtype, copy=False)
        if not np.isfinite(dense).all():
            # As it is: the server's policy decides, and the residual stays clean.
            return TensorWrite(name, dense, mode=_PUSH)
        packed, residuals[name] = self._codec.compress(dense, self._residuals.get(name))
        compressed = PackedGradient(packed, dense.shape, dense.dtype, self._codec.threshold)
        return TensorWrite(name, compressed, mode=_PUSH)

    def _info(self, name: str) -> StoredInfo:
        """What can never change of a parameter, once it is initialized."""
        if name not in self._links:
            raise InvalidArgumentError(
                f"Parameter '{name}' is not one of trainer {self._spec.name!r}, which has "
                f"{', '.join(map(repr, list(self._links)[:10]))}",
                parameter=name,
            )
        if name not in self._infos:
            infos = describe(self._session, list(self._links.values()))
            self._note(infos)
            return infos[list(self._links).index(name)]
        return self._infos[name]

    def _note(self, infos: Sequence[StoredInfo]) -> None:
        for info in infos:
            if info.state == "initialized":
                self._infos[info.current.name] = info

    def _names_to_pull(self, pull: bool | str | Iterable[str]) -> list[str]:
        if pull is False:
            return []
        if pull is True:
            return [name for name in self._links if self._info(name).current.stype == "default"]
        return [pull] if isinstance(pull, str) else list(pull)

    def _outs(
        self, selectors: Sequence[Selector], out: Mapping[str, Array] | None
    ) -> list[Array | None] | None:
        """The arrays to receive into. What does not fit is told before anything is sent."""
        if out is None:
            return None
        names = {selector.name for selector in selectors}
        for name, array in out.items():
            if name not in names:
                raise InvalidArgumentError(f"out= has an array for '{name}', which is not pulled")
            spec = self._info(name).current
            OutArray(name, array).open(spec.shape or (), spec.dtype)
        return [out.get(selector.name) for selector in selectors]


def _positive(batch_size: float) -> float:
    try:
        size = float(batch_size)
    except (TypeError, ValueError) as err:
        raise TypeError(f"batch_size is a number, but got {batch_size!r}") from err
    if not 0.0 < size < float("inf"):
        raise InvalidArgumentError(f"batch_size is a number above 0, but got {batch_size!r}")
    return size
