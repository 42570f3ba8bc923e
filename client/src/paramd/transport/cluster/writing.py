"""Writes of whole parameters, as each shard is sent them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paramd.errors import InvalidStreamError, NoGradientError, UninitializedValueError
from paramd.spec import Version, shape_is_known
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
    placed: Mapping[str, Placed],
    writes: Sequence[TensorWrite],
    *,
    gradient: bool,
    first: bool = False,
) -> WritePlan:
    """Takes writes apart, after it has checked all of them where they go to several shards.

    Args:
        placed: where the parameters are.
        writes: the tensors.
        gradient: whether they are of gradients.
        first: whether they are first values.

    Raises:
        ShapeMismatchError, BroadcastError, InvalidRegionError, WrongStorageTypeError,
        UninitializedValueError, NoGradientError: what a server would raise, with the shapes of the
            whole parameter.
        InvalidStreamError: where one comes twice.
    """
    _check_once(writes)
    if len({shard for write in writes for shard in placed[write.name].shards}) > 1:
        for write in writes:
            _check(placed[write.name], write, gradient=gradient, first=first)
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


def _check(placed: Placed, write: TensorWrite, *, gradient: bool, first: bool) -> None:
    """Checks one of several writes that go to different shards."""
    if shape_is_known(placed.shape):
        check_write(placed, write, gradient=gradient)
    if gradient and placed.state == "initialized" and placed.grad_req == "null":
        raise NoGradientError(
            f"Cannot get gradient array for Parameter '{write.name}' because grad_req='null'",
            parameter=write.name,
        )
    if placed.state == "declared" and not gradient and not first:
        raise UninitializedValueError(
            f"Parameter '{write.name}' has not been initialized", parameter=write.name
        )


def _check_once(writes: Sequence[TensorWrite]) -> None:
    seen: dict[str, set[object]] = {}
    for write in writes:
        there = seen.setdefault(write.name, set())
        if there and (write.context is None or {write.context, None} & there):
            raise InvalidStreamError(
                f"Parameter '{write.name}' comes twice in one stream", parameter=write.name
            )
        there.add(write.context)
