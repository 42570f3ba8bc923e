"""Plain values that go into calls and come out of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from paramd.context import Context
from paramd.files import RowSparseRows
from paramd.spec import Part, Region, Shape

__all__ = [
    "DeviceStatus",
    "PackedGradient",
    "SessionStatus",
    "TensorValue",
    "TensorWrite",
    "WorkerStatus",
]

TensorValue = np.ndarray[Any, Any] | RowSparseRows


@dataclass(frozen=True)
class PackedGradient:
    """A gradient that 2-bit compression made.

    Attributes:
        packed: its bytes.
        shape: of the gradient.
        dtype: of the gradient.
        threshold: what each element that is not 0 stands for.
    """

    packed: np.ndarray[Any, np.dtype[np.uint8]]
    shape: Shape
    dtype: np.dtype[Any]
    threshold: float


@dataclass(frozen=True)
class TensorWrite:
    """One tensor to send.

    Attributes:
        name: the parameter.
        value: of any layout and byte order.
        context: of the copy; None for every copy (values) or the current one (gradients).
        region: the part that is written; None for all.
        mode: one of `paramd.wire.tensors.MODES`.
        part: what the shard is to hold of the parameter; None where no shards are known.
    """

    name: str
    value: TensorValue | PackedGradient
    context: Context | None = None
    region: Region | None = None
    mode: str = "assign"
    part: Part | None = None


@dataclass(frozen=True)
class WorkerStatus:
    """A session that the server knows.

    Attributes:
        worker: the name that it gave, or ''.
        identity: 16 bytes, of one session in one process.
        num_pushes: committed gradient writes.
        num_pushed_tensors: the tensors in them.
    """

    worker: str
    identity: bytes
    num_pushes: int
    num_pushed_tensors: int


@dataclass(frozen=True)
class DeviceStatus:
    """A GPU of a server.

    Attributes:
        context: that stands for it.
        name: of the product.
        memory_bytes: of the values, gradients and optimizer states there.
        memory_limit_bytes: the most that they may take.
        total_bytes: what it has.
    """

    context: Context
    name: str
    memory_bytes: int
    memory_limit_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class SessionStatus:
    """What a server holds, and who works with it.

    Attributes:
        server_version: of the distribution `paramd-server`.
        epoch: new with each start of the server.
        uptime: seconds since then.
        num_parameters: how many it holds.
        memory_bytes: of values, gradients and writes in flight, in host memory.
        memory_limit_bytes: 0 for none.
        num_gpus: number of its GPU contexts.
        workers: the sessions that it knows.
        num_snapshots: saved since it was started.
        num_failed_snapshots: that could not be saved since then.
        last_snapshot: number of the newest that is whole; 0 for none.
        last_snapshot_created: when that was saved, in seconds since 1970.
        devices: its GPUs, with their memory.
        shards: where there are several, each one's own status, in their order. The above is then
            that of the coordinator, but for: memory, the sum of all; num_gpus, what every one
            has; devices, those of the first shard, of the next, and so on; num_parameters, in
            which each part counts; pushes, of which a worker has made at least as many as the
            shard that got most of them counts; and tensors, of which each part counts.
    """

    server_version: str
    epoch: int
    uptime: float
    num_parameters: int
    memory_bytes: int
    memory_limit_bytes: int
    num_gpus: int
    workers: tuple[WorkerStatus, ...]
    num_snapshots: int = 0
    num_failed_snapshots: int = 0
    last_snapshot: int = 0
    last_snapshot_created: float = 0.0
    devices: tuple[DeviceStatus, ...] = ()
    shards: tuple[SessionStatus, ...] = ()

    @property
    def epochs(self) -> frozenset[int]:
        """The starts of all servers."""
        return frozenset(shard.epoch for shard in self.shards) | {self.epoch}
