"""The workers and the trainers of a server as sections of a snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paramd.context import Context
from paramd.optimizer.documents import from_document, to_document
from paramd.trainer_spec import TrainerSpec
from paramd.wire.dtypes import dtype_of
from paramd_server.core.registry import Registry
from paramd_server.core.snapshot import ArraysReader, SavedArray, SavedSection
from paramd_server.core.snapshot_buffers import restore_buffers, save_buffers
from paramd_server.core.training.members import Members
from paramd_server.core.training.trainer import StoredTrainer
from paramd_server.core.training.trainers import Trainers, warm_up
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

    def save(self) -> SavedSection:
        """See Section."""
        document = self._members.document()
        return SavedSection(document, blank=not any(document.values()))

    def restore(self, document: Mapping[str, Any], arrays: ArraysReader) -> None:
        """See Section."""
        self._members.restore(document)


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

    def save(self) -> SavedSection:
        """See Section."""
        documents: list[dict[str, Any]] = []
        arrays: list[SavedArray] = []
        for index, trainer in enumerate(self._trainers.all()):
            with trainer.condition:
                stepped, more = self._save_states(str(index), trainer)
                arrays += more
                residuals, more = self._save_residuals(f"{index}/residual", trainer)
                arrays += more
                documents.append(
                    {
                        "spec": _save_spec(trainer.spec),
                        "progress": trainer.progress(),
                        "num_update": trainer.updates.num_update,
                        "parameters": stepped,
                        "residuals": residuals,
                    }
                )
        return SavedSection({"trainers": documents}, arrays, blank=not documents)

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
            warm_up(spec, self._registry)
            self._trainers.put(trainer)

    def _save_states(
        self, key: str, trainer: StoredTrainer
    ) -> tuple[dict[str, Any], list[SavedArray]]:
        devices = self._registry.devices
        document: dict[str, Any] = {}
        arrays: list[SavedArray] = []
        for number, (name, entry) in enumerate(trainer.updates.stepped().items()):
            if entry.parameter.deleted:
                continue
            states: dict[str, Any] = {}
            for state in next(iter(entry.states.values()), {}):
                buffers = {context: each[state] for context, each in entry.states.items()}
                first = next(iter(buffers.values()))
                place = f"{key}/{number}/{state}"
                entries, more = save_buffers(place, buffers, devices)
                arrays += more
                states[state] = {
                    "shape": list(first.shape),
                    "dtype": str(first.dtype),
                    "buffers": entries,
                }
            document[name] = {
                "count": entry.count,
                "counter": entry.counter,
                "dtype": str(entry.dtype),
                "contexts": [str(context) for context in entry.states],
                "states": states,
            }
        return document, arrays

    def _save_residuals(
        self, key: str, trainer: StoredTrainer
    ) -> tuple[list[dict[str, Any]], list[SavedArray]]:
        documents: list[dict[str, Any]] = []
        arrays: list[SavedArray] = []
        for number, ((name, context), buffer) in enumerate(trainer.residuals.items()):
            place = f"{key}/{number}"
            entries, more = save_buffers(place, {context: buffer}, self._registry.devices)
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

    def _restore_residual(
        self, trainer: StoredTrainer, entry: Mapping[str, Any], arrays: ArraysReader
    ) -> None:
        shape = tuple(int(dimension) for dimension in entry["shape"])
        buffers = restore_buffers(
            entry["buffers"], arrays, shape, dtype_of(entry["dtype"]), self._registry.devices
        )
        for context, buffer in buffers.items():
            trainer.residuals[entry["parameter"], context] = buffer

    def _restore_states(
        self, trainer: StoredTrainer, name: str, entry: Mapping[str, Any], arrays: ArraysReader
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
