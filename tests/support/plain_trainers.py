"""Trainers, workers and parameters as plain objects: no server, and a clock that the test moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from paramd import optimizer as optimizers
from paramd.context import Context, cpu
from paramd.spec import InitializeEntry, InitializerSpec, ParameterSpec, TensorHead
from paramd.trainer_spec import StepOptions, StepResult, TrainerSpec
from paramd_server.arrays.backend import host_array
from paramd_server.arrays.devices import Devices
from paramd_server.arrays.memory import MemoryAccount
from paramd_server.core.initialization import initialize
from paramd_server.core.operations import Operation, OperationWindow
from paramd_server.core.registry import Registry
from paramd_server.core.training.buffers import BufferSteps
from paramd_server.core.training.gradients import StepStage
from paramd_server.core.training.members import Members
from paramd_server.core.training.pushes import Push
from paramd_server.core.training.trainer import StoredTrainer, World
from paramd_server.core.training.trainers import Trainers
from paramd_server.core.workers import Workers
from paramd_server.rpc.training_servicer import STEP_ANSWERS

Array = np.ndarray[Any, Any]
# Dense, or ids and rows.
Gradient = Array | tuple[Sequence[int], Array]
LEASE_S: Final = 10.0
CPU: Final = cpu(0)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def identity_of(name: str) -> bytes:
    """16 bytes that a name stands for."""
    return name.encode().ljust(16, b".")


@dataclass
class Plant:
    """What a server works with.

    Attributes:
        memory_limit: bytes.
        clock: of the leases.
    """

    memory_limit: int = 64 << 20
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.account = MemoryAccount(self.memory_limit)
        self.registry = Registry(Devices(self.account), 7, lambda _spec: None)
        self.members = Members(self.clock)
        self.operations = OperationWindow()
        self.operations.listen(self.members.renew)
        self.workers = Workers()
        self.trainers = Trainers(
            World(self.registry, self.members, self.operations, STEP_ANSWERS, self.workers)
        )
        self.buffers = BufferSteps(self.registry)
        self._sequences: dict[bytes, int] = {}

    def create(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        init: str = "zero",
        contexts: Sequence[Context] = (CPU,),
        **attributes: Any,
    ) -> None:
        """A parameter with a value."""
        self.registry.declare([(ParameterSpec(name, shape=shape, **attributes), ())])
        entry = InitializeEntry(name, InitializerSpec(init), 1, 0)
        initialize(self.registry, [entry], list(contexts), force_reinit=False)

    def value(self, name: str, context: Context = CPU) -> Array:
        """A copy of a copy."""
        with self.registry.hold([name]) as (parameter,):
            return host_array(parameter.backend(context), parameter.copies[context]).copy()

    def values(self) -> dict[str, bytes]:
        return {name: self.value(name).tobytes() for name in self.registry.names()}

    def trainer(
        self, *parameters: str, optimizer: str = "sgd", name: str = "t", **settings: Any
    ) -> StoredTrainer:
        """A trainer of parameters; sgd with the rate 1 unless `optimizer_params` says more."""
        arguments = settings.pop("optimizer_params", {"learning_rate": 1.0})
        made = optimizers.create(optimizer, **arguments)
        self.trainers.declare(TrainerSpec(name, parameters, made, **settings))
        found = self.trainers.find(name)
        assert isinstance(found, StoredTrainer)
        return found

    def sync(self, *parameters: str, **settings: Any) -> StoredTrainer:
        """A synchronous trainer."""
        return self.trainer(*parameters, distributed=True, staleness=0, **settings)

    def join(
        self, trainer: StoredTrainer, worker: str, *, incarnation: int = 0, lease_s: float = LEASE_S
    ) -> int:
        """Joins the cluster and the trainer: the clock."""
        identity = identity_of(f"{worker}{incarnation or ''}")
        self.members.join(identity, worker, lease_s=lease_s)
        _, clock = trainer.join(identity)
        return clock

    def operation(self, worker: str) -> Operation:
        """The next operation of a worker."""
        identity = identity_of(worker)
        sequence = self._sequences[identity] = self._sequences.get(identity, 0) + 1
        return Operation(identity, sequence, sequence)

    def push(
        self,
        trainer: StoredTrainer,
        worker: str,
        clock: int = 0,
        *,
        operation: Operation | None = None,
        batch_size: float = 1.0,
        learning_rate: float | None = None,
        ignore_stale_grad: bool = False,
        **gradients: Gradient,
    ) -> StepResult:
        """Sends one worker's gradients, as a stream would bring them."""
        taken, wrong = self.stage(trainer, gradients)
        options = StepOptions(
            trainer.spec.name,
            batch_size,
            clock=clock,
            learning_rate=learning_rate,
            ignore_stale_grad=ignore_stale_grad,
        )
        if wrong and trainer.spec.non_finite == "skip":
            taken = {}
        operation = self.operation(worker) if operation is None else operation
        return trainer.submit(Push(operation, options, taken, wrong))

    def stage(
        self, trainer: StoredTrainer, gradients: Mapping[str, Gradient]
    ) -> tuple[dict[str, Any], str]:
        """What a stream leaves behind."""
        stage = StepStage(self.registry, trainer.spec)
        for name, gradient in gradients.items():
            if isinstance(gradient, tuple):
                ids = np.asarray(gradient[0], np.int64)
                with self.registry.hold([name]) as (parameter,):
                    shape = parameter.shape
                head = TensorHead(
                    name,
                    shape,
                    gradient[1].dtype,
                    stype="row_sparse",
                    num_rows=len(ids),
                    mode="by_grad_req",
                )
                sent = [ids, gradient[1]]
            else:
                head = TensorHead(name, gradient.shape, gradient.dtype, mode="by_grad_req")
                sent = [gradient]
            for place, array in zip(stage.place(head), sent, strict=True):
                place[...] = array
        return stage.finish()


def full(value: float, shape: tuple[int, ...] = (2, 3), dtype: str = "f4") -> Array:
    return np.full(shape, value, dtype)
