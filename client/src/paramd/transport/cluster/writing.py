"""Writes of whole parameters, as each shard is sent them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paramd.errors import InvalidStreamError
from paramd.spec import Version
from paramd.transport.cluster.placed import Placed
from paramd.transport.cluster.slicing import check_write, split_write
from paramd.transport.records import TensorWrite

__all__ = ["WritePlan", "plan_writes"]


@dataclass
class WritePlan:
    """Writes, as each shard is sent them.

    Attributes:
        writes: by shard, in the order of the call.
        reporters: for each write of the call the shard, and the place in its list, whose version
            counts: the home shard's, where it is sent something.
    """

    writes: dict[int, list[TensorWrite]]
    reporters: list[tuple[int, int]]

    def merge(self, versions: Mapping[int, Sequence[Version]]) -> list[Version]:
        """The version of each write of the call."""
        return [versions[shard][place] for shard, place in self.reporters]


def plan_writes(
    placed: Mapping[str, Placed], writes: Sequence[TensorWrite], *, gradient: bool
) -> WritePlan:
    """Takes writes apart, after it has checked all of them.

    Args:
        placed: where the parameters are.
        writes: the tensors.
        gradient: whether they are of gradients.

    Raises:
        ShapeMismatchError, BroadcastError, InvalidRegionError, WrongStorageTypeError: what a
            server would raise of what is spread, with the shapes of the whole parameter.
        InvalidStreamError: where one comes twice.
    """
    _check_once(writes)
    for write in writes:
        if placed[write.name].is_spread:
            check_write(placed[write.name], write, gradient=gradient)
    plan = WritePlan({}, [])
    for write in writes:
        where = placed[write.name]
        pieces = {where.home: write}
        if where.is_spread:
            pieces = split_write(where, write, gradient=gradient)
        reporter = where.home if where.home in pieces else next(iter(pieces))
        for shard, piece in pieces.items():
            sent = plan.writes.setdefault(shard, [])
            if shard == reporter:
                plan.reporters.append((shard, len(sent)))
            sent.append(piece)
    return plan


def _check_once(writes: Sequence[TensorWrite]) -> None:
    seen: dict[str, set[object]] = {}
    for write in writes:
        there = seen.setdefault(write.name, set())
        if there and (write.context is None or {write.context, None} & there):
            raise InvalidStreamError(
                f"Parameter '{write.name}' comes twice in one stream", parameter=write.name
            )
        there.add(write.context)
