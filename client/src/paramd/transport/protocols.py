"""What a session's calls are, with one server or with the shards of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from paramd.context import Context
from paramd.spec import (
    InitializeEntry,
    LoadOptions,
    ParameterSpec,
    Selector,
    StoredInfo,
    TensorHead,
    Version,
)
from paramd.trainer_spec import StatesManifest, StepOptions, StepResult, TrainerInfo, TrainerSpec
from paramd.transport.receiving import Out, SinkFactory
from paramd.transport.records import SessionStatus, TensorValue, TensorWrite
from paramd.transport.snapshots import SnapshotCalls
from paramd.transport.training import StatesSink
from paramd.v1 import training_service_pb2

__all__ = ["Received", "SessionCalls", "TrainerCalls"]

Received = list[tuple[TensorHead, TensorValue]]


class TrainerCalls(Protocol):
    """Calls about trainers: see `paramd.transport.training.TrainingCalls`."""

    def declare(self, spec: TrainerSpec) -> TrainerInfo:
        """Creates a trainer, or attaches to the one of that name."""
        ...

    def describe(self, names: Sequence[str] = ()) -> list[TrainerInfo]:
        """Describes trainers; all of them where none is named."""
        ...

    def delete(self, name: str) -> None:
        """Removes a trainer with its optimizer states."""
        ...

    def join(self, name: str) -> training_service_pb2.JoinTrainerResponse:
        """Makes this session one of a trainer's workers."""
        ...

    def leave(self, name: str) -> None:
        """Takes this session out of a trainer."""
        ...

    def set_learning_rate(self, name: str, learning_rate: float) -> None:
        """Changes the learning rate."""
        ...

    def step(
        self,
        options: StepOptions,
        writes: Sequence[TensorWrite],
        pull: Sequence[Selector],
        current_context: Context,
        *,
        out: Sequence[Out] | None = None,
    ) -> tuple[StepResult, Received]:
        """Pushes gradients, waits until the worker may go on, and fetches values."""
        ...

    def update(self, options: StepOptions) -> bool:
        """Steps by what the gradient buffers hold; gives whether the step was skipped."""
        ...

    def allreduce_grads(self, name: str) -> None:
        """Sums the gradient buffers over the contexts."""
        ...

    def save_states(self, name: str, write: StatesSink) -> None:
        """Reads a trainer's optimizer states."""
        ...

    def load_states(
        self,
        name: str,
        manifest: StatesManifest,
        arrays: Callable[[], Iterable[np.ndarray[Any, Any]]],
    ) -> None:
        """Replaces a trainer's optimizer states."""
        ...


class SessionCalls(Protocol):
    """The calls of one session: see `paramd.transport.calls.Calls`. Thread-safe."""

    @property
    def training(self) -> TrainerCalls:
        """The calls about trainers."""
        ...

    @property
    def snapshots(self) -> SnapshotCalls:
        """The calls about snapshots."""
        ...

    def declare(
        self, declarations: Sequence[tuple[ParameterSpec, frozenset[str]]]
    ) -> list[StoredInfo]:
        """Creates parameters, or attaches to those that exist."""
        ...

    def describe(self, names: Sequence[str]) -> list[StoredInfo]:
        """Describes parameters, in the order asked for."""
        ...

    def list_parameters(self, prefix: str = "") -> list[StoredInfo]:
        """Describes all parameters whose name begins with `prefix`."""
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Removes parameters."""
        ...

    def initialize(
        self,
        entries: Sequence[InitializeEntry],
        contexts: Sequence[Context],
        *,
        force_reinit: bool,
    ) -> list[tuple[str, StoredInfo]]:
        """Gives parameters their first values."""
        ...

    def get_data(
        self,
        selectors: Sequence[Selector],
        current_context: Context,
        *,
        out: Sequence[Out] | None = None,
    ) -> Received:
        """Pulls values."""
        ...

    def seen_in_place(self, selector: Selector, current_context: Context) -> TensorHead | None:
        """What a dense value is, without its version, where no call is needed to see that.

        Args:
            selector: the copy, without a region.
            current_context: for a selector without a context.
        """
        ...

    def get_values(
        self,
        selectors: Sequence[Selector],
        current_context: Context,
        *,
        out: Sequence[Out] | None = None,
    ) -> list[TensorValue]:
        """Pulls values, and nothing of what is said of them."""
        ...

    def get_grad(
        self,
        selectors: Sequence[Selector],
        current_context: Context,
        *,
        out: Sequence[Out] | None = None,
    ) -> Received:
        """Pulls gradient buffers."""
        ...

    def set_data(
        self,
        writes: Sequence[TensorWrite],
        *,
        initialize: bool = False,
        force_reinit: bool = False,
        contexts: Sequence[Context] = (),
    ) -> list[Version]:
        """Writes values."""
        ...

    def set_grad(self, writes: Sequence[TensorWrite], current_context: Context) -> list[Version]:
        """Writes gradient buffers."""
        ...

    def zero_grad(self, names: Sequence[str]) -> None:
        """Clears gradient buffers."""
        ...

    def reset_ctx(self, names: Sequence[str], contexts: Sequence[Context]) -> None:
        """Moves parameters to other contexts."""
        ...

    def cast(self, names: Sequence[str], dtype: np.dtype[Any]) -> None:
        """Casts values and gradients."""
        ...

    def set_attribute(self, names: Sequence[str], attribute: str, value: Any) -> None:
        """Changes one attribute."""
        ...

    def pull_rows(
        self,
        name: str,
        ids: np.ndarray[Any, Any],
        context: Context | None,
        current_context: Context,
        *,
        out: Out = None,
    ) -> tuple[TensorHead, np.ndarray[Any, Any]]:
        """Pulls rows of a row_sparse parameter."""
        ...

    def save(self, names: Sequence[str], write: SinkFactory) -> None:
        """Reads parameters for a file on the caller's side."""
        ...

    def save_on_server(self, names: Sequence[str], path: str, strip_prefix: str) -> tuple[int, int]:
        """Has the server write a file below its snapshot directory."""
        ...

    def load(self, tensors: Callable[[], Iterable[TensorWrite]], options: LoadOptions) -> list[str]:
        """Loads parameters from a file's tensors."""
        ...

    def status(self) -> SessionStatus:
        """What the server holds, and who works with it."""
        ...
