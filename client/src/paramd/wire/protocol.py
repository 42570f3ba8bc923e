"""The number that client and server compare in their handshake."""

from __future__ import annotations

from typing import Final

__all__ = ["PROTOCOL"]

# Goes up with each change that an older peer would misunderstand.
PROTOCOL: Final = 1
