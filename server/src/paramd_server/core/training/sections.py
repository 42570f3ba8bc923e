"""The workers and the trainers of a server as sections of a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from paramd.context import Context
from paramd.optimizer.documents import from_document, to_document
from paramd.trainer_spec import TrainerSpec
from paramd.wire.dtypes import dtype_of
from paramd_server.arrays.backend import Buffer
from paramd_server.core.held_buffers import BufferHolds
from paramd_server.core.registry import Registry
from paramd_server.core.snapshot import ArraysReader, SavedArray, SavedSection
from paramd_server.core.snapshot_buffers import restore_buffers, save_buffers
from paramd_server.core.stored_parameter import StoredParameter
from paramd_server.core.training.followed import FollowedTrainer
from paramd_server.core.training.members import Members
from paramd_server.core.training.trainer import StoredTrainer
from paramd_server.core.training.trainers import Trainers
from paramd_server.core.training.updates import SteppedParameter

__all__ = ["MembersSection", "TrainersSection"]


class MembersSection:
    """The workers that have joined. Their leases begin anew with the server.

    Args:
        members: of the server.
    """

    name = "members"

    def __init__(self, members: Members) -> None:
        self._members = members

    def capture(self, holds: BufferHolds) -> Callable[[], SavedSection]:
        """See Section."""
        document = self._members.document()
        return lambda: SavedSection(document, blank=not any(document.values()))

    def restore(self, document: Mapping[str, Any], arrays: ArraysReader) -> None:
        """See Section."""
        self._members.restore(document)


class _Captured(NamedTuple):
    """A trainer at one moment."""

    spec: TrainerSpec
    progress: dict[str, Any]
    num_update: int
    stepped: dict[str, SteppedParameter]
    residuals: dict[tuple[str, Context], Buffer]
    # Of the residuals, in their order.
    owners: list[StoredParameter]


class TrainersSection:
    """Every trainer: its spec, optimizer states, clocks and counts. Comes after the members.

    Pushes that wait in a round are not kept: their workers send them again.

    Args:
        registry: of the server.
        trainers: of the server.
    """

    name = "trainers"

    def __init__(self, registry: Registry, trainers: Trainers) -> None:
        self._registry = registry
        self._trainers = trainers

    def capture(self, holds: BufferHolds) -> Callable[[], SavedSection]:
        """See Section."""
        captured = []
        for trainer in self._trainers.all():
            with trainer.condition:
                captured.append(_capture(trainer, self._registry, holds))

        def finish() -> SavedSection:
            documents: list[dict[str, Any]] = []
            arrays: list[SavedArray] = []
            for index, each in enumerate(captured):
                document, more = _save(str(index), each, holds)
                documents.append(document)
                arrays += more
            captured.clear()
            return SavedSection({"trainers": documents}, arrays, blank=not documents)

        return finish

    def restore(self, document: Mapping[str, Any], arrays: ArraysReader) -> None:
        """See Section."""
        for each in document["trainers"]:
            spec = _restore_spec(each["spec"])
            try:
                trainer = self._trainers.make(spec)
                trainer.updates.num_update = int(each["num_update"])
                for name, entry in each["parameters"].items():
                    self._restore_states(trainer, name, entry, arrays)
                for entry in each["residuals"]:
                    self._restore_residual(trainer, entry, arrays)
                trainer.restore_progress(each["progress"])
            except (KeyError, TypeError, ValueError) as err:
                raise ValueError(f"trainer {spec.name!r}: {err}") from err
            self._trainers.put(trainer)

    def _restore_residual(
        self,
        trainer: StoredTrainer | FollowedTrainer,
        entry: Mapping[str, Any],
        arrays: ArraysReader,
    ) -> None:
        shape = tuple(int(dimension) for dimension in entry["shape"])
        buffers = restore_buffers(
            entry["buffers"], arrays, shape, dtype_of(entry["dtype"]), self._registry.devices
        )
        for context, buffer in buffers.items():
            # Where the sum over the contexts is made.
            on_host = self._registry.devices.on_host(buffer)
            trainer.residuals[entry["parameter"], context] = on_host

    def _restore_states(
        self,
        trainer: StoredTrainer | FollowedTrainer,
        name: str,
        entry: Mapping[str, Any],
        arrays: ArraysReader,
    ) -> None:
        devices = self._registry.devices
        with self._registry.hold([name]) as parameters:
            stepped = SteppedParameter(
                parameters[0],
                dtype_of(entry["dtype"]),
                int(entry["count"]),
                int(entry["counter"]),
            )
            for state, each in entry["states"].items():
                shape = tuple(int(dimension) for dimension in each["shape"])
                dtype = dtype_of(each["dtype"])
                buffers = restore_buffers(each["buffers"], arrays, shape, dtype, devices)
                for context, buffer in buffers.items():
                    stepped.states.setdefault(context, {})[state] = buffer
            for text in entry["contexts"]:
                # An optimizer without states, such as plain sgd, is remembered all the same.
                stepped.states.setdefault(Context.from_string(text), {})
            trainer.updates.take_up(stepped)


def _capture(
    trainer: StoredTrainer | FollowedTrainer, registry: Registry, holds: BufferHolds
) -> _Captured:
    stepped = {
        # What is kept of one step is never changed: the next one makes it anew.
        name: entry
        for name, entry in trainer.updates.stepped().items()
        if not entry.parameter.deleted
    }
    for entry in stepped.values():
        for states in entry.states.values():
            for buffer in states.values():
                holds.add(buffer)
    residuals = dict(trainer.residuals)
    with registry.hold([name for name, _ in residuals]) as owners:
        for buffer in residuals.values():
            holds.add(buffer)
    return _Captured(
        trainer.spec, trainer.progress(), trainer.updates.num_update, stepped, residuals, owners
    )


def _save(
    key: str, captured: _Captured, holds: BufferHolds
) -> tuple[dict[str, Any], list[SavedArray]]:
    parameters: dict[str, Any] = {}
    arrays: list[SavedArray] = []
    for number, (name, entry) in enumerate(captured.stepped.items()):
        parameters[name], more = _save_entry(f"{key}/{number}", entry, holds)
        arrays += more
    residuals, more = _save_residuals(f"{key}/residual", captured, holds)
    document = {
        "spec": _save_spec(captured.spec),
        "progress": captured.progress,
        "num_update": captured.num_update,
        "parameters": parameters,
        "residuals": residuals,
    }
    return document, [*arrays, *more]


def _save_entry(
    key: str, entry: SteppedParameter, holds: BufferHolds
) -> tuple[dict[str, Any], list[SavedArray]]:
    by_rows = entry.parameter.current.stype == "row_sparse"
    states: dict[str, Any] = {}
    arrays: list[SavedArray] = []
    for state in next(iter(entry.states.values()), {}):
        buffers = {
            context: holds.find(each[state], by_rows=by_rows)
            for context, each in entry.states.items()
        }
        first = next(iter(buffers.values()))
        entries, more = save_buffers(f"{key}/{state}", buffers, entry.parameter.lock)
        arrays += more
        states[state] = {
            "shape": list(first.shape),
            "dtype": str(first.dtype),
            "buffers": entries,
        }
    document = {
        "count": entry.count,
        "counter": entry.counter,
        "dtype": str(entry.dtype),
        "contexts": [str(context) for context in entry.states],
        "states": states,
    }
    return document, arrays


def _save_residuals(
    key: str, captured: _Captured, holds: BufferHolds
) -> tuple[list[dict[str, Any]], list[SavedArray]]:
    documents: list[dict[str, Any]] = []
    arrays: list[SavedArray] = []
    for number, ((name, context), buffer) in enumerate(captured.residuals.items()):
        held = {context: holds.find(buffer, by_rows=False)}
        entries, more = save_buffers(f"{key}/{number}", held, captured.owners[number].lock)
        arrays += more
        documents.append(
            {
                "parameter": name,
                "shape": list(buffer.shape),
                "dtype": str(buffer.dtype),
                "buffers": entries,
            }
        )
    return documents, arrays


def _save_spec(spec: TrainerSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "parameters": list(spec.parameters),
        "optimizer": to_document(spec.optimizer),
        "distributed": spec.distributed,
        "staleness": spec.staleness,
        "num_workers": spec.num_workers,
        "non_finite": spec.non_finite,
        "worker_loss": spec.worker_loss,
        "two_bit_threshold": spec.two_bit_threshold,
        "update_each_copy": spec.update_each_copy,
    }


def _restore_spec(document: Mapping[str, Any]) -> TrainerSpec:
    staleness = document["staleness"]
    return TrainerSpec(
        name=document["name"],
        parameters=tuple(document["parameters"]),
        optimizer=from_document(document["optimizer"]),
        distributed=bool(document["distributed"]),
        staleness=None if staleness is None else int(staleness),
        num_workers=int(document["num_workers"]),
        non_finite=document["non_finite"],
        worker_loss=document["worker_loss"],
        two_bit_threshold=float(document["two_bit_threshold"]),
        update_each_copy=bool(document["update_each_copy"]),
    )
