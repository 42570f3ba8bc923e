"""paramd's server: a process that owns every parameter of a model."""

from typing import Final

__all__ = ["__version__"]

__version__: Final = "0.1.0"
