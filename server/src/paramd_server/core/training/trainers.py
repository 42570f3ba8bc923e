"""The trainers of a server by name."""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from paramd.errors import (
    InvalidArgumentError,
    ParameterNotFoundError,
    TrainerMismatchError,
    TrainerNotFoundError,
)
from paramd.trainer_spec import TrainerInfo, TrainerSpec
from paramd_server.core.optimizers import rule_for
from paramd_server.core.registry import Registry
from paramd_server.core.training.followed import FollowedTrainer
from paramd_server.core.training.members import Member
from paramd_server.core.training.trainer import StoredTrainer, World

__all__ = ["Trainers", "warm_up"]

_MAX_TRAINERS: Final = 4096
# What may differ between two declarations: nothing but the order of the parameters.
_COMPARED: Final = (
    "optimizer",
    "distributed",
    "staleness",
    "num_workers",
    "non_finite",
    "worker_loss",
    "two_bit_threshold",
    "update_each_copy",
)


class Trainers:
    """Finds, creates, lists and deletes trainers.

    Args:
        world: what they work with.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._lock = threading.Lock()
        # In order of creation; guarded by _lock.
        self._trainers: dict[str, StoredTrainer | FollowedTrainer] = {}
        world.members.listen(self._note_gone)
        world.registry.listen(self._note_deleted)

    @property
    def registry(self) -> Registry:
        """The parameters."""
        return self._world.registry

    @property
    def whole_steps(self) -> bool:
        """Whether there are trainers whose steps are to be whole on all shards."""
        return any(trainer.whole_steps for trainer in self.all())

    def declare(
        self, spec: TrainerSpec, elsewhere: Collection[str] = (), shards: Collection[int] = ()
    ) -> TrainerInfo:
        """Creates a trainer, or attaches to the one of that name.

        Args:
            spec: of the trainer.
            elsewhere: those of its parameters of which this server holds nothing.
            shards: the other shards that hold something of its parameters.

        Raises:
            TrainerMismatchError: where the settings differ from those declared first, or a
                parameter belongs to another trainer.
            ParameterNotFoundError, InvalidArgumentError.
        """
        self._check(spec, elsewhere)
        with self._lock:
            there = spec.name in self._trainers
        if not there:
            # Before any lock is taken: it may take a second.
            warm_up(spec, self._world.registry)
        with self._lock:
            known = self._trainers.get(spec.name)
            if known is None:
                self._check_free(spec)
                if len(self._trainers) >= _MAX_TRAINERS:
                    raise InvalidArgumentError(f"there are {_MAX_TRAINERS} trainers already")
                known = self._trainers[spec.name] = self.make(spec)
            else:
                _compare(known.spec, spec)
        with known.condition:
            # Parameters may have been deleted and made anew, of another size.
            known.place(elsewhere, shards)
            known.mark_first(self._world.registry)
        return known.info()

    def warm_up(self) -> None:
        """Makes the backends ready for the trainers of a snapshot, which takes a second or more.

        After the server has begun to serve: a step that comes before waits for it.
        """
        for trainer in self.all():
            # A parameter that is deleted just now needs none.
            with suppress(ParameterNotFoundError):
                warm_up(trainer.spec, self._world.registry)

    def make(self, spec: TrainerSpec) -> StoredTrainer | FollowedTrainer:
        """A trainer that is not one of these yet."""
        if self._world.shard:
            return FollowedTrainer(spec, self._world, self._world.shard)
        return StoredTrainer(spec, self._world)

    def put(self, trainer: StoredTrainer | FollowedTrainer) -> None:
        """Takes up a trainer that `make` made."""
        with trainer.condition:
            trainer.mark_first(self._world.registry)
        with self._lock:
            self._trainers[trainer.spec.name] = trainer

    def lead(self, name: str) -> StoredTrainer:
        """A trainer that this server commits.

        Raises:
            TrainerNotFoundError.
            InvalidArgumentError: on a shard that is not the coordinator.
        """
        trainer = self.find(name)
        if isinstance(trainer, FollowedTrainer):
            raise InvalidArgumentError(
                f"trainer {name!r}: this is shard {self._world.shard}, and the coordinator of the "
                "cluster is shard 0"
            )
        return trainer

    def find(self, name: str) -> StoredTrainer | FollowedTrainer:
        """A trainer by name. Raises TrainerNotFoundError."""
        with self._lock:
            trainer = self._trainers.get(name)
        if trainer is None:
            raise TrainerNotFoundError(f"the server holds no trainer {name!r}")
        return trainer

    def all(self) -> list[StoredTrainer | FollowedTrainer]:
        """The trainers, in order of creation."""
        with self._lock:
            return list(self._trainers.values())

    def after(self, name: str) -> list[StoredTrainer | FollowedTrainer]:
        """The trainers that were made after one; all of them for ''.

        Raises:
            InvalidArgumentError: where that one has been deleted meanwhile.
        """
        with self._lock:
            names = list(self._trainers)
            if name and name not in self._trainers:
                raise InvalidArgumentError(f"the page token {name[:80]!r} is not valid any more")
            start = names.index(name) + 1 if name else 0
            return [self._trainers[each] for each in names[start:]]

    def delete(self, name: str) -> None:
        """Removes a trainer with its states. Raises TrainerNotFoundError."""
        trainer = self.find(name)
        with self._lock:
            self._trainers.pop(name, None)
        trainer.delete()

    def _check(self, spec: TrainerSpec, elsewhere: Collection[str]) -> None:
        if not spec.parameters:
            raise InvalidArgumentError(f"trainer {spec.name!r} has no parameters")
        here = [name for name in spec.parameters if name not in elsewhere]
        infos = self._world.registry.describe(here)
        for info in infos:
            if spec.optimizer.name == "lamb" and info.current.part is not None:
                raise InvalidArgumentError(
                    f"trainer {spec.name!r}: lamb takes norms of whole parameters, but Parameter "
                    f"'{info.current.name}' of shape {info.current.part.shape} is spread over "
                    "several shards: start the servers with a larger --split-elements, or use "
                    "another optimizer",
                    parameter=info.current.name,
                )
        if spec.update_each_copy and spec.distributed:
            raise InvalidArgumentError(
                f"trainer {spec.name!r}: a distributed trainer updates one copy and writes the "
                "others"
            )

    def _check_free(self, spec: TrainerSpec) -> None:
        owners = {
            name: trainer.spec.name
            for trainer in self._trainers.values()
            for name in trainer.spec.parameters
        }
        for name in spec.parameters:
            if name in owners:
                raise TrainerMismatchError(
                    f"trainer {spec.name!r}: Parameter '{name}' belongs to trainer "
                    f"{owners[name]!r} already; delete that one first (delete()), or leave the "
                    "parameter out",
                    parameter=name,
                )

    def _note_gone(self, member: Member, lost: bool) -> None:
        for trainer in self.all():
            if isinstance(trainer, FollowedTrainer):
                continue
            trainer.leave(member.identity, lost=lost)

    def _note_deleted(self, parameter: str) -> None:
        for trainer in self.all():
            trainer.forget_deleted(parameter)


def warm_up(spec: TrainerSpec, registry: Registry) -> None:
    """Makes the backends ready for a trainer's updates, so that its first step is no slower."""
    rule = rule_for(spec.optimizer)
    there = frozenset(registry.names())
    found = {
        (context, info.current.dtype)
        for info in registry.describe([name for name in spec.parameters if name in there])
        for context in info.contexts
        # bfloat16 is no subtype of NumPy's floats.
        if info.current.dtype.kind in "fV"
    }
    for context, dtype in found:
        rule.warm_up(registry.devices.backend(context), dtype)


def _compare(known: TrainerSpec, spec: TrainerSpec) -> None:
    if set(known.parameters) != set(spec.parameters):
        different = sorted(set(known.parameters) ^ set(spec.parameters))[0]
        raise TrainerMismatchError(
            f"trainer {spec.name!r} exists with other parameters: '{different}' is in one of them "
            "only. Delete it first (delete()), which drops its optimizer states",
            parameter=different,
        )
    for attribute in _COMPARED:
        desired, stored = getattr(spec, attribute), getattr(known, attribute)
        if desired != stored:
            raise TrainerMismatchError(
                f"trainer {spec.name!r} exists with another {attribute}: desired '{desired}' vs "
                f"stored '{stored}'. Delete it first (delete()), which drops its optimizer states"
            )
