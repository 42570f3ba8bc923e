"""Limits that keep the memory for reading a file in proportion to its size."""

from __future__ import annotations

from typing import Final

__all__ = [
    "MAX_EXPANSION_BYTES",
    "MAX_HEADER_BYTES",
    "MAX_NAME_BYTES",
    "MAX_RANK",
    "MAX_TENSORS",
]

MAX_TENSORS: Final = 1 << 17
"""Tensors in one file. Each costs the reader about a kilobyte, whatever its size."""

MAX_NAME_BYTES: Final = 1 << 16
"""Bytes of a name in UTF-8."""

MAX_RANK: Final = 32
"""Dimensions of a tensor: the most that every supported NumPy can hold."""

MAX_HEADER_BYTES: Final = 32 << 20
"""Bytes of JSON in a file, which take many times their size when they are parsed."""

MAX_EXPANSION_BYTES: Final = 256 << 20
"""How much larger than the file its tensors may be, in all (compressed members, csr arrays)."""
