"""Where one parameter is, with what has to be known of it to take calls apart."""

from __future__ import annotations

from dataclasses import dataclass

from paramd.placement import Layout, layout_of
from paramd.spec import Part, Shape, StoredInfo

__all__ = ["Placed", "placed_by"]


@dataclass(frozen=True)
class Placed:
    """Where one parameter is, and what was known of it when its home shard was asked last.

    Attributes:
        name: of the parameter.
        layout: which shard has what of it.
        shape: of the whole parameter, as far as it was known.
        stype: storage type of its values.
        grad_stype: storage type of its gradients.
        state: 'declared', 'deferred' or 'initialized'.
        grad_req: 'write', 'add' or 'null'.
    """

    name: str
    layout: Layout
    shape: Shape | None
    stype: str
    grad_stype: str
    state: str = "initialized"
    grad_req: str = "write"

    @property
    def is_spread(self) -> bool:
        """Whether several shards have parts of it."""
        return self.layout.is_spread

    @property
    def home(self) -> int:
        """The shard that always has its spec."""
        return self.layout.home

    @property
    def shards(self) -> tuple[int, ...]:
        """The shards that have something of it, in their order."""
        return self.layout.shards

    @property
    def whole(self) -> Shape:
        """The shape of a parameter that is spread, which is known."""
        assert self.shape is not None
        return self.shape

    @property
    def parts(self) -> dict[int, Part]:
        """What each shard has, of a parameter that is spread."""
        return dict(self.layout.parts)


def placed_by(info: StoredInfo, home: int, num_shards: int) -> Placed:
    """Where a parameter is, as its home shard describes it.

    Whether it is spread was decided when its shape became known, and stays so.

    Args:
        info: from the home shard.
        home: its number.
        num_shards: how many there are.
    """
    spec = info.current
    shape, split_elements = spec.shape, None
    if spec.part is not None:
        shape, split_elements = spec.part.shape, 0
    if split_elements is None:
        layout = Layout(home, {})
    else:
        layout = layout_of(spec.name, shape, spec.stype, num_shards, split_elements)
    return Placed(spec.name, layout, shape, spec.stype, spec.grad_stype, info.state, spec.grad_req)
