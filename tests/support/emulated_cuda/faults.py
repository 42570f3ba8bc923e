"""What code under test did that a GPU would punish, or silently answer with wrong data."""

from __future__ import annotations

import logging

__all__ = ["EmulationFault", "Faults"]

_log = logging.getLogger("emulated_cuda")


class EmulationFault(AssertionError):
    """The code under test uses the device wrongly; the message says how."""


class Faults(list[str]):
    """The messages of all faults so far, also of those whose exception somebody swallowed."""

    def record(self, message: str) -> EmulationFault:
        """Keeps a message.

        Returns:
            The exception to raise, where there is somebody to raise it to.
        """
        self.append(message)
        _log.critical("%s", message)
        return EmulationFault(message)
