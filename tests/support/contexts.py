"""The context that the system tests run on: `cpu(0)`, or what `pytest --context` names."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from paramd import context as contexts
from paramd.context import Context, cpu

__all__ = [
    "CONTEXT_VARIABLE",
    "DEVICES_VARIABLE",
    "device",
    "has_memory_of_its_own",
    "is_main_memory",
    "memory_limit",
    "named",
    "seed_threads",
    "seeded_threads",
    "suite_context",
]

CONTEXT_VARIABLE: Final = "PARAMD_TEST_CONTEXT"
DEVICES_VARIABLE: Final = "PARAMD_TEST_DEVICES"
# What the backend of GPUs keeps of main memory to move data through.
_PINNED_MIB: Final = 32


def suite_context() -> Context:
    """Where the suite's parameters are when nothing else is said."""
    return Context.from_string(os.environ.get(CONTEXT_VARIABLE) or "cpu(0)")


def device(number: int = 0) -> Context:
    """Contexts that are different for different numbers; 0 is the suite's own.

    The others are of its type too, where that has any number of them. A machine may have one GPU:
    beside that there is main memory, so that what has several copies has them on both.
    """
    chosen = suite_context()
    if number == 0 or chosen.device_type != "gpu":
        return Context(chosen.device_type, chosen.device_id + number)
    return cpu(number)


def named(number: int = 0) -> str:
    """A regular expression that finds `device(number)` in a message."""
    return re.escape(str(device(number)))


def has_memory_of_its_own() -> bool:
    """Whether what is on `device(0)` is somewhere else than what comes in, and has a limit itself.

    NumPy under another name has not.
    """
    numpy = os.environ.get(DEVICES_VARIABLE) == "numpy"
    return suite_context().device_type == "gpu" and not numpy


def is_main_memory() -> bool:
    """Whether `device(0)` is a `cpu`: what comes in becomes a value there, without a copy."""
    return suite_context().device_type == "cpu"


def memory_limit(mebibytes: int, num_shards: int = 1) -> tuple[str, ...]:
    """Options of servers with so much memory on `device(0)` each, and as much for what comes in."""
    whole = mebibytes * num_shards
    if not has_memory_of_its_own():
        return ("--memory-limit", f"{whole}M")
    host = ("--memory-limit", f"{whole + _PINNED_MIB * num_shards}M")
    return (*host, "--gpu-memory-limit", f"{whole}M")


def seed_threads(context: Context) -> None:
    """From now on a context is the current one of every thread, outside of all `with` blocks."""

    class Seeded(threading.local):
        def __init__(self) -> None:
            self.stack = [context]

    contexts._current = Seeded()


@contextmanager
def seeded_threads(context: Context) -> Iterator[None]:
    """`seed_threads`, until the block ends."""
    before = contexts._current
    seed_threads(context)
    try:
        yield
    finally:
        contexts._current = before
