"""Which shard holds what: pure functions of names, shapes and the number of shards.

Every client computes the same. A parameter whose shape is not known yet is on its home shard alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from paramd.spec import Part, Shape, shape_is_known

__all__ = ["DEFAULT_SPLIT_ELEMENTS", "Layout", "home_shard", "layout_of"]

DEFAULT_SPLIT_ELEMENTS: Final = 1 << 20
"""Dense parameters of more elements are split, unless the servers say another number."""


@dataclass(frozen=True)
class Layout:
    """Where one parameter is.

    Attributes:
        home: the shard that always has its spec.
        parts: what each shard has, where the parameter is spread, by shard and in the order of the
            shards; empty where the home shard has all of it.
    """

    home: int
    parts: Mapping[int, Part]

    @property
    def is_spread(self) -> bool:
        """Whether several shards have parts of it."""
        return bool(self.parts)

    @property
    def shards(self) -> tuple[int, ...]:
        """The shards that have something of it, in their order."""
        return tuple(self.parts) or (self.home,)


def home_shard(name: str, num_shards: int) -> int:
    """The shard that holds a parameter's spec.

    The one whose number gives the highest hash together with the name: so that one more shard
    takes its share of the names, and no other name moves (Thaler and Ravishankar, "Using
    name-based mappings to increase hit rates", 1998).

    Args:
        name: of the parameter.
        num_shards: 1 or more.
    """

    def weight(shard: int) -> bytes:
        text = shard.to_bytes(4, "little") + name.encode()
        return hashlib.blake2b(text, digest_size=8, person=b"paramd home 1").digest()

    return max(range(num_shards), key=weight)


def layout_of(
    name: str, shape: Shape | None, stype: str, num_shards: int, split_elements: int
) -> Layout:
    """Where a parameter is.

    Args:
        name: of the parameter.
        shape: of the whole parameter, as far as it is known.
        stype: of its values: row_sparse parameters are spread row by row, row i on shard i modulo
            num_shards; dense ones in even ranges of rows, where they are large.
        num_shards: 1 or more.
        split_elements: dense parameters of more elements are split.
    """
    home = home_shard(name, num_shards)
    if num_shards == 1 or shape is None or not shape_is_known(shape) or shape[0] < num_shards:
        return Layout(home, MappingProxyType({}))
    rows = shape[0]
    parts: dict[int, Part] = {}
    if stype == "row_sparse":
        for shard in range(num_shards):
            count = len(range(shard, rows, num_shards))
            parts[shard] = Part(shape, shard, count, num_shards)
    elif stype == "default" and math.prod(shape) > split_elements:
        for shard in range(num_shards):
            begin, end = rows * shard // num_shards, rows * (shard + 1) // num_shards
            parts[shard] = Part(shape, begin, end - begin, 1)
    return Layout(home, MappingProxyType(parts))
