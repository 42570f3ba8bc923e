"""Optimizers as JSON documents, for files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paramd import lr_scheduler
from paramd.optimizer.base import Optimizer
from paramd.optimizer.registry import from_arguments

__all__ = ["from_document", "to_document"]


def to_document(optimizer: Optimizer) -> dict[str, Any]:
    """The document of an optimizer: plain JSON values."""
    schedule = optimizer.lr_scheduler
    return {
        "name": optimizer.name,
        "arguments": dict(optimizer.arguments()),
        "scheduler": schedule and {"name": schedule.name, "arguments": dict(schedule.arguments())},
    }


def from_document(document: Mapping[str, Any]) -> Optimizer:
    """The optimizer of a document.

    Raises:
        KeyError, TypeError, ValueError: where it is none.
    """
    made = document["scheduler"]
    schedule = made and lr_scheduler.from_arguments(made["name"], made["arguments"])
    return from_arguments(document["name"], document["arguments"], schedule)
