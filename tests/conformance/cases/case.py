"""What a fixed case is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.conformance.program import Program

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """A program, and the lines that it is about.

    Attributes:
        write: writes the program.
        lines: ids of the lines, see `lines.py`.
    """

    write: Callable[[Program], None]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'+'.join(self.lines)}-{self.write.__name__}"
