"""A worker of a cluster that makes each call of a step by itself, and so can stop at any point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import Message

from paramd.v1 import parameter_pb2
from paramd.v1 import training_service_pb2 as pb
from tests.support.raw_calls import Array, RawClient, as_bytes, grad_stream, step_stream

__all__ = ["COMMITTED", "STAGED", "UNKNOWN", "RawWorker"]

COMMITTED = pb.STEP_STATE_COMMITTED
STAGED = pb.STEP_STATE_STAGED
UNKNOWN = pb.STEP_STATE_UNKNOWN


class RawWorker:
    """One worker with one identity on all shards, whose gradients are all -1.

    Args:
        addresses: of the shards.
        name: of the worker.
        lease_s: how long its lease holds.
    """

    def __init__(self, addresses: Sequence[str], name: str, *, lease_s: float = 600.0) -> None:
        first = RawClient(addresses[0])
        others = [RawClient(address, first.identity) for address in addresses[1:]]
        self.shards = [first, *others]
        self.name = name
        self._lease_s = lease_s

    def __enter__(self) -> RawWorker:
        return self

    def __exit__(self, *_exc: object) -> None:
        for shard in self.shards:
            shard.channel.close()

    def join(self, trainer: str) -> int:
        """Joins the cluster and a trainer: the clock."""
        self.shards[0].join(self.name, lease_s=self._lease_s)
        return self.shards[0].join_trainer(trainer)

    def operation(self) -> parameter_pb2.Operation:
        """The next operation. None counts as answered: each may be asked about again."""
        operation = self.shards[0].operation()
        operation.acknowledged_below = 1
        return operation

    def gradient(self, shard: int, parameter: str) -> Array:
        """What this worker pushes to a shard: as much as that shard has of a parameter."""
        (info,) = self.shards[shard].infos(parameter)
        return np.full(tuple(info.current.shape.dimensions), -1.0, "f4")

    # Steps that come with their gradients

    def push(
        self, shard: int, trainer: str, operation: parameter_pb2.Operation, clock: int
    ) -> Iterator[Message | bytes]:
        """The messages of a step, without the last one."""
        tensors = [(name, self.gradient(shard, name)) for name in self._parameters(trainer)]
        return step_stream(operation, trainer, *tensors, clock=clock)

    def stage(
        self, trainer: str, operation: parameter_pb2.Operation, clock: int, *shards: int
    ) -> list[pb.StagedPart]:
        """Stages a step on other shards than the coordinator, or on some of them."""
        parts = []
        for shard in shards or range(1, len(self.shards)):
            messages = self.push(shard, trainer, operation, clock)
            result = self.shards[shard].call("Step", messages)[0].result
            assert result.state == STAGED, result
            parts.append(result.staged)
        return parts

    def commit(
        self,
        trainer: str,
        operation: parameter_pb2.Operation,
        clock: int,
        parts: Sequence[pb.StagedPart],
    ) -> pb.StepResult:
        """Sends a step that has been staged to the coordinator."""

        def messages() -> Iterator[Message | bytes]:
            yield from self.push(0, trainer, operation, clock)
            yield pb.StepRequest(commit=pb.StepCommit(parts=parts))

        (first, *_) = self.shards[0].start("Step", messages(), ends=False)
        return pb.StepResponse.FromString(first).result

    def step(
        self, trainer: str, clock: int, operation: parameter_pb2.Operation | None = None
    ) -> pb.StepResult:
        """A whole step; staged in a round that is not complete, or committed."""
        operation = self.operation() if operation is None else operation
        parts = self.stage(trainer, operation, clock)
        return self.commit(trainer, operation, clock, parts)

    def await_step(
        self, trainer: str, operation: parameter_pb2.Operation, shard: int = 0
    ) -> pb.StepResult:
        """How a push stands after ten seconds at most."""
        request = pb.AwaitStepRequest(operation=operation, trainer=trainer, wait_ms=10_000)
        answer = self.shards[shard].call("AwaitStep", request)
        assert isinstance(answer, pb.AwaitStepResponse)
        return answer.result

    # Steps by the gradient buffers

    def fill(self, trainer: str) -> None:
        """Writes the gradients of a trainer's parameters into the buffers of all shards."""
        for number, shard in enumerate(self.shards):
            for name in self._parameters(trainer):
                tensor = (name, self.gradient(number, name))
                shard.call("SetGrad", grad_stream(self.operation(), tensor))

    def stage_update(self, trainer: str, operation: parameter_pb2.Operation) -> list[pb.StagedPart]:
        """Asks the other shards what a step would update."""
        request = pb.UpdateRequest(operation=operation, trainer=trainer, batch_size=1.0)
        return [shard.call("Update", request).staged for shard in self.shards[1:]]

    def commit_update(
        self,
        trainer: str,
        operation: parameter_pb2.Operation,
        parts: Sequence[pb.StagedPart],
    ) -> pb.UpdateResponse:
        """Has the coordinator commit it."""
        request = pb.UpdateRequest(
            operation=operation, trainer=trainer, batch_size=1.0, parts=parts
        )
        answer = self.shards[0].call("Update", request)
        assert isinstance(answer, pb.UpdateResponse)
        return answer

    def update(self, trainer: str) -> parameter_pb2.Operation:
        """Fills the buffers, and makes a whole step by them."""
        self.fill(trainer)
        operation = self.operation()
        answer = self.commit_update(trainer, operation, self.stage_update(trainer, operation))
        assert not answer.stage_again
        return operation

    # What is there

    def values(self, trainer: str) -> list[set[float]]:
        """Of each shard: the different elements of a trainer's parameters."""
        return [
            {float(x) for name in self._parameters(trainer) for x in shard.get(name).ravel()}
            for shard in self.shards
        ]

    def num_steps(self, trainer: str) -> list[int]:
        """Of each shard: how many steps it has carried out."""
        return [shard.trainers(trainer)[0].num_steps for shard in self.shards]

    def num_lost_steps(self, trainer: str) -> list[int]:
        """Of each shard: how many steps it lacks, or has that the coordinator lacks."""
        return [shard.trainers(trainer)[0].num_lost_steps for shard in self.shards]

    def _parameters(self, trainer: str) -> Sequence[str]:
        return [trainer]


def first_messages(messages: Iterator[Message | bytes], count: int) -> list[Any]:
    """The beginning of a stream, as bytes."""
    return [as_bytes(next(messages)) for _ in range(count)]
