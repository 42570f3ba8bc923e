"""What a random program knows about its parameters while it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tests.conformance.program import Program, Ref

__all__ = ["EXACT_MEANS", "Draw", "Model", "Writer"]

Draw = Callable[[st.SearchStrategy[Any]], Any]

EXACT_MEANS = ("float32", "float64")


@dataclass
class Model:
    """What is known about a parameter while its program is written."""

    name: str
    ref: Ref
    shape: tuple[int, ...]
    dtype: str
    stype: str
    grad_stype: str
    grad_req: str
    may_wait: bool
    is_constant: bool = False
    is_differentiable: bool = True
    state: str = "new"
    contexts: tuple[int, ...] = ()
    differs: bool = False

    @property
    def is_known(self) -> bool:
        return all(size > 0 for size in self.shape)

    @property
    def is_ready(self) -> bool:
        return self.state != "new" and self.is_known

    @property
    def mean_is_exact(self) -> bool:
        """Whether the mean is the same on both ('mean of integers', of float16, of uint8)."""
        if len(self.contexts) < 2:
            return True
        if self.dtype == "bool":
            return False  # MXNet cannot add booleans.
        return not self.differs or (self.dtype in EXACT_MEANS and len(self.contexts) == 2)


@dataclass
class Writer:
    """Writes one program.

    Attributes:
        program: the program so far.
        models: its parameters.
    """

    draw: Draw
    program: Program = field(default_factory=Program)
    models: list[Model] = field(default_factory=list)
    params: Ref | None = None

    def one_of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def maybe(self) -> bool:
        return bool(self.draw(st.booleans()))

    def number(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def model(self) -> Model:
        model: Model = self.draw(st.sampled_from(self.models))
        return model

    def values(self, shape: tuple[int, ...]) -> Any:
        count = 1
        for size in shape:
            count *= size
        # Never all zero: 'rows of a value without any'.
        start, step = self.number(1, 9), self.number(0, 3)
        flat: list[Any] = [(start + step * index) % 19 for index in range(count)]
        for size in reversed(shape[1:]):
            flat = [flat[i : i + size] for i in range(0, len(flat), size)]
        return flat

    def contexts(self) -> tuple[int, ...]:
        ids = self.draw(st.permutations((0, 1, 2)))
        return tuple(ids[: self.number(1, 3)])
