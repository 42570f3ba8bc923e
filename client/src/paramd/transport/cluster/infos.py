"""What several shards say of one parameter, and of themselves, as one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Final

from paramd.spec import ParameterSpec, Part, Shape, StoredInfo
from paramd.transport.records import SessionStatus, WorkerStatus

__all__ = [
    "INCOMPLETE",
    "Lack",
    "absent",
    "lack_of",
    "local_spec",
    "merged_info",
    "merged_status",
    "whole_shape",
]


class Lack(Enum):
    """What a shard's part lacks, seen from the home shard."""

    NOTHING = "nothing"
    # The server can compute it from what the home shard knows of its first value.
    FIRST_VALUE = "first value"
    # It is that of another first value, which the home shard replaced.
    NEW_VALUE = "new value"
    # Only a client that holds the initializer can go on.
    CLIENT_VALUE = "client value"
    # It has a value, and the home shard none: it was left over.
    LEFT_OVER = "left over"
    # There was a value once, which that shard has lost.
    LOST = "lost"


INCOMPLETE: Final = (Lack.FIRST_VALUE, Lack.CLIENT_VALUE, Lack.LOST)
"""With one of these the parameter has no value as a whole."""


def absent(home: StoredInfo) -> StoredInfo:
    """What stands for a part that is not there at all."""
    return replace(
        home, state="declared", contexts=(), value_bytes=0, gradient_bytes=0, first_value=None
    )


def whole_shape(spec: ParameterSpec) -> Shape | None:
    """The shape of the whole parameter, as far as it is known."""
    return spec.shape if spec.part is None else spec.part.shape


def local_spec(spec: ParameterSpec, part: Part) -> ParameterSpec:
    """The spec of a shard's part, after the home shard's."""
    return replace(spec, shape=part.local_shape, part=part)


def lack_of(home: StoredInfo, other: StoredInfo) -> Lack:
    """What another shard's part lacks.

    A first value that the server computes is the same whoever asks for it, and whenever; so it can
    be caught up on as long as no write has reached the home shard's part.
    """
    if home.state == "declared":
        return Lack.NOTHING if other.state == "declared" else Lack.LEFT_OVER
    if other.state == "declared" or (home.state == "deferred" and other.state == "deferred"):
        if home.state == "deferred" or (home.first_value and home.version.counter <= 1):
            same = other.state == "deferred" and other.first_value == home.first_value
            return Lack.NOTHING if same else Lack.FIRST_VALUE
        return Lack.LOST
    if other.state == "deferred":
        if home.first_value is None:
            return Lack.CLIENT_VALUE
        return Lack.FIRST_VALUE if home.version.counter <= 1 else Lack.LOST
    return Lack.NOTHING if _same_value(home, other) else Lack.NEW_VALUE


def _same_value(home: StoredInfo, other: StoredInfo) -> bool:
    one, two = home.first_value, other.first_value
    if one is None or two is None:
        # A client's value: both shards got theirs from it.
        return True
    # A move to other contexts may have reached one of them only.
    return (one.init, one.seed, one.draw) == (two.init, two.seed, two.draw)


def merged_info(home: StoredInfo, others: Sequence[StoredInfo]) -> StoredInfo:
    """One description of a parameter that is spread.

    Args:
        home: of the home shard.
        others: of the other shards that have parts.
    """
    info = replace(
        home,
        declared=_whole(home.declared),
        current=_whole(home.current),
        value_bytes=home.value_bytes + sum(other.value_bytes for other in others),
        gradient_bytes=home.gradient_bytes + sum(other.gradient_bytes for other in others),
    )
    lacks = {lack_of(home, other) for other in others}
    if lacks & {Lack.LOST, Lack.FIRST_VALUE}:
        return replace(info, state="declared", contexts=(), first_value=None)
    if Lack.CLIENT_VALUE in lacks:
        return replace(info, state="deferred", awaits_client_value=True)
    return info


def _whole(spec: ParameterSpec) -> ParameterSpec:
    return replace(spec, shape=whole_shape(spec), part=None)


def merged_status(shards: Sequence[SessionStatus]) -> SessionStatus:
    """The status of a cluster: that of the coordinator, with the memory of all.

    Args:
        shards: their statuses, in their order.
    """
    first = shards[0]
    limits = [shard.memory_limit_bytes for shard in shards]
    return replace(
        first,
        num_parameters=sum(shard.num_parameters for shard in shards),
        memory_bytes=sum(shard.memory_bytes for shard in shards),
        memory_limit_bytes=sum(limits) if all(limits) else 0,
        num_gpus=min(shard.num_gpus for shard in shards),
        workers=tuple(_merged_workers(shards).values()),
        devices=tuple(device for shard in shards for device in shard.devices),
        shards=tuple(shards),
    )


def _merged_workers(shards: Sequence[SessionStatus]) -> Mapping[bytes, WorkerStatus]:
    merged: dict[bytes, WorkerStatus] = {}
    for shard in shards:
        for worker in shard.workers:
            known = merged.get(worker.identity)
            if known is None:
                merged[worker.identity] = worker
                continue
            merged[worker.identity] = replace(
                known,
                # A push that reaches several shards is one.
                num_pushes=max(known.num_pushes, worker.num_pushes),
                num_pushed_tensors=known.num_pushed_tensors + worker.num_pushed_tensors,
            )
    return merged
