"""The update rules of the optimizers: which update a backend does, with which numbers."""

from __future__ import annotations

from paramd.optimizer import Optimizer
from paramd_server.core.optimizers.adaptive import ADAPTIVE
from paramd_server.core.optimizers.descent import DESCENT
from paramd_server.core.optimizers.rule import UpdateRule

__all__ = ["UpdateRule", "rule_for"]


def rule_for(optimizer: Optimizer) -> UpdateRule:
    """The rule of a declared optimizer. It knows nothing of parameters, and keeps no state.

    Raises:
        KeyError: for an optimizer of a class that `paramd.optimizer` does not have.
    """
    return {**DESCENT, **ADAPTIVE}[optimizer.name](optimizer)
